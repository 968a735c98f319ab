//! The writing side of one direction: how much space is free, and when to wake the reader.
//!
//! The order of stores, fences and loads is the whole protocol. To publish: store the counter, full
//! memory barrier, check for a wakeup request. To park: store the wakeup request, full barrier,
//! check the counter. The two barriers have a total order (`SeqCst`). The loads after the second
//! barrier see the stores before the first. So either the parking side sees the counter, or the
//! publishing side sees the request, and no wakeup is lost. `loom_tests` checks both orders.

use serde::{Deserialize, Serialize};

use crate::Violation;
use crate::layout::{Direction, READER_GONE, RESET};
use crate::memory::Place;
use crate::sync::{AtomicU64, Ordering, fence};

/// The writer's private state. It never reads its own counter back from shared memory.
#[derive(Debug)]
pub(crate) struct Producer {
    /// The size of the ring.
    capacity: u64,
    /// The part of the ring in use, from its start.
    window: u64,
    /// The part to use as soon as the ring is empty.
    next_window: u64,
    /// Bytes ever written.
    head: u64,
    /// Bytes ever read: the last value of the reader's counter that passed validation.
    tail: u64,
    ended: bool,
    /// This side made a wakeup request and has not withdrawn it.
    armed: bool,
}

/// A [`Producer`] as a value. Counts are modulo 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProducerState {
    window: u64,
    next_window: u64,
    head: u64,
    tail: u64,
    ended: bool,
    armed: bool,
}

impl Producer {
    pub(crate) fn state(&self) -> ProducerState {
        let Self {
            capacity: _,
            window,
            next_window,
            head,
            tail,
            ended,
            armed,
        } = *self;
        ProducerState {
            window,
            next_window,
            head,
            tail,
            ended,
            armed,
        }
    }

    /// The side with this state; `None` if no side with this capacity has it.
    pub(crate) fn resume(state: ProducerState, capacity: u64) -> Option<Self> {
        let ProducerState {
            window,
            next_window,
            head,
            tail,
            ended,
            armed,
        } = state;
        let is_part = |window: u64| window.is_power_of_two() && window <= capacity;
        let is_valid = is_part(window) && is_part(next_window) && head.wrapping_sub(tail) <= window;
        is_valid.then_some(Self {
            capacity,
            window,
            next_window,
            head,
            tail,
            ended,
            armed,
        })
    }

    /// A side whose counters begin at `start`, as the reader's must.
    pub(crate) fn new(capacity: u64, start: u64) -> Self {
        Self {
            capacity,
            window: capacity,
            next_window: capacity,
            head: start,
            tail: start,
            ended: false,
            armed: false,
        }
    }

    /// The part of the ring in use, in bytes.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// The place of the next byte.
    pub(crate) fn place(&self) -> Place {
        Place {
            position: self.head,
            window: self.window,
        }
    }

    /// Uses the first `bytes` of the ring as soon as it is empty, or all of a smaller one.
    pub(crate) fn use_window(&mut self, bytes: u64) {
        self.next_window = bytes.clamp(1, self.capacity).next_power_of_two();
    }

    /// Uses the whole ring as soon as it is empty.
    pub(crate) fn use_whole(&mut self) {
        self.next_window = self.capacity;
    }

    /// Whether another part of the ring is to be used as soon as it is empty.
    pub(crate) fn is_changing_window(&self) -> bool {
        self.next_window != self.window
    }

    /// Changes the part of the ring in use if it is empty and the reader follows.
    pub(crate) fn change_window(&mut self, words: &Direction) -> Result<(), Violation> {
        self.load_tail(words)?;
        if self.head == self.tail && self.is_changing_window() {
            self.window = self.next_window;
            let word = match self.window == self.capacity {
                true => 0,
                false => u32::try_from(self.window).unwrap_or(0),
            };
            // The store of the next `head` orders it.
            words.close.0.window.store(word, Ordering::Release);
        }
        Ok(())
    }

    /// Bytes ever written.
    pub(crate) fn position(&self) -> u64 {
        self.head
    }

    /// Whether [`Producer::end`] was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The free space in bytes. Loads the reader's counter only if less than `wanted` is known to
    /// be free.
    pub(crate) fn free_space(&mut self, words: &Direction, wanted: u64) -> Result<u64, Violation> {
        let known = self.window - self.head.wrapping_sub(self.tail);
        if known >= wanted {
            return Ok(known);
        }
        self.load_tail(words)?;
        Ok(self.window - self.head.wrapping_sub(self.tail))
    }

    fn load_tail(&mut self, words: &Direction) -> Result<(), Violation> {
        let tail = words.tail.0.load(Ordering::Acquire);
        let unread = self.head.wrapping_sub(self.tail);
        if tail.wrapping_sub(self.tail) > unread {
            return Err(Violation::Tail);
        }
        self.tail = tail;
        Ok(())
    }

    /// Publishes `count` bytes that fit into the free space. Returns whether to notify the reader.
    #[must_use]
    pub(crate) fn publish(&mut self, words: &Direction, count: u64) -> bool {
        self.head = self.head.wrapping_add(count);
        words.head.0.store(self.head, Ordering::Release);
        wake_reader(words)
    }

    /// Ends the stream. Returns whether to notify the reader.
    #[must_use]
    pub(crate) fn end(&mut self, words: &Direction) -> bool {
        self.ended = true;
        words.close.0.ended.store(1, Ordering::Release);
        wake_reader(words)
    }

    /// Requests a wakeup when `wanted` bytes are free, the reader closes or the connection is
    /// reset. Returns whether none of them has happened yet, so that parking is safe. Otherwise
    /// the request stays until [`Producer::disarm`].
    pub(crate) fn arm(
        &mut self,
        words: &Direction,
        state: &AtomicU64,
        wanted: u64,
    ) -> Result<bool, Violation> {
        let wanted = wanted.clamp(1, self.window);
        // A swap, not a store: every write to this word is a read-modify-write, so exactly
        // one side takes each request.
        words.space.0.swap(wanted, Ordering::Relaxed);
        self.armed = true;
        fence(Ordering::SeqCst);
        Ok(self.free_space(words, wanted)? < wanted
            && closed(words) == 0
            && state.load(Ordering::Acquire) & RESET == 0)
    }

    /// Withdraws the wakeup request. Returns whether the reader had notified for it, or `None` if
    /// there was no request.
    pub(crate) fn disarm(&mut self, words: &Direction) -> Option<bool> {
        std::mem::take(&mut self.armed).then(|| words.space.0.swap(0, Ordering::Relaxed) == 0)
    }

    /// Whether the reader has notified, or is about to, for a request that was not withdrawn.
    pub(crate) fn is_notified(&self, words: &Direction) -> bool {
        self.armed && words.space.0.load(Ordering::Relaxed) == 0
    }
}

/// How the reader closed: 0 (open), `READER_SHUT` or `READER_GONE`.
pub(crate) fn closed(words: &Direction) -> u32 {
    words.close.0.closed.load(Ordering::Acquire)
}

/// Whether the reader is gone for good.
pub(crate) fn is_reader_gone(words: &Direction) -> bool {
    closed(words) == READER_GONE
}

/// Takes the reader's wakeup request, if there is one. Returns whether to notify: only one thread
/// takes a request.
fn wake_reader(words: &Direction) -> bool {
    fence(Ordering::SeqCst);
    let awake = &words.awake.0;
    awake.load(Ordering::Relaxed) == 0 && awake.swap(1, Ordering::Relaxed) == 0
}
