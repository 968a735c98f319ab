//! Refusals, and connections that fail.

use crate::fixture::{Fixture, GUEST, StreamCommand};
use crate::util::{TIMEOUT, start};

#[test]
fn a_connect_without_a_listener_is_refused() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let error = fixture.connect_without_input().failed();
    assert!(
        error.contains("cannot connect to") && error.contains("no listener accepts"),
        "{error}"
    );
}

#[test]
fn a_second_listener_at_one_address_is_refused() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let _first = fixture.listen(["--from", "loopback"]);
    let mut second = fixture.command(["listen", &fixture.service, "--from", "loopback"]);
    let error = fixture.run(&mut second).failed();
    assert!(error.contains("cannot listen"), "{error}");
}

#[test]
fn error_numbers_of_windows_are_explained() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    for (number, words) in [
        ("10051", "is off"),
        ("10050", "is paused"),
        ("10013", "denied"),
        ("10061", "no listener accepts"),
    ] {
        let mut connect = fixture.command(["connect", GUEST, &fixture.service]);
        connect.env("HV_SHIM_VMS", GUEST);
        let done = fixture.run(connect.env("HV_SHIM_ERROR", number));
        let error = done.failed();
        assert!(error.contains(words), "{number}: {error}");
    }
}

#[test]
fn a_connect_without_an_answer_ends_at_its_timeout() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let _listener = fixture.listen(["--from", "loopback"]);
    let arguments = ["connect", "loopback", &fixture.service, "--timeout", "0.3"];
    let mut connect = fixture.command(arguments);
    let error = fixture.run(connect.env("HV_SHIM_DELAY", "20000")).failed();
    assert!(error.contains("did not reply"), "{error}");
}

#[test]
fn a_killed_peer_resets_the_connection() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut listener = fixture.listen(["--from", "loopback"]);
    let mut connector = fixture.connect();
    listener.send(b"so far\n");
    connector.wait_for_stdout("so far");
    listener.process.kill().unwrap();
    assert_eq!(connector.status(), Some(1));
    connector.wait_for_stderr("the connection was closed");
    assert_eq!(connector.received(), b"so far\n");
}

#[test]
fn a_closed_stdout_is_no_failure() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut listener = fixture.listen(["--from", "loopback"]);
    let mut process = start(&mut fixture.command(["connect", "loopback", &fixture.service]));
    drop(process.take_stdout());
    listener.send(&[b'x'; 1 << 16]);
    assert_eq!(process.wait(TIMEOUT).unwrap().code(), Some(0));
}

#[test]
fn listening_for_a_disabled_service_is_refused() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture.world.ok(["service", "disable", &fixture.service]);
    let listen = || fixture.command(["listen", &fixture.service, "--from", "children"]);
    let error = fixture.run(&mut listen()).failed();
    for part in ["disabled", "service enable"] {
        assert!(error.contains(part), "{error}");
    }
    fixture.world.ok(["service", "enable", &fixture.service]);
    StreamCommand::listening(&mut listen());
}
