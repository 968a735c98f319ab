//! The connect queue, and slots that are used again.

use std::sync::atomic::AtomicU32 as StdAtomicU32;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use crate::arena::client_slots::ClientSlots;
use crate::arena::queue::{Publisher, Taker};
use crate::arena::words::{ClientEntry, QueueWords, SLOTS, ServerEntry};
use crate::arena::{SlotId, changes, reset, table};
use crate::layout::RESET;
use crate::loom_doorbell::Doorbell;
use crate::loom_tests::explore;
use crate::sync::{AtomicU64, Ordering, fence};

struct Queue {
    words: QueueWords,
    entries: [AtomicU64; SLOTS],
    /// The words of each slot's connection.
    slots: [Cell; SLOTS],
    /// The server's doorbell.
    doorbell: Doorbell,
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            words: QueueWords::new(),
            entries: [(); SLOTS].map(|()| AtomicU64::new(0)),
            slots: Default::default(),
            doorbell: Doorbell::default(),
        })
    }

    /// As `ArenaClient::connect`.
    fn publish(&self, publisher: &mut Publisher, slot: u32, seq: u32) {
        self.slots[slot as usize].write(seq);
        publisher.publish(&self.words, &self.entries, SlotId { slot, seq });
        fence(Ordering::SeqCst);
        if changes::take_request(&self.words.accept_request.0) {
            self.doorbell.notify();
        }
    }

    /// As an acceptor that blocks.
    fn accept(&self, taker: &mut Taker) -> SlotId {
        loop {
            let slots = SLOTS as u32;
            let taken = taker.take(&self.words, &self.entries, slots);
            if let Some(id) = taken.unwrap() {
                assert_eq!(self.slots[id.slot as usize].read(), id.seq);
                return id;
            }
            if taker.arm(&self.words) {
                self.doorbell.wait_and_drain();
            }
        }
    }
}

/// Memory that one side at a time accesses. Loom reports an access that nothing orders.
#[derive(Default)]
struct Cell {
    access: UnsafeCell<()>,
    value: StdAtomicU32,
}

impl Cell {
    fn write(&self, value: u32) {
        self.access.with_mut(|_| ());
        self.value.store(value, Ordering::Relaxed);
    }

    fn read(&self) -> u32 {
        self.access.with(|_| ());
        self.value.load(Ordering::Relaxed)
    }
}

#[test]
fn a_new_connection_wakes_a_waiting_acceptor_which_sees_its_words() {
    explore(Some(3), || {
        let queue = Queue::new();
        let client = Arc::clone(&queue);
        let opens = thread::spawn(move || {
            let mut publisher = Publisher::new(0);
            client.publish(&mut publisher, 0, 1);
            client.publish(&mut publisher, 1, 2);
        });
        let mut taker = Taker::new(0);
        assert_eq!(queue.accept(&mut taker), SlotId { slot: 0, seq: 1 });
        assert_eq!(queue.accept(&mut taker), SlotId { slot: 1, seq: 2 });
        opens.join().unwrap();
    });
}

#[test]
fn the_client_never_counts_fewer_pending_connections_than_there_are() {
    explore(None, || {
        let queue = Queue::new();
        let server = Arc::clone(&queue);
        let mut publisher = Publisher::new(0);
        queue.publish(&mut publisher, 0, 1);
        queue.publish(&mut publisher, 1, 2);
        let accepts = thread::spawn(move || server.accept(&mut Taker::new(0)));
        let pending = publisher.pending(&queue.words, 1).unwrap();
        assert!((1..=2).contains(&pending));
        accepts.join().unwrap();
        assert_eq!(publisher.pending(&queue.words, 1), Ok(1));
    });
}

/// Both ends are closed at once. The client uses the slot again only after the server's last access.
#[test]
fn a_slot_is_used_again_after_both_ends_are_closed() {
    explore(None, || {
        let server = || [(); SLOTS].map(|()| ServerEntry::new());
        let shared = Arc::new((server(), Cell::default()));
        let mut slots = ClientSlots::new(0);
        let first = slots.take(&shared.0, 1, |_| {}).unwrap().unwrap();
        let other = Arc::clone(&shared);
        let closes = thread::spawn(move || {
            other.1.write(1);
            table::finish(&other.0[first.slot as usize], first.seq);
        });
        slots.close(&shared.0, first.slot, true, |_| {});
        let mut freed = 0;
        if let Some(second) = slots.take(&shared.0, 1, |_| freed += 1).unwrap() {
            assert_eq!(second, SlotId { slot: 0, seq: 2 });
            shared.1.write(2);
        }
        closes.join().unwrap();
        assert!(freed <= 1);
    });
}

#[test]
fn a_late_order_of_the_broker_does_not_reach_the_next_connection_in_the_slot() {
    explore(None, || {
        let state = |seq: u64| seq << 32;
        let word = Arc::new(AtomicU64::new(state(1)));
        let broker = Arc::clone(&word);
        let orders = thread::spawn(move || reset::change(&broker, 1, RESET, 0).is_some());
        reset::begin(&word, 2);
        orders.join().unwrap();
        assert_eq!(word.load(Ordering::Relaxed), state(2));
    });
}

/// The broker closes the client's ends, while the server closes its own.
#[test]
fn a_slot_that_both_sides_have_closed_is_not_listed() {
    explore(None, || {
        let shared = Arc::new((ClientEntry::new(), ServerEntry::new()));
        table::open(&shared.0, 1, 0);
        let server = Arc::clone(&shared);
        let closes = thread::spawn(move || table::finish(&server.1, 1));
        table::close(&shared.0, 1);
        closes.join().unwrap();
        let listed = table::open_connection(&shared.0, &shared.1, 0, [false; 2]);
        assert_eq!(listed, None);
    });
}
