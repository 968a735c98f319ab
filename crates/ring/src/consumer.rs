//! The reading side of one direction: how much there is to read, and whom to wake. The order of
//! things is as in [`producer`](crate::producer).

use crate::Violation;
use crate::layout::{CUT, Direction};
use crate::sync::{AtomicU32, Ordering, fence};

/// What the reader knows by itself. Its counts are never read back from shared memory.
#[derive(Debug)]
pub(crate) struct Consumer {
    capacity: u64,
    /// Bytes ever read.
    tail: u64,
    /// Bytes ever written, as the writer last said and this side believed.
    head: u64,
    /// No byte after this is believed in: the connection was cut here.
    limit: Option<u64>,
    /// This side has asked to be woken, and has not heard of itself since.
    armed: bool,
}

impl Consumer {
    /// A side that begins with `start` bytes on the counters, as both sides must.
    pub(crate) fn new(capacity: u64, start: u64) -> Self {
        Self {
            capacity,
            tail: start,
            head: start,
            limit: None,
            // New memory says so: `awake` is 0.
            armed: true,
        }
    }

    /// Bytes ever read.
    pub(crate) fn position(&self) -> u64 {
        self.tail
    }

    /// Bytes ever written, as far as this side has looked.
    pub(crate) fn seen(&self) -> u64 {
        self.head
    }

    /// The bytes to read; looks at what the writer says only if fewer than `wanted` are known of.
    pub(crate) fn available(&mut self, words: &Direction, wanted: u64) -> Result<u64, Violation> {
        let known = self.head.wrapping_sub(self.tail);
        if known >= wanted || self.limit.is_some() {
            return Ok(known);
        }
        self.look(words)?;
        Ok(self.head.wrapping_sub(self.tail))
    }

    fn look(&mut self, words: &Direction) -> Result<(), Violation> {
        let head = words.head.0.load(Ordering::Acquire);
        let ahead = head.wrapping_sub(self.tail);
        if ahead > self.capacity || ahead < self.head.wrapping_sub(self.tail) {
            return Err(Violation::Head);
        }
        self.head = head;
        Ok(())
    }

    /// Whether nothing is to be read and nothing will be, as the writer says.
    pub(crate) fn has_ended(&mut self, words: &Direction) -> Result<bool, Violation> {
        // The end is said after the last byte, so the look at the bytes comes second.
        let ended = words.ends.0.ended.load(Ordering::Acquire) != 0;
        if !ended || self.available(words, 1)? != 0 {
            return Ok(false);
        }
        // A writer that had not seen the cut may have gone on and ended: then what is beyond the
        // limit is lost, and this is no clean end.
        Ok(self.limit.is_none() || words.head.0.load(Ordering::Acquire) == self.tail)
    }

    /// Reads no further than what has been written by now, whatever comes.
    pub(crate) fn limit(&mut self, words: &Direction) -> Result<(), Violation> {
        if self.limit.is_none() {
            self.look(words)?;
            self.limit = Some(self.head);
        }
        Ok(())
    }

    /// Frees `count` bytes that were there to read; whether the writer is to be woken.
    #[must_use]
    pub(crate) fn release(&mut self, words: &Direction, count: u64) -> bool {
        self.tail = self.tail.wrapping_add(count);
        words.tail.0.store(self.tail, Ordering::Release);
        fence(Ordering::SeqCst);
        let space = &words.space.0;
        let wanted = space.load(Ordering::Relaxed);
        if wanted == 0 {
            return false;
        }
        // A sleeping writer's count stands still. One that is not believable is found out by the
        // next look; waking its owner does no harm.
        let head = words.head.0.load(Ordering::Relaxed);
        let free = self.capacity.saturating_sub(head.wrapping_sub(self.tail));
        free >= wanted.min(self.capacity) && space.swap(0, Ordering::Relaxed) != 0
    }

    /// Asks to be woken when there is something to read, an end, or a cut; whether none of it is
    /// so yet, and sleeping is safe. If it is not, the wish stands until [`Consumer::disarm`].
    pub(crate) fn arm(&mut self, words: &Direction, state: &AtomicU32) -> Result<bool, Violation> {
        // No store: this word is exchanged only, so that all agree on the order.
        words.awake.0.swap(0, Ordering::Relaxed);
        self.armed = true;
        fence(Ordering::SeqCst);
        let ended = words.ends.0.ended.load(Ordering::Acquire) != 0;
        Ok(!ended && self.available(words, 1)? == 0 && state.load(Ordering::Acquire) & CUT == 0)
    }

    /// Takes the wish to be woken back; whether the bell was rung for it. `None`: there was none.
    pub(crate) fn disarm(&mut self, words: &Direction) -> Option<bool> {
        std::mem::take(&mut self.armed).then(|| words.awake.0.swap(1, Ordering::Relaxed) == 1)
    }

    /// Whether the bell was rung, or is about to be, for a wish that still stands.
    pub(crate) fn is_rung_for(&self, words: &Direction) -> bool {
        self.armed && words.awake.0.load(Ordering::Relaxed) == 1
    }

    /// Says that this side reads no more; whether the writer is to be woken.
    #[must_use]
    pub(crate) fn close(words: &Direction, how: u32) -> bool {
        words.ends.0.closed.fetch_max(how, Ordering::Release);
        fence(Ordering::SeqCst);
        words.space.0.swap(0, Ordering::Relaxed) != 0
    }
}
