//! The connect queue: the client publishes each connection that it has opened, and the server takes them in
//! order. Both counters only grow.

use super::words::{QueueWords, SEQUENCE, SLOTS};
use super::{SlotId, Violation};
use crate::sync::{AtomicU64, Ordering, fence};

type Entries = [AtomicU64; SLOTS];

/// The client's private state.
#[derive(Debug)]
pub(crate) struct Publisher {
    published: u64,
    /// The last value of the server's counter that passed validation.
    taken: u64,
}

impl Publisher {
    /// A side whose counters begin at `start`, as the server's must.
    pub(crate) fn new(start: u64) -> Self {
        Self {
            published: start,
            taken: start,
        }
    }

    /// A side with these counters: of connections ever published, and of those known to be taken.
    pub(crate) fn resume(published: u64, taken: u64) -> Self {
        Self { published, taken }
    }

    /// Connections ever published, and those known to be taken.
    pub(crate) fn counters(&self) -> (u64, u64) {
        (self.published, self.taken)
    }

    /// The number of connections that the server has not taken. Loads its counter only if at least `most`
    /// are known to be left.
    pub(crate) fn pending(&mut self, words: &QueueWords, most: u64) -> Result<u64, Violation> {
        let known = self.published - self.taken;
        if known < most {
            return Ok(known);
        }
        let taken = words.taken.0.load(Ordering::Acquire);
        if taken.wrapping_sub(self.taken) > known {
            return Err(Violation::Queue);
        }
        self.taken = taken;
        Ok(self.published - taken)
    }

    /// Publishes a connection. There are fewer than [`SLOTS`] in the queue, since each has a slot.
    pub(crate) fn publish(&mut self, words: &QueueWords, entries: &Entries, id: SlotId) {
        let entry = u64::from(id.seq) << 32 | u64::from(id.slot);
        entries[self.published as usize % SLOTS].store(entry, Ordering::Relaxed);
        self.published += 1;
        words.published.0.store(self.published, Ordering::Release);
    }
}

/// The server's private state.
#[derive(Debug)]
pub(crate) struct Taker {
    taken: u64,
    /// The connection's number that its sequence number follows from, as far as it is known.
    next_number: u64,
}

impl Taker {
    /// A side whose counters begin at `start`, as the client's must.
    pub(crate) fn new(start: u64) -> Self {
        Self {
            taken: start,
            next_number: start,
        }
    }

    /// The number of connections in the queue.
    fn available(&self, words: &QueueWords) -> Result<u64, Violation> {
        let published = words.published.0.load(Ordering::Acquire);
        match published.wrapping_sub(self.taken) {
            count if count <= SLOTS as u64 => Ok(count),
            _ => Err(Violation::Queue),
        }
    }

    /// Whether there is a connection to take, or a violation to report.
    pub(crate) fn has_pending(&self, words: &QueueWords) -> bool {
        self.available(words) != Ok(0)
    }

    /// Takes a connection. Its sequence number is valid, its slot less than `slots`.
    pub(crate) fn take(
        &mut self,
        words: &QueueWords,
        entries: &Entries,
        slots: u32,
    ) -> Result<Option<SlotId>, Violation> {
        if self.available(words)? == 0 {
            return Ok(None);
        }
        let entry = entries[self.taken as usize % SLOTS].load(Ordering::Relaxed);
        let (seq, slot) = ((entry >> 32) as u32, entry as u32);
        if slot >= slots {
            return Err(Violation::Slot);
        }
        // The client skips the numbers of connections that are still open, of which each has a slot.
        let skipped = number_of(seq).map(|number| {
            let next = self.next_number % SEQUENCE;
            (number + SEQUENCE - next) % SEQUENCE
        });
        match skipped {
            Some(skipped) if skipped <= SLOTS as u64 => self.next_number += skipped + 1,
            _ => return Err(Violation::Sequence),
        }
        self.taken += 1;
        words.taken.0.store(self.taken, Ordering::Release);
        Ok(Some(SlotId { slot, seq }))
    }

    /// The number in the queue of the connection that was taken last, counted from 0.
    pub(crate) fn last_number(&self) -> u64 {
        self.taken.wrapping_sub(1)
    }

    /// Requests a notification of the next connection. Returns whether there is none yet.
    pub(crate) fn arm(&self, words: &QueueWords) -> bool {
        words.accept_request.0.swap(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_pending(words)
    }
}

/// The sequence number of the connection with this number, which counts the opened ones.
pub(crate) fn seq_of(number: u64) -> u32 {
    (number % SEQUENCE) as u32 + 1
}

/// The least number with this sequence number; `None` if it is none.
fn number_of(seq: u32) -> Option<u64> {
    let seq = u64::from(seq);
    (1..=SEQUENCE).contains(&seq).then(|| seq - 1)
}
