//! Model-checks the protocol with loom: every interleaving of two threads, and every stale value
//! that a load may return. Run with `cargo xtask loom`.
//!
//! The models use the real [`Producer`] and [`Consumer`] on loom's atomics. The bytes are loom's
//! cells, which report every access that the atomics do not order. A lost wakeup leaves a thread
//! waiting for ever, which loom reports. The counters begin shortly before their wraparound.

mod closing;
mod threads;
mod wakeup_requests;
mod window;

use std::sync::atomic::{AtomicU8, Ordering as StdOrdering};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use crate::consumer::Consumer;
use crate::layout::{Direction, Header};
use crate::loom_doorbell::Doorbell;
use crate::producer::Producer;
use crate::sync::AtomicU64;

const CAPACITY: u64 = 4;
/// The counters wrap at the second byte.
const START: u64 = u64::MAX;

/// One direction of a connection, as both ends see it.
struct Shared {
    header: Header,
    bytes: [Byte; CAPACITY as usize],
    /// The reader's doorbell.
    reader: Doorbell,
    /// The writer's doorbell.
    writer: Doorbell,
}

/// `access` lets loom detect a data race on the byte; `value` holds it.
#[derive(Default)]
struct Byte {
    access: UnsafeCell<()>,
    value: AtomicU8,
}

struct Writer {
    shared: Arc<Shared>,
    producer: Producer,
    next: u8,
}

struct Reader {
    shared: Arc<Shared>,
    consumer: Consumer,
    next: u8,
}

impl Shared {
    fn words(&self) -> &Direction {
        &self.header.directions[0]
    }

    fn state(&self) -> &AtomicU64 {
        &self.header.state.0
    }
}

impl Writer {
    fn free_space(&mut self, wanted: u64) -> u64 {
        self.producer
            .free_space(self.shared.words(), wanted)
            .unwrap()
    }

    /// Writes `count` bytes that fit: 1, 2, 3 …
    fn write(&mut self, count: u64) {
        for i in 0..count {
            self.next += 1;
            let place = self.producer.place().after(i);
            let at = place.position % place.window;
            let byte = &self.shared.bytes[at as usize];
            byte.access.with_mut(|_| ());
            byte.value.store(self.next, StdOrdering::Relaxed);
        }
        if self.producer.publish(self.shared.words(), count) {
            self.shared.reader.notify();
        }
    }

    fn end(&mut self) {
        if self.producer.end(self.shared.words()) {
            self.shared.reader.notify();
        }
    }

    fn arm(&mut self, wanted: u64) -> bool {
        let shared = &self.shared;
        let armed = self.producer.arm(shared.words(), shared.state(), wanted);
        armed.unwrap()
    }

    fn is_closed(&self) -> bool {
        crate::producer::closed(self.shared.words()) != 0
    }
}

impl Reader {
    fn available(&mut self) -> u64 {
        self.consumer.available(self.shared.words(), 1).unwrap()
    }

    /// Reads `count` available bytes, and checks their values.
    fn read(&mut self, count: u64) {
        for i in 0..count {
            self.next += 1;
            let place = self.consumer.place().after(i);
            let at = place.position % place.window;
            let byte = &self.shared.bytes[at as usize];
            byte.access.with(|_| ());
            assert_eq!(byte.value.load(StdOrdering::Relaxed), self.next);
        }
        if self.consumer.release(self.shared.words(), count) {
            self.shared.writer.notify();
        }
    }

    fn has_ended(&mut self) -> bool {
        self.consumer.has_ended(self.shared.words()).unwrap()
    }

    fn arm(&mut self) -> bool {
        let shared = &self.shared;
        self.consumer.arm(shared.words(), shared.state()).unwrap()
    }

    fn disarm(&mut self) -> Option<bool> {
        self.consumer.disarm(self.shared.words())
    }

    fn close(&self) {
        if Consumer::close(self.shared.words(), crate::layout::READER_GONE) {
            self.shared.writer.notify();
        }
    }
}

/// Creates the two sides of one direction.
fn sides() -> (Writer, Reader) {
    let shared = Arc::new(Shared {
        header: Header::new(),
        bytes: Default::default(),
        reader: Doorbell::default(),
        writer: Doorbell::default(),
    });
    let words = shared.words();
    for counter in [&words.head.0, &words.tail.0] {
        counter.store(START, crate::sync::Ordering::Relaxed);
    }
    let writer = Writer {
        shared: Arc::clone(&shared),
        producer: Producer::new(CAPACITY, START),
        next: 0,
    };
    let reader = Reader {
        shared,
        consumer: Consumer::new(CAPACITY, START),
        next: 0,
    };
    (writer, reader)
}

/// The preemption bound of models whose full exploration takes too long. Most faults need one or
/// two preemptions.
const BOUND: Option<usize> = Some(4);

/// Explores the interleavings of a writer and a reader.
fn explore_pair(
    preemptions: Option<usize>,
    write: impl Fn(Writer) + Copy + Send + Sync + 'static,
    read: impl Fn(Reader) + Sync + Send + 'static,
) {
    explore(preemptions, move || {
        let (writer, reader) = sides();
        let writes = thread::spawn(move || write(writer));
        read(reader);
        writes.join().unwrap();
    });
}

/// Explores the interleavings of a model with at most this many preemptions.
pub(crate) fn explore(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}
