//! Snapshots that are damaged or forged. Restoring must refuse them or make a muxer, queue, monitor or fabric
//! that works within its limits, and whose own snapshot can be restored.
//!
//! The first byte chooses which of the four, the second whether the rest is the text of the snapshot or a list
//! of edits of a valid one.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use hvsock_fabric::{Fabric, FabricSnapshot, Limits, Operators, PartitionKey, PartitionState};
use hvsock_ring::{Monitor, Parts, RingSide, RingSize};
use hvsock_testkit::json_edits::Edit;
use hvsock_virtio::queue::{Chain, GuestMemory, Queue};
use hvsock_virtio::{Config, GuestCid, MessageEnd, Muxer, Transmit};
use serde::de::DeserializeOwned;

use crate::target::Seed;

/// The valid snapshots that the crates' tests read.
const FABRIC: &str = include_str!("../../../crates/fabric/tests/snapshots/fabric-1.json");
const MONITOR: &str = include_str!("../../../crates/ring/tests/snapshots/monitor-1.json");
const MUXER: &str = include_str!("../../../crates/virtio/tests/snapshots/muxer-1.json");
const QUEUE: &str = include_str!("../../../crates/virtio/tests/snapshots/queue-1.json");

/// Restores one snapshot.
pub(crate) fn run(bytes: &[u8]) {
    let [which, is_text, rest @ ..] = bytes else {
        return;
    };
    let is_text = is_text % 2 == 0;
    match which % 4 {
        0 => read(FABRIC, is_text, rest).into_iter().for_each(fabric),
        1 => read(MUXER, is_text, rest).into_iter().for_each(muxer),
        2 => read(QUEUE, is_text, rest)
            .into_iter()
            .for_each(|snapshot| queue(snapshot, rest)),
        _ => read(MONITOR, is_text, rest).iter().for_each(monitor),
    }
}

/// The valid snapshots without an edit, and with one; and a short one as text.
pub(crate) fn seeds() -> Vec<Seed> {
    let edited = |which: u8| [&[which, 1][..], &[7, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0]].concat();
    let queue: serde_json::Value = serde_json::from_str(QUEUE).unwrap_or_default();
    super::named([
        ("fabric", vec![0, 1]),
        ("muxer", vec![1, 1]),
        ("queue", vec![2, 1]),
        ("monitor", vec![3, 1]),
        ("fabric-edited", edited(0)),
        ("muxer-edited", edited(1)),
        ("queue-edited", edited(2)),
        ("monitor-edited", edited(3)),
        (
            "queue-text",
            [&[2, 0], queue.to_string().as_bytes()].concat(),
        ),
    ])
}

/// A snapshot from its text, or from edits of 13 bytes each.
fn read<T: DeserializeOwned>(valid: &str, is_text: bool, bytes: &[u8]) -> Option<T> {
    if is_text {
        return serde_json::from_slice(bytes).ok();
    }
    let mut value = serde_json::from_str(valid).expect("an example is JSON");
    for edit in bytes.chunks_exact(13).take(8) {
        let [a, b, c, d, kind, number @ ..] = edit else {
            continue;
        };
        let node = u32::from_le_bytes([*a, *b, *c, *d]);
        let number = number
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
        Edit {
            node,
            kind: *kind,
            value: number,
        }
        .apply(&mut value);
    }
    serde_json::from_value(value).ok()
}

fn fabric(snapshot: FabricSnapshot) {
    let limits = Limits {
        partitions: 16,
        listeners: 16,
        connections: 16,
        ..Limits::default()
    };
    let operators = Operators::of_broker(900);
    let Ok(mut fabric) = Fabric::restore(snapshot, limits, operators.clone()) else {
        return;
    };
    let again = fabric.snapshot();
    let restored = Fabric::restore(again.clone(), limits, operators).expect("a fabric's snapshot");
    assert_eq!(restored.snapshot(), again);
    let keys: Vec<PartitionKey> = fabric.partitions().map(|(key, _)| key).collect();
    assert!(keys.len() <= limits.partitions);
    for key in keys {
        for state in [PartitionState::Paused, PartitionState::Running] {
            let _ = fabric.set_state(key, state);
        }
        let _ = fabric.set_groups(key, Vec::new());
        let _ = fabric.remove_partition(key);
    }
    assert_eq!(fabric.partitions().count(), 1);
    while fabric.poll_effect().is_some() {}
}

fn muxer(snapshot: hvsock_virtio::MuxerSnapshot) {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let now = *START;
    let config = Config {
        max_connections: 16,
        max_replies: 4,
        ..Config::new(GuestCid::try_from(42).expect("a guest's CID"))
    };
    let Ok(mut muxer) = Muxer::restore(snapshot, config.clone(), now) else {
        return;
    };
    let again = muxer.snapshot(now);
    Muxer::restore(again, config.clone(), now).expect("a muxer's snapshot");
    assert!(muxer.connections() <= config.max_connections);
    while muxer.poll_event().is_some() {}
    for _ in 0..64 {
        if let Some(Transmit::Data { handle, max, .. }) = muxer.poll_transmit(4096) {
            muxer.sent(handle, max, MessageEnd::default(), true);
        }
    }
    muxer.handle_timeout(now + Duration::from_secs(1 << 30));
    muxer.reset_all();
    while muxer.poll_transmit(4096).is_some() {}
    assert_eq!((muxer.connections(), muxer.poll_timeout()), (0, None));
}

struct Memory(RefCell<Vec<u8>>);

impl GuestMemory for Memory {
    fn read(&self, address: u64, to: &mut [u8]) -> bool {
        let memory = self.0.borrow();
        let at = usize::try_from(address).ok();
        let bytes = at.and_then(|at| memory.get(at..at.checked_add(to.len())?));
        bytes.map(|bytes| to.copy_from_slice(bytes)).is_some()
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        let mut memory = self.0.borrow_mut();
        let at = usize::try_from(address).ok();
        let bytes = at.and_then(|at| memory.get_mut(at..at.checked_add(from.len())?));
        bytes.map(|bytes| bytes.copy_from_slice(from)).is_some()
    }

    fn load(&self, address: u64) -> Option<u16> {
        let mut word = [0; 2];
        self.read(address, &mut word)
            .then(|| u16::from_le_bytes(word))
    }

    fn store(&self, address: u64, value: u16) -> Option<()> {
        self.write(address, &value.to_le_bytes()).then_some(())
    }

    fn fence(&self) {}
}

fn queue(snapshot: hvsock_virtio::queue::QueueSnapshot, bytes: &[u8]) {
    let repeated = bytes.iter().copied().cycle().take(0x8000);
    let mut content: Vec<u8> = repeated.collect();
    content.resize(0x8000, 0);
    let memory = Memory(RefCell::new(content));
    let Ok(mut queue) = Queue::restore(snapshot, &memory) else {
        return;
    };
    let again = queue.snapshot().expect("no chain is taken");
    Queue::restore(again, &memory).expect("a queue's snapshot");
    let mut chain = Chain::default();
    for _ in 0..64 {
        if queue.peek(&memory, &mut chain).is_err() {
            return;
        }
        queue.take();
        let _ = queue.add_used(&memory, chain.head(), 0);
        let _ = queue.publish(&memory);
        let _ = queue.enable_notification(&memory);
    }
}

fn monitor(snapshot: &hvsock_ring::MonitorSnapshot) {
    let Ok(parts) = Parts::new(RingSize::MIN) else {
        return;
    };
    let monitor = Monitor::restore(snapshot.clone(), &parts.memory).expect("sealed memory");
    assert_eq!(monitor.snapshot(), *snapshot);
    for side in RingSide::BOTH {
        let written = monitor.written(side);
        monitor.close(side);
        assert_eq!(monitor.written(side), written);
        let _ = (monitor.has_ended(side), monitor.leaves_unread(side));
    }
    monitor.reset();
}
