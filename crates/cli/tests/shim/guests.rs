//! Connections between a host and a simulated virtual machine.

use crate::fixture::{Fixture, GUEST, StreamCommand};

/// Variable of the shim: the partition of a process.
const PARTITION: &str = "HV_SHIM_PARTITION";

#[test]
fn a_guest_reaches_its_host_as_parent_and_is_identified() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let echo = ["cmd", "/c", "echo %HVSOCK_PEER_VM_ID%"];
    let mut listener = fixture.listen(["--from", "children", "--"].into_iter().chain(echo));
    let mut connect = fixture.command(["connect", "parent", &fixture.service]);
    let peer = fixture.run(connect.env(PARTITION, GUEST)).ok();
    assert_eq!(peer.trim(), GUEST);
    assert_eq!(listener.status(), Some(0));
}

#[test]
fn a_host_reaches_its_guest_by_its_id() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut listen = fixture.command(["listen", &fixture.service, "--from", "parent"]);
    let mut guest = StreamCommand::listening(listen.env(PARTITION, GUEST));
    let mut host = StreamCommand::start(&mut fixture.command(["connect", GUEST, &fixture.service]));
    host.send(b"from the host");
    host.end_input();
    assert_eq!(guest.received(), b"from the host");
    guest.send(b"from the guest");
    guest.end_input();
    assert_eq!(host.received(), b"from the guest");
    assert_eq!((guest.status(), host.status()), (Some(0), Some(0)));
}

#[test]
fn a_guests_connect_to_an_unregistered_service_is_refused() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let service = "0b2f1f0e-0000-4000-8000-0000000000ff";
    let mut connect = fixture.command(["connect", "parent", service]);
    let error = fixture.run(connect.env(PARTITION, GUEST)).failed();
    assert!(error.contains("cannot connect"), "{error}");
}
