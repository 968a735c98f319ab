//! The device's side of the queue against a simple model of the driver.

mod driver;
// The test kit depends on this crate.
#[path = "../../../testkit/src/json_edits.rs"]
mod json_edits;
mod snapshot;

use std::collections::VecDeque;

use hvsock_virtio::queue::{
    BadChain, Chain, GuestMemory, Layout, MAX_CHAIN, Next, Queue, QueueFault, Segment,
};
use proptest::prelude::*;

use crate::driver::{
    AVAILABLE, Driver, INDIRECT_TABLES, Memory, Op, Raw, TABLE, USED, descriptor, layout, op,
};

/// Number of random cases: `PROPTEST_CASES`, or `default`.
fn cases(default: u32) -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.map_or(default, |text| {
        text.parse().expect("PROPTEST_CASES is a number")
    })
}

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`
const NO_NOTIFY: u16 = 1;

proptest! {
    #[test]
    fn every_chain_arrives_once_in_order_and_no_wakeup_is_lost(
        ops in prop::collection::vec(op(), 1..400),
        size in 0..5u32,
        event_idx in any::<bool>(),
        base in prop_oneof![Just(0), any::<u16>()],
    ) {
        let memory = Memory::new();
        let layout = layout(1 << size, event_idx);
        let mut driver = Driver::new(&memory, layout, base);
        let mut queue = Queue::new(layout, base, &memory).unwrap();
        let mut available: VecDeque<(u16, Vec<(Segment, bool)>)> = VecDeque::new();
        let mut used_by_device: VecDeque<(u16, u32)> = VecDeque::new();
        let mut chain = Chain::default();
        // The device is parked until a notification; the driver waits for an interrupt.
        let (mut parked, mut waits) = (false, true);
        driver.enable_interrupts(true);
        for op in ops {
            match op {
                Op::AddAvailable { mut segments, indirect } => {
                    segments.sort_by_key(|(.., writes)| *writes);
                    let segments: Vec<_> = segments
                        .into_iter()
                        .map(|(address, len, writes)| (Segment { address, len }, writes))
                        .collect();
                    if let Some(head) = driver.add_available(&segments, indirect) {
                        available.push_back((head, segments));
                    }
                }
                Op::Notify => {
                    let notifies = driver.needs_notification();
                    if parked && !available.is_empty() {
                        prop_assert!(notifies, "the device is parked and gets no notification");
                        parked = false;
                    }
                }
                Op::Park => {
                    // The driver notifies of the chains added so far in a later `Notify`.
                    let has_chain = queue.enable_notification(&memory).unwrap();
                    prop_assert_eq!(has_chain, !available.is_empty());
                    parked = !has_chain;
                }
                Op::Poll => {
                    parked = false;
                    queue.disable_notification(&memory).unwrap();
                }
                Op::Peek | Op::Take { .. } if parked => {}
                Op::Peek => {
                    let next = queue.peek(&memory, &mut chain).unwrap();
                    prop_assert_eq!(next == Next::Empty, available.is_empty());
                }
                Op::Take { written } => {
                    let next = queue.peek(&memory, &mut chain).unwrap();
                    let Some((head, segments)) = available.pop_front() else {
                        prop_assert_eq!(next, Next::Empty);
                        continue;
                    };
                    prop_assert_eq!(next, Next::Chain);
                    prop_assert_eq!(chain.head(), head);
                    let of = |writes| -> Vec<Segment> {
                        segments.iter().filter(|(_, w)| *w == writes).map(|(s, _)| *s).collect()
                    };
                    prop_assert_eq!(chain.readable(), of(false));
                    prop_assert_eq!(chain.writable(), of(true));
                    let sum: u32 = of(true).iter().map(|segment| segment.len).sum();
                    prop_assert_eq!(chain.writable_len(), sum);
                    queue.take();
                    queue.add_used(&memory, head, written).unwrap();
                    used_by_device.push_back((head, written));
                }
                Op::Publish => {
                    let is_new = queue.has_unpublished();
                    let notify = queue.publish(&memory).unwrap();
                    prop_assert!(!queue.has_unpublished());
                    if is_new && waits {
                        prop_assert!(notify, "the driver waits and gets no notification");
                        waits = false;
                    }
                }
                Op::TakeUsed => {
                    for used in driver.take_used() {
                        prop_assert_eq!(Some(used), used_by_device.pop_front());
                    }
                    if waits {
                        driver.enable_interrupts(true);
                    }
                }
                Op::Interrupts(on) => {
                    for used in driver.take_used() {
                        prop_assert_eq!(Some(used), used_by_device.pop_front());
                    }
                    driver.enable_interrupts(on);
                    waits = on;
                }
            }
        }
    }

    #[test]
    fn arbitrary_guest_memory_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0x600),
        size in 0..7u32,
        base in any::<u16>(),
        event_idx in any::<bool>(),
    ) {
        let memory = Memory::new();
        memory.put(TABLE, &bytes[..0x400]);
        memory.put(AVAILABLE, &bytes[0x400..]);
        memory.put(INDIRECT_TABLES, &bytes);
        let layout = layout(1 << size, event_idx);
        // Indices that pass validation, so that the chains are read.
        memory.store(AVAILABLE + 2, base.wrapping_add(1 << size)).unwrap();
        for entry in 0..1u64 << size {
            let head = memory.word(AVAILABLE + 4 + entry * 2) & ((1 << size) - 1);
            memory.store(AVAILABLE + 4 + entry * 2, head).unwrap();
            let at = TABLE + entry * 16;
            memory.store(at + 12, memory.word(at + 12) & 7).unwrap();
            memory.store(at + 14, memory.word(at + 14) & ((1 << size) - 1)).unwrap();
        }
        let mut queue = Queue::new(layout, base, &memory).unwrap();
        let mut chain = Chain::default();
        for _ in 0..1 << size {
            match queue.peek(&memory, &mut chain).unwrap() {
                Next::Empty => break,
                Next::Chain => {
                    let all = chain.readable().iter().chain(chain.writable());
                    prop_assert!(all.clone().count() <= MAX_CHAIN);
                    for segment in all {
                        prop_assert!(segment.address.checked_add(u64::from(segment.len)).is_some());
                    }
                }
                Next::Bad(_) => {}
            }
            queue.take();
            queue.add_used(&memory, chain.head(), 0).unwrap();
        }
        queue.publish(&memory).unwrap();
    }
}

/// Reads a chain of these descriptors, whose head is the first.
fn peek_chain(raw: &[Raw]) -> Next {
    let memory = Memory::new();
    for (index, raw) in raw.iter().enumerate() {
        descriptor(&memory, TABLE, index as u16, *raw);
    }
    // An indirect table of two chained descriptors, and one with a nested table.
    descriptor(&memory, INDIRECT_TABLES, 0, (0, 10, 1, 1));
    descriptor(&memory, INDIRECT_TABLES, 1, (0, 10, 2, 0));
    descriptor(
        &memory,
        INDIRECT_TABLES + 0x100,
        0,
        (INDIRECT_TABLES, 32, 4, 0),
    );
    memory.store(AVAILABLE + 2, 1).unwrap();
    let mut queue = Queue::new(layout(4, false), 0, &memory).unwrap();
    queue.peek(&memory, &mut Chain::default()).unwrap()
}

#[test]
fn each_malformed_chain_has_its_error() {
    let bad = |raw: &[Raw]| match peek_chain(raw) {
        Next::Bad(bad) => Some(bad),
        _ => None,
    };
    assert_eq!(peek_chain(&[(0, 10, 0, 0)]), Next::Chain);
    assert_eq!(peek_chain(&[(INDIRECT_TABLES, 32, 4, 0)]), Next::Chain);
    assert_eq!(
        peek_chain(&[(0, 10, 1, 1), (INDIRECT_TABLES, 32, 4, 0)]),
        Next::Chain
    );
    assert_eq!(bad(&[(0, 10, 1, 4)]), Some(BadChain::Next));
    assert_eq!(bad(&[(0, 10, 1, 0)]), Some(BadChain::TooLong));
    assert_eq!(
        bad(&[(0, 10, 1, 1), (0, 10, 1, 0)]),
        Some(BadChain::TooLong)
    );
    assert_eq!(bad(&[(0, 10, 3, 1), (0, 10, 0, 0)]), Some(BadChain::Order));
    assert_eq!(bad(&[(u64::MAX, 2, 0, 0)]), Some(BadChain::Overflow));
    let huge = [(0, u32::MAX, 1, 1), (0, 1, 0, 0)];
    assert_eq!(bad(&huge), Some(BadChain::Overflow));
    for (table, len, flags) in [
        (INDIRECT_TABLES, 0, 4),
        (INDIRECT_TABLES, 31, 4),
        (INDIRECT_TABLES, 32, 5),
        (INDIRECT_TABLES + 0x100, 16, 4),
        (u64::MAX - 8, 16, 4),
        (1 << 40, 16, 4),
    ] {
        assert_eq!(
            bad(&[(table, len, flags, 0)]),
            Some(BadChain::Indirect),
            "{table:x} {len}"
        );
    }
    // Section 2.7.5.3.2: the device ignores WRITE in the descriptor of an indirect table.
    assert_eq!(peek_chain(&[(INDIRECT_TABLES, 32, 6, 0)]), Next::Chain);
    // Section 2.7.5.2: 2^32 bytes in total, whichever way they go.
    let huge = [(0, u32::MAX, 1, 1), (0, 1, 2, 0)];
    assert_eq!(bad(&huge), Some(BadChain::Overflow));
    // A table of one entry, whose next is a second one.
    assert_eq!(bad(&[(INDIRECT_TABLES, 16, 4, 0)]), Some(BadChain::Next));
}

#[test]
fn invalid_rings_are_a_queue_fault() {
    let memory = Memory::new();
    let with = |change: fn(&mut Layout)| {
        let mut layout = layout(4, false);
        change(&mut layout);
        Queue::new(layout, 0, &memory).map(drop)
    };
    assert_eq!(with(|_| {}), Ok(()));
    for change in [
        (|l| l.size = 0) as fn(&mut Layout),
        |l| l.size = 3,
        |l| l.descriptors = 8,
        |l| l.available = 1,
        |l| l.used = 2,
        |l| l.used = u64::MAX - 3,
    ] {
        assert_eq!(with(change), Err(QueueFault::Layout));
    }
    assert_eq!(with(|l| l.used = 1 << 40), Err(QueueFault::Outside));

    let mut queue = Queue::new(layout(4, false), 0, &memory).unwrap();
    memory.store(AVAILABLE + 2, 5).unwrap();
    let chain = &mut Chain::default();
    assert_eq!(queue.peek(&memory, chain), Err(QueueFault::Overrun));
    memory.store(AVAILABLE + 2, 1).unwrap();
    memory.store(AVAILABLE + 4, 4).unwrap();
    assert_eq!(queue.peek(&memory, chain), Err(QueueFault::Head));
}

/// A chain of one readable segment.
fn one() -> [(Segment, bool); 1] {
    let (address, len) = (0, 1);
    [(Segment { address, len }, false)]
}

#[test]
fn a_queue_resumes_where_any_device_before_it_has_stopped() {
    let chain = &mut Chain::default();
    for (base, processed, left) in [
        (0, 0, 4),
        (0, 3, 1),
        (0xffff, 0, 0),
        (0xfffe, 3, 2),
        (7, 4, 4),
    ] {
        for event_idx in [false, true] {
            let memory = Memory::new();
            let layout = layout(8, event_idx);
            let mut driver = Driver::new(&memory, layout, base);
            let mut before = Queue::new(layout, base, &memory).unwrap();
            let heads: Vec<u16> = (0..processed + left)
                .map(|_| driver.add_available(&one(), false).unwrap())
                .collect();
            for _ in 0..processed {
                assert_eq!(before.peek(&memory, chain), Ok(Next::Chain));
                before.take();
                before.add_used(&memory, chain.head(), 0).unwrap();
            }
            before.publish(&memory).unwrap();
            let stopped = before.position();
            assert_eq!(driver.take_used().len(), usize::from(processed));

            driver.enable_interrupts(true);
            let mut queue = Queue::resume(layout, &memory).unwrap();
            assert_eq!(queue.position(), stopped);
            assert_eq!(
                queue.driver_index(&memory),
                Some(stopped.wrapping_add(left))
            );
            // Each chain that is left arrives once, and the driver is notified of it.
            for head in &heads[usize::from(processed)..] {
                assert_eq!(queue.peek(&memory, chain), Ok(Next::Chain));
                assert_eq!(chain.head(), *head);
                queue.take();
                queue.add_used(&memory, *head, 5).unwrap();
            }
            assert_eq!(queue.peek(&memory, chain), Ok(Next::Empty));
            assert_eq!(queue.publish(&memory), Ok(left > 0));
            assert_eq!(driver.take_used().len(), usize::from(left));
            driver.needs_notification();
            assert_eq!(queue.enable_notification(&memory), Ok(false));
            driver.add_available(&one(), false).unwrap();
            assert!(driver.needs_notification());
            assert!(queue.has_available(&memory));
        }
    }
}

#[test]
fn a_forged_used_index_is_a_fault_of_its_own_queue_or_harmless() {
    let memory = Memory::new();
    let mut layout = layout(4, false);
    for used in [0, 1, 4, 5, 0x8000, 0xfffb, 0xffff] {
        memory.store(USED + 2, used).unwrap();
        memory.store(AVAILABLE + 2, 0).unwrap();
        let mut queue = Queue::resume(layout, &memory).unwrap();
        let next = queue.peek(&memory, &mut Chain::default());
        match used {
            0 => assert_eq!(next, Ok(Next::Empty)),
            0xfffb | 0x8000 | 1 | 4 | 5 => assert_eq!(next, Err(QueueFault::Overrun)),
            // As many chains as fit, which are what the guest says.
            _ => assert!(matches!(next, Ok(Next::Chain | Next::Bad(_))), "{next:?}"),
        }
    }
    layout.used = 1 << 40;
    assert_eq!(
        Queue::resume(layout, &memory).unwrap_err(),
        QueueFault::Outside
    );
    layout.used = 2;
    assert_eq!(
        Queue::resume(layout, &memory).unwrap_err(),
        QueueFault::Layout
    );
}

/// Section 2.7.10.2: with `VIRTIO_F_EVENT_IDX` the device sets the used ring's flags to 0, and
/// advises the driver by `avail_event`; without it by the flags, and leaves `avail_event` alone.
#[test]
fn notifications_are_suppressed_by_the_field_that_was_negotiated() {
    let avail_event = USED + 4 + 4 * 8;
    for enable in [false, true] {
        let memory = Memory::new();
        memory.store(USED, NO_NOTIFY).unwrap();
        let mut queue = Queue::new(layout(4, true), 7, &memory).unwrap();
        memory.store(AVAILABLE + 2, 7).unwrap();
        if enable {
            assert_eq!(queue.enable_notification(&memory), Ok(false));
        } else {
            queue.disable_notification(&memory).unwrap();
        }
        let event = if enable { 7 } else { 6 };
        assert_eq!((memory.word(USED), memory.word(avail_event)), (0, event));

        memory.store(avail_event, 0x1234).unwrap();
        let mut queue = Queue::new(layout(4, false), 7, &memory).unwrap();
        if enable {
            assert_eq!(queue.enable_notification(&memory), Ok(false));
        } else {
            queue.disable_notification(&memory).unwrap();
        }
        let flags = u16::from(!enable);
        assert_eq!(
            (memory.word(USED), memory.word(avail_event)),
            (flags, 0x1234)
        );
    }
}

/// Section 2.7.7.2: with `VIRTIO_F_EVENT_IDX` the device ignores the available ring's flags and
/// compares `used_event`; without it the flags decide, and `used_event` is ignored.
#[test]
fn the_driver_is_notified_by_the_field_that_was_negotiated() {
    let used_event = AVAILABLE + 4 + 4 * 2;
    for (event_idx, flags, event, expected) in [
        (false, 0, 9, true),
        (false, NO_INTERRUPT, u16::MAX, false),
        (true, NO_INTERRUPT, u16::MAX, true),
        (true, 0, 0, false),
        (true, 0, u16::MAX - 1, false),
    ] {
        let memory = Memory::new();
        // The used index wraps around with this chain.
        let mut queue = Queue::new(layout(4, event_idx), u16::MAX, &memory).unwrap();
        memory.store(AVAILABLE, flags).unwrap();
        memory.store(used_event, event).unwrap();
        queue.add_used(&memory, 0, 0).unwrap();
        assert_eq!(
            queue.publish(&memory),
            Ok(expected),
            "{event_idx} {flags} {event}"
        );
        assert_eq!(memory.word(USED + 2), 0);
    }
}
