//! Snapshots: a muxer made from one behaves like the original, damaged ones are refused or harmless,
//! and those of earlier releases can be read.

use std::time::{Duration, Instant};

use hvsock_virtio::{
    Cid, Closed, Config, Event, GuestCid, Handle, HandleSnapshot, Header, Key,
    MUXER_SNAPSHOT_VERSION, MessageEnd, Muxer, MuxerSnapshot, Operation, Received, SnapshotError,
    SocketKind, Transmit, shutdown,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use crate::guest::CID;
use crate::hostile::{self, CONNECTIONS, Owner, header};
use crate::json_edits::Edit;
use crate::pair::Pair;
use crate::random;
use crate::recorded::Recorded;

/// What a muxer has returned, and its state at the end.
fn outcome(muxer: &mut Recorded) -> (Vec<String>, String) {
    let state = serde_json::to_string(&muxer.snapshot()).expect("a snapshot is JSON");
    (muxer.output.take().expect("recorded"), state)
}

/// Runs something twice: with one muxer, and with one that is replaced before a random call.
fn compare<D>(
    make: impl Fn() -> D,
    muxer: impl Fn(&mut D) -> &mut Recorded,
    run: impl Fn(&mut D),
    at: usize,
) {
    let mut original = make();
    muxer(&mut original).output = Some(Vec::new());
    run(&mut original);
    let calls = muxer(&mut original).calls;
    let mut replaced = make();
    muxer(&mut replaced).output = Some(Vec::new());
    muxer(&mut replaced).restore_at = at.checked_rem(calls);
    run(&mut replaced);
    let [original, replaced] = [&mut original, &mut replaced].map(|driver| outcome(muxer(driver)));
    for (one, other) in original.0.iter().zip(&replaced.0) {
        assert_eq!(one, other);
    }
    assert_eq!(original, replaced);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::cases(40),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_a_snapshot_every_output_is_the_same_with_a_conforming_guest(
        setup in random::setup(),
        actions in vec(random::action(), 1..300),
        at: usize,
    ) {
        let run = |pair: &mut Pair| {
            for action in &actions {
                random::act(pair, action);
            }
            pair.settle();
        };
        compare(|| Pair::new(setup.clone()), |it| &mut it.device.muxer, run, at);
    }

    #[test]
    fn after_a_snapshot_every_output_is_the_same_with_a_hostile_guest(
        actions in vec(hostile::action(), 1..300),
        is_prompt: bool,
        at: usize,
    ) {
        let run = |owner: &mut Owner| {
            for action in &actions {
                owner.act(action);
            }
        };
        compare(|| Owner::new(is_prompt), |it| &mut it.muxer, run, at);
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_harmless(
        actions in vec(hostile::action(), 1..100),
        edits in vec(edit(), 1..4),
        is_prompt: bool,
        later in vec(hostile::action(), 1..60),
    ) {
        let mut owner = Owner::new(is_prompt);
        for action in &actions {
            owner.act(action);
        }
        let mut value = serde_json::to_value(owner.muxer.snapshot()).unwrap();
        for edit in edits {
            edit.apply(&mut value);
        }
        if let Ok(snapshot) = serde_json::from_value(value) {
            survive(snapshot, &later);
        }
    }

    #[test]
    fn damaged_text_is_refused_or_harmless(
        places in vec((any::<usize>(), any::<u8>()), 1..4),
        later in vec(hostile::action(), 1..30),
    ) {
        let mut text = serde_json::to_vec(&example(start()).snapshot(start())).unwrap();
        for (at, byte) in places {
            let at = at % text.len();
            text[at] = byte;
        }
        if let Ok(snapshot) = serde_json::from_slice(&text) {
            survive(snapshot, &later);
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    (any::<u32>(), any::<u8>(), any::<u64>()).prop_map(|(node, kind, value)| Edit {
        node,
        kind,
        value,
    })
}

const USED_UP: &str = "its handles are used up";
const COUNTER: &str = "a counter is out of range";

/// Restores a snapshot and, if it is accepted, uses the muxer in every way. It must not panic, hang or
/// exceed its limits, and it must stay in states that can be restored.
fn survive(snapshot: MuxerSnapshot, actions: &[hostile::Action]) {
    let config = hostile::config(CONNECTIONS);
    let mut now = start();
    let handles = handles(&snapshot);
    let Ok(mut muxer) = Muxer::restore(snapshot, config.clone(), now) else {
        return;
    };
    for (number, action) in actions.iter().enumerate() {
        let handle = handles.get(number % handles.len().max(1)).copied();
        use_in_every_way(&mut muxer, action, handle, &mut now);
        assert!(muxer.connections() <= CONNECTIONS);
        let again = muxer.snapshot(now);
        match Muxer::restore(again, config.clone(), now) {
            Ok(_) => {}
            // A forged counter at its maximum has been incremented.
            Err(SnapshotError::Inconsistent {
                what: USED_UP | COUNTER,
            }) => return,
            Err(other) => panic!("a state that was reached: {other}"),
        }
    }
    muxer.reset_all();
    let mut packets = 0;
    while muxer.poll_transmit(1 << 16).is_some() {
        packets += 1;
        assert!(packets <= CONNECTIONS + config.max_replies);
    }
    assert_eq!(muxer.connections(), 0);
    assert_eq!(muxer.poll_timeout(), None);
}

fn use_in_every_way(
    muxer: &mut Muxer,
    action: &hostile::Action,
    handle: Option<Handle>,
    now: &mut Instant,
) {
    use hostile::{Action, Command};
    match (*action, handle) {
        (Action::Packet(header, payload) | Action::Known(_, header, payload), handle) => {
            let mut header = header;
            if let Some(key) = handle.and_then(|handle| muxer.key(handle)) {
                header.src_port = key.guest_port;
                (header.dst_cid, header.dst_port) = (key.peer.0, key.peer_port);
                header.kind = key.kind as u16;
            }
            if muxer.may_receive()
                && let Received::Payload { handle, len, .. } = muxer.handle_packet(&header, payload)
            {
                muxer.freed(handle, len as u32);
            }
        }
        (Action::Connect(port), _) => {
            let key = Key {
                guest_port: port,
                peer: Cid::HOST,
                peer_port: 5000,
                kind: SocketKind::Seqpacket,
            };
            let _ = muxer.connect(*now, key, 4096, Duration::from_secs(2));
        }
        (Action::Command(_, command), Some(handle)) => match command {
            Command::Accept => muxer.accept(handle, 4096),
            Command::Refuse => muxer.refuse(handle),
            Command::Readable => muxer.readable(handle),
            Command::Freed(_) => muxer.freed(handle, 0),
            Command::Finish => muxer.finish(handle),
            Command::CloseRead => muxer.close_read(handle),
            Command::Close => muxer.close(*now, handle),
            Command::Reset => muxer.reset(handle),
        },
        (
            Action::Transmit {
                packets,
                space,
                bytes,
            },
            _,
        ) => {
            for _ in 0..packets {
                if let Some(Transmit::Data { handle, max, .. }) = muxer.poll_transmit(space) {
                    let bytes = bytes.min(max);
                    if bytes == 0 {
                        muxer.nothing_to_send(handle);
                    } else {
                        muxer.sent(handle, bytes, MessageEnd::default(), bytes % 2 == 0);
                    }
                }
            }
        }
        (Action::Pass(millis), _) => {
            *now += Duration::from_millis(millis);
            muxer.handle_timeout(*now);
            assert!(muxer.poll_timeout().is_none_or(|at| at > *now));
        }
        (Action::Command(..) | Action::Honest(_), _) => while muxer.poll_event().is_some() {},
    }
}

/// The handles of a snapshot's connections, as its owner would have stored them.
fn handles(snapshot: &MuxerSnapshot) -> Vec<Handle> {
    let value = serde_json::to_value(snapshot).unwrap();
    let connections = value["connections"].as_array().unwrap().iter();
    connections
        .map(|it| {
            let handle = serde_json::json!({ "index": it["slot"], "serial": it["serial"] });
            serde_json::from_value::<HandleSnapshot>(handle)
                .unwrap()
                .into()
        })
        .collect()
}

fn start() -> Instant {
    // So that times before it exist.
    Instant::now() + Duration::from_secs(3600)
}

/// A muxer with a connection in each state, and something in each table.
fn example(now: Instant) -> Muxer {
    let mut it = Muxer::with_first_count(hostile::config(CONNECTIONS), 7);
    let packet = |port, op| Header {
        buf_alloc: 1 << 20,
        fwd_cnt: 7,
        ..header(port, op)
    };
    it.handle_timeout(now - Duration::from_millis(3));
    let requests = [
        (100, 1),
        (101, 2),
        (102, 1),
        (103, 1),
        (104, 1),
        (105, 1),
        (107, 1),
    ];
    let [_, half, first, second, closing, _, _] = requests.map(|(port, kind)| {
        let request = Header {
            kind,
            ..packet(port, Operation::Request)
        };
        let _ = it.handle_packet(&request, 0);
        match it.poll_event() {
            Some(Event::Request { handle, .. }) => handle,
            other => panic!("{other:?}"),
        }
    });
    for handle in [half, first, second, closing] {
        it.accept(handle, 4096);
    }
    while it.poll_transmit(0).is_some() {}
    // Open, with unread data and a SHUTDOWN from each side.
    let data = Header {
        kind: 2,
        len: 100,
        ..packet(101, Operation::Data)
    };
    let _ = it.handle_packet(&data, 100);
    let shutdown = Header {
        kind: 2,
        flags: shutdown::SEND,
        ..packet(101, Operation::Shutdown)
    };
    let _ = it.handle_packet(&shutdown, 0);
    it.finish(half);
    // Two in the round robin. The turn of the first is over.
    it.readable(first);
    it.readable(second);
    while let Some(Transmit::Packet(_)) = it.poll_transmit(0) {}
    let Some(Transmit::Data { handle, max, .. }) = it.poll_transmit(1 << 20) else {
        panic!("no data");
    };
    it.sent(handle, max, MessageEnd::default(), true);
    it.close(now, closing);
    let key = Key {
        guest_port: 106,
        peer: Cid::HOST,
        peer_port: 9,
        kind: SocketKind::Stream,
    };
    it.connect(now, key, 4096, Duration::from_secs(2)).unwrap();
    // Slot 0 becomes free. The last connection ended by a violation. Both have events. An RST to a
    // packet of no connection waits.
    let _ = it.handle_packet(&packet(100, Operation::Reset), 0);
    let _ = it.handle_packet(&packet(107, Operation::Response), 0);
    let _ = it.handle_packet(&packet(108, Operation::Data), 0);
    it
}

/// Each version of the format has an example in `tests/snapshots/`, which every later release reads.
///
/// A new version: raise `MUXER_SNAPSHOT_VERSION`, make `restore` read the version before as well, and
/// write the new example with `UPDATE_SNAPSHOTS=1 cargo test -p hvsock-virtio --test muxer`. The earlier
/// examples stay as they are.
#[test]
fn snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
    let now = start();
    let written = serde_json::to_string_pretty(&example(now).snapshot(now)).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/muxer-{MUXER_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=MUXER_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/muxer-{version}.json")).unwrap();
        let snapshot: MuxerSnapshot = serde_json::from_str(&last).unwrap();
        let mut it = Muxer::restore(snapshot, hostile::config(CONNECTIONS), now).unwrap();
        assert_eq!(it.connections(), 6);
        assert_eq!(it.counters().strays, 1);
        assert_eq!(it.poll_timeout(), Some(now + Duration::from_secs(2)));
        let reasons: Vec<_> = std::iter::from_fn(|| it.poll_event())
            .filter_map(|event| match event {
                Event::Closed { reason, .. } => Some(reason),
                _ => None,
            })
            .collect();
        assert_eq!(
            reasons,
            [Closed::Reset, Closed::Protocol("RESPONSE to no REQUEST")]
        );
        while let Some(Transmit::Packet(_)) = it.poll_transmit(4096) {}
        let Some(Transmit::Data { handle, .. }) = it.poll_transmit(4096) else {
            panic!("no data");
        };
        assert_eq!(it.key(handle).unwrap().guest_port, 103);
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

#[test]
fn a_snapshot_of_an_unknown_version_is_refused_before_its_fields_are_read() {
    let text = r#"{"version": 2, "peers": []}"#;
    let error = serde_json::from_str::<MuxerSnapshot>(text).unwrap_err();
    let want = "the snapshot has version 2; this release reads version 1";
    assert!(error.to_string().starts_with(want), "{error}");
}

#[test]
fn fields_that_a_later_release_adds_are_ignored() {
    let (config, now) = (hostile::config(CONNECTIONS), start());
    let mut value = serde_json::to_value(example(now).snapshot(now)).unwrap();
    value["hint"] = Value::from(1);
    value["connections"][0]["hint"] = Value::from(1);
    let snapshot = serde_json::from_value(value).unwrap();
    let it = Muxer::restore(snapshot, config, now).unwrap();
    assert_eq!(it.snapshot(now), example(now).snapshot(now));
}

#[test]
fn a_snapshot_beyond_the_limits_or_of_another_guest_is_refused() {
    let now = start();
    let restore = |change: &dyn Fn(&mut Config)| {
        let mut config = hostile::config(CONNECTIONS);
        change(&mut config);
        Muxer::restore(example(now).snapshot(now), config, now).map(drop)
    };
    assert_eq!(restore(&|_| {}), Ok(()));
    let few = restore(&|config| config.max_connections = 7);
    assert_eq!(
        few.unwrap_err().to_string(),
        "the snapshot has 8 connections; the limit is 7"
    );
    let none = restore(&|config| config.max_replies = 0);
    assert!(matches!(
        none,
        Err(SnapshotError::LimitExceeded {
            which: "replies",
            ..
        })
    ));
    let other = restore(&|config| config.guest = GuestCid::MAX);
    assert!(
        matches!(other, Err(SnapshotError::Inconsistent { .. })),
        "{CID}"
    );
    let features = restore(&|config| config.seqpacket = false);
    assert!(matches!(features, Err(SnapshotError::Inconsistent { .. })));
}
