//! Threads that park on a futex, and event loops that wait for the ready set, at an end in a slot.

use loom::sync::Arc;
use loom::thread;

use crate::arena::wakeups::{add_mode, wake_end, wake_end_without_doorbell};
use crate::arena::words::{BY_FUTEX, BY_SIGNAL, ReadyWords, Wakeups};
use crate::arena::{ready, reset};
use crate::consumer::Consumer;
use crate::layout::{Header, RESET};
use crate::loom_doorbell::Doorbell;
use crate::loom_tests::explore;
use crate::producer::Producer;
use crate::sync::Ordering;

const CAPACITY: u64 = 4;

/// A slot, and the reader's ready set.
struct Slot {
    header: Header,
    /// Of the writer and of the reader.
    wakeups: [Wakeups; 2],
    ready: Arc<Ready>,
    number: u32,
}

struct Ready {
    words: ReadyWords,
    doorbell: Doorbell,
}

impl Slot {
    fn new(number: u32, ready: &Arc<Ready>) -> Arc<Self> {
        let header = Header::new();
        // A new connection has no wakeup request.
        header.directions[0].awake.0.store(1, Ordering::Relaxed);
        Arc::new(Self {
            header,
            wakeups: [Wakeups::new(), Wakeups::new()],
            ready: Arc::clone(ready),
            number,
        })
    }

    fn wake_reader(&self) {
        if wake_end(&self.wakeups[1], &self.ready.words, self.number) {
            self.ready.doorbell.notify();
        }
    }

    fn write(&self, producer: &mut Producer, count: u64) {
        if producer.publish(&self.header.directions[0], count) {
            self.wake_reader();
        }
    }

    fn is_reset(&self) -> bool {
        self.header.state.0.load(Ordering::Acquire) & RESET != 0
    }

    /// As `RingEnd::wait` for reading.
    fn park(&self, consumer: &mut Consumer) {
        let wakeups = &self.wakeups[1];
        add_mode(wakeups, BY_FUTEX);
        let seen = wakeups.futex.seen();
        let armed = consumer.arm(&self.header.directions[0], &self.header.state.0);
        if armed.unwrap() {
            wakeups.futex.wait(seen, None).unwrap();
        }
    }

    fn available(&self, consumer: &mut Consumer) -> u64 {
        consumer.available(&self.header.directions[0], 1).unwrap()
    }
}

fn ready() -> Arc<Ready> {
    Arc::new(Ready {
        words: ReadyWords::new(),
        doorbell: Doorbell::default(),
    })
}

#[test]
fn data_wakes_a_reader_that_parks_on_its_futex() {
    explore(Some(3), || {
        let slot = Slot::new(0, &ready());
        let writer = Arc::clone(&slot);
        let writes = thread::spawn(move || {
            let mut producer = Producer::new(CAPACITY, 0);
            writer.write(&mut producer, 1);
            writer.write(&mut producer, 1);
        });
        let (words, mut read) = (&slot.header.directions[0], 0);
        let mut consumer = Consumer::unarmed(CAPACITY);
        while read < 2 {
            match slot.available(&mut consumer) {
                0 => slot.park(&mut consumer),
                count => {
                    consumer.disarm(words);
                    let _ = consumer.release(words, count);
                    read += count;
                }
            }
        }
        writes.join().unwrap();
    });
}

#[test]
fn free_space_wakes_a_writer_that_parks_on_its_futex() {
    explore(None, || {
        let slot = Slot::new(0, &ready());
        let mut producer = Producer::new(CAPACITY, 0);
        slot.write(&mut producer, CAPACITY);
        let reader = Arc::clone(&slot);
        let reads = thread::spawn(move || {
            let mut consumer = Consumer::unarmed(CAPACITY);
            assert_eq!(reader.available(&mut consumer), CAPACITY);
            for _ in 0..2 {
                if consumer.release(&reader.header.directions[0], 1) {
                    wake_end(&reader.wakeups[0], &reader.ready.words, 0);
                }
            }
        });
        let (words, wakeups) = (&slot.header.directions[0], &slot.wakeups[0]);
        while producer.free_space(words, 2).unwrap() < 2 {
            add_mode(wakeups, BY_FUTEX);
            let seen = wakeups.futex.seen();
            if producer.arm(words, &slot.header.state.0, 2).unwrap() {
                wakeups.futex.wait(seen, None).unwrap();
            }
        }
        reads.join().unwrap();
    });
}

/// By the broker, which has no doorbell and takes no request.
#[test]
fn a_reset_by_the_broker_wakes_a_parked_reader() {
    explore(None, || {
        let slot = Slot::new(0, &ready());
        let broker = Arc::clone(&slot);
        let resets = thread::spawn(move || {
            reset::change(&broker.header.state.0, 0, RESET, 0);
            wake_end_without_doorbell(&broker.wakeups[1], &broker.ready.words, 0);
        });
        let mut consumer = Consumer::unarmed(CAPACITY);
        while !slot.is_reset() {
            slot.park(&mut consumer);
        }
        resets.join().unwrap();
    });
}

/// The end of the reader is watched as a descriptor: signals are requested while the writer writes.
#[test]
fn data_reaches_an_end_that_is_watched_through_the_ready_set() {
    explore(None, || {
        let slot = Slot::new(1, &ready());
        let writer = Arc::clone(&slot);
        let writes = thread::spawn(move || writer.write(&mut Producer::new(CAPACITY, 0), 1));
        let mut consumer = Consumer::unarmed(CAPACITY);
        add_mode(&slot.wakeups[1], BY_SIGNAL);
        let words = &slot.header.directions[0];
        while consumer.arm(words, &slot.header.state.0).unwrap() {
            slot.ready.doorbell.wait_and_drain();
            ready::drain(&slot.ready.words, |slot| assert_eq!(slot, 1));
        }
        assert_eq!(slot.available(&mut consumer), 1);
        writes.join().unwrap();
    });
}

/// Two writers share the reader's doorbell. None of their bits stays behind without a notification.
#[test]
fn slots_that_become_ready_at_once_are_all_reported() {
    explore(Some(3), || {
        let ready = ready();
        let writers = [0, 1].map(|number| {
            let ready = Arc::clone(&ready);
            thread::spawn(move || {
                if ready::add(&ready.words, number) {
                    ready.doorbell.notify();
                }
            })
        });
        let mut found = [false; 2];
        while found != [true; 2] {
            ready.doorbell.wait_and_drain();
            ready::drain(&ready.words, |slot| found[slot as usize] = true);
        }
        for writer in writers {
            writer.join().unwrap();
        }
    });
}
