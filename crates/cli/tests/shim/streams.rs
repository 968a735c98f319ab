//! Data, half-closes and exit statuses between two processes.

use std::thread;

use crate::fixture::{Fixture, StreamCommand};
use crate::util::{program, run};

/// Bytes of every value, including those that a text mode would change, and more than all buffers hold.
fn bytes(seed: u8) -> Vec<u8> {
    let chunk = (0..=255_u8).chain(*b"\r\n\n\r\x1a\0");
    let chunk: Vec<u8> = chunk.map(|byte| byte.wrapping_mul(seed)).collect();
    chunk.repeat(4096)
}

/// Sends data in both directions at once, and checks that both are received unchanged.
fn exchange(one: &mut StreamCommand, other: &mut StreamCommand) {
    let (up, down) = (bytes(1), bytes(3));
    thread::scope(|scope| {
        scope.spawn(|| {
            one.send(&up);
            one.end_input();
        });
        other.send(&down);
        other.end_input();
    });
    assert!(other.received() == up, "data differs");
    assert!(one.received() == down, "data differs");
}

#[test]
fn bytes_are_transferred_unchanged_in_both_directions() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut listener = fixture.listen(["--from", "loopback"]);
    let mut connector = fixture.connect();
    exchange(&mut connector, &mut listener);
    assert_eq!((listener.status(), connector.status()), (Some(0), Some(0)));
}

#[test]
fn the_end_of_stdin_half_closes_the_connection() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut listener = fixture.listen(["--from", "loopback"]);
    let mut connector = fixture.connect();
    connector.send(b"question");
    connector.end_input();
    // The listener's stdout ends, and the listener continues to run.
    assert_eq!(listener.received(), b"question");
    assert!(listener.is_running() && connector.is_running());
    listener.send(b"answer");
    listener.end_input();
    assert_eq!(connector.received(), b"answer");
    assert_eq!((listener.status(), connector.status()), (Some(0), Some(0)));
}

#[test]
fn after_the_peers_half_close_data_can_be_sent() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut listener = fixture.listen(["--from", "loopback"]);
    let mut connector = fixture.connect();
    listener.end_input();
    assert_eq!(connector.received(), b"");
    assert!(connector.is_running());
    connector.send(b"late");
    connector.end_input();
    assert_eq!(listener.received(), b"late");
    assert_eq!((listener.status(), connector.status()), (Some(0), Some(0)));
}

#[test]
fn listen_connects_the_stdout_of_its_commands() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let program = env!("CARGO_BIN_EXE_hvsock");
    let options = ["--from", "loopback", "--keep", "--"];
    let command = [program, "completions", "bash"];
    let mut listener = fixture.listen(options.into_iter().chain(command));
    let script = run(["completions", "bash"]).ok();
    for _ in 0..2 {
        assert_eq!(fixture.connect_without_input().ok(), script);
    }
    assert!(listener.is_running());
}

#[test]
fn listen_connects_the_stdin_and_stdout_of_its_command() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    // The first listener's command connects to the second, so the data passes a child's pipes.
    let second = fixture.world.name("second");
    fixture.world.register(&second);
    let mut last = fixture.command(["listen", &second, "--from", "loopback"]);
    let mut last = StreamCommand::listening(&mut last);
    let program = program();
    let command = [program.to_str().unwrap(), "connect", "loopback", &second];
    let options = ["--from", "loopback", "--"];
    let mut relay = fixture.listen(options.into_iter().chain(command));
    let mut connector = fixture.connect();
    exchange(&mut connector, &mut last);
    for command in [&mut last, &mut relay, &mut connector] {
        assert_eq!(command.status(), Some(0));
    }
}

#[test]
fn a_failing_command_fails_the_connect() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let _listener = fixture.listen(["--from", "loopback"]);
    let mut command = fixture.command(["connect", "loopback", &fixture.service]);
    let error = fixture.run(command.args(["--", "cmd", "/c", "exit 3"]));
    let error = error.failed();
    assert!(
        error.contains("cmd failed with") && error.contains('3'),
        "{error}"
    );
}

#[test]
fn a_missing_command_is_named() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let _listener = fixture.listen(["--from", "loopback"]);
    let mut command = fixture.command(["connect", "loopback", &fixture.service]);
    let error = fixture
        .run(command.args(["--", "no-such-program"]))
        .failed();
    assert!(error.contains("cannot run no-such-program"), "{error}");
}
