//! A link whose socket is handed over to the process. A Unix socket stands in for the kernel's `AF_VSOCK`.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use hvsock::Transport;
use hvsock_address::PartitionRef;
use hvsock_broker::guest_link::Capabilities;
use hvsock_broker::model::PartitionState;
use hvsock_testkit::conformance::LONGEST_WAIT;
use hvsock_testkit::world::World;

use crate::links::pipe_link::Wanted;
use crate::links::socket_link::Guest;
use crate::links::world::LinkWorld as _;

const PORT: u32 = 5000;

const SOCKETS: Capabilities = Capabilities {
    seqpacket: false,
    half_close: true,
    refusal_reason: false,
    identity: false,
    byte_counts: false,
    reset_notice: false,
};

fn start() -> (World, Guest) {
    let world = World::new();
    let guest = world.hand_over_vm("web", SOCKETS);
    world.register(PORT);
    (world, guest)
}

/// Both ways to connect, as the guest's end and the process's.
fn both(world: &World, guest: &Guest) -> [(std::os::unix::net::UnixStream, hvsock::HvStream); 2] {
    let listener = world.listen_over(PORT, true, 1).expect("a listener");
    let inside = guest.connect(Wanted::port(PORT));
    let (outside, _) = listener.accept_timeout(LONGEST_WAIT).expect("accepted");
    let streams = guest.listen(PORT);
    let connected = world.connect_over("web", PORT, true).expect("connected");
    let accepted = streams.recv_timeout(LONGEST_WAIT).expect("accepted");
    [(inside, outside), (accepted, connected)]
}

#[test]
fn the_process_has_the_links_socket_and_nobody_counts_its_bytes() {
    let (world, guest) = start();
    for (mut inside, mut outside) in both(&world, &guest) {
        assert_eq!(outside.transport(), Transport::Direct);
        inside.write_all(b"question").expect("a write");
        let mut buffer = [0; 8];
        outside.read_exact(&mut buffer).expect("the bytes");
        outside.write_all(b"42").expect("a write");
        outside.shutdown(Shutdown::Write).expect("a half-close");
        inside.read_exact(&mut buffer[..2]).expect("the bytes");
        assert_eq!(inside.read(&mut buffer).expect("an end"), 0);
        inside.write_all(b"still").expect("the other half");
        outside.read_exact(&mut buffer[..5]).expect("the bytes");
        let seen = world.handle().connections().expect("a list");
        assert!(seen.iter().all(|one| one.bytes_sent.is_none()), "{seen:?}");
        drop(inside);
        assert_eq!(outside.read(&mut buffer).expect("a clean end"), 0);
    }
    world.has_connections(0);
    // Neither established, suspended nor closed through the link.
    assert!(guest.surplus().is_empty(), "{:?}", guest.surplus());
}

#[test]
fn an_operator_closes_a_connection_whose_socket_a_process_has() {
    let (world, guest) = start();
    for (mut inside, mut outside) in both(&world, &guest) {
        let ids: Vec<u64> = world
            .handle()
            .connections()
            .expect("a list")
            .iter()
            .map(|one| one.id)
            .collect();
        let id = outside.connection_id();
        assert!(ids.contains(&id), "{id} of {ids:?}");
        world.broker.handle().close_connection(id).expect("closed");
        let error = outside.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert!(error.to_string().contains("operator"), "{error}");
        assert!(outside.write(b"x").is_err());
        assert_eq!(inside.read(&mut [0; 8]).expect("an end"), 0);
    }
    world.has_connections(0);
}

#[test]
fn a_pause_resets_a_connection_that_cannot_be_suspended() {
    let (world, guest) = start();
    let [(mut inside, mut outside), _] = both(&world, &guest);
    outside.set_connected_suspend(true).expect("the option");
    let name = PartitionRef::Name("web".parse().expect("a name"));
    let handle = world.broker.handle();
    handle
        .set_state(&name, PartitionState::Paused)
        .expect("paused");
    let error = outside.read(&mut [0; 8]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert_eq!(inside.read(&mut [0; 8]).expect("an end"), 0);
    world.has_connections(0);
}

#[test]
fn a_guest_that_ends_with_the_kernels_error_is_a_reset() {
    let (world, guest) = start();
    for (inside, mut outside) in both(&world, &guest) {
        outside.write_all(b"unread").expect("a write");
        // A Unix socket whose peer closes with unread bytes has the error that the end of a VM causes.
        drop(inside);
        let error = outside.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    // The broker sees it, too, although the processes are still there.
    world.has_connections(0);
}
