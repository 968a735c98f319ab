//! The reading side of one direction: how many bytes are readable, and when to wake the writer.
//! [`producer`](crate::producer) explains the order of stores, fences and loads.

use serde::{Deserialize, Serialize};

use crate::Violation;
use crate::layout::{Direction, RESET};
use crate::memory::Place;
use crate::sync::{AtomicU64, Ordering, fence};

/// The reader's private state. It never reads its own counter back from shared memory.
#[derive(Debug)]
pub(crate) struct Consumer {
    /// The size of the ring.
    capacity: u64,
    /// The part of the ring that the writer uses, from its start.
    window: u64,
    /// Bytes ever read.
    tail: u64,
    /// Bytes ever written: the last value of the writer's counter that passed validation.
    head: u64,
    /// No byte after this one is read: the connection was reset here.
    limit: Option<u64>,
    /// This side made a wakeup request and has not withdrawn it.
    armed: bool,
}

/// A [`Consumer`] as a value. Counts are modulo 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsumerState {
    window: u64,
    tail: u64,
    head: u64,
    limit: Option<u64>,
    armed: bool,
}

impl Consumer {
    pub(crate) fn state(&self) -> ConsumerState {
        let Self {
            capacity: _,
            window,
            tail,
            head,
            limit,
            armed,
        } = *self;
        ConsumerState {
            window,
            tail,
            head,
            limit,
            armed,
        }
    }

    /// The side with this state; `None` if no side with this capacity has it.
    pub(crate) fn resume(state: ConsumerState, capacity: u64) -> Option<Self> {
        let ConsumerState {
            window,
            tail,
            head,
            limit,
            armed,
        } = state;
        let is_valid = window.is_power_of_two()
            && window <= capacity
            && head.wrapping_sub(tail) <= window
            && limit.is_none_or(|limit| limit == head);
        is_valid.then_some(Self {
            capacity,
            window,
            tail,
            head,
            limit,
            armed,
        })
    }

    /// A side whose counters begin at `start`, as the writer's must.
    pub(crate) fn new(capacity: u64, start: u64) -> Self {
        Self {
            capacity,
            window: capacity,
            tail: start,
            head: start,
            limit: None,
            // In new memory `awake` is 0, which is a wakeup request.
            armed: true,
        }
    }

    /// A side whose counters begin at 0, in memory in which it has made no wakeup request.
    pub(crate) fn unarmed(capacity: u64) -> Self {
        Self {
            armed: false,
            ..Self::new(capacity, 0)
        }
    }

    /// The part of the ring that the writer uses, in bytes.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// The place of the next byte.
    pub(crate) fn place(&self) -> Place {
        Place {
            position: self.tail,
            window: self.window,
        }
    }

    /// Bytes ever read.
    pub(crate) fn position(&self) -> u64 {
        self.tail
    }

    /// Bytes ever written, as of the last load of the writer's counter.
    pub(crate) fn seen(&self) -> u64 {
        self.head
    }

    /// The number of readable bytes. Loads the writer's counter only if fewer than `wanted` are
    /// known.
    pub(crate) fn available(&mut self, words: &Direction, wanted: u64) -> Result<u64, Violation> {
        let known = self.head.wrapping_sub(self.tail);
        if known >= wanted || self.limit.is_some() {
            return Ok(known);
        }
        self.load_head(words)?;
        Ok(self.head.wrapping_sub(self.tail))
    }

    fn load_head(&mut self, words: &Direction) -> Result<(), Violation> {
        let head = words.head.0.load(Ordering::Acquire);
        // An honest writer changes the window only while all bytes were read and released, so the one
        // loaded after `head` is that of every unread byte.
        self.window = match u64::from(words.close.0.window.load(Ordering::Acquire)) {
            0 => self.capacity,
            window if window.is_power_of_two() && window <= self.capacity => window,
            _ => return Err(Violation::Window),
        };
        let ahead = head.wrapping_sub(self.tail);
        if ahead > self.window || ahead < self.head.wrapping_sub(self.tail) {
            return Err(Violation::Head);
        }
        self.head = head;
        Ok(())
    }

    /// Whether all bytes were read and the writer has ended the stream.
    pub(crate) fn has_ended(&mut self, words: &Direction) -> Result<bool, Violation> {
        // The writer stores `ended` after its last byte, so `head` is loaded second.
        let ended = words.close.0.ended.load(Ordering::Acquire) != 0;
        if !ended || self.available(words, 1)? != 0 {
            return Ok(false);
        }
        // A writer that had not seen the reset may have written more before it ended the stream.
        // The bytes beyond the limit are lost then, so this is no clean end.
        Ok(self.limit.is_none() || words.head.0.load(Ordering::Acquire) == self.tail)
    }

    /// Limits reading to the bytes written so far. Later stores of the writer have no effect.
    pub(crate) fn limit(&mut self, words: &Direction) -> Result<(), Violation> {
        if self.limit.is_none() {
            self.load_head(words)?;
            self.limit = Some(self.head);
        }
        Ok(())
    }

    /// Frees `count` readable bytes. Returns whether to notify the writer.
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
        // The counter of a parked writer does not change. The next `load_head` detects an invalid
        // counter; a spurious notification does no harm.
        let head = words.head.0.load(Ordering::Relaxed);
        let free = self.window.saturating_sub(head.wrapping_sub(self.tail));
        free >= wanted.min(self.window) && space.swap(0, Ordering::Relaxed) != 0
    }

    /// Requests a wakeup for data, the end of the stream or a reset. Returns whether none of them
    /// has happened yet, so that parking is safe. Otherwise the request stays until
    /// [`Consumer::disarm`].
    pub(crate) fn arm(&mut self, words: &Direction, state: &AtomicU64) -> Result<bool, Violation> {
        // A swap, not a store: every write to this word is a read-modify-write, so exactly
        // one side takes each request.
        words.awake.0.swap(0, Ordering::Relaxed);
        self.armed = true;
        fence(Ordering::SeqCst);
        let ended = words.close.0.ended.load(Ordering::Acquire) != 0;
        Ok(!ended && self.available(words, 1)? == 0 && state.load(Ordering::Acquire) & RESET == 0)
    }

    /// Withdraws the wakeup request. Returns whether the writer had notified for it, or `None` if
    /// there was no request.
    pub(crate) fn disarm(&mut self, words: &Direction) -> Option<bool> {
        std::mem::take(&mut self.armed).then(|| words.awake.0.swap(1, Ordering::Relaxed) == 1)
    }

    /// Whether the writer has notified, or is about to, for a request that was not withdrawn.
    pub(crate) fn is_notified(&self, words: &Direction) -> bool {
        self.armed && words.awake.0.load(Ordering::Relaxed) == 1
    }

    /// Marks the direction as closed by its reader: `how` is `READER_SHUT` or `READER_GONE`. Returns
    /// whether to notify the writer.
    #[must_use]
    pub(crate) fn close(words: &Direction, how: u32) -> bool {
        words.close.0.closed.fetch_max(how, Ordering::Release);
        fence(Ordering::SeqCst);
        words.space.0.swap(0, Ordering::Relaxed) != 0
    }
}
