//! Where the parts of an arena lie, computed from the limits that the broker has set.

use std::io;

use super::words::{ArenaWords, SLOTS, SlotWords};
use crate::RingSize;

/// The limits of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaLimits {
    /// The most connections at a time: 1 to [`ArenaLimits::MAX_SLOTS`].
    pub slots: u32,
    /// The capacity of each direction of a connection.
    pub ring: RingSize,
}

impl ArenaLimits {
    /// The most slots that an arena has.
    pub const MAX_SLOTS: u32 = SLOTS as u32;

    /// The slots below this number keep the pages that they have used.
    pub(crate) const KEPT_SLOTS: u32 = 32;

    /// The length of the memory in bytes.
    pub(crate) fn len(self) -> u64 {
        let ring = u64::from(self.ring.bytes());
        size_of::<ArenaWords>() as u64 + u64::from(self.slots) * 2 * ring
    }

    /// Checks the number of slots.
    pub(crate) fn check(self) -> io::Result<()> {
        if (1..=Self::MAX_SLOTS).contains(&self.slots) {
            return Ok(());
        }
        let text = format!("{} is no number of slots of an arena", self.slots);
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    /// The offset of a slot's header.
    pub(crate) fn header_at(slot: u32) -> usize {
        std::mem::offset_of!(ArenaWords, slots) + slot as usize * size_of::<SlotWords>()
    }

    /// The offset of a slot's rings.
    pub(crate) fn rings_at(self, slot: u32) -> usize {
        size_of::<ArenaWords>() + slot as usize * self.rings_len()
    }

    /// The length of a slot's rings.
    pub(crate) fn rings_len(self) -> usize {
        2 * self.ring.bytes() as usize
    }
}
