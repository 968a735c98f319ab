//! Clients that only take up places, or talk without end.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::VmId;
use hvsock_endpoint::{BrokerMessage, ClientMessage, LookupKind, SocketOption};
use hvsock_fabric::Refusal;
use hvsock_testkit::TempFolder;

use crate::part::BrokerProcess;
use crate::raw::{self, Raw, bytes};
use crate::world::{A_WHILE, PATIENCE, World, eventually};

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
fn a_client_that_says_nothing_is_sent_away_in_time() {
    let bound = Duration::from_millis(400);
    let world = World::with(|config| config.idle_timeout = bound);
    world.register(PORT);
    let began = Instant::now();
    let silent = Raw::new(&world.host());
    let curious = Raw::new(&world.host());
    thread::sleep(bound / 2);
    // A question is not yet a wish.
    curious.say(&lookup());
    assert!(matches!(curious.hear(), BrokerMessage::Found { .. }));
    for raw in [silent, curious] {
        assert_eq!(raw.hear_refused(), Refusal::TimedOut);
    }
    assert!(began.elapsed() >= bound && began.elapsed() < PATIENCE / 2);
    // Those that stand for something may be silent for ever.
    let listener = Raw::new(&world.host());
    listener.listen(VmId::LOOPBACK, PORT, 1);
    let client = Raw::new(&world.host());
    let _data = client.connect(VmId::LOOPBACK, PORT);
    listener.take();
    thread::sleep(bound * 2);
    assert!(listener.is_quiet());
}

#[test]
fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let places = 16;
    let world = World::with(|config| config.idle_sessions = places);
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let patient = Raw::new(&web);
    let mut crowd: Vec<Raw> = (0..100).map(|_| Raw::new(&host)).collect();
    // The oldest have gone to make room for the newest, and know why.
    let newest = crowd.split_off(100 - places);
    for raw in crowd {
        match raw.hear_refused() {
            Refusal::LimitReached { which } => {
                assert_eq!(which, "16 processes that say nothing in one partition");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(newest.iter().all(Raw::is_quiet));
    // One of the same partition that takes its time after its connect has a place.
    let slow = Raw::new(&host);
    thread::sleep(A_WHILE);
    slow.say(&raw::listen(VmId::LOOPBACK, PORT, 1));
    assert!(matches!(slow.hear(), BrokerMessage::Listening(_)));
    // And a crowd in one partition is none in another.
    patient.say(&raw::connect(VmId::PARENT, PORT));
    assert!(matches!(patient.hear(), BrokerMessage::Connected(_)));
    web.pair(VmId::PARENT, PORT, &listener);
}

#[test]
fn who_asks_without_end_is_told_the_limit() {
    let world = World::new();
    world.register(PORT);
    for question in [lookup(), SUSPEND] {
        let raw = Raw::new(&world.host());
        let answered = matches!(question, ClientMessage::Lookup { .. });
        for _ in 0..64 {
            assert!(raw.say(&question));
            if answered {
                assert!(matches!(raw.hear(), BrokerMessage::Found { .. }));
            }
        }
        raw.say(&question);
        if answered {
            assert!(matches!(raw.hear(), BrokerMessage::Found { .. }));
        }
        match raw.hear_refused() {
            Refusal::LimitReached { which } => {
                assert_eq!(which, "64 questions on one endpoint connection");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn answers_that_nobody_reads_do_not_hold_up_the_broker() {
    let world = World::new();
    world.register(PORT);
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let mute: Vec<Raw> = (0..20)
        .map(|_| {
            let raw = Raw::new(&host);
            assert!((0..64).all(|_| raw.say(&lookup())));
            raw.say(&raw::connect(VmId::LOOPBACK, PORT));
            raw
        })
        .collect();
    let began = Instant::now();
    for _ in &mute {
        crate::world::accept(&listener);
    }
    host.pair(VmId::LOOPBACK, PORT, &listener);
    assert!(began.elapsed() < PATIENCE / 2);
}

#[test]
fn processes_that_never_stop_talking_hold_up_nobody() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let talker = Raw::new(&host);
    talker.listen(VmId::LOOPBACK, PORT + 1, 1);
    let client = Raw::new(&host);
    let _data = client.connect(VmId::LOOPBACK, PORT);
    let _accepted = crate::world::accept(&listener);
    let accepted = bytes(&ClientMessage::Accepted { connection: 1 });
    let suspend = bytes(&SUSPEND);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Each as fast as the broker reads.
        for (raw, said) in [
            (&talker, &accepted),
            (&talker, &suspend),
            (&client, &suspend),
        ] {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(raw.say_bytes(said));
                }
            });
        }
        let began = Instant::now();
        for _ in 0..50 {
            let (mut one, mut other) = host.pair(VmId::LOOPBACK, PORT, &listener);
            one.write_all(b"?").unwrap();
            other.read_exact(&mut [0]).unwrap();
            other.write_all(b"!").unwrap();
            one.read_exact(&mut [0]).unwrap();
        }
        world.handle().status().unwrap();
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        assert!(took < PATIENCE / 2, "{took:?}");
    });
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let before = broker.descriptors();
    for turn in 0..2000 {
        let raw = Raw::new(&host);
        match turn % 5 {
            0 => {}
            1 => assert!(raw.say(&lookup())),
            2 => assert!(raw.say(&raw::listen(VmId::LOOPBACK, PORT + 1 + turn, 1))),
            // Gone before the answer, and before the listener takes it.
            3 => assert!(raw.say(&raw::connect(VmId::LOOPBACK, PORT))),
            _ => assert!(raw.say(&raw::connect(VmId::LOOPBACK, 1))),
        }
    }
    let gone_before: Vec<_> =
        std::iter::from_fn(|| listener.accept_timeout(A_WHILE).ok()).collect();
    assert!(gone_before.len() >= 128);
    drop(gone_before);
    let client = broker.client();
    eventually("nothing of them is left", || {
        let status = client.status().unwrap();
        (status.listeners, status.connections) == (1, 0) && broker.descriptors() <= before + 2
    });
}

/// Whoever has subordinate group ids can be in all of them; this takes root for short.
#[test]
fn a_process_in_tens_of_thousands_of_groups_costs_no_more_than_others() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (many, few) = thread::scope(|scope| {
        let connect = || {
            let began = Instant::now();
            (0..50).for_each(|_| drop(host.pair(VmId::LOOPBACK, PORT, &listener)));
            began.elapsed()
        };
        // Groups are a thread's own, and gone with it.
        let many = scope.spawn(move || {
            let groups: Vec<_> = (100_000..165_000)
                .map(rustix::process::Gid::from_raw)
                .collect();
            rustix::thread::set_thread_groups(&groups).expect("root may");
            connect()
        });
        (many.join().unwrap(), scope.spawn(connect).join().unwrap())
    });
    assert!(
        many < few * 10 + Duration::from_millis(500),
        "{many:?} {few:?}"
    );
}
