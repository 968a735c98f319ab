//! The client's slots: which are free, which wait for the server, and the connections' numbers. Only the
//! client allocates, by this private state.

mod snapshot;

use std::collections::VecDeque;

use super::queue::{Publisher, seq_of};
use super::words::{SEQUENCE, SLOTS, ServerEntry};
use super::{SlotId, Violation};
use crate::sync::Ordering;

pub(crate) use snapshot::ClientSlotsState;

/// The number of closing slots to look at before a slot is taken.
const FEW: usize = 4;

/// The client's private state.
#[derive(Debug)]
pub(crate) struct ClientSlots {
    pub(crate) publisher: Publisher,
    /// The number of the next connection.
    number: u64,
    /// No open connection has the sequence number of one with a lower number than this.
    unique_before: u64,
    slots: Vec<Slot>,
    /// The slots that are not in use. The last one was used last.
    free: Vec<u32>,
    /// The slots that the client has closed and the server has not.
    closing: VecDeque<u32>,
    violation: Option<Violation>,
}

#[derive(Debug, Default)]
struct Slot {
    number: u64,
    /// The sequence number of the connection, or of the last one.
    seq: u32,
    /// The sequence number of the connection before it.
    previous: u32,
    moved_bytes: bool,
    is_free: bool,
    /// Its connection is open, and restored without its end so far.
    lacks_end: bool,
}

/// A slot that became free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freed {
    pub(crate) id: SlotId,
    /// Its rings were used.
    pub(crate) moved_bytes: bool,
}

impl ClientSlots {
    /// No slot is in use. The numbers begin at `start`.
    pub(crate) fn new(start: u64) -> Self {
        Self {
            publisher: Publisher::new(start),
            number: start,
            unique_before: start + SEQUENCE,
            slots: Vec::new(),
            free: Vec::new(),
            closing: VecDeque::new(),
            violation: None,
        }
    }

    /// The number of slots in use.
    pub(crate) fn in_use(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// The number of slots that were ever used.
    pub(crate) fn used(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Returns the first violation that was reported.
    pub(crate) fn check(&self) -> Result<(), Violation> {
        self.violation.map_or(Ok(()), Err)
    }

    /// Remembers a violation.
    pub(crate) fn violated(&mut self, violation: Violation) -> Violation {
        *self.violation.get_or_insert(violation)
    }

    /// Takes a slot for a new connection, of the first `granted`. `freed` is called for every slot that
    /// turns out to be free.
    pub(crate) fn take(
        &mut self,
        server: &[ServerEntry; SLOTS],
        granted: u32,
        mut freed: impl FnMut(Freed),
    ) -> Result<Option<SlotId>, Violation> {
        self.reclaim(server, FEW, &mut freed)?;
        if self.free.is_empty() && self.slots.len() >= granted as usize {
            self.reclaim(server, usize::MAX, &mut freed)?;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < granted as usize => {
                self.slots.push(Slot {
                    is_free: true,
                    ..Slot::default()
                });
                (self.slots.len() - 1) as u32
            }
            None => return Ok(None),
        };
        let previous = self.slots[slot as usize].seq;
        let (number, seq) = self.next_number(previous);
        self.slots[slot as usize] = Slot {
            number,
            seq,
            previous,
            moved_bytes: false,
            is_free: false,
            lacks_end: false,
        };
        Ok(Some(SlotId { slot, seq }))
    }

    /// The client has closed its end.
    pub(crate) fn close(
        &mut self,
        server: &[ServerEntry; SLOTS],
        slot: u32,
        moved_bytes: bool,
        freed: impl FnMut(Freed),
    ) {
        self.slots[slot as usize].moved_bytes = moved_bytes;
        self.closing.push_front(slot);
        if let Err(violation) = self.reclaim(server, 1, freed) {
            self.violated(violation);
        }
    }

    /// Finds every slot that the server has closed as well.
    pub(crate) fn reclaim_all(&mut self, server: &[ServerEntry; SLOTS], freed: impl FnMut(Freed)) {
        if let Err(violation) = self.reclaim(server, usize::MAX, freed) {
            self.violated(violation);
        }
    }

    /// Looks whether the server has closed its ends of the slots that were closed here.
    fn reclaim(
        &mut self,
        server: &[ServerEntry; SLOTS],
        most: usize,
        mut freed: impl FnMut(Freed),
    ) -> Result<(), Violation> {
        for _ in 0..most.min(self.closing.len()) {
            let Some(at) = self.closing.pop_front() else {
                break;
            };
            let slot = &mut self.slots[at as usize];
            let done = server[at as usize].done.load(Ordering::Acquire);
            match () {
                () if done == slot.seq => {
                    slot.is_free = true;
                    self.free.push(at);
                    freed(Freed {
                        id: SlotId {
                            slot: at,
                            seq: slot.seq,
                        },
                        moved_bytes: slot.moved_bytes,
                    });
                }
                () if done == slot.previous => self.closing.push_back(at),
                () => {
                    // Never used again.
                    return Err(Violation::Slot);
                }
            }
        }
        Ok(())
    }

    /// The number of the next connection, and its sequence number, which no open connection has, nor the
    /// last one of its slot.
    fn next_number(&mut self, previous: u32) -> (u64, u32) {
        loop {
            let number = self.number;
            self.number += 1;
            let is_unique = number < self.unique_before || self.is_unique(number);
            let seq = seq_of(number);
            if is_unique && seq != previous {
                return (number, seq);
            }
        }
    }

    /// Whether no open connection has the sequence number of this number. Finds out up to which number
    /// that is so for all following ones.
    fn is_unique(&mut self, number: u64) -> bool {
        let mut is_unique = true;
        self.unique_before = number + SEQUENCE;
        for slot in self.slots.iter().filter(|slot| !slot.is_free) {
            match (number - slot.number) % SEQUENCE {
                0 => is_unique = false,
                behind => {
                    let next = number + SEQUENCE - behind;
                    self.unique_before = self.unique_before.min(next);
                }
            }
        }
        is_unique
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::arena::queue::Taker;
    use crate::arena::words::QueueWords;
    use crate::layout::CachePadded;
    use crate::sync::{AtomicU32, AtomicU64};

    fn server() -> [ServerEntry; SLOTS] {
        std::array::from_fn(|_| ServerEntry {
            accepted: AtomicU32::new(0),
            done: AtomicU32::new(0),
            keep: AtomicU32::new(0),
        })
    }

    fn take(slots: &mut ClientSlots, server: &[ServerEntry; SLOTS]) -> SlotId {
        slots.take(server, 4, |_| {}).unwrap().unwrap()
    }

    fn close(slots: &mut ClientSlots, server: &[ServerEntry; SLOTS], id: SlotId) {
        let done = &server[id.slot as usize].done;
        done.store(id.seq, Ordering::Release);
        slots.close(server, id.slot, false, |_| {});
    }

    #[test]
    fn open_connections_keep_their_sequence_numbers_to_themselves() {
        let (mut slots, server) = (ClientSlots::new(0), server());
        let words = QueueWords {
            published: CachePadded(AtomicU64::new(0)),
            taken: CachePadded(AtomicU64::new(0)),
            accept_request: CachePadded(AtomicU32::new(0)),
        };
        let entries = std::array::from_fn(|_| AtomicU64::new(0));
        let mut taker = Taker::new(0);
        let mut open = |slots: &mut ClientSlots| {
            let id = take(slots, &server);
            slots.publisher.publish(&words, &entries, id);
            // The server follows.
            assert_eq!(taker.take(&words, &entries, 4), Ok(Some(id)));
            id
        };
        let kept = [1, 2, 3].map(|seq| {
            let id = open(&mut slots);
            assert_eq!(id.seq, seq);
            id
        });
        let mut expected = 4;
        // Twice around.
        for _ in 0..2 * SEQUENCE {
            let id = open(&mut slots);
            assert_eq!((id.slot, u64::from(id.seq)), (3, expected));
            close(&mut slots, &server, id);
            expected = match expected {
                SEQUENCE => 4,
                seq => seq + 1,
            };
        }
        for id in kept {
            close(&mut slots, &server, id);
        }
        assert_eq!(slots.in_use(), 0);
    }

    #[test]
    fn the_slot_that_was_used_last_is_used_next() {
        let (mut slots, server) = (ClientSlots::new(0), server());
        let ids = [(); 4].map(|()| take(&mut slots, &server));
        assert_eq!(ids.map(|id| id.slot), [0, 1, 2, 3]);
        assert!(slots.take(&server, 4, |_| {}).unwrap().is_none());
        for slot in [1, 3, 0] {
            close(&mut slots, &server, ids[slot]);
        }
        assert_eq!(slots.in_use(), 1);
        let again = [(); 3].map(|()| take(&mut slots, &server));
        assert_eq!(again.map(|id| id.slot), [0, 3, 1]);
    }

    /// A slot's last sequence number comes round again exactly at the slot's next connection.
    #[test]
    fn a_slot_never_gets_its_last_sequence_number_again() {
        let (mut slots, server) = (ClientSlots::new(0), server());
        let id = take(&mut slots, &server);
        close(&mut slots, &server, id);
        slots.number = SEQUENCE;
        assert_eq!(seq_of(slots.number), id.seq);
        assert_eq!(take(&mut slots, &server), SlotId { slot: 0, seq: 2 });
    }
}
