//! Connections that are a child process's standard input and output.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;

use hvsock::HvStream;

use crate::world::World;

/// Every way in which a connection can be given to a child.
fn each_way(run: impl Fn(HvStream, HvStream)) {
    let world = World::new();
    for plain in [true, false] {
        let (connector, acceptor) = world.pair(&world.at_web().plain(plain));
        run(connector, acceptor);
    }
    let (connector, acceptor) = world.pair(&world.at_web().shared_memory(false));
    run(connector, acceptor);
}

#[test]
fn a_child_reads_and_writes_to_the_end_of_both() {
    each_way(|stream, mut peer| {
        let child = stream.spawn(Command::new("cat")).unwrap();
        let text = vec![b'x'; 300_000];
        let mut writer = peer.try_clone().unwrap();
        let sent = text.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        peer.read_to_end(&mut back).unwrap();
        assert_eq!(back, text);
        writing.join().unwrap();
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn all_that_a_child_wrote_is_on_its_way_once_it_was_waited_for() {
    each_way(|stream, mut peer| {
        let mut command = Command::new("sh");
        command.args(["-c", "echo last words; exit 3"]);
        let status = stream.spawn(command).unwrap().wait().unwrap();
        assert_eq!(status.code(), Some(3));
        let mut words = String::new();
        peer.read_to_string(&mut words).unwrap();
        assert_eq!(words, "last words\n");
    });
}

#[test]
fn a_program_that_is_not_there_is_an_error_and_the_end_of_the_connection() {
    each_way(|stream, mut peer| {
        assert!(stream.spawn(Command::new("/no/such/program")).is_err());
        // A clean end or a reset: nobody is there any more.
        let _ = peer.read(&mut [0]);
    });
}
