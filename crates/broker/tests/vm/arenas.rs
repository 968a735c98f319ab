//! Connections of a guest with one listener's process that share an arena: the data thread opens them by
//! itself, and each is judged, counted, listed, closed and suspended as any other.

use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream, ServiceId, VmId};
use hvsock_broker::model::{Connection, EventKind, PartitionState};
use hvsock_testkit::guest::{CloseReason, Guest, GuestStream, Options};

use crate::traffic::{exchange, ping};
use hvsock_testkit::process::{CapturedOutput, Running};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{
    PORT, PartitionEndpoint, World, accept, bounded, partition_ref, service_ref,
};

/// Makes the guest and the listener's process known to each other: from now on they share an arena.
#[track_caller]
fn acquaint(world: &World, guest: &Guest, listener: &HvListener) -> (GuestStream, HvStream) {
    let first = world.pair(guest, listener);
    let second = || {
        let pair = world.pair(guest, listener);
        let last = world.handle().connections().unwrap().pop();
        last.is_some_and(|last| last.transport == "arena")
            .then_some(pair)
    };
    let mut pair = None;
    eventually("the guest gets a connection in an arena", || {
        pair = second();
        pair.is_some()
    });
    drop(first);
    world.has_connections(1);
    pair.unwrap()
}

fn arena_connections(world: &World) -> Vec<Connection> {
    let all = world.handle().connections().unwrap();
    all.into_iter()
        .filter(|one| one.transport == "arena")
        .collect()
}

fn listen(world: &World, backlog: u32, suspendable: bool) -> HvListener {
    let listener = HvListener::options()
        .endpoint(world.host().endpoint())
        .backlog(backlog)
        .connected_suspend(suspendable)
        .listen((VmId::CHILDREN, ServiceId::from_port(PORT)));
    listener.expect("listening")
}

fn closes(stream: GuestStream, outside: HvStream) {
    drop(outside);
    assert_eq!(stream.close(TIMEOUT).unwrap(), CloseReason::Clean);
}

#[test]
fn a_thousand_connections_of_a_guest_share_arenas_and_take_few_descriptors() {
    const MANY: usize = 1000;
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let first = acquaint(&world, &guest, &listener);
    let used = || world.handle().status().unwrap().descriptors.used;
    let before = used();
    let pairs: Vec<_> = (0..MANY).map(|_| world.pair(&guest, &listener)).collect();
    for (inside, outside) in &pairs {
        ping(inside, outside);
    }
    // Five for each arena.
    assert!(used() - before <= 32, "{} for {MANY}", used() - before);
    world.has_connections(MANY + 1);
    let listed = arena_connections(&world);
    assert_eq!(listed.len(), MANY + 1);
    let mut ids: Vec<_> = listed.iter().map(|one| one.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), MANY + 1);
    assert!(
        listed[1..]
            .iter()
            .all(|one| one.bytes_sent > Some(0) && one.bytes_received > Some(0))
    );
    ping(&first.0, &first.1);
    for (inside, outside) in pairs {
        closes(inside, outside);
    }
    world.has_connections(1);
    eventually("the first arena remains", || used() <= before);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn bytes_and_ends_of_connections_in_an_arena_arrive() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let _first = acquaint(&world, &guest, &listener);
    let pairs: Vec<_> = (0..8).map(|_| world.pair(&guest, &listener)).collect();
    std::thread::scope(|scope| {
        for (inside, outside) in &pairs {
            scope.spawn(|| exchange(inside, outside, 3 << 20, 9000));
        }
    });
    drop(pairs);
    world.has_connections(1);
}

#[test]
fn a_revoked_rule_refuses_the_very_next_request_of_a_guest() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let web = partition_ref("web");
    for _ in 0..10 {
        let (inside, outside) = acquaint(&world, &guest, &listener);
        let enable = |on| {
            let changed = world
                .handle()
                .set_enabled(&service_ref(PORT), on, Some(&web));
            changed.unwrap()
        };
        enable(false);
        let error = guest.connect(PORT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        enable(true);
        let pair = world.pair(&guest, &listener);
        ping(&pair.0, &pair.1);
        drop((inside, outside, pair));
        world.has_connections(0);
    }
}

#[test]
fn a_connection_in_an_arena_is_closed_by_itself() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (first_inside, first_outside) = acquaint(&world, &guest, &listener);
    let (inside, mut outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
    // A data thread reports what it opens some milliseconds later.
    world.has_connections(2);
    let last = arena_connections(&world).pop().unwrap();
    world.handle().close_connection(last.id).unwrap();
    let error = outside.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("operator"), "{error}");
    let error = (&inside).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    ping(&first_inside, &first_outside);
    drop((inside, outside));
    world.has_connections(1);
    let pair = world.pair(&guest, &listener);
    ping(&pair.0, &pair.1);
}

#[test]
fn a_pause_keeps_the_connections_in_an_arena_that_want_it_and_resets_the_others() {
    for suspendable in [true, false] {
        let world = World::with_web(|_| ());
        let (listener, guest) = (listen(&world, 128, suspendable), world.guest());
        let (inside, mut outside) = acquaint(&world, &guest, &listener);
        ping(&inside, &outside);
        guest
            .pause(|_| {
                world.is("web", PartitionState::Paused);
                if suspendable {
                    let all = arena_connections(&world);
                    let states: Vec<_> = all.iter().map(|one| format!("{:?}", one.state)).collect();
                    assert_eq!(states, ["Suspended"]);
                    outside.write_all(b"later").unwrap();
                } else {
                    let error = outside.read(&mut [0; 8]).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                }
            })
            .unwrap();
        world.is("web", PartitionState::Running);
        if suspendable {
            let mut bytes = [0; 5];
            (&inside).read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"later");
        }
        let pair = world.pair(&guest, &listener);
        ping(&pair.0, &pair.1);
    }
}

#[test]
fn a_closed_listener_ends_what_it_has_not_accepted_and_leaves_the_rest() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (inside, outside) = acquaint(&world, &guest, &listener);
    let waiting = bounded(guest.connect(PORT).unwrap());
    drop(listener);
    let error = (&waiting).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    ping(&inside, &outside);
    let refused = guest.connect(PORT).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // Another listener gets the next ones.
    let listener = world.listen();
    let pair = world.pair(&guest, &listener);
    ping(&pair.0, &pair.1);
    drop((inside, outside, waiting, pair));
    world.settles_at(1, 0);
}

#[test]
fn a_full_backlog_refuses_a_guest_at_once_and_the_refusal_is_counted() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (listen(&world, 2, false), world.guest());
    let _first = acquaint(&world, &guest, &listener);
    let events = world.handle().events().unwrap();
    let waiting: Vec<_> = (0..2).map(|_| guest.connect(PORT).unwrap()).collect();
    let error = guest.connect(PORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    eventually("the refusal is published", || {
        let next = events.recv_timeout(Duration::from_secs(30));
        matches!(next.map(|event| event.what), Some(EventKind::Refused { reason, .. }) if reason == "backlog_full")
    });
    let metrics = world.handle().metrics().unwrap();
    assert!(
        metrics
            .refusals
            .iter()
            .any(|(label, count)| label == "backlog_full" && *count == 1)
    );
    // What is accepted makes room.
    let accepted = [(); 2].map(|()| accept(&listener));
    let pair = world.pair(&guest, &listener);
    ping(&pair.0, &pair.1);
    drop((waiting, accepted));
}

#[test]
fn a_guest_that_makes_and_closes_many_connections_leaves_nothing_behind() {
    // More than an arena has slots.
    const TIMES: usize = 1200;
    let world = World::with_web(|_| ());
    world.vm("other", 77, &[]);
    let other = world.guest_of("other", Options::new(77));
    let (listener, guest) = (world.listen(), world.guest());
    let _first = acquaint(&world, &guest, &listener);
    let opened = || {
        let services = world.handle().metrics().unwrap().services;
        services
            .iter()
            .map(|one| one.connections_total)
            .sum::<u64>()
    };
    let (before, used) = (opened(), world.handle().status().unwrap().descriptors.used);
    for _ in 0..TIMES {
        let inside = guest.connect(PORT).unwrap();
        let outside = accept(&listener);
        closes(inside, outside);
    }
    world.has_connections(1);
    assert_eq!(opened() - before, TIMES as u64);
    assert!(world.handle().status().unwrap().descriptors.used <= used);
    let pair = world.pair(&other, &listener);
    ping(&pair.0, &pair.1);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_guest_that_restarts_ends_its_connections_in_an_arena() {
    let world = World::with_web(|_| ());
    let (listener, guest) = (world.listen(), world.guest());
    let (_inside, mut outside) = acquaint(&world, &guest, &listener);
    guest.reboot().unwrap();
    let error = outside.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    world.has_connections(0);
    let pair = world.pair(&guest, &listener);
    ping(&pair.0, &pair.1);
    guest.restart_vmm().unwrap();
    world.has_connections(0);
    let pair = world.pair(&guest, &listener);
    ping(&pair.0, &pair.1);
}

const ENDPOINT: &str = "HVSOCK_VM_ARENAS_ENDPOINT";

/// The process of a listener, which holds the connections that it accepts.
#[test]
fn runs_the_role_of_a_listeners_process() {
    // Without the variable this is not a child process but a run of all tests.
    let Ok(endpoint) = std::env::var(ENDPOINT) else {
        return;
    };
    let listener = PartitionEndpoint(endpoint.into()).listen(VmId::CHILDREN, PORT);
    let listener = listener.unwrap();
    println!("ready");
    let mut held = Vec::new();
    while let Ok((mut stream, _)) = listener.accept_timeout(4 * TIMEOUT) {
        stream.write_all(b"!").unwrap();
        held.push(stream);
    }
}

#[test]
fn a_killed_listeners_process_ends_its_connections_in_an_arena_within_a_second() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "arenas::runs_the_role_of_a_listeners_process",
            "--exact",
            "--nocapture",
        ])
        .env(ENDPOINT, world.host().0)
        .stdout(Stdio::piped());
    let mut process = Running::start(&mut command).unwrap();
    let output = CapturedOutput::from(process.take_stdout().unwrap());
    output.wait_for("ready", TIMEOUT).unwrap();
    let connect = || {
        let stream = bounded(guest.connect(PORT).unwrap());
        (&stream).read_exact(&mut [0]).unwrap();
        stream
    };
    let mut held = vec![connect()];
    eventually("connections share an arena", || {
        held.push(connect());
        arena_connections(&world).len() >= 20
    });
    process.kill().unwrap();
    let killed = Instant::now();
    for stream in &held {
        let error = (&*stream).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    // Longer than a second only on a machine that is busy with other tests.
    assert!(killed.elapsed() < TIMEOUT / 3, "{:?}", killed.elapsed());
    world.settles_at(0, 0);
    assert_eq!(
        guest.connect(PORT).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(guest.protocol_violations(), [""; 0]);
}
