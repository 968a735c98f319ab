//! Snapshots of sets: what is charged, damaged ones, the committed examples, and how long a handover takes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_ring::{ArenaLimits, ArenaParts, Monitor, Parts, RingSize};
use hvsock_sys::{message, seqpacket, set_nonblocking, stream};
use hvsock_testkit::json_edits::Edit;
use mio::{Events, Poll};
use proptest::collection::vec;
use proptest::prelude::*;

use super::handover_testing::{Budgets, duplicate, export, hand_over};
use super::{Adopted, Connection, ConnectionSet, DataThread, DirectEnd, RelayEnd};
use crate::budget::{Budget, Owner, Shares};
use crate::data_path::{ByteCounters, ProcessSocket, ReportSender, UnreadSockets};
use crate::handover::HandoverError;

/// The newest version of the format.
const VERSION: u32 = 1;

fn control() -> (OwnedFd, OwnedFd) {
    let (own, theirs) = seqpacket::pair().unwrap();
    set_nonblocking(&own, true).unwrap();
    set_nonblocking(&theirs, true).unwrap();
    (own, theirs)
}

fn data() -> (OwnedFd, OwnedFd) {
    let (own, theirs) = stream::pair().unwrap();
    set_nonblocking(&own, true).unwrap();
    set_nonblocking(&theirs, true).unwrap();
    (own, theirs)
}

fn new_set(poll: &Poll) -> ConnectionSet {
    ConnectionSet::new(poll.registry().try_clone().unwrap(), 0, u64::MAX)
}

fn adopt(set: &mut ConnectionSet, id: u64, connection: Connection, counters: ByteCounters) {
    set.adopt(Adopted {
        id: ConnectionId::from_u64(id),
        connection,
        counters: Arc::new(counters),
    });
}

fn settle(poll: &mut Poll, set: &mut ConnectionSet) {
    let mut events = Events::with_capacity(64);
    loop {
        let is_ready = set.has_ready();
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        if !is_ready && events.is_empty() {
            return;
        }
        events.iter().for_each(|event| set.handle_event(event));
        set.run_turns();
        while set.next_report().is_some() {}
    }
}

/// A connection of each kind, and the processes' ends. The relayed one has bytes on their way, and its server has
/// ended its data.
fn one_of_each(poll: &mut Poll) -> (ConnectionSet, Vec<OwnedFd>) {
    let mut set = new_set(poll);
    let mut theirs = Vec::new();
    let mut socket = |pair: (OwnedFd, OwnedFd)| {
        theirs.push(pair.1);
        pair.0
    };
    let from = RelayEnd::new(socket(control()), socket(data()), false);
    let to = RelayEnd::new(socket(control()), socket(data()), true);
    adopt(
        &mut set,
        1,
        Connection::relay(from, to),
        ByteCounters::default(),
    );
    let Parts { memory, .. } = Parts::new(RingSize::MIN).unwrap();
    let ring = Arc::new(Monitor::new(&memory).unwrap());
    let controls = [socket(control()).into(), socket(control()).into()];
    let connection = Connection::ring(controls, memory, Arc::clone(&ring));
    adopt(&mut set, 2, connection, ByteCounters::of_ring(ring));
    let limits = ArenaLimits {
        slots: 4,
        ring: RingSize::MIN,
    };
    let arena = Arc::new(ArenaParts::new(limits, 4, 4).unwrap().monitor);
    let controls = [socket(control()).into(), socket(control()).into()];
    adopt(
        &mut set,
        3,
        Connection::arena(controls, arena),
        ByteCounters::default(),
    );
    let (one, other) = data();
    let from = DirectEnd::new(socket(control()), duplicate(&one), false);
    let to = DirectEnd::new(socket(control()), duplicate(&other), true);
    adopt(
        &mut set,
        4,
        Connection::direct(from, to),
        ByteCounters::uncounted(),
    );
    let (guest, own) = data();
    let passed = Connection::hand_over(socket(control()), duplicate(&own), false, 1);
    adopt(&mut set, 5, passed, ByteCounters::uncounted());
    // More than the sockets hold.
    let client = &theirs[1];
    let mut written = 0;
    while written < 600_000 {
        match stream::send(client, &[7; 100_000]) {
            Ok(count) => written += count,
            Err(_) => break,
        }
        settle(poll, &mut set);
    }
    stream::shutdown(&theirs[3], std::net::Shutdown::Write).unwrap();
    settle(poll, &mut set);
    set.suspend(ConnectionId::from_u64(2), true);
    settle(poll, &mut set);
    theirs.extend([one, other, guest, own]);
    (set, theirs)
}

#[test]
fn what_is_charged_for_a_socket_is_charged_again_and_ends_as_before() {
    const OWNER: Owner = Owner::User(1000);
    let poll = Poll::new().unwrap();
    let mut set = new_set(&poll);
    let budget = || Budget::new(Shares::new(100, 0));
    let (descriptors, messages) = (budget(), budget());
    let (own, process) = control();
    let socket = ProcessSocket::charged(own, descriptors.charge(OWNER, 1).unwrap());
    message::send(&socket, b"x", &[std::os::fd::AsFd::as_fd(&socket)]).unwrap();
    let unread: Arc<UnreadSockets> = Arc::default();
    socket.add_in_flight(messages.charge(OWNER, 2).unwrap(), &unread);
    let (server, _server) = control();
    let ((from, _from), (to, _to)) = (data(), data());
    let connection = Connection::relay(
        RelayEnd::new(socket, from, false),
        RelayEnd::new(server, to, false),
    );
    adopt(&mut set, 1, connection, ByteCounters::default());

    // A handover that fails after all was restored does nothing to the process's socket.
    let budgets = Budgets::new();
    let mut next = new_set(&Poll::new().unwrap());
    export(&set).import(&mut next, &budgets).unwrap();
    let used = || {
        (
            budgets.descriptors.usage(OWNER).0,
            budgets.messages.usage(OWNER).0,
        )
    };
    assert_eq!(used(), (1, 2));
    drop(next);
    assert_eq!(used(), (0, 0));
    message::send(&process, b"still open", &[]).unwrap();

    let mut next = new_set(&Poll::new().unwrap());
    export(&set).import(&mut next, &budgets).unwrap();
    std::mem::forget(set);
    budgets.unread.release();
    next.reset(ConnectionId::from_u64(1), Refusal::PartitionPaused);
    drop(next);
    // The process has yet to read, and then it does.
    assert!(budgets.unread.sweep());
    assert_eq!(used(), (1, 2));
    while message::recv(&process, &mut [0; 4096]).is_ok_and(|received| received.len > 0) {}
    assert!(!budgets.unread.sweep());
    assert_eq!(used(), (0, 0));
}

#[test]
fn a_data_thread_gives_back_connections_with_bytes_on_their_way() {
    const LENGTH: usize = 2_000_000;
    let thread = DataThread::start(0, ReportSender::new(|_| {})).unwrap();
    let ((one, _client), (two, _server)) = (control(), control());
    let ((from, client), (to, server)) = (data(), data());
    let (from, to) = (
        RelayEnd::new(one, from, false),
        RelayEnd::new(two, to, false),
    );
    let id = ConnectionId::from_u64(1);
    thread.adopt(Adopted {
        id,
        connection: Connection::relay(from, to),
        counters: Arc::default(),
    });
    let mut poll = Poll::new().unwrap();
    let mut set = new_set(&poll);
    let (mut written, mut read) = (0, 0);
    let mut buffer = vec![0; 50_000];
    let deadline = Instant::now() + Duration::from_secs(60);
    for round in 0.. {
        assert!(Instant::now() < deadline);
        let bytes: Vec<u8> = (written..LENGTH.min(written + 40_000)).map(byte).collect();
        written += stream::send(&client, &bytes).unwrap_or(0);
        if let Ok(count) = stream::recv(&server, &mut buffer) {
            assert!(
                (read..)
                    .zip(&buffer[..count])
                    .all(|(at, got)| *got == byte(at))
            );
            read += count;
        }
        match round % 4 {
            1 => {
                let returned = thread.return_all().wait(deadline).unwrap();
                returned.into_iter().for_each(|one| set.adopt(one));
            }
            3 => {
                settle(&mut poll, &mut set);
                thread.adopt(set.release(id).unwrap());
            }
            _ => settle(&mut poll, &mut set),
        }
        if read == LENGTH {
            break;
        }
    }
}

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// Each version of the format has an example, which every later release reads.
///
/// A new version: make `restore` read the version before as well, and write the new example with
/// `UPDATE_SNAPSHOTS=1 cargo test -p hvsock-broker --lib pump::handover_tests`. The earlier examples stay.
#[test]
fn snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/pump/handover_tests");
    let mut poll = Poll::new().unwrap();
    let (set, _theirs) = one_of_each(&mut poll);
    let exported = export(&set);
    let mut value: serde_json::Value = serde_json::from_slice(&exported.json).unwrap();
    // It depends on the system's buffers.
    value["connections"][0]["counters"]["counted"][0] = 400_000.into();
    let written = serde_json::to_string_pretty(&value).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(format!("{folder}/example-{VERSION}.json"), &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=VERSION {
        last = std::fs::read_to_string(format!("{folder}/example-{version}.json")).unwrap();
        let mut exported = export(&set);
        exported.json = last.clone().into_bytes();
        let poll = Poll::new().unwrap();
        let mut next = new_set(&poll);
        let restored = exported.import(&mut next, &Budgets::new()).unwrap();
        let relayed = &restored.counters[&ConnectionId::from_u64(1)];
        assert_eq!(relayed.counted(), Some([400_000, 0]));
        assert_eq!((restored.counters.len(), restored.arenas.len()), (5, 1));
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

#[test]
fn a_set_of_an_unknown_version_is_refused_with_both_versions() {
    let mut poll = Poll::new().unwrap();
    let (set, _theirs) = one_of_each(&mut poll);
    let mut exported = export(&set);
    exported.json = br#"{"version": 2, "sockets": []}"#.to_vec();
    let error = exported
        .import(&mut new_set(&poll), &Budgets::new())
        .unwrap_err();
    let want = "the snapshot has version 2; this release reads version 1";
    assert!(error.to_string().contains(want), "{error}");
}

#[test]
fn a_descriptor_that_would_stop_the_thread_is_refused() {
    let mut poll = Poll::new().unwrap();
    let (set, theirs) = one_of_each(&mut poll);
    let mut exported = export(&set);
    for fd in &mut exported.with.descriptors {
        *fd = stream::pair().unwrap().0;
    }
    let error = exported.import(&mut new_set(&Poll::new().unwrap()), &Budgets::new());
    let want = "connection 1: the snapshot is inconsistent: a descriptor of a connection blocks";
    assert_eq!(error.unwrap_err().to_string(), want);
    drop(theirs);
}

#[test]
fn a_damaged_snapshot_may_count_any_number_of_bytes() {
    for counted in [[u64::MAX, 1], [u64::MAX, u64::MAX], [1 << 63, 1 << 63]] {
        let mut poll = Poll::new().unwrap();
        let (set, _theirs) = one_of_each(&mut poll);
        let mut exported = export(&set);
        drop(set);
        let mut value: serde_json::Value = serde_json::from_slice(&exported.json).unwrap();
        value["connections"][0]["counters"]["counted"] = counted.to_vec().into();
        exported.json = serde_json::to_vec(&value).unwrap();
        let mut poll = Poll::new().unwrap();
        let mut next = new_set(&poll);
        exported.import(&mut next, &Budgets::new()).unwrap();
        settle(&mut poll, &mut next);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: hvsock_testkit::cases(128), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_set_is_refused_or_harmless(
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let mut poll = Poll::new().unwrap();
        let (set, theirs) = one_of_each(&mut poll);
        let mut exported = export(&set);
        drop(set);
        let mut value = serde_json::from_slice(&exported.json).unwrap();
        for (node, kind, number) in edits {
            Edit { node, kind, value: number }.apply(&mut value);
        }
        exported.json = serde_json::to_vec(&value).unwrap();
        let mut poll = Poll::new().unwrap();
        let mut next = new_set(&poll);
        let restored: Result<_, HandoverError> = exported.import(&mut next, &Budgets::new());
        let Ok(restored) = restored else {
            return Ok(());
        };
        settle(&mut poll, &mut next);
        let mut ids: Vec<_> = restored.counters.into_keys().collect();
        ids.sort();
        for id in &ids {
            next.suspend(*id, true);
            next.suspend(*id, false);
        }
        settle(&mut poll, &mut next);
        drop(export(&next));
        drop(theirs);
        settle(&mut poll, &mut next);
        for id in ids {
            next.reset(id, Refusal::PartitionPaused);
            assert!(next.release(id).is_none());
        }
    }
}

#[test]
fn idle_and_busy_connections_are_handed_over_again_and_again() {
    let many = 50;
    let mut poll = Poll::new().unwrap();
    let mut set = new_set(&poll);
    let mut theirs = Vec::new();
    for id in 0..many {
        let ((one, client), (two, server)) = (control(), control());
        let Parts { memory, .. } = Parts::new(RingSize::MIN).unwrap();
        let ring = Arc::new(Monitor::of_unused(&memory).unwrap());
        let connection = Connection::ring([one.into(), two.into()], memory, Arc::clone(&ring));
        adopt(&mut set, id, connection, ByteCounters::of_ring(ring));
        theirs.extend([client, server]);
    }
    for id in many..many + 20 {
        let ((one, client), (two, server)) = (control(), control());
        let ((from, client_data), (to, server_data)) = (data(), data());
        let (from, to) = (
            RelayEnd::new(one, from, false),
            RelayEnd::new(two, to, false),
        );
        adopt(
            &mut set,
            id,
            Connection::relay(from, to),
            ByteCounters::default(),
        );
        while stream::send(&client_data, &[1; 65536]).is_ok() {
            settle(&mut poll, &mut set);
        }
        theirs.extend([client, server, client_data, server_data]);
    }
    settle(&mut poll, &mut set);
    for _ in 0..5 {
        let next = Poll::new().unwrap();
        let exported = export(&set);
        let mut restored = new_set(&next);
        exported.import(&mut restored, &Budgets::new()).unwrap();
        (poll, set) = (next, restored);
        settle(&mut poll, &mut set);
    }
    let _ = hand_over(
        &mut set,
        Poll::new().unwrap().registry().try_clone().unwrap(),
        1,
    );
}
