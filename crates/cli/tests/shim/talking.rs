//! Bytes from one process to another.

use std::thread;

use crate::scene::{Scene, Talker};
use crate::util::{program, run};

/// Bytes of every value, among them those that a text mode would change, and more of them than any
/// buffer holds.
fn bytes(seed: u8) -> Vec<u8> {
    let piece = (0..=255_u8).chain(*b"\r\n\n\r\x1a\0");
    let piece: Vec<u8> = piece.map(|byte| byte.wrapping_mul(seed)).collect();
    piece.repeat(4096)
}

/// Both say much at once, and each hears what the other said, as it was.
fn talk(one: &mut Talker, other: &mut Talker) {
    let (up, down) = (bytes(1), bytes(3));
    thread::scope(|scope| {
        scope.spawn(|| {
            one.says(&up);
            one.ends();
        });
        other.says(&down);
        other.ends();
    });
    assert!(other.heard() == up, "what was said is not what was heard");
    assert!(one.heard() == down, "what was said is not what was heard");
}

#[test]
fn bytes_go_both_ways_as_they_are() {
    let Some(scene) = Scene::new() else { return };
    let mut listener = scene.listen(["--from", "loopback"]);
    let mut caller = scene.connect();
    talk(&mut caller, &mut listener);
    assert_eq!((listener.status(), caller.status()), (Some(0), Some(0)));
}

#[test]
fn the_end_of_the_input_ends_that_half_only() {
    let Some(scene) = Scene::new() else { return };
    let mut listener = scene.listen(["--from", "loopback"]);
    let mut caller = scene.connect();
    caller.says(b"question");
    caller.ends();
    // Whoever reads the listener's output sees its end, and the listener goes on.
    assert_eq!(listener.heard(), b"question");
    assert!(listener.runs() && caller.runs());
    listener.says(b"answer");
    listener.ends();
    assert_eq!(caller.heard(), b"answer");
    assert_eq!((listener.status(), caller.status()), (Some(0), Some(0)));
}

#[test]
fn the_other_ends_end_leaves_the_own_half() {
    let Some(scene) = Scene::new() else { return };
    let mut listener = scene.listen(["--from", "loopback"]);
    let mut caller = scene.connect();
    listener.ends();
    assert_eq!(caller.heard(), b"");
    assert!(caller.runs());
    caller.says(b"late");
    caller.ends();
    assert_eq!(listener.heard(), b"late");
    assert_eq!((listener.status(), caller.status()), (Some(0), Some(0)));
}

#[test]
fn a_command_for_each_connection_has_it_as_its_output() {
    let Some(scene) = Scene::new() else { return };
    let program = env!("CARGO_BIN_EXE_hvsock");
    let options = ["--from", "loopback", "--keep", "--"];
    let command = [program, "completions", "bash"];
    let mut listener = scene.listen(options.into_iter().chain(command));
    let script = run(["completions", "bash"]).ok();
    for _ in 0..2 {
        assert_eq!(scene.ask().ok(), script);
    }
    assert!(listener.runs());
}

#[test]
fn a_command_has_a_connection_as_its_input_and_output() {
    let Some(scene) = Scene::new() else { return };
    // The first one's command connects to the second, so bytes pass a child's pipes both ways.
    let second = scene.world.name("second");
    scene.world.register(&second);
    let mut last = scene.command(["listen", &second, "--from", "loopback"]);
    let mut last = Talker::listening(&mut last);
    let program = program();
    let command = [program.to_str().unwrap(), "connect", "loopback", &second];
    let options = ["--from", "loopback", "--"];
    let mut relay = scene.listen(options.into_iter().chain(command));
    let mut caller = scene.connect();
    talk(&mut caller, &mut last);
    for talker in [&mut last, &mut relay, &mut caller] {
        assert_eq!(talker.status(), Some(0));
    }
}

#[test]
fn a_command_that_fails_fails_the_connect() {
    let Some(scene) = Scene::new() else { return };
    let _listener = scene.listen(["--from", "loopback"]);
    let mut command = scene.command(["connect", "loopback", &scene.service]);
    let error = scene.run(command.args(["--", "cmd", "/c", "exit 3"]));
    let error = error.failed();
    assert!(
        error.contains("cmd failed with") && error.contains('3'),
        "{error}"
    );
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let Some(scene) = Scene::new() else { return };
    let _listener = scene.listen(["--from", "loopback"]);
    let mut command = scene.command(["connect", "loopback", &scene.service]);
    let error = scene.run(command.args(["--", "no-such-program"])).failed();
    assert!(error.contains("cannot run no-such-program"), "{error}");
}
