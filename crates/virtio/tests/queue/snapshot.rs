//! Snapshots: a queue made from one behaves like the original, damaged ones are refused or harmless,
//! and those of earlier releases can be read.

use hvsock_virtio::SnapshotError;
use hvsock_virtio::queue::{
    Chain, GuestMemory, Layout, Next, QUEUE_SNAPSHOT_VERSION, Queue, QueueSnapshot, Segment,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::driver::{AVAILABLE, Driver, Memory, Op, layout, op};
use crate::json_edits::Edit;

/// Applies operations to a queue and records everything that it returns. Before operation `restore_at`
/// the queue is replaced by one made from its snapshot.
fn run(ops: &[Op], layout: Layout, base: u16, restore_at: Option<usize>) -> (Vec<String>, Vec<u8>) {
    let memory = Memory::new();
    let mut driver = Driver::new(&memory, layout, base);
    let mut queue = Queue::new(layout, base, &memory).unwrap();
    let mut output = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        if restore_at == Some(at) {
            let text = serde_json::to_vec(&queue.snapshot().unwrap()).unwrap();
            queue = Queue::restore(serde_json::from_slice(&text).unwrap(), &memory).unwrap();
        }
        output.push(apply(op, &memory, &mut driver, &mut queue));
    }
    output.push(format!("{:?}", queue.snapshot()));
    (output, memory.bytes())
}

fn apply(op: &Op, memory: &Memory, driver: &mut Driver<'_>, queue: &mut Queue) -> String {
    let mut chain = Chain::default();
    match op {
        Op::AddAvailable { segments, indirect } => {
            let mut segments = segments.clone();
            segments.sort_by_key(|(.., writes)| *writes);
            let segments: Vec<_> = segments
                .into_iter()
                .map(|(address, len, writes)| (Segment { address, len }, writes))
                .collect();
            format!("{:?}", driver.add_available(&segments, *indirect))
        }
        Op::Notify => format!("{}", driver.needs_notification()),
        Op::Park => format!("{:?}", queue.enable_notification(memory)),
        Op::Poll => format!("{:?}", queue.disable_notification(memory)),
        Op::Peek => {
            let next = queue.peek(memory, &mut chain);
            format!("{next:?} {chain:?} {}", queue.has_available(memory))
        }
        Op::Take { written } => {
            let next = queue.peek(memory, &mut chain);
            let used = match next {
                Ok(Next::Chain | Next::Bad(_)) => {
                    queue.take();
                    Some(queue.add_used(memory, chain.head(), *written))
                }
                _ => None,
            };
            format!("{next:?} {chain:?} {used:?} {}", queue.position())
        }
        Op::Publish => format!("{} {:?}", queue.has_unpublished(), queue.publish(memory)),
        Op::TakeUsed => format!("{:?}", driver.take_used()),
        Op::Interrupts(on) => {
            driver.enable_interrupts(*on);
            String::new()
        }
    }
}

fn any_base() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::cases(100),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_a_snapshot_every_output_is_the_same(
        ops in vec(op(), 1..200),
        size in 0..5u32,
        event_idx: bool,
        base in any_base(),
        at: usize,
    ) {
        let layout = layout(1 << size, event_idx);
        let original = run(&ops, layout, base, None);
        let replaced = run(&ops, layout, base, Some(at % ops.len()));
        prop_assert_eq!(original, replaced);
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_harmless(
        ops in vec(op(), 1..60),
        later in vec(op(), 1..60),
        event_idx: bool,
        base in any_base(),
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let layout = layout(8, event_idx);
        let memory = Memory::new();
        let mut driver = Driver::new(&memory, layout, base);
        let mut queue = Queue::new(layout, base, &memory).unwrap();
        for op in &ops {
            apply(op, &memory, &mut driver, &mut queue);
        }
        let mut value = serde_json::to_value(queue.snapshot().unwrap()).unwrap();
        for (node, kind, value_of_edit) in edits {
            Edit { node, kind, value: value_of_edit }.apply(&mut value);
        }
        let Ok(snapshot) = serde_json::from_value::<QueueSnapshot>(value) else {
            return Ok(());
        };
        let Ok(mut queue) = Queue::restore(snapshot.clone(), &memory) else {
            return Ok(());
        };
        let restored = queue.snapshot().unwrap();
        prop_assert_eq!(&restored, &snapshot);
        // Other addresses or indices fit no driver, but do no harm.
        for op in later {
            match op {
                Op::AddAvailable { .. } => {
                    // Whatever the ring holds is available.
                    let next = queue.position().wrapping_add(1);
                    memory.store(AVAILABLE + 2, next).unwrap();
                }
                Op::Notify | Op::TakeUsed | Op::Interrupts(_) => {}
                op => drop(apply(&op, &memory, &mut driver, &mut queue)),
            }
            let again = queue.snapshot().unwrap();
            prop_assert!(Queue::restore(again, &memory).is_ok() || queue.has_unpublished());
        }
    }
}

/// A queue with an available and an unpublished chain.
fn example(memory: &Memory) -> Queue {
    let layout = layout(8, true);
    let mut driver = Driver::new(memory, layout, 65_530);
    let mut queue = Queue::new(layout, 65_530, memory).unwrap();
    let segment = Segment {
        address: 0x10_0000,
        len: 64,
    };
    for _ in 0..3 {
        driver.add_available(&[(segment, false)], false).unwrap();
    }
    let mut chain = Chain::default();
    for publishes in [true, false] {
        assert_eq!(queue.peek(memory, &mut chain), Ok(Next::Chain));
        queue.take();
        queue.add_used(memory, chain.head(), 0).unwrap();
        if publishes {
            queue.publish(memory).unwrap();
            queue.disable_notification(memory).unwrap();
        }
    }
    queue
}

/// Each version of the format has an example in `tests/snapshots/`, which every later release reads.
///
/// A new version: raise `QUEUE_SNAPSHOT_VERSION`, make `restore` read the version before as well, and
/// write the new example with `UPDATE_SNAPSHOTS=1 cargo test -p hvsock-virtio --test queue`. The earlier
/// examples stay as they are.
#[test]
fn snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
    let memory = Memory::new();
    let snapshot = example(&memory).snapshot().unwrap();
    let written = serde_json::to_string_pretty(&snapshot).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/queue-{QUEUE_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=QUEUE_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/queue-{version}.json")).unwrap();
        let snapshot: QueueSnapshot = serde_json::from_str(&last).unwrap();
        let mut queue = Queue::restore(snapshot, &memory).unwrap();
        assert_eq!((queue.size(), queue.position()), (8, 65_532));
        assert!(queue.has_unpublished());
        let mut chain = Chain::default();
        assert_eq!(queue.peek(&memory, &mut chain), Ok(Next::Chain));
        queue.publish(&memory).unwrap();
        assert!(!queue.has_unpublished());
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

#[test]
fn a_snapshot_is_refused_while_a_taken_chain_is_not_returned() {
    let memory = Memory::new();
    let mut queue = example(&memory);
    let mut chain = Chain::default();
    assert_eq!(queue.peek(&memory, &mut chain), Ok(Next::Chain));
    // A chain that was only read will be read again.
    assert!(queue.snapshot().is_ok());
    queue.take();
    let chains = 1;
    assert_eq!(queue.snapshot(), Err(SnapshotError::Outstanding { chains }));
    queue.add_used(&memory, chain.head(), 0).unwrap();
    assert!(queue.snapshot().is_ok());
}

#[test]
fn a_snapshot_of_another_version_or_outside_guest_memory_is_refused() {
    let memory = Memory::new();
    let mut value = serde_json::to_value(example(&memory).snapshot().unwrap()).unwrap();
    value["used"] = (1_u64 << 40).into();
    let outside: QueueSnapshot = serde_json::from_value(value.clone()).unwrap();
    let error = Queue::restore(outside, &memory).unwrap_err();
    let want = "the snapshot is inconsistent: the queue is outside guest memory";
    assert_eq!(error.to_string(), want);
    value["version"] = 0.into();
    let error = serde_json::from_value::<QueueSnapshot>(value).unwrap_err();
    let want = "the snapshot has version 0; this release reads version 1";
    assert_eq!(error.to_string(), want);
}
