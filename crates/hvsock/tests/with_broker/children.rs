//! Connections as the standard input and output of a child process.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::Command;

use hvsock::HvStream;

use crate::world::World;

/// Runs a test with every kind of connection that a child can get.
fn each_way(run: impl Fn(HvStream, HvStream)) {
    let world = World::new();
    for raw_fd in [true, false] {
        let (connector, acceptor) = world.pair(&world.at_web().raw_fd(raw_fd));
        run(connector, acceptor);
    }
    let (connector, acceptor) = world.pair(&world.at_web().shared_memory(false));
    run(connector, acceptor);
}

#[test]
fn a_child_reads_and_writes_to_the_end() {
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
fn waiting_for_a_child_flushes_its_output() {
    each_way(|stream, mut peer| {
        let mut command = Command::new("sh");
        command.args(["-c", "echo last line; exit 3"]);
        let status = stream.spawn(command).unwrap().wait().unwrap();
        assert_eq!(status.code(), Some(3));
        let mut output = String::new();
        peer.read_to_string(&mut output).unwrap();
        assert_eq!(output, "last line\n");
    });
}

#[test]
fn a_child_sees_no_end_of_file_when_its_connection_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("complete");
    each_way(|stream, mut peer| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("echo up; cat >/dev/null; : >\"$0\"")
            .arg(&path);
        let child = stream.spawn(command).unwrap();
        peer.read_exact(&mut [0; 3]).unwrap();
        peer.write_all(b"part").unwrap();
        peer.reset();
        let error = child.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert!(!path.exists());
    });
}

#[test]
fn a_missing_program_is_an_error_and_closes_the_connection() {
    each_way(|stream, mut peer| {
        assert!(stream.spawn(Command::new("/no/such/program")).is_err());
        // A clean end or a reset: the connection is closed.
        match peer.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    });
}
