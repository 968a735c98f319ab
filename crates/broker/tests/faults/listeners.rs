//! Listeners that do not do their part.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvStream, Refusal, VmId};
use hvsock_endpoint::ClientMessage;

use crate::part::{Part, Playing};
use crate::raw::Raw;
use crate::world::{A_WHILE, PATIENCE, Place, World, accept, eventually, partition_ref, refused};

const PORT: u32 = 300;

/// The broker may hear of an accept a little later than the test.
fn connected_once_there_is_room(host: &Place) -> HvStream {
    let mut connected = None;
    eventually("there is room for one", || {
        connected = host.connect(VmId::LOOPBACK, PORT).ok();
        connected.is_some()
    });
    connected.unwrap()
}

#[test]
fn one_that_never_accepts_fills_its_backlog_and_nobody_elses() {
    let world = World::new();
    let host = world.host();
    let lazy = host.listen_with(VmId::LOOPBACK, PORT, 3).unwrap();
    let busy = host.listen_with(VmId::LOOPBACK, PORT + 1, 3).unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| host.connect(VmId::LOOPBACK, PORT).unwrap())
        .collect();
    for _ in 0..10 {
        let began = Instant::now();
        let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
        assert_eq!(refusal, Refusal::BacklogFull);
        assert!(began.elapsed() < PATIENCE / 4);
        host.pair(VmId::LOOPBACK, PORT + 1, &busy);
    }
    // Those that wait have lost nothing, and each that is taken makes room for one.
    (&waiting[0]).write_all(b"patience").unwrap();
    let mut bytes = [0; 8];
    accept(&lazy).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"patience");
    let _one_more = connected_once_there_is_room(&host);
    let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, Refusal::BacklogFull);
}

#[test]
fn one_that_says_it_accepted_the_connections_of_others_changes_nothing() {
    let world = World::new();
    let host = world.host();
    let honest = Raw::new(&host);
    honest.listen(VmId::LOOPBACK, PORT, 1);
    let liar = Raw::new(&host);
    liar.listen(VmId::LOOPBACK, PORT + 1, 1);
    let waiting = host.connect(VmId::LOOPBACK, PORT).unwrap();
    let (incoming, _data, _control) = honest.take();
    assert_eq!(incoming.connection, waiting.connection_id());
    for connection in [incoming.connection, 0, 1, u64::MAX] {
        liar.say(&ClientMessage::Accepted { connection });
    }
    thread::sleep(A_WHILE);
    assert!(liar.is_quiet(), "a number that means nothing is no fault");
    let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, Refusal::BacklogFull);
    // From whom it came it counts, and once.
    for _ in 0..3 {
        honest.say(&ClientMessage::Accepted {
            connection: incoming.connection,
        });
    }
    let _one_more = connected_once_there_is_room(&host);
    let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, Refusal::BacklogFull);
}

#[test]
fn one_that_says_it_accepted_without_taking_is_held_by_what_its_socket_holds() {
    let world = World::new();
    let host = world.host();
    let liar = Raw::new(&host);
    liar.listen(VmId::LOOPBACK, PORT, 4096);
    let first = host.connect(VmId::LOOPBACK, PORT).unwrap().connection_id();
    let mut streams = Vec::new();
    let refusal = loop {
        let next = first + 1 + streams.len() as u64;
        liar.say(&ClientMessage::Accepted { connection: next });
        match host.connect(VmId::LOOPBACK, PORT) {
            Ok(stream) => streams.push(stream),
            Err(error) => break crate::world::refusal(&error),
        }
        assert!(streams.len() < 4096, "nothing holds it");
    };
    assert_eq!(refusal, Refusal::BacklogFull);
    // Others do not notice.
    let other = host.listen(VmId::LOOPBACK, PORT + 1).unwrap();
    host.pair(VmId::LOOPBACK, PORT + 1, &other);
}

#[test]
fn one_whose_process_stands_still_holds_up_nobody_and_goes_on_later() {
    let world = World::new();
    let host = world.host();
    let stopped = Playing::start(&Part::Echo {
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
    let began = Instant::now();
    for _ in 0..20 {
        let refusal = refused(host.connect(VmId::LOOPBACK, PORT));
        assert_eq!(refusal, Refusal::BacklogFull);
        host.pair(VmId::LOOPBACK, PORT + 1, &other);
    }
    assert!(began.elapsed() < PATIENCE / 4, "{:?}", began.elapsed());
    stopped.go_on();
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "are you there?");
    }
}

#[test]
fn one_that_is_killed_ends_those_who_wait_and_those_it_took() {
    let world = World::new();
    let host = world.host();
    let mut killed = Playing::start(&Part::Echo {
        endpoint: host.0.clone(),
        port: PORT,
        backlog: 8,
    });
    // It reads the first to its end, and the second waits.
    let streams = [0; 2].map(|_| host.connect(VmId::LOOPBACK, PORT).unwrap());
    eventually("it has taken the first", || {
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

/// Cutting each carried out what was left to do from inside the one before, on one stack.
#[test]
fn thousands_in_one_partition_are_cut_at_once() {
    let world = World::new();
    let web = world.container("web", None);
    // As many as one partition may have, if the system lets this process have both ends.
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
    let began = Instant::now();
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    for raw in &listeners {
        assert_eq!(raw.hear_reset(), Refusal::PartitionOff);
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    world.settles_at(0, 0);
}
