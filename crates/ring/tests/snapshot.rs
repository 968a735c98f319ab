//! Snapshots of a monitor: the monitor made from one behaves like the original, damaged ones are refused
//! or harmless, and those of earlier releases can be read. `model` replaces the monitor between
//! conforming ends; here the ends are hostile.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p hvsock-ring --test snapshot` runs more cases.

use std::fs::File;
use std::os::unix::fs::FileExt;

use hvsock_ring::{
    MONITOR_SNAPSHOT_VERSION, Monitor, MonitorSnapshot, Parts, RingEnd, RingError, RingSide,
    RingSize, SnapshotError,
};
use hvsock_testkit::json_edits::Edit;
use proptest::collection::vec;
use proptest::prelude::*;

/// Offsets of words, from the table in docs/endpoint.md.
const STATE: u64 = 0;
const HEAD: u64 = 128;
const TAIL: u64 = 256;
const ENDED: u64 = 640;
/// The distance to the words of the other direction.
const BACK: u64 = 640;
const HEADER: usize = 4096;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// An end stores a value at an offset.
    Store(u64, u64),
    Close(RingSide),
    Reset,
    Suspend(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let side = prop_oneof![Just(RingSide::First), Just(RingSide::Second)];
    let at = prop_oneof![4 => Just(HEAD), 1 => Just(TAIL), 2 => Just(ENDED)];
    let at = (at, any::<bool>()).prop_map(|(at, is_back)| at + if is_back { BACK } else { 0 });
    let value = prop_oneof![4 => 0..5000_u64, 2 => Just(0), 1 => any::<u64>()];
    prop_oneof![
        20 => (at, value).prop_map(|(at, value)| Op::Store(at, value)),
        1 => side.prop_map(Op::Close),
        1 => Just(Op::Reset),
        2 => any::<bool>().prop_map(Op::Suspend),
    ]
}

struct World {
    memory: File,
    monitor: Monitor,
}

impl World {
    fn new() -> Self {
        let memory = Parts::new(RingSize::MIN).unwrap().memory;
        Self {
            monitor: Monitor::new(&memory).unwrap(),
            memory: memory.into(),
        }
    }

    fn store(&self, at: u64, value: u64) {
        // The words `ended` and `state` have four bytes.
        let len = if [STATE, ENDED, ENDED + BACK].contains(&at) {
            4
        } else {
            8
        };
        let bytes = value.to_le_bytes();
        self.memory.write_all_at(&bytes[..len], at).unwrap();
    }

    /// Applies an operation and returns all output.
    fn apply(&mut self, op: Op) -> [(u64, bool, bool); 2] {
        match op {
            Op::Store(at, value) => self.store(at, value),
            Op::Close(side) => self.monitor.close(side),
            Op::Reset => self.monitor.reset(),
            Op::Suspend(suspended) => self.monitor.suspend(suspended),
        }
        let it = &self.monitor;
        RingSide::BOTH.map(|side| (it.written(side), it.has_ended(side), it.leaves_unread(side)))
    }

    fn replace(&mut self) {
        let text = serde_json::to_vec(&self.monitor.snapshot()).unwrap();
        let snapshot = serde_json::from_slice(&text).unwrap();
        self.monitor = Monitor::restore(snapshot, &self.memory).unwrap();
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        self.memory.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

proptest! {
    #[test]
    fn after_a_snapshot_every_output_is_the_same(ops in vec(op(), 1..60), at: usize) {
        let (mut original, mut replaced) = (World::new(), World::new());
        let at = at % ops.len();
        for (number, op) in ops.into_iter().enumerate() {
            if number == at {
                replaced.replace();
            }
            let before = RingSide::BOTH.map(|side| original.monitor.written(side));
            let outputs = original.apply(op);
            prop_assert_eq!(replaced.apply(op), outputs);
            for (before, (written, ..)) in before.into_iter().zip(outputs) {
                prop_assert!(written.wrapping_sub(before).cast_signed() >= 0);
            }
        }
        prop_assert_eq!(original.monitor.snapshot(), replaced.monitor.snapshot());
        prop_assert_eq!(original.header(), replaced.header());
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_harmless(
        ops in vec(op(), 1..30),
        later in vec(op(), 1..30),
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        let mut value = serde_json::to_value(world.monitor.snapshot()).unwrap();
        for (node, kind, number) in edits {
            Edit { node, kind, value: number }.apply(&mut value);
        }
        let Ok(snapshot) = serde_json::from_value::<MonitorSnapshot>(value) else {
            return Ok(());
        };
        world.monitor = Monitor::restore(snapshot.clone(), &world.memory).unwrap();
        prop_assert_eq!(world.monitor.snapshot(), snapshot);
        let mut last = [0; 2];
        for (number, op) in later.into_iter().enumerate() {
            let written = world.apply(op).map(|(written, ..)| written);
            let is_behind = |at: usize| written[at].wrapping_sub(last[at]).cast_signed() < 0;
            prop_assert!(number == 0 || !is_behind(0) && !is_behind(1));
            last = written;
            world.replace();
        }
    }
}

#[test]
fn a_count_does_not_decrease_and_an_end_stays() {
    let mut world = World::new();
    let side = RingSide::Second;
    world.store(HEAD + BACK, 1000);
    world.store(ENDED + BACK, 1);
    assert_eq!(
        (world.monitor.written(side), world.monitor.has_ended(side)),
        (1000, true)
    );
    for _ in 0..2 {
        world.store(HEAD + BACK, 10);
        world.store(ENDED + BACK, 0);
        assert_eq!(
            (world.monitor.written(side), world.monitor.has_ended(side)),
            (1000, true)
        );
        world.replace();
    }
    world.store(HEAD + BACK, 1001);
    assert_eq!(world.monitor.written(side), 1001);
}

#[test]
fn restoring_repeats_what_was_ordered() {
    let Parts {
        memory,
        first,
        second,
    } = Parts::new(RingSize::MIN).unwrap();
    let ends = [(RingSide::First, first), (RingSide::Second, second)]
        .map(|(side, doorbells)| RingEnd::open(side, &memory, doorbells).unwrap());
    let monitor = Monitor::new(&memory).unwrap();
    monitor.close(RingSide::Second);
    monitor.suspend(true);
    let snapshot = monitor.snapshot();
    drop(monitor);
    // As if nothing had been carried out.
    let file = File::from(memory.try_clone().unwrap());
    file.write_all_at(&[0; 4], STATE).unwrap();
    file.write_all_at(&[0; 8], ENDED).unwrap();
    let [first, second] = &ends;
    second.try_write(b"x").unwrap();
    assert!(first.is_readable() && first.is_writable());

    let monitor = Monitor::restore(snapshot, &memory).unwrap();
    assert_eq!(first.try_write(b"x"), Err(RingError::PeerClosed));
    assert!(!first.is_readable());
    monitor.suspend(false);
    assert!(first.is_readable());
    monitor.reset();
    let snapshot = monitor.snapshot();
    file.write_all_at(&[0; 4], STATE).unwrap();
    let _monitor = Monitor::restore(snapshot, &memory).unwrap();
    assert_eq!(second.try_read(&mut [0]), Err(RingError::Reset));
}

/// Each version of the format has an example in `tests/snapshots/`, which every later release reads.
///
/// A new version: raise `MONITOR_SNAPSHOT_VERSION`, make `restore` read the version before as well, and
/// write the new example with `UPDATE_SNAPSHOTS=1 cargo test -p hvsock-ring --test snapshot`. The earlier
/// examples stay as they are.
#[test]
fn snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
    let mut world = World::new();
    for op in [
        Op::Store(HEAD, 5000),
        Op::Store(HEAD + BACK, 1 << 40),
        Op::Store(ENDED, 1),
        Op::Close(RingSide::First),
        Op::Suspend(true),
    ] {
        world.apply(op);
    }
    let written = serde_json::to_string_pretty(&world.monitor.snapshot()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/monitor-{MONITOR_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=MONITOR_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/monitor-{version}.json")).unwrap();
        let fresh = World::new();
        let snapshot = serde_json::from_str(&last).unwrap();
        let monitor = Monitor::restore(snapshot, &fresh.memory).unwrap();
        assert_eq!(
            RingSide::BOTH.map(|side| monitor.written(side)),
            [5000, 1 << 40]
        );
        assert_eq!(
            RingSide::BOTH.map(|side| monitor.has_ended(side)),
            [true, false]
        );
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

#[test]
fn an_unknown_version_and_memory_of_another_kind_are_refused() {
    let text = r#"{"version": 2, "ends": []}"#;
    let error = serde_json::from_str::<MonitorSnapshot>(text).unwrap_err();
    let want = "the snapshot has version 2; this release reads version 1";
    assert!(error.to_string().starts_with(want), "{error}");
    let snapshot = World::new().monitor.snapshot();
    let file = File::open("/proc/self/exe").unwrap();
    let error = Monitor::restore(snapshot, file).unwrap_err();
    assert!(matches!(error, SnapshotError::Memory(_)), "{error}");
}
