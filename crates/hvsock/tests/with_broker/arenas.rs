//! Connections in an arena that a broker has granted.

use std::io::{self, ErrorKind, Read, Write};
use std::iter;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{
    ConnectOptions, HvListener, HvStream, Interest, Refusal, ServiceId, VmId, refusal_of,
};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::alone;
use hvsock_testkit::process::{CapturedOutput, Running};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{self, accept, limited, partition_ref, service_ref};

use crate::refusal;
use crate::world::{NAME, World};

/// The service of the tests that use a registration and not a lease.
const PORT: u32 = 7311;

/// Connects until the connection is in an arena. The first one of a pair of processes is in none.
fn pair_in_arena(
    options: &ConnectOptions,
    to: VmId,
    listener: &HvListener,
) -> (HvStream, HvStream) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let connector = options.connect((to, ServiceId::from_port(PORT)));
        let connector = limited(connector.expect("connected"));
        let acceptor = accept(listener);
        if connector.is_in_arena() && acceptor.is_in_arena() {
            return (connector, acceptor);
        }
        assert!(Instant::now() < deadline, "no arena is granted");
    }
}

/// A broker with a container `web` and a registered service, and a listener for it.
fn host() -> (world::World, HvListener) {
    let host = world::World::new();
    host.container("web", None);
    host.register(PORT);
    let listener = listen(&host);
    (host, listener)
}

fn listen(host: &world::World) -> HvListener {
    let options = HvListener::options().endpoint(host.host().endpoint());
    let listening = options.listen((VmId::WILDCARD, ServiceId::from_port(PORT)));
    listening.expect("listening")
}

fn from_web(host: &world::World) -> ConnectOptions {
    HvStream::options()
        .endpoint(host.inside("web").endpoint())
        .timeout(TIMEOUT)
}

fn exchange(one: &HvStream, other: &HvStream) {
    for (mut from, mut to) in [(one, other), (other, one)] {
        from.write_all(b"hello").expect("written");
        let mut bytes = [0; 5];
        to.read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, b"hello");
    }
}

fn connect(options: &ConnectOptions) -> io::Result<HvStream> {
    options.connect((VmId::PARENT, ServiceId::from_port(PORT)))
}

#[test]
fn the_broker_lists_counts_and_closes_each_connection_of_an_arena() {
    let (host, listener) = host();
    let options = from_web(&host);
    let pairs: Vec<_> = (0..5)
        .map(|_| pair_in_arena(&options, VmId::PARENT, &listener))
        .collect();
    for (connector, acceptor) in &pairs {
        exchange(connector, acceptor);
        assert_eq!(connector.connection_id(), acceptor.connection_id());
        assert_eq!(acceptor.peer().unwrap().partition(), "web");
    }
    let listed = || {
        let all = host.handle().connections().unwrap();
        all.into_iter().map(|one| one.id).collect::<Vec<_>>()
    };
    eventually("all are listed", || {
        let listed = listed();
        let ids = pairs.iter().map(|(connector, _)| connector.connection_id());
        ids.into_iter().all(|id| listed.contains(&id))
    });
    let (closed, closed_peer) = &pairs[2];
    let id = closed.connection_id();
    host.handle().close_connection(id).unwrap();
    for end in [closed, closed_peer] {
        let mut end = end;
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert!(refusal_of(&error).is_some(), "{error}");
    }
    for (connector, acceptor) in pairs.iter().filter(|(one, _)| one.connection_id() != id) {
        exchange(connector, acceptor);
    }
    drop(pairs);
    eventually("none is listed", || listed().is_empty());
}

#[test]
fn an_operator_who_closes_one_connection_leaves_its_arena_in_use() {
    let (host, listener) = host();
    let options = from_web(&host);
    let (kept, kept_peer) = pair_in_arena(&options, VmId::PARENT, &listener);
    let arena_of = |id| {
        let all = host.handle().connections().unwrap();
        let found = all.iter().find(|one| one.id == id);
        found.and_then(|one| one.arena).expect("an arena")
    };
    let arena = arena_of(kept.connection_id());
    for _ in 0..5 {
        let (closed, closed_peer) = pair_in_arena(&options, VmId::PARENT, &listener);
        let id = closed.connection_id();
        assert_eq!(arena_of(id), arena);
        host.handle().close_connection(id).unwrap();
        for end in [&closed, &closed_peer] {
            let mut end = end;
            end.read(&mut [0]).unwrap_err();
        }
    }
    exchange(&kept, &kept_peer);
}

#[test]
fn a_change_of_the_rules_applies_to_the_next_connect_in_an_arena() {
    let (host, listener) = host();
    let options = from_web(&host);
    drop(pair_in_arena(&options, VmId::PARENT, &listener));
    let (web, service) = (partition_ref("web"), service_ref(PORT));
    for _ in 0..2 {
        let set = |enabled| {
            let set = host.handle().set_enabled(&service, enabled, Some(&web));
            set.expect("changed");
        };
        set(false);
        let refused = refusal(connect(&options));
        assert!(matches!(refused, Refusal::Disabled { .. }), "{refused}");
        set(true);
        let (connector, acceptor) = pair_in_arena(&options, VmId::PARENT, &listener);
        exchange(&connector, &acceptor);
    }
}

#[test]
fn a_pause_resets_or_suspends_the_connections_of_an_arena() {
    let (host, listener) = host();
    let (reset, reset_peer) = pair_in_arena(&from_web(&host), VmId::PARENT, &listener);
    let (kept, kept_peer) = pair_in_arena(
        &from_web(&host).connected_suspend(true),
        VmId::PARENT,
        &listener,
    );
    let (later, later_peer) = pair_in_arena(&from_web(&host), VmId::PARENT, &listener);
    later.set_connected_suspend(true).unwrap();
    let set = |state| {
        let set = host.handle().set_state(&partition_ref("web"), state);
        set.expect("the state is set");
    };
    set(PartitionState::Paused);
    for end in [&reset, &reset_peer] {
        let mut end = end;
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(
            refusal_of(&error),
            Some(&Refusal::PartitionPaused),
            "{error}"
        );
    }
    for (from, to) in [(&kept, &kept_peer), (&later, &later_peer)] {
        let (mut from, mut to) = (from, to);
        from.write_all(b"slow!").unwrap();
        to.set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        assert_eq!(to.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        to.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
    let refused = refusal(connect(&from_web(&host)));
    assert_eq!(refused, Refusal::PartitionPaused);
    thread::scope(|scope| {
        let parked = scope.spawn(|| (&kept_peer).read_exact(&mut [0; 5]));
        set(PartitionState::Running);
        parked.join().unwrap().unwrap();
    });
    (&later_peer).read_exact(&mut [0; 5]).unwrap();
    exchange(&kept, &kept_peer);
    exchange(&later, &later_peer);
    let (connector, acceptor) = pair_in_arena(&from_web(&host), VmId::PARENT, &listener);
    exchange(&connector, &acceptor);
}

#[test]
fn the_end_of_a_lease_resets_the_connections_of_its_arenas() {
    let world = World::new();
    let listener = world.listen();
    let connect = || {
        let stream = limited(world.at_web().connect(("parent", NAME)).unwrap());
        (stream, accept(&listener))
    };
    let (mut stream, mut accepted) = connect();
    while !stream.is_in_arena() {
        (stream, accepted) = connect();
    }
    let at_web = world.at_web();
    let World { lease, host: _host } = world;
    drop(lease);
    for end in [&stream, &accepted] {
        let mut end = end;
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(refusal_of(&error), Some(&Refusal::Unregistered), "{error}");
    }
    let refused = refusal(at_web.connect(("parent", NAME)));
    assert_eq!(refused, Refusal::Unregistered);
}

#[test]
fn a_listener_that_is_replaced_gets_the_next_connections() {
    let (host, mut listener) = host();
    let options = from_web(&host);
    for _ in 0..3 {
        let (connector, acceptor) = pair_in_arena(&options, VmId::PARENT, &listener);
        let waiting = limited(connect(&options).unwrap());
        drop(listener);
        // What was not accepted ends with the listener; what was goes on.
        let end = (&waiting).read(&mut [0]);
        assert!(matches!(&end, Ok(0)) || end.is_err(), "{end:?}");
        exchange(&connector, &acceptor);
        assert_eq!(refusal(connect(&options)), Refusal::NoListener);
        listener = listen(&host);
        let (other, other_peer) = pair_in_arena(&options, VmId::PARENT, &listener);
        exchange(&other, &other_peer);
        exchange(&connector, &acceptor);
    }
}

#[test]
fn a_broker_that_is_started_again_is_asked_again() {
    let (host, listener) = host();
    let options = HvStream::options()
        .endpoint(host.host().endpoint())
        .timeout(TIMEOUT);
    let (connector, acceptor) = pair_in_arena(&options, VmId::LOOPBACK, &listener);
    let host = host.restarted();
    for end in [&connector, &acceptor] {
        let mut end = end;
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    assert!(listener.accept_timeout(TIMEOUT).is_err());
    let listener = listen(&host);
    let (connector, acceptor) = pair_in_arena(&options, VmId::LOOPBACK, &listener);
    exchange(&connector, &acceptor);
}

#[test]
fn more_connections_than_an_arena_has_slots_take_several() {
    const MANY: usize = 2200;
    let (host, listener) = host();
    let options = from_web(&host);
    let connect = || {
        let connector = limited(connect(&options).expect("connected"));
        (connector, accept(&listener))
    };
    let pairs: Vec<_> = (0..MANY).map(|_| connect()).collect();
    let in_arena = pairs.iter().filter(|(one, _)| one.is_in_arena()).count();
    // The rest was made while a further arena was on its way.
    assert!(in_arena >= MANY * 3 / 4, "{in_arena} in arenas");
    for (connector, acceptor) in &pairs {
        exchange(connector, acceptor);
    }
    eventually("all are listed", || {
        host.handle().connections().unwrap().len() == MANY
    });
    drop(pairs);
    let (connector, acceptor) = pair_in_arena(&options, VmId::PARENT, &listener);
    exchange(&connector, &acceptor);
}

/// The environment variable with the endpoint, if this process is the other one of a test.
const OTHER: &str = "HVSOCK_TEST_ARENA_ENDPOINT";
/// How many connections that process holds.
const HELD: usize = 40;
/// What it writes to each.
const LEFT: &[u8] = b"left behind";

/// Starts a process that runs [`connections_of_another_process`].
fn other_process(host: &world::World) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "arenas::connections_of_another_process",
            "--exact",
            "--nocapture",
        ])
        .env(OTHER, &host.inside("web").endpoint().paths()[0])
        .stdout(Stdio::piped());
    Running::start(&mut command).unwrap()
}

/// Acts as the other process of a test, if there is one; on its own it tests nothing.
#[test]
fn connections_of_another_process() {
    let Some(endpoint) = std::env::var_os(OTHER) else {
        return;
    };
    let options = HvStream::options().endpoint(std::path::PathBuf::from(endpoint));
    let connect_and_write = |text: &[u8]| {
        let mut stream = connect(&options).unwrap();
        if stream.is_in_arena() || text == LEFT {
            stream.write_all(LEFT).unwrap();
            return Some(stream);
        }
        stream.write_all(text).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the test closes it");
        None
    };
    // Until the broker has granted an arena.
    let mut first = None;
    while first.is_none() {
        first = connect_and_write(b"?");
    }
    let later = (1..HELD).map(|_| connect_and_write(LEFT));
    let _held: Vec<_> = iter::once(first).chain(later).collect();
    println!("ready");
    // The test kills this process.
    thread::sleep(TIMEOUT * 4);
}

/// Accepts a connection that the process holds, and reads what it wrote. Closes those before.
fn accept_held(listener: &HvListener) -> HvStream {
    loop {
        let accepted = accept(listener);
        let mut bytes = [0; LEFT.len()];
        (&accepted).read_exact(&mut bytes[..1]).expect("read");
        if bytes[0] == LEFT[0] {
            (&accepted).read_exact(&mut bytes[1..]).expect("read");
            return accepted;
        }
    }
}

#[test]
fn a_killed_process_resets_every_connection_of_its_arenas() {
    let (host, listener) = host();
    let mut other = other_process(&host);
    let output = CapturedOutput::from(other.take_stdout().unwrap());
    let accepted: Vec<_> = (0..HELD).map(|_| accept_held(&listener)).collect();
    assert!(accepted.iter().any(HvStream::is_in_arena));
    output.wait_for("ready", TIMEOUT).unwrap();
    for stream in &accepted {
        stream.set_read_timeout(None).unwrap();
    }
    thread::scope(|scope| {
        let parked: Vec<_> = accepted
            .iter()
            .enumerate()
            .map(|(at, stream)| {
                scope.spawn(move || {
                    // Some wait for readiness.
                    if at % 3 == 0 {
                        let ready = stream.poll(Interest::READABLE, Some(TIMEOUT));
                        assert!(ready.unwrap().is_readable());
                    }
                    let mut stream = stream;
                    stream.read(&mut [0]).unwrap_err().kind()
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        other.kill().unwrap();
        for thread in parked {
            assert_eq!(thread.join().unwrap(), ErrorKind::ConnectionReset);
        }
    });
    for stream in &accepted {
        let error = (&*stream).write(b"x").unwrap_err();
        let gone = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(gone.contains(&error.kind()), "{error}");
    }
    drop(accepted);
    host.has_connections(0);
}

#[test]
fn what_a_process_wrote_before_it_was_killed_can_still_be_accepted() {
    let (host, listener) = host();
    let mut other = other_process(&host);
    let output = CapturedOutput::from(other.take_stdout().unwrap());
    let first = accept_held(&listener);
    output.wait_for("ready", TIMEOUT).unwrap();
    other.kill().unwrap();
    let all: Vec<_> = iter::once(first)
        .chain((1..HELD).map(|_| accept_held(&listener)))
        .collect();
    assert!(all.iter().any(HvStream::is_in_arena));
    for accepted in &all {
        let error = (&*accepted).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let options = from_web(&host);
    let (connector, acceptor) = pair_in_arena(&options, VmId::PARENT, &listener);
    exchange(&connector, &acceptor);
}

#[test]
fn an_idle_connection_of_an_arena_costs_no_descriptor_and_no_time() {
    if !alone() {
        return;
    }
    let (host, listener) = host();
    let options = from_web(&host);
    drop(pair_in_arena(&options, VmId::PARENT, &listener));
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    // The broker is in this process, so its descriptors count as well.
    let pairs: Vec<_> = (0..100)
        .map(|_| pair_in_arena(&options, VmId::PARENT, &listener))
        .collect();
    // Until the arena has grown, some were tried outside it. The broker closes what it had of them a moment later.
    eventually("at most 20 descriptors for 100 connections", || {
        descriptors().saturating_sub(before) <= 20
    });
    let stats = || -> Vec<_> {
        let ends = pairs.iter().flat_map(|(one, other)| [one, other]);
        ends.map(|end| end.ring_stats().unwrap()).collect()
    };
    let before = stats();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(stats(), before);
}
