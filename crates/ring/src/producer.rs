//! The writing side of one direction: how much room there is, and whom to wake.
//!
//! The order of things is the whole protocol. To publish: store the index, full fence, look
//! whether the reader sleeps. To sleep: say so, full fence, look at the index again. Whichever
//! fence comes second sees what was stored before the other, so that either the sleeper sees the
//! index or the publisher sees the sleeper (loom tries both, in `loom_tests`).

use crate::Violation;
use crate::layout::{CUT, Direction, GONE};
use crate::sync::{AtomicU32, Ordering, fence};

/// What the writer knows by itself. Its counts are never read back from shared memory.
#[derive(Debug)]
pub(crate) struct Producer {
    capacity: u64,
    /// Bytes ever written.
    head: u64,
    /// Bytes ever read, as the reader last said and this side believed.
    tail: u64,
    ended: bool,
    /// This side has asked to be woken, and has not heard of itself since.
    armed: bool,
}

impl Producer {
    /// A side that begins with `start` bytes on the counters, as both sides must.
    pub(crate) fn new(capacity: u64, start: u64) -> Self {
        Self {
            capacity,
            head: start,
            tail: start,
            ended: false,
            armed: false,
        }
    }

    /// Bytes ever written.
    pub(crate) fn position(&self) -> u64 {
        self.head
    }

    /// Whether [`Producer::end`] was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The free bytes; looks at what the reader says only if fewer than `wanted` are known of.
    pub(crate) fn room(&mut self, words: &Direction, wanted: u64) -> Result<u64, Violation> {
        let known = self.capacity - self.head.wrapping_sub(self.tail);
        if known >= wanted {
            return Ok(known);
        }
        self.look(words)?;
        Ok(self.capacity - self.head.wrapping_sub(self.tail))
    }

    fn look(&mut self, words: &Direction) -> Result<(), Violation> {
        let tail = words.tail.0.load(Ordering::Acquire);
        let unread = self.head.wrapping_sub(self.tail);
        if tail.wrapping_sub(self.tail) > unread {
            return Err(Violation::Tail);
        }
        self.tail = tail;
        Ok(())
    }

    /// Makes `count` bytes visible, for which there was room; whether the reader is to be woken.
    #[must_use]
    pub(crate) fn publish(&mut self, words: &Direction, count: u64) -> bool {
        self.head = self.head.wrapping_add(count);
        words.head.0.store(self.head, Ordering::Release);
        wake_reader(words)
    }

    /// Says that nothing follows; whether the reader is to be woken.
    #[must_use]
    pub(crate) fn end(&mut self, words: &Direction) -> bool {
        self.ended = true;
        words.ends.0.ended.store(1, Ordering::Release);
        wake_reader(words)
    }

    /// Asks to be woken when `wanted` bytes are free, when the reader closes, or when the
    /// connection is cut; whether none of it is so yet, and sleeping is safe. If it is not, the
    /// wish stands until [`Producer::disarm`].
    pub(crate) fn arm(
        &mut self,
        words: &Direction,
        state: &AtomicU32,
        wanted: u64,
    ) -> Result<bool, Violation> {
        let wanted = wanted.clamp(1, self.capacity);
        // No store: this word is exchanged only, so that all agree on the order.
        words.space.0.swap(wanted, Ordering::Relaxed);
        self.armed = true;
        fence(Ordering::SeqCst);
        Ok(self.room(words, wanted)? < wanted
            && closed(words) == 0
            && state.load(Ordering::Acquire) & CUT == 0)
    }

    /// Takes the wish to be woken back; whether the bell was rung for it. `None`: there was none.
    pub(crate) fn disarm(&mut self, words: &Direction) -> Option<bool> {
        std::mem::take(&mut self.armed).then(|| words.space.0.swap(0, Ordering::Relaxed) == 0)
    }

    /// Whether the bell was rung, or is about to be, for a wish that still stands.
    pub(crate) fn is_rung_for(&self, words: &Direction) -> bool {
        self.armed && words.space.0.load(Ordering::Relaxed) == 0
    }
}

/// 0, or how the reader has closed.
pub(crate) fn closed(words: &Direction) -> u32 {
    words.ends.0.closed.load(Ordering::Acquire)
}

/// Whether the reader is gone for good.
pub(crate) fn is_reader_gone(words: &Direction) -> bool {
    closed(words) == GONE
}

/// Whether the reader sleeps; asked once, for nobody else is to wake it then.
fn wake_reader(words: &Direction) -> bool {
    fence(Ordering::SeqCst);
    let awake = &words.awake.0;
    awake.load(Ordering::Relaxed) == 0 && awake.swap(1, Ordering::Relaxed) == 0
}
