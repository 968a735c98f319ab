//! Connections that their listener has not taken. Covers their order, their data, the descriptors in
//! flight, and connects that wait for processes to read.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream, Refusal, VmId};
use hvsock_endpoint::BrokerMessage;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, World, accept, limit, refused};
use hvsock_testkit::{TempFolder, require};

use crate::child::{BrokerProcess, Child, ChildRole};
use crate::raw::{self, EITHER, Raw};

const PORT: u32 = 800;
/// A user without privileges.
const NOBODY: u32 = 65534;

/// Connects `count` times and writes a number to each.
fn connect_all(host: &PartitionEndpoint, count: u32) -> Vec<HvStream> {
    let connect = |number: u32| {
        let mut stream = host.connect(VmId::LOOPBACK, PORT).unwrap();
        stream.write_all(&number.to_le_bytes()).unwrap();
        stream
    };
    (0..count).map(connect).collect()
}

fn accept_number(listener: &HvListener) -> u32 {
    let mut number = [0; 4];
    accept(listener).read_exact(&mut number).unwrap();
    u32::from_le_bytes(number)
}

#[test]
fn connections_are_accepted_in_order_with_what_was_written_before() {
    let world = World::new();
    let host = world.host();
    let listener = host
        .listen_without_arenas(VmId::LOOPBACK, PORT, 100)
        .unwrap();
    for _ in 0..2 {
        let clients = connect_all(&host, 60);
        for number in 0..60 {
            assert_eq!(accept_number(&listener), number);
        }
        drop(clients);
    }
    world.settles_at(1, 0);
}

#[test]
fn a_listener_is_readable_as_long_as_a_connection_waits_and_not_longer() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen_with(VmId::LOOPBACK, PORT, 50).unwrap();
    let _clients = connect_all(&host, 30);
    for _ in 0..30 {
        assert!(listener.accept_timeout(TIMEOUT).is_ok());
    }
    let nothing = listener.accept_timeout(Duration::from_millis(50));
    assert_eq!(nothing.unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn a_connection_that_waits_is_reset_when_its_listener_closes() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen_with(VmId::LOOPBACK, PORT, 50).unwrap();
    let clients = connect_all(&host, 20);
    drop(listener);
    for mut client in clients {
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    world.settles_at(0, 0);
}

#[test]
fn what_a_client_wrote_before_it_closed_arrives_although_it_waited() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen_with(VmId::LOOPBACK, PORT, 50).unwrap();
    drop(connect_all(&host, 20));
    for number in 0..20_u32 {
        let mut bytes = Vec::new();
        accept(&listener).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, number.to_le_bytes());
    }
}

#[test]
fn connections_that_ended_while_they_waited_make_room_in_a_full_backlog() {
    let world = World::new();
    let host = world.host();
    let lazy = Raw::new(&host);
    lazy.listen(VmId::LOOPBACK, PORT, 8);
    for _ in 0..5 {
        // Each ends without a clean end, so its connection is reset.
        let clients: Vec<Raw> = (0..8).map(|_| Raw::new(&host)).collect();
        let data: Vec<_> = clients
            .iter()
            .map(|client| client.connect(VmId::LOOPBACK, PORT))
            .collect();
        assert_eq!(
            refused(host.connect(VmId::LOOPBACK, PORT)),
            Refusal::BacklogFull
        );
        drop((data, clients));
        world.settles_at(1, 0);
    }
}

/// A broker of a user without privileges, for which the kernel counts descriptors in flight, with the
/// usual limits of open descriptors.
fn unprivileged_broker(folder: &TempFolder) -> BrokerProcess {
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    BrokerProcess::start_as(folder.path(), Some([1024, 16_384]), Some(NOBODY))
}

/// Whether another process of the broker's user can pass descriptors.
fn passes_descriptors() {
    Child::start_as(&ChildRole::PassDescriptor { soft: 1024 }, Some(NOBODY));
}

#[test]
fn connections_that_a_listener_does_not_take_stop_no_other_process_from_passing_descriptors() {
    let Some(()) = require::root() else { return };
    let folder = TempFolder::new();
    let broker = unprivileged_broker(&folder);
    let (evil, web) = (broker.container("evil"), broker.container("web"));
    let lazy = Raw::new(&evil);
    lazy.listen_ring(VmId::LOOPBACK, PORT, 4096);
    let clients: Vec<_> = (0..400)
        .map(|_| {
            let client = Raw::new(&evil);
            let parts = client.connect_ring(VmId::LOOPBACK, PORT);
            (client, parts)
        })
        .collect();
    passes_descriptors();
    // Many listeners with one connection each have the same bound.
    let more: Vec<_> = (1..40)
        .map(|number| {
            let lazy = Raw::new(&evil);
            lazy.listen_ring(VmId::LOOPBACK, PORT + number, 16);
            let client = Raw::new(&evil);
            client.send(&raw::connect_by(
                VmId::LOOPBACK,
                PORT + number,
                EITHER,
                false,
            ));
            (lazy, client)
        })
        .collect();
    let refusals: Vec<_> = more
        .iter()
        .filter_map(|(_, client)| match client.recv() {
            BrokerMessage::Connected(_) => None,
            BrokerMessage::Refused(refused) => {
                Some(Refusal::from_wire(refused.code, &refused.detail))
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(!refusals.is_empty());
    for refusal in refusals {
        let text = refusal.to_string();
        assert!(text.contains("in flight of the partition evil"), "{text}");
    }
    passes_descriptors();
    let server = web.listen(VmId::LOOPBACK, PORT).unwrap();
    web.pair(VmId::LOOPBACK, PORT, &server);
    // They arrive, all of them, when they are taken.
    for (client, _) in &clients {
        let (_incoming, _parts, _control) = lazy.recv_incoming_ring();
        assert!(client.is_silent());
    }
    assert!(lazy.is_silent());
}

#[test]
fn replies_that_processes_do_not_read_stop_no_other_process_from_passing_descriptors() {
    let Some(()) = require::root() else { return };
    let folder = TempFolder::new();
    let broker = unprivileged_broker(&folder);
    let (evil, web) = (broker.container("evil"), broker.container("web"));
    let server = evil.listen_with(VmId::LOOPBACK, PORT, 4096).unwrap();
    let began = Instant::now();
    let mute: Vec<Raw> = (0..400)
        .map(|_| {
            let client = Raw::new(&evil);
            client.send(&raw::connect_by(VmId::LOOPBACK, PORT, EITHER, false));
            client
        })
        .collect();
    passes_descriptors();
    let other = web.listen(VmId::LOOPBACK, PORT).unwrap();
    web.pair(VmId::LOOPBACK, PORT, &other);
    // A connect of the same container waits for a while, and is refused by the limit's name.
    let which = limit(evil.connect(VmId::LOOPBACK, PORT));
    assert!(
        which.contains("descriptors in flight of the partition evil"),
        "{which}"
    );
    assert!(began.elapsed() < TIMEOUT);
    // The share is free again when they are gone.
    drop(mute);
    while server.accept_timeout(Duration::from_millis(50)).is_ok() {}
    eventually("the share is free again", || {
        broker.client().status().unwrap().unread_messages.used == 0
            || evil.connect(VmId::LOOPBACK, PORT).is_ok()
    });
}

#[test]
fn connects_of_a_burst_wait_for_each_other_and_none_is_refused() {
    let world = World::new();
    let web = world.container("web", None);
    let listener = web.listen_with(VmId::LOOPBACK, PORT, 200).unwrap();
    // More at once than the replies that one container may leave unread.
    let clients = [(); 48].map(|()| {
        let web = web.clone();
        std::thread::spawn(move || {
            [(); 3].map(|()| web.connect(VmId::LOOPBACK, PORT).expect("connected"))
        })
    });
    let clients = clients.map(|client| client.join().unwrap());
    for _ in clients.iter().flatten() {
        accept(&listener);
    }
}
