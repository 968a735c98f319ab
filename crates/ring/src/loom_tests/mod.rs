//! The protocol under every interleaving of two threads, and every old value that a load may
//! give: `cargo xtask loom`.
//!
//! What is tried is [`Producer`] and [`Consumer`] themselves, on words of loom's; the bytes are
//! cells of loom's, which tell of every access that the words do not put in order. A wake-up that
//! is lost leaves a thread waiting for ever, and loom says so. Counters begin shortly before they
//! wrap.

mod ends;
pub(crate) mod event;
mod threads;
mod wishes;

use std::sync::atomic::{AtomicU8, Ordering as Plain};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use self::event::Bell;
use crate::consumer::Consumer;
use crate::layout::{Direction, Header};
use crate::producer::Producer;
use crate::sync::AtomicU32;

const CAPACITY: u64 = 4;
/// The second byte is the one at which the counters wrap.
const START: u64 = u64::MAX;

/// One direction of a connection, as both ends see it.
struct Shared {
    header: Header,
    bytes: [Byte; CAPACITY as usize],
    /// Where the reader hears.
    reader: Bell,
    /// Where the writer hears.
    writer: Bell,
}

/// Loom looks whether somebody else may use it at the same time; what is in it is its value, then.
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

    fn state(&self) -> &AtomicU32 {
        &self.header.state.0
    }
}

impl Writer {
    fn room(&mut self, wanted: u64) -> u64 {
        self.producer.room(self.shared.words(), wanted).unwrap()
    }

    /// Writes bytes for which there is room: 1, 2, 3 …
    fn write(&mut self, count: u64) {
        for i in 0..count {
            self.next += 1;
            let at = self.producer.position().wrapping_add(i) % CAPACITY;
            let byte = &self.shared.bytes[at as usize];
            byte.access.with_mut(|_| ());
            byte.value.store(self.next, Plain::Relaxed);
        }
        if self.producer.publish(self.shared.words(), count) {
            self.shared.reader.ring();
        }
    }

    fn end(&mut self) {
        if self.producer.end(self.shared.words()) {
            self.shared.reader.ring();
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

    /// Reads bytes that are there, and looks whether they are the right ones.
    fn read(&mut self, count: u64) {
        for i in 0..count {
            self.next += 1;
            let at = self.consumer.position().wrapping_add(i) % CAPACITY;
            let byte = &self.shared.bytes[at as usize];
            byte.access.with(|_| ());
            assert_eq!(byte.value.load(Plain::Relaxed), self.next);
        }
        if self.consumer.release(self.shared.words(), count) {
            self.shared.writer.ring();
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
        if Consumer::close(self.shared.words(), crate::layout::GONE) {
            self.shared.writer.ring();
        }
    }
}

/// A new connection's ends.
fn ends() -> (Writer, Reader) {
    let shared = Arc::new(Shared {
        header: Header::new(),
        bytes: Default::default(),
        reader: Bell::default(),
        writer: Bell::default(),
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

/// For models of which all interleavings take too long: a thread is stopped so often at most where
/// it would rather go on. Most faults need one such stop, or two.
const BOUND: Option<usize> = Some(4);

/// Tries all interleavings of a writer and a reader.
fn try_all(
    preemptions: Option<usize>,
    write: impl Fn(Writer) + Copy + Send + Sync + 'static,
    read: impl Fn(Reader) + Sync + Send + 'static,
) {
    bounded(preemptions, move || {
        let (writer, reader) = ends();
        let writes = thread::spawn(move || write(writer));
        read(reader);
        writes.join().unwrap();
    });
}

/// Tries the interleavings with at most so many switches of thread that are no thread's own wish.
fn bounded(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}
