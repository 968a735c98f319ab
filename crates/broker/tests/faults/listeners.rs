//! Listeners that misbehave. Covers full backlogs, false ACCEPTED messages, stopped and killed
//! processes, and a partition with thousands of listeners.

use std::io::{Read, Write};
use std::net::Shutdown;

use hvsock::{HvStream, Refusal, VmId};
use hvsock_endpoint::ClientMessage;

use crate::child::{Child, ChildRole};
use crate::raw::Raw;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PartitionEndpoint, World, accept, partition_ref, refused};

const PORT: u32 = 300;

/// Connects once the backlog has a free slot. The broker handles ACCEPTED a little after `accept`
/// has returned.
fn connect_once_not_full(host: &PartitionEndpoint) -> HvStream {
    let mut connected = None;
    eventually("a free slot in the backlog", || {
        connected = host.connect(VmId::LOOPBACK, PORT).ok();
        connected.is_some()
    });
    connected.unwrap()
}

#[test]
fn a_listener_that_never_accepts_fills_only_its_own_backlog() {
    let world = World::new();
    let host = world.host();
    let lazy = host.listen_without_arenas(VmId::LOOPBACK, PORT, 3).unwrap();
    let busy = host.listen_with(VmId::LOOPBACK, PORT + 1, 3).unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| host.connect(VmId::LOOPBACK, PORT).unwrap())
        .collect();
    for _ in 0..10 {
        // Refused by the broker, not timed out.
        let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
        assert_eq!(refusal, Refusal::BacklogFull);
        host.pair(VmId::LOOPBACK, PORT + 1, &busy);
    }
    // Waiting connections carry data, and each accept frees one slot.
    (&waiting[0]).write_all(b"waiting!").unwrap();
    let mut bytes = [0; 8];
    accept(&lazy).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"waiting!");
    let _one_more = connect_once_not_full(&host);
    let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, Refusal::BacklogFull);
}

#[test]
fn accepted_messages_for_another_listeners_connections_are_ignored() {
    let world = World::new();
    let host = world.host();
    let honest = Raw::new(&host);
    honest.listen(VmId::LOOPBACK, PORT, 1);
    let hostile = Raw::new(&host);
    hostile.listen(VmId::LOOPBACK, PORT + 1, 1);
    let waiting = host.connect(VmId::LOOPBACK, PORT).unwrap();
    let (incoming, _data, _control) = honest.recv_incoming();
    assert_eq!(incoming.connection, waiting.connection_id());
    for connection in [incoming.connection, 0, 1, u64::MAX] {
        hostile.send(&ClientMessage::Accepted { connection });
    }
    world.later_exchange();
    assert!(
        hostile.is_silent(),
        "an unknown id is no protocol violation"
    );
    let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, Refusal::BacklogFull);
    // The listener's own ACCEPTED counts, and only once.
    for _ in 0..3 {
        honest.send(&ClientMessage::Accepted {
            connection: incoming.connection,
        });
    }
    let _one_more = connect_once_not_full(&host);
    let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, Refusal::BacklogFull);
    assert!(
        hostile.is_silent(),
        "an unknown id is no protocol violation"
    );
}

#[test]
fn accepted_without_receiving_frees_no_slot_of_a_connection_that_was_not_passed() {
    let world = World::new();
    let host = world.host();
    let hostile = Raw::new(&host);
    hostile.listen(VmId::LOOPBACK, PORT, 50);
    let first = host.connect(VmId::LOOPBACK, PORT).unwrap().connection_id();
    let mut streams = Vec::new();
    let refusal = loop {
        // For this one, which is in the socket, and for those that are held.
        for connection in first..=first + streams.len() as u64 {
            hostile.send(&ClientMessage::Accepted { connection });
        }
        match host.connect(VmId::LOOPBACK, PORT) {
            Ok(stream) => streams.push(stream),
            Err(error) => break hvsock_testkit::world::refusal(&error),
        }
        assert!(streams.len() < 200, "no bound");
    };
    assert_eq!(refusal, Refusal::BacklogFull);
    // Other listeners are not affected.
    let other = host.listen(VmId::LOOPBACK, PORT + 1).unwrap();
    host.pair(VmId::LOOPBACK, PORT + 1, &other);
}

#[test]
fn a_stopped_listener_blocks_no_other_and_serves_after_it_resumes() {
    let world = World::new();
    let host = world.host();
    let stopped = Child::start(&ChildRole::Echo {
        endpoint: host.0.clone(),
        port: PORT,
        backlog: 4,
    });
    let other = host.listen(VmId::LOOPBACK, PORT + 1).unwrap();
    stopped.stop();
    let mut waiting: Vec<_> = (0..4)
        .map(|_| host.connect(VmId::LOOPBACK, PORT).unwrap())
        .collect();
    for stream in &mut waiting {
        stream.write_all(b"are you there?").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for _ in 0..20 {
        let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
        assert_eq!(refusal, Refusal::BacklogFull);
        host.pair(VmId::LOOPBACK, PORT + 1, &other);
    }
    stopped.resume();
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "are you there?");
    }
}

#[test]
fn killing_a_listener_resets_waiting_and_accepted_connections() {
    let world = World::new();
    let host = world.host();
    let mut killed = Child::start(&ChildRole::Echo {
        endpoint: host.0.clone(),
        port: PORT,
        backlog: 8,
    });
    // It reads the first until its end, which never comes, and the second waits.
    let streams = [0; 2].map(|_| host.connect(VmId::LOOPBACK, PORT).unwrap());
    eventually("it has accepted the first", || {
        world.handle().listeners().unwrap()[0].waiting == 1
    });
    killed.kill();
    for mut stream in streams {
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    world.settles_at(0, 0);
    let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, Refusal::NoListener);
}

/// Regression: closing each listener recursed into closing the next and overflowed the stack.
#[test]
fn a_partition_with_thousands_of_listeners_can_be_removed() {
    let world = World::new();
    let web = world.container("web", None);
    // The limit of one partition, if this process may have that many descriptors.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let count = u32::try_from(most.current.unwrap_or(u64::MAX) / 4).map_or(4096, |n| n.min(4096));
    let listeners: Vec<Raw> = (0..count)
        .map(|port| {
            let raw = Raw::new(&web);
            raw.listen(VmId::LOOPBACK, port, 1);
            raw
        })
        .collect();
    assert_eq!(world.handle().listeners().unwrap().len(), listeners.len());
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    for raw in &listeners {
        assert_eq!(raw.recv_reset(), Refusal::PartitionOff);
    }
    world.settles_at(0, 0);
}
