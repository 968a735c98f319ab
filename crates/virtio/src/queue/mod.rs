//! The device's side of a split virtqueue (virtio 1.2, section 2.7), over memory that is the
//! guest's and that it may change at any time.
//!
//! In the order of use: [`Queue::new`] with where the driver put its parts; [`Queue::peek`] reads
//! the next chain of descriptors and leaves it there, [`Queue::take`] takes it;
//! [`Queue::give_back`] puts it among those that are used; [`Queue::publish`] shows the driver all
//! that were given back, and says whether it wants to be notified. Before the device sleeps,
//! [`Queue::ask_for_kicks`] asks the driver to notify it, and while it is awake
//! [`Queue::refuse_kicks`] keeps the driver from that trouble.
//!
//! What is wrong with one chain is the chain's fault ([`Next::Bad`]): it is given back unused and
//! the queue goes on. What is wrong with the rings themselves is a [`QueueFault`], after which
//! nothing that they say can be believed.

mod chain;
#[cfg(test)]
mod tests;

use std::num::Wrapping;

pub use chain::{BadChain, Chain, Segment};

/// Memory of a guest, by the guest's own addresses.
///
/// The guest may write to it at any time, and may give any address. Nothing here may panic or
/// give more access than to the guest's own memory.
pub trait GuestMemory {
    /// Copies bytes from `address` on, all of them or none; whether it did.
    #[must_use]
    fn read(&self, address: u64, to: &mut [u8]) -> bool;

    /// Copies bytes to `address`, all of them or none; whether it did.
    #[must_use]
    fn write(&self, address: u64, from: &[u8]) -> bool;

    /// Reads a little-endian word at once, and before everything after it. `None`: there is none.
    fn load(&self, address: u64) -> Option<u16>;

    /// Writes a little-endian word at once, and after everything before it. `None`: there is none.
    fn store(&self, address: u64, value: u16) -> Option<()>;

    /// Keeps what is read after it from being read before what was written before it is seen.
    fn fence(&self);
}

/// The most entries of a queue (section 2.7).
pub const MAX_SIZE: u16 = 32768;
/// The most descriptors of one chain, however large the queue.
pub const MAX_CHAIN: usize = 1024;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` in the available ring's flags: the driver wants no used buffer
/// notification from the device (section 2.7.7).
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY` in the used ring's flags: the device wants no available buffer
/// notification from the driver (section 2.7.10).
const NO_NOTIFY: u16 = 1;

/// Where a queue's parts lie and what was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Entries: a power of two, at most [`MAX_SIZE`].
    pub size: u16,
    /// The descriptor table, aligned to 16.
    pub descriptors: u64,
    /// What the driver makes available, aligned to 2.
    pub available: u64,
    /// What the device has used, aligned to 4.
    pub used: u64,
    /// `VIRTIO_F_EVENT_IDX` was agreed on.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was agreed on.
    pub indirect: bool,
}

/// Rings that cannot be believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFault {
    /// The size is no power of two, or too large, or a part is not aligned.
    #[error("the queue has no valid layout")]
    Layout,
    /// A part is not in the guest's memory.
    #[error("the queue lies outside the guest's memory")]
    Outside,
    /// More is available than the queue has entries.
    #[error("the driver made more chains available than the queue holds")]
    Overrun,
    /// What is available begins outside the table.
    #[error("the driver made a descriptor available that the queue does not have")]
    Head,
}

/// What comes next in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is available.
    Empty,
    /// A chain, read into what was given to [`Queue::peek`].
    Chain,
    /// A chain that is wrong, and why. It is there to be taken and given back.
    Bad(BadChain),
}

/// The device's side of one split virtqueue.
#[derive(Debug)]
pub struct Queue {
    layout: Layout,
    /// Chains taken so far.
    taken: Wrapping<u16>,
    /// Chains that the driver had made available when last looked.
    seen: Wrapping<u16>,
    /// Chains given back so far.
    used: Wrapping<u16>,
    /// Those of them that the driver was shown.
    published: Wrapping<u16>,
    /// Whether the driver was asked for kicks; `None`: it is not known.
    kicks: Option<bool>,
}

impl Queue {
    /// A queue that goes on after `base` chains, which are used; 0 for a new one.
    pub fn new(layout: Layout, base: u16, memory: &impl GuestMemory) -> Result<Self, QueueFault> {
        let Layout {
            size,
            descriptors,
            available,
            used,
            ..
        } = layout;
        let is_sound = size.is_power_of_two()
            && size <= MAX_SIZE
            && descriptors.is_multiple_of(16)
            && available.is_multiple_of(2)
            && used.is_multiple_of(4);
        let length = u64::from(size);
        let parts = [
            (descriptors, length * 16),
            (available, 6 + length * 2),
            (used, 6 + length * 8),
        ];
        // So that no sum of an address in the queue can overflow.
        let fits = parts.iter().all(|(at, len)| at.checked_add(*len).is_some());
        if !is_sound || !fits {
            return Err(QueueFault::Layout);
        }
        let queue = Self {
            layout,
            taken: Wrapping(base),
            seen: Wrapping(base),
            used: Wrapping(base),
            published: Wrapping(base),
            kicks: None,
        };
        // Found out now rather than by the first packet.
        for (at, len) in parts {
            let mut byte = [0];
            if !memory.read(at, &mut byte) || !memory.read(at + len - 1, &mut byte) {
                return Err(QueueFault::Outside);
            }
        }
        Ok(queue)
    }

    /// Chains taken so far, modulo 2^16: where a queue goes on after a stop.
    pub fn position(&self) -> u16 {
        self.taken.0
    }

    /// How many entries the queue has.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Whether the driver has made something available that was not taken yet, at a glance.
    pub fn has_available(&self, memory: &impl GuestMemory) -> bool {
        self.seen != self.taken || memory.load(self.layout.available + 2) != Some(self.taken.0)
    }

    /// Reads the next chain, and leaves it where it is.
    pub fn peek(
        &mut self,
        memory: &impl GuestMemory,
        chain: &mut Chain,
    ) -> Result<Next, QueueFault> {
        chain.clear();
        if self.seen == self.taken && !self.look(memory)? {
            return Ok(Next::Empty);
        }
        let entry = u64::from(self.taken.0 & (self.layout.size - 1));
        let mut head = [0; 2];
        if !memory.read(self.layout.available + 4 + entry * 2, &mut head) {
            return Err(QueueFault::Outside);
        }
        let head = u16::from_le_bytes(head);
        if head >= self.layout.size {
            return Err(QueueFault::Head);
        }
        Ok(match chain.read(&self.layout, head, memory) {
            Ok(()) => Next::Chain,
            Err(bad) => Next::Bad(bad),
        })
    }

    /// Takes the chain that [`Queue::peek`] has read.
    pub fn take(&mut self) {
        if self.seen != self.taken {
            self.taken += 1;
        }
    }

    /// Looks what the driver has made available; whether there is something.
    fn look(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueFault> {
        let said = memory.load(self.layout.available + 2);
        let said = Wrapping(said.ok_or(QueueFault::Outside)?);
        if (said - self.taken).0 > self.layout.size {
            return Err(QueueFault::Overrun);
        }
        self.seen = said;
        Ok(said != self.taken)
    }

    /// Gives a chain back, of which `written` bytes were written. The driver sees it after
    /// [`Queue::publish`].
    pub fn give_back(
        &mut self,
        memory: &impl GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueFault> {
        let entry = u64::from(self.used.0 & (self.layout.size - 1));
        let mut element = [0; 8];
        element[..2].copy_from_slice(&head.to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        if !memory.write(self.layout.used + 4 + entry * 8, &element) {
            return Err(QueueFault::Outside);
        }
        self.used += 1;
        Ok(())
    }

    /// Shows the driver what was given back; whether it wants to be notified of that.
    pub fn publish(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueFault> {
        if self.published == self.used {
            return Ok(false);
        }
        let outside = QueueFault::Outside;
        memory
            .store(self.layout.used + 2, self.used.0)
            .ok_or(outside)?;
        let before = std::mem::replace(&mut self.published, self.used);
        // What the driver asks for is read after it can have seen what was published: either it
        // sees that, or its wish is seen here.
        memory.fence();
        if !self.layout.event_idx {
            let flags = memory.load(self.layout.available).ok_or(outside)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        let at = self.layout.available + 4 + u64::from(self.layout.size) * 2;
        let event = Wrapping(memory.load(at).ok_or(outside)?);
        Ok((self.used - event - Wrapping(1)).0 < (self.used - before).0)
    }

    /// Whether something was given back that the driver was not shown.
    pub fn has_unpublished(&self) -> bool {
        self.published != self.used
    }

    /// Asks the driver to notify the device of what it makes available from now on. Whether
    /// something is available already; then the device should not sleep.
    pub fn ask_for_kicks(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueFault> {
        if self.layout.event_idx {
            self.clear_flags(memory)?;
            self.set_event(memory, self.seen.0)?;
        } else if self.kicks != Some(true) {
            memory
                .store(self.layout.used, 0)
                .ok_or(QueueFault::Outside)?;
        }
        self.kicks = Some(true);
        // What is available is read after the driver can have seen the wish.
        memory.fence();
        self.look(memory)
    }

    /// Tells the driver that the device looks by itself.
    pub fn refuse_kicks(&mut self, memory: &impl GuestMemory) -> Result<(), QueueFault> {
        if self.kicks == Some(false) {
            return Ok(());
        }
        if self.layout.event_idx {
            self.clear_flags(memory)?;
        }
        self.kicks = Some(false);
        if self.layout.event_idx {
            // A place that the driver has passed is one that it does not come to.
            return self.set_event(memory, (self.seen - Wrapping(1)).0);
        }
        memory
            .store(self.layout.used, NO_NOTIFY)
            .ok_or(QueueFault::Outside)
    }

    /// With EVENT_IDX, the used ring's flags must be 0 (section 2.7.10.2), whatever was there before.
    fn clear_flags(&self, memory: &impl GuestMemory) -> Result<(), QueueFault> {
        if self.kicks.is_none() {
            let stored = memory.store(self.layout.used, 0);
            stored.ok_or(QueueFault::Outside)?;
        }
        Ok(())
    }

    fn set_event(&self, memory: &impl GuestMemory, at: u16) -> Result<(), QueueFault> {
        let event = self.layout.used + 4 + u64::from(self.layout.size) * 8;
        memory.store(event, at).ok_or(QueueFault::Outside)
    }
}
