//! The client's slots as a value. [`crate::snapshot`] describes its compatibility.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{ClientSlots, Slot};
use crate::arena::SlotId;
use crate::arena::queue::Publisher;
use crate::arena::words::{SEQUENCE, SLOTS};
use crate::end::ViolationState;
use crate::snapshot::SnapshotError;

/// The client's private state of its slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClientSlotsState {
    /// Connections ever put into the connect queue, and those known to be taken out of it.
    published: u64,
    taken: u64,
    number: u64,
    unique_before: u64,
    /// The slots that were ever used, in their order.
    slots: Vec<SlotState>,
    free: Vec<u32>,
    closing: Vec<u32>,
    violation: Option<ViolationState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SlotState {
    number: u64,
    seq: u32,
    previous: u32,
    moved_bytes: bool,
}

fn ensure(is_met: bool, what: &'static str) -> Result<(), SnapshotError> {
    match is_met {
        true => Ok(()),
        false => Err(SnapshotError::Inconsistent { what }),
    }
}

impl ClientSlots {
    /// The slots as a value.
    pub(crate) fn state(&self) -> ClientSlotsState {
        let Self {
            publisher,
            number,
            unique_before,
            slots,
            free,
            closing,
            violation,
        } = self;
        let (published, taken) = publisher.counters();
        let slots = slots.iter().map(|slot| {
            let Slot {
                number,
                seq,
                previous,
                moved_bytes,
                is_free: _,
                lacks_end: _,
            } = *slot;
            SlotState {
                number,
                seq,
                previous,
                moved_bytes,
            }
        });
        ClientSlotsState {
            published,
            taken,
            number: *number,
            unique_before: *unique_before,
            slots: slots.collect(),
            free: free.clone(),
            closing: closing.iter().copied().collect(),
            violation: violation.map(ViolationState::from),
        }
    }

    /// The slots of a value. Those of open connections lack their ends until [`take_end`](Self::take_end).
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if no sequence of operations leads to the value.
    pub(crate) fn resume(state: ClientSlotsState) -> Result<Self, SnapshotError> {
        let ClientSlotsState {
            published,
            taken,
            number,
            unique_before,
            slots,
            free,
            closing,
            violation,
        } = state;
        let has_room = number <= u64::MAX / 2 && unique_before <= number + SEQUENCE;
        ensure(has_room, "a connection's number is out of range")?;
        let is_queue = published.checked_sub(taken);
        let is_queue = published <= number && is_queue.is_some_and(|left| left <= SLOTS as u64);
        ensure(is_queue, "the connect queue is longer than an arena")?;
        ensure(slots.len() <= SLOTS, "an arena has too many slots")?;
        let mut all: Vec<_> = slots
            .into_iter()
            .map(|slot| Slot {
                number: slot.number,
                seq: slot.seq,
                previous: slot.previous,
                moved_bytes: slot.moved_bytes,
                is_free: false,
                lacks_end: true,
            })
            .collect();
        let is_numbered = |slot: &Slot| {
            let is_seq = (1..=SEQUENCE).contains(&slot.seq.into());
            is_seq && slot.number < number && u64::from(slot.previous) <= SEQUENCE
        };
        ensure(all.iter().all(is_numbered), "a slot has no connection")?;
        for (of, is_free) in [(&free, true), (&closing, false)] {
            for at in of {
                let slot = all.get_mut(*at as usize).filter(|slot| slot.lacks_end);
                let slot = slot.ok_or(SnapshotError::Inconsistent {
                    what: "a slot is missing or closed twice",
                })?;
                (slot.is_free, slot.lacks_end) = (is_free, false);
            }
        }
        let used = all.iter().filter(|slot| !slot.is_free);
        let used: Vec<_> = used.map(|slot| slot.seq).collect();
        let distinct: HashSet<_> = used.iter().collect();
        ensure(
            distinct.len() == used.len(),
            "two connections have one number",
        )?;
        Ok(Self {
            publisher: Publisher::resume(published, taken),
            number,
            unique_before,
            slots: all,
            free,
            closing: closing.into(),
            violation: violation.map(Into::into),
        })
    }

    /// Marks the end of an open connection as restored. Returns `false` if there is no such connection, or it has its
    /// end already.
    pub(crate) fn take_end(&mut self, id: SlotId) -> bool {
        let slot = self.slots.get_mut(id.slot as usize);
        let slot = slot.filter(|slot| slot.lacks_end && slot.seq == id.seq);
        slot.map(|slot| slot.lacks_end = false).is_some()
    }

    /// Whether every open connection has its end.
    pub(crate) fn have_ends(&self) -> bool {
        !self.slots.iter().any(|slot| slot.lacks_end)
    }
}
