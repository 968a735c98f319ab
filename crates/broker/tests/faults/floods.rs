//! Floods of clients and messages. Covers idle timeouts, limits of idle clients and of requests,
//! unread responses, endless messages, and leaks.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::VmId;
use hvsock_endpoint::{BrokerMessage, ClientMessage, LookupKind, SocketOption};
use hvsock_fabric::Refusal;
use hvsock_testkit::{TempFolder, require};

use crate::child::BrokerProcess;
use crate::raw::{self, Raw, bytes};
use hvsock_testkit::StopOnDrop;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::World;

const PORT: u32 = 200;
const SUSPEND: ClientMessage = ClientMessage::SetOption {
    option: SocketOption::ConnectedSuspend,
    value: 1,
};

fn lookup() -> ClientMessage {
    ClientMessage::Lookup {
        kind: LookupKind::Service,
        name: "Service 200".into(),
    }
}

#[test]
fn a_client_without_a_connect_or_listen_is_disconnected_after_the_idle_timeout() {
    let bound = Duration::from_millis(400);
    let world = World::with(|config| config.idle_timeout = bound);
    world.register(PORT);
    let began = Instant::now();
    let silent = Raw::new(&world.host());
    let curious = Raw::new(&world.host());
    thread::sleep(bound / 2);
    // A lookup does not make a client active.
    curious.send(&lookup());
    assert!(matches!(curious.recv(), BrokerMessage::Found { .. }));
    for raw in [silent, curious] {
        assert_eq!(raw.recv_refused(), Refusal::TimedOut);
    }
    assert!(began.elapsed() >= bound);
    // Listeners and connections may stay silent: clients that come later time out before them.
    let listener = Raw::new(&world.host());
    listener.listen(VmId::LOOPBACK, PORT, 1);
    let client = Raw::new(&world.host());
    let _data = client.connect(VmId::LOOPBACK, PORT);
    let _accepted = listener.recv_incoming();
    for _ in 0..2 {
        let later = Raw::new(&world.host());
        assert_eq!(later.recv_refused(), Refusal::TimedOut);
    }
    assert!(listener.is_silent() && client.is_silent());
}

#[test]
fn a_flood_of_idle_clients_locks_no_client_out() {
    let most = 16;
    let world = World::with(|config| config.idle_sessions = most);
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let patient = Raw::new(&web);
    let mut clients: Vec<Raw> = (0..100).map(|_| Raw::new(&host)).collect();
    // The oldest are disconnected in favour of the newest, with the reason.
    let newest = clients.split_off(100 - most);
    for raw in clients {
        match raw.recv_refused() {
            Refusal::LimitReached { which } => {
                assert_eq!(which, "16 idle endpoint connections in one partition");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(newest.iter().all(Raw::is_silent));
    // A new client of the same partition is admitted, even if it sends its first message late:
    // here, after the broker has served another client.
    let slow = Raw::new(&host);
    let other = Raw::new(&web);
    other.send(&lookup());
    assert!(matches!(other.recv(), BrokerMessage::Found { .. }));
    slow.send(&raw::listen(VmId::LOOPBACK, PORT, 1));
    assert!(matches!(slow.recv(), BrokerMessage::Listening(_)));
    // The flood in one partition does not affect another.
    patient.send(&raw::connect(VmId::PARENT, PORT));
    assert!(matches!(patient.recv(), BrokerMessage::Connected(_)));
    web.pair(VmId::PARENT, PORT, &listener);
}

#[test]
fn requests_on_one_endpoint_connection_are_limited() {
    let world = World::new();
    world.register(PORT);
    for question in [lookup(), SUSPEND] {
        let raw = Raw::new(&world.host());
        let answered = matches!(question, ClientMessage::Lookup { .. });
        for _ in 0..64 {
            assert!(raw.send(&question));
            if answered {
                assert!(matches!(raw.recv(), BrokerMessage::Found { .. }));
            }
        }
        raw.send(&question);
        if answered {
            assert!(matches!(raw.recv(), BrokerMessage::Found { .. }));
        }
        match raw.recv_refused() {
            Refusal::LimitReached { which } => {
                assert_eq!(which, "64 queries on one endpoint connection");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn unread_responses_do_not_block_the_broker() {
    let world = World::new();
    world.register(PORT);
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let mute: Vec<Raw> = (0..20)
        .map(|_| {
            let raw = Raw::new(&host);
            assert!((0..64).all(|_| raw.send(&lookup())));
            raw.send(&raw::connect(VmId::LOOPBACK, PORT));
            raw
        })
        .collect();
    // All their connects are handled, and another's as well, while nothing is read.
    for _ in &mute {
        hvsock_testkit::world::accept(&listener);
    }
    host.pair(VmId::LOOPBACK, PORT, &listener);
    assert!(mute.iter().all(|raw| !raw.is_silent()));
}

#[test]
fn endless_messages_of_some_processes_do_not_starve_others() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let flooding = Raw::new(&host);
    flooding.listen(VmId::LOOPBACK, PORT + 1, 1);
    let client = Raw::new(&host);
    let _data = client.connect(VmId::LOOPBACK, PORT);
    let _accepted = hvsock_testkit::world::accept(&listener);
    let accepted = bytes(&ClientMessage::Accepted { connection: 1 });
    let suspend = bytes(&SUSPEND);
    let stop = AtomicBool::new(false);
    let messages = [(); 3].map(|()| AtomicUsize::new(0));
    let sent = || {
        messages
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    };
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        // Each sends as fast as the broker reads.
        let floods = [
            (&flooding, &accepted),
            (&flooding, &suspend),
            (&client, &suspend),
        ];
        for ((raw, message), count) in floods.into_iter().zip(&messages) {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(raw.send_bytes(message));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("each flood has begun", || {
            sent().iter().all(|sent| *sent > 100)
        });
        let before = sent();
        // Each of these calls has its own timeout.
        for _ in 0..50 {
            let (mut one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
            one.write_all(b"?").unwrap();
            other.read_exact(&mut [0]).unwrap();
            other.write_all(b"!").unwrap();
            one.read_exact(&mut [0]).unwrap();
        }
        world.handle().status().unwrap();
        let after = sent();
        let total = |sent: [usize; 3]| sent.into_iter().sum::<usize>();
        assert!(total(after) > total(before), "the floods had stopped");
    });
}

#[test]
fn clients_that_come_and_go_leak_nothing() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let before = broker.descriptors();
    for turn in 0..2000 {
        let raw = Raw::new(&host);
        match turn % 5 {
            0 => {}
            1 => assert!(raw.send(&lookup())),
            2 => assert!(raw.send(&raw::listen(VmId::LOOPBACK, PORT + 1 + turn, 1))),
            // Closed before the response, and before the listener accepts.
            3 => assert!(raw.send(&raw::connect(VmId::LOOPBACK, PORT))),
            _ => assert!(raw.send(&raw::connect(VmId::LOOPBACK, 1))),
        }
    }
    let client = broker.client();
    let is_clean = || {
        let status = client.status().unwrap();
        // The client of the control API, and the pipe that relayed connections share.
        (status.listeners, status.connections) == (1, 0) && broker.descriptors() <= before + 4
    };
    // Accepting hundreds takes long on a loaded machine: the timeout is for each one.
    let (mut accepted, mut progress) = (0, Instant::now());
    while !is_clean() {
        while listener.accept_timeout(Duration::ZERO).is_ok() {
            (accepted, progress) = (accepted + 1, Instant::now());
        }
        assert!(progress.elapsed() < TIMEOUT, "something of them is left");
        thread::sleep(Duration::from_millis(5));
    }
    // At least those that the broker had passed to the listener ahead, whose clients had closed already. How many
    // of the others still wait when their clients close depends on the machine.
    assert!(accepted >= 4, "{accepted}");
}

/// A user with subordinate group ids can be in all of them. The test uses root instead.
#[test]
fn a_process_in_tens_of_thousands_of_groups_costs_no_more_than_others() {
    let Some(()) = require::root() else { return };
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (many, few) = thread::scope(|scope| {
        let connect = || {
            let began = Instant::now();
            (0..50).for_each(|_| drop(host.pair(VmId::LOOPBACK, PORT, &listener)));
            began.elapsed()
        };
        // The groups belong to the thread, and end with it.
        let many = scope.spawn(move || {
            let groups: Vec<_> = (100_000..165_000)
                .map(rustix::process::Gid::from_raw)
                .collect();
            rustix::thread::set_thread_groups(&groups).expect("root may");
            connect()
        });
        (many.join().unwrap(), scope.spawn(connect).join().unwrap())
    });
    // Were every group looked up, this would take minutes.
    assert!(many < few * 10 + TIMEOUT, "{many:?} {few:?}");
}
