//! Compares the virtqueue with rust-vmm's crate `virtio-queue`, over random descriptor tables.
//!
//! Both read the same guest memory. For each available entry, both must give the same head, the same
//! segments in the same order, and the same verdict. Both must write the same used ring, and agree
//! on whether the driver gets a used buffer notification.
//!
//! `virtio-queue` reports no error for a malformed chain: its iterator ends early. A chain that ends
//! on a descriptor with `VIRTQ_DESC_F_NEXT` is therefore malformed. The two differ, by design, in:
//!
//! - Readable after writable (2.7.4.2): `virtio-queue` gives all descriptors, ours is
//!   [`BadChain::Order`].
//! - Address plus length beyond 2^64: `virtio-queue` leaves it to the access, ours is
//!   [`BadChain::Overflow`].
//! - `INDIRECT` with `NEXT`, which the driver must not set (2.7.5.3.1): `virtio-queue` ignores `NEXT`,
//!   ours is [`BadChain::Indirect`].
//! - `INDIRECT` without the feature, which the driver must not set (2.7.5.3.1): `virtio-queue` does
//!   not check the feature, ours is [`BadChain::Indirect`]. Here the feature is negotiated.
//! - An available head beyond the queue's size: `virtio-queue` gives an empty chain, ours is
//!   [`QueueFault::Head`].
//! - An indirect table of more than 65,535 entries: `virtio-queue` refuses it, ours reads it. A chain
//!   of more than [`MAX_CHAIN`](hvsock_virtio::queue::MAX_CHAIN) descriptors: ours refuses it.
//! - `VIRTQ_AVAIL_F_NO_INTERRUPT`: `virtio-queue` ignores it and always notifies.
//! - Disabled notifications with `VIRTIO_F_EVENT_IDX`: `virtio-queue` leaves `avail_event` alone, ours
//!   moves it behind the driver. Both are allowed (2.7.10.2).

#![cfg(target_os = "linux")]

use std::sync::atomic::Ordering;

use hvsock_virtio::queue::{
    BadChain, Chain, GuestMemory, Layout, Next, Queue, QueueFault, Segment,
};
use proptest::prelude::*;
use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue as Reference, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Bytes of guest memory.
const MEMORY: usize = 0x10000;
/// The addresses of the two indirect tables.
const TABLES: [u64; 2] = [0x8000, 0xa004];
const ENTRIES: u16 = 6;

/// Guest memory. Each implementation has its own, because both write the used ring.
struct Memory(GuestMemoryMmap<()>);

impl Memory {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), MEMORY)];
        Self(GuestMemoryMmap::from_ranges(&ranges).expect("memory of 64 KiB"))
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.read(at, &mut bytes));
        bytes
    }
}

impl GuestMemory for Memory {
    fn read(&self, address: u64, to: &mut [u8]) -> bool {
        self.0.read_slice(to, GuestAddress(address)).is_ok()
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        self.0.write_slice(from, GuestAddress(address)).is_ok()
    }

    fn load(&self, address: u64) -> Option<u16> {
        let word = self.0.load(GuestAddress(address), Ordering::Acquire);
        word.ok().map(u16::from_le)
    }

    fn store(&self, address: u64, value: u16) -> Option<()> {
        let at = GuestAddress(address);
        self.0.store(value.to_le(), at, Ordering::Release).ok()
    }

    fn fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// The rings and tables as the driver has written them.
#[derive(Clone, Debug)]
struct Written {
    /// Queue size: a power of two.
    size: u16,
    table: Vec<split::Descriptor>,
    indirect: [Vec<split::Descriptor>; 2],
    /// Heads in the available ring; the first `available` of them are available.
    heads: Vec<u16>,
    available: u16,
    /// First index of both rings.
    base: u16,
    event_idx: bool,
    used_event: u16,
}

fn descriptor(size: u16) -> impl Strategy<Value = split::Descriptor> {
    let buffer = (
        prop_oneof![20 => 0..0x10_0000u64, 1 => u64::MAX - 8..],
        prop_oneof![20 => 0..0x2000u32, 1 => any::<u32>()],
    );
    let table = (
        prop_oneof![9 => prop::sample::select(&TABLES[..]), 1 => any::<u64>()],
        prop_oneof![
            12 => (1..=u32::from(ENTRIES)).prop_map(|entries| entries * 16),
            1 => 0..200u32,
            // At most 65,535 entries, which both read.
            1 => 0..0xf_ffff_u32,
        ],
    );
    let direct =
        prop_oneof![3 => Just(NEXT), 3 => Just(NEXT | WRITE), 2 => Just(WRITE), 1 => Just(0)];
    let indirect =
        prop_oneof![8 => Just(0), 8 => Just(WRITE), 1 => Just(NEXT), 1 => Just(NEXT | WRITE)];
    let next = prop_oneof![12 => 0..size, 1 => any::<u16>()];
    prop_oneof![
        5 => (buffer, direct, next.clone())
            .prop_map(|((at, len), flags, next)| split::Descriptor::new(at, len, flags, next)),
        2 => (table, indirect, next)
            .prop_map(|((at, len), flags, next)| split::Descriptor::new(at, len, flags | INDIRECT, next)),
    ]
}

/// Makes a table mostly well-formed: each descriptor's next is the following one, and device-readable
/// descriptors come before device-writable ones.
fn make_well_formed(table: &mut [split::Descriptor]) {
    let mut flags = 0;
    for (index, descriptor) in table.iter_mut().enumerate() {
        flags |= descriptor.flags() & WRITE;
        let own = descriptor.flags();
        if own & INDIRECT == 0 {
            descriptor.set_flags(own | flags);
        }
        descriptor.set_next(index as u16 + 1);
    }
}

fn written() -> impl Strategy<Value = Written> {
    let indirect = || prop::collection::vec(descriptor(ENTRIES), usize::from(ENTRIES));
    (0..6u32, any::<bool>(), 0..4u8).prop_flat_map(move |(shift, event_idx, well_formed)| {
        let size = 1u16 << shift;
        let count = usize::from(size);
        let heads = prop_oneof![20 => 0..size, 1 => any::<u16>()];
        let available = prop_oneof![20 => 0..=size, 1 => any::<u16>()];
        let base = prop_oneof![Just(0), Just(u16::MAX), any::<u16>()];
        (
            prop::collection::vec(descriptor(size), count),
            [indirect(), indirect()],
            prop::collection::vec(heads, count),
            (available, base, -40..40i32),
        )
            .prop_map(move |(mut table, mut indirect, heads, rest)| {
                if well_formed != 0 {
                    make_well_formed(&mut table);
                    for table in &mut indirect {
                        // Only the random tables are nested.
                        for descriptor in table.iter_mut() {
                            descriptor.set_flags(descriptor.flags() & !INDIRECT);
                        }
                        make_well_formed(table);
                    }
                }
                let (available, base, event) = rest;
                Written {
                    size,
                    table,
                    indirect,
                    heads,
                    available,
                    base,
                    event_idx,
                    used_event: base.wrapping_add_signed(event as i16),
                }
            })
    })
}

/// Writes the driver's rings into a memory, and gives their layout.
fn write(memory: &Memory, it: &Written) -> (Layout, Reference) {
    let mock = MockSplitQueue::new(&memory.0, it.size);
    for (index, descriptor) in it.table.iter().enumerate() {
        let raw = RawDescriptor::from(*descriptor);
        mock.desc_table().store(index as u16, raw).expect("within");
    }
    for (at, table) in TABLES.into_iter().zip(&it.indirect) {
        for (index, descriptor) in table.iter().enumerate() {
            let at = GuestAddress(at + index as u64 * 16);
            let raw = RawDescriptor::from(*descriptor);
            memory.0.write_obj(raw, at).expect("within");
        }
    }
    for (nth, head) in it.heads.iter().enumerate() {
        let entry = it.base.wrapping_add(nth as u16) & (it.size - 1);
        let entry = mock.avail().ring().ref_at(usize::from(entry));
        entry.expect("within").store(head.to_le());
    }
    let idx = it.base.wrapping_add(it.available);
    mock.avail().idx().store(idx.to_le());
    let layout = Layout {
        size: it.size,
        descriptors: mock.desc_table_addr().0,
        available: mock.avail_addr().0,
        used: mock.used_addr().0,
        event_idx: it.event_idx,
        indirect: true,
    };
    let used_event = layout.available + 4 + u64::from(it.size) * 2;
    memory.store(used_event, it.used_event).expect("within");
    let mut reference: Reference = mock.create_queue().expect("a valid size");
    reference.set_event_idx(it.event_idx);
    reference.set_next_avail(it.base);
    reference.set_next_used(it.base);
    (layout, reference)
}

/// The descriptors of a chain that `virtio-queue` yields.
struct Walk {
    head: u16,
    descriptors: Vec<split::Descriptor>,
    /// The last descriptor has no `NEXT` flag.
    is_complete: bool,
}

impl Walk {
    fn segments(&self, writable: bool) -> Vec<Segment> {
        let of = self
            .descriptors
            .iter()
            .filter(|it| it.is_write_only() == writable);
        of.map(|it| Segment {
            address: it.addr().0,
            len: it.len(),
        })
        .collect()
    }

    /// The first violation that only our queue refuses.
    fn stricter(&self) -> Option<BadChain> {
        let mut writable = false;
        self.descriptors.iter().find_map(|it| {
            if writable && !it.is_write_only() {
                return Some(BadChain::Order);
            }
            writable |= it.is_write_only();
            let end = it.addr().0.checked_add(u64::from(it.len()));
            end.is_none().then_some(BadChain::Overflow)
        })
    }
}

/// How often each verdict was reached, to assert that the cases cover all of them.
#[derive(Debug, Default)]
struct Reached {
    chains: usize,
    indirect_with_write: usize,
    bad: [usize; 5],
    faults: [usize; 2],
}

fn compare(it: &Written, reached: &mut Reached) -> Result<(), TestCaseError> {
    let (ours, theirs) = (Memory::new(), Memory::new());
    let (layout, _) = write(&ours, it);
    let (_, mut reference) = write(&theirs, it);
    let mut queue = Queue::new(layout, it.base, &ours).expect("a valid layout");
    let all = || it.table.iter().chain(it.indirect.iter().flatten());
    let is_both = |it: &split::Descriptor| it.flags() & (INDIRECT | NEXT) == INDIRECT | NEXT;
    let has_both = all().any(is_both);
    let mut chain = Chain::default();
    loop {
        let next = queue.peek(&ours, &mut chain);
        let walk = match reference.iter(&theirs.0) {
            Err(_) => {
                prop_assert_eq!(next, Err(QueueFault::Overrun));
                reached.faults[0] += 1;
                break;
            }
            Ok(mut chains) => chains.next(),
        };
        let Some(descriptors) = walk else {
            prop_assert_eq!(next, Ok(Next::Empty));
            break;
        };
        let head = descriptors.head_index();
        if head >= it.size {
            prop_assert_eq!(next, Err(QueueFault::Head));
            prop_assert_eq!(descriptors.count(), 0);
            // Ours leaves the entry in the available ring; the reference has taken it.
            reference.go_to_previous_position();
            reached.faults[1] += 1;
            break;
        }
        let descriptors: Vec<_> = descriptors.collect();
        let is_complete = descriptors.last().is_some_and(|it| !it.has_next());
        let walk = Walk {
            head,
            descriptors,
            is_complete,
        };
        let next = next.expect("valid rings");
        prop_assert_eq!(chain.head(), walk.head);
        match (next, walk.stricter()) {
            (Next::Empty, _) => prop_assert!(false, "only virtio-queue has chain {head}"),
            (Next::Bad(BadChain::Indirect), _) if has_both => reached.bad[2] += 1,
            (_, Some(stricter)) => {
                prop_assert_eq!(next, Next::Bad(stricter));
                let is_order = stricter == BadChain::Order;
                reached.bad[if is_order { 3 } else { 4 }] += 1;
            }
            (Next::Chain, None) => {
                prop_assert!(walk.is_complete, "{:?}", walk.descriptors);
                let segments = walk.segments(false);
                let len: u32 = segments.iter().map(|it| it.len).sum();
                prop_assert_eq!(chain.readable(), segments);
                prop_assert_eq!(chain.readable_len(), len);
                let segments = walk.segments(true);
                let len: u32 = segments.iter().map(|it| it.len).sum();
                prop_assert_eq!(chain.writable(), segments);
                prop_assert_eq!(chain.writable_len(), len);
                reached.chains += 1;
                let head = it.table[usize::from(walk.head)].flags();
                reached.indirect_with_write +=
                    usize::from(head & INDIRECT != 0 && head & WRITE != 0);
            }
            (Next::Bad(bad), None) => {
                prop_assert!(!walk.is_complete, "{bad:?}: {:?}", walk.descriptors);
                reached.bad[match bad {
                    BadChain::Next => 0,
                    BadChain::TooLong => 1,
                    BadChain::Indirect => 2,
                    BadChain::Overflow => 4,
                    other => return Err(TestCaseError::fail(format!("{other:?} is stricter"))),
                }] += 1;
            }
        }
        queue.take();
        let written = chain.writable_len();
        queue.add_used(&ours, head, written).expect("within");
        reference
            .add_used(&theirs.0, head, written)
            .expect("within");
        let notify = queue.publish(&ours).expect("within");
        let expected = reference.needs_notification(&theirs.0).expect("within");
        prop_assert_eq!(notify, expected);
    }
    prop_assert_eq!(queue.position(), reference.next_avail());
    let used = 4 + usize::from(it.size) * 8;
    prop_assert_eq!(
        ours.bytes(layout.used, used),
        theirs.bytes(layout.used, used)
    );
    Ok(())
}

#[test]
fn chains_and_used_rings_match_those_of_virtio_queue() {
    let cases = std::env::var("PROPTEST_CASES").map_or(2000, |cases| {
        cases.parse().expect("PROPTEST_CASES is a number")
    });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        cases,
        ..ProptestConfig::default()
    });
    let reached = std::cell::RefCell::new(Reached::default());
    let run = |it: Written| compare(&it, &mut reached.borrow_mut());
    if let Err(failure) = runner.run(&written(), run) {
        panic!("{failure}");
    }
    let reached = reached.into_inner();
    println!("{reached:?}");
    if cases >= 2000 {
        assert!(reached.chains > 500, "{reached:?}");
        assert!(reached.indirect_with_write > 50, "{reached:?}");
        assert!(reached.bad.iter().all(|times| *times > 10), "{reached:?}");
        assert!(
            reached.faults.iter().all(|times| *times > 10),
            "{reached:?}"
        );
    }
}
