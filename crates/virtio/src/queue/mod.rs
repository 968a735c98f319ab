//! The device's side of a split virtqueue (virtio 1.2, section 2.7).
//!
//! The rings are in guest memory, which a hostile guest may change at any time (TOCTOU): every value
//! is read once, validated, and then used.
//!
//! Order of use:
//!
//! 1. [`Queue::new`] with the addresses that the driver chose, or [`Queue::resume`] if another device may
//!    have served the queue before.
//! 2. [`Queue::peek`] reads the next available descriptor chain; [`Queue::take`] removes it from the
//!    available ring.
//! 3. [`Queue::add_used`] adds a chain to the used ring. [`Queue::publish`] makes all added chains
//!    visible to the driver, and returns whether the driver wants a used buffer notification.
//! 4. Before the device parks, [`Queue::enable_notification`] enables available buffer notifications.
//!    While the device polls the ring, [`Queue::disable_notification`] suppresses them.
//!
//! A malformed chain ([`Next::Bad`]) is returned unused, and the queue stays usable. Malformed rings
//! are a [`QueueFault`]: the device must not use the queue any more.

mod chain;
mod layout;
mod snapshot;

use std::num::Wrapping;

pub use chain::{BadChain, Chain, Segment};
pub use layout::{GuestMemory, Layout, MAX_CHAIN, MAX_SIZE};
pub use snapshot::{QUEUE_SNAPSHOT_VERSION, QueueSnapshot};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` in the available ring's flags: the driver wants no used buffer
/// notification from the device (section 2.7.7).
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY` in the used ring's flags: the device wants no available buffer
/// notification from the driver (section 2.7.10).
const NO_NOTIFY: u16 = 1;

/// The rings are invalid; the queue must not be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFault {
    /// The size is not a power of two or exceeds [`MAX_SIZE`], or an address is not aligned or
    /// overflows.
    #[error("the queue's size or alignment is invalid")]
    Layout,
    /// A part of the queue is outside guest memory.
    #[error("the queue is outside guest memory")]
    Outside,
    /// The available index is ahead of the device by more than the queue size.
    #[error("the available index is ahead by more than the queue size")]
    Overrun,
    /// The available ring names a head outside the descriptor table.
    #[error("the available ring names a descriptor outside the table")]
    Head,
}

/// The result of [`Queue::peek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The available ring is empty.
    Empty,
    /// A valid chain, stored in the argument of [`Queue::peek`].
    Chain,
    /// A malformed chain, and why. The device takes it and returns it with length 0.
    Bad(BadChain),
}

/// The device's side of one split virtqueue.
#[derive(Debug)]
pub struct Queue {
    layout: Layout,
    /// Index of the next chain to take from the available ring.
    next_avail: Wrapping<u16>,
    /// The driver's available index, as last loaded.
    avail_idx: Wrapping<u16>,
    /// Index of the next entry to write in the used ring.
    next_used: Wrapping<u16>,
    /// The used index that the driver can see.
    used_idx: Wrapping<u16>,
    /// Whether available buffer notifications are enabled; `None` until the device has set it.
    notifications: Option<bool>,
}

impl Queue {
    /// Creates a queue that continues at index `base` of both rings; 0 for a new queue.
    ///
    /// # Errors
    ///
    /// [`QueueFault::Layout`] if the size, the alignment or an address is invalid;
    /// [`QueueFault::Outside`] if a part is outside `memory`.
    pub fn new(layout: Layout, base: u16, memory: &impl GuestMemory) -> Result<Self, QueueFault> {
        let Layout {
            size,
            descriptors,
            available,
            used,
            ..
        } = layout;
        let is_valid = size.is_power_of_two()
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
        // No address computed from these overflows afterwards.
        let fits = parts.iter().all(|(at, len)| at.checked_add(*len).is_some());
        if !is_valid || !fits {
            return Err(QueueFault::Layout);
        }
        let queue = Self {
            layout,
            next_avail: Wrapping(base),
            avail_idx: Wrapping(base),
            next_used: Wrapping(base),
            used_idx: Wrapping(base),
            notifications: None,
        };
        // An address outside memory is an error here, not at the first packet.
        for (at, len) in parts {
            let mut byte = [0];
            if !memory.read(at, &mut byte) || !memory.read(at + len - 1, &mut byte) {
                return Err(QueueFault::Outside);
            }
        }
        Ok(queue)
    }

    /// Creates a queue that continues where the device before it has stopped: at the used index in `memory`,
    /// which is 0 for a queue that a driver has just set up. Chains that the other device had taken and not
    /// returned are processed again. So it must have returned chains in the order of the available ring, as
    /// every vsock device does.
    ///
    /// # Errors
    ///
    /// As [`Queue::new`].
    pub fn resume(layout: Layout, memory: &impl GuestMemory) -> Result<Self, QueueFault> {
        let queue = Self::new(layout, 0, memory)?;
        let base = memory.load(layout.used + 2).ok_or(QueueFault::Outside)?;
        let base = Wrapping(base);
        Ok(Self {
            next_avail: base,
            avail_idx: base,
            next_used: base,
            used_idx: base,
            ..queue
        })
    }

    /// The driver's available index, as it is in `memory` now. It is not validated: it only shows whether
    /// the driver has made more chains available.
    pub fn driver_index(&self, memory: &impl GuestMemory) -> Option<u16> {
        memory.load(self.layout.available + 2)
    }

    /// Index of the next available chain, modulo 2^16: the `base` to resume a stopped queue with.
    #[doc(alias = "next_avail")]
    pub fn position(&self) -> u16 {
        self.next_avail.0
    }

    /// The used index that the driver sees.
    pub fn published(&self) -> u16 {
        self.used_idx.0
    }

    /// Queue size in entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Whether the available ring holds a chain. One load, for busy-polling; nothing is validated.
    pub fn has_available(&self, memory: &impl GuestMemory) -> bool {
        self.avail_idx != self.next_avail
            || memory.load(self.layout.available + 2) != Some(self.next_avail.0)
    }

    /// Reads the next available chain into `chain`, without taking it from the available ring.
    ///
    /// # Errors
    ///
    /// [`QueueFault::Overrun`] or [`QueueFault::Head`] if the available ring is invalid;
    /// [`QueueFault::Outside`] if it is no longer in `memory`.
    pub fn peek(
        &mut self,
        memory: &impl GuestMemory,
        chain: &mut Chain,
    ) -> Result<Next, QueueFault> {
        chain.clear();
        if self.avail_idx == self.next_avail && !self.load_avail_idx(memory)? {
            return Ok(Next::Empty);
        }
        let entry = u64::from(self.next_avail.0 & (self.layout.size - 1));
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

    /// Removes from the available ring the chain that [`Queue::peek`] has read.
    #[doc(alias = "pop_descriptor_chain")]
    pub fn take(&mut self) {
        if self.avail_idx != self.next_avail {
            self.next_avail += 1;
        }
    }

    /// Loads and validates the available index. Returns whether a chain is available.
    fn load_avail_idx(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueFault> {
        let index = memory.load(self.layout.available + 2);
        let index = Wrapping(index.ok_or(QueueFault::Outside)?);
        if (index - self.next_avail).0 > self.layout.size {
            return Err(QueueFault::Overrun);
        }
        self.avail_idx = index;
        Ok(index != self.next_avail)
    }

    /// Adds a chain to the used ring; `written` is the number of bytes written to it. The driver sees
    /// it after [`Queue::publish`].
    ///
    /// # Errors
    ///
    /// [`QueueFault::Outside`] if the used ring is no longer in `memory`.
    pub fn add_used(
        &mut self,
        memory: &impl GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueFault> {
        let entry = u64::from(self.next_used.0 & (self.layout.size - 1));
        let mut element = [0; 8];
        element[..2].copy_from_slice(&head.to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        if !memory.write(self.layout.used + 4 + entry * 8, &element) {
            return Err(QueueFault::Outside);
        }
        self.next_used += 1;
        Ok(())
    }

    /// Publishes the used index, which makes all added chains visible to the driver. Returns whether
    /// the driver wants a used buffer notification (section 2.7.7.2).
    ///
    /// # Errors
    ///
    /// [`QueueFault::Outside`] if a ring is no longer in `memory`.
    #[doc(alias = "needs_notification")]
    pub fn publish(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueFault> {
        if self.used_idx == self.next_used {
            return Ok(false);
        }
        let outside = QueueFault::Outside;
        memory
            .store(self.layout.used + 2, self.next_used.0)
            .ok_or(outside)?;
        let before = std::mem::replace(&mut self.used_idx, self.next_used);
        // Store of the index, full barrier, load of the suppression state: either the driver sees the
        // index before it waits, or the device sees that the driver wants a notification.
        memory.fence();
        if !self.layout.event_idx {
            let flags = memory.load(self.layout.available).ok_or(outside)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        let at = self.layout.available + 4 + u64::from(self.layout.size) * 2;
        let event = Wrapping(memory.load(at).ok_or(outside)?);
        Ok((self.next_used - event - Wrapping(1)).0 < (self.next_used - before).0)
    }

    /// Whether chains were added that the driver cannot see yet.
    pub fn has_unpublished(&self) -> bool {
        self.used_idx != self.next_used
    }

    /// Enables available buffer notifications (kicks). Returns whether a chain is available already,
    /// in which case the device must not park: the driver may send no notification for it.
    ///
    /// # Errors
    ///
    /// [`QueueFault::Overrun`] if the available index is invalid; [`QueueFault::Outside`] if a ring is
    /// no longer in `memory`.
    #[doc(alias = "avail_event")]
    pub fn enable_notification(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueFault> {
        if self.layout.event_idx {
            self.clear_flags(memory)?;
            self.set_avail_event(memory, self.avail_idx.0)?;
        } else if self.notifications != Some(true) {
            memory
                .store(self.layout.used, 0)
                .ok_or(QueueFault::Outside)?;
        }
        self.notifications = Some(true);
        // Store of the request, full barrier, load of the index: either the driver sees the request,
        // or the device sees the chain.
        memory.fence();
        self.load_avail_idx(memory)
    }

    /// Disables available buffer notifications (kicks), while the device polls the available ring.
    /// With EVENT_IDX this is advice only: the driver may still send some.
    ///
    /// # Errors
    ///
    /// [`QueueFault::Outside`] if the used ring is no longer in `memory`.
    #[doc(alias = "VIRTQ_USED_F_NO_NOTIFY")]
    pub fn disable_notification(&mut self, memory: &impl GuestMemory) -> Result<(), QueueFault> {
        if self.notifications == Some(false) {
            return Ok(());
        }
        if self.layout.event_idx {
            self.clear_flags(memory)?;
        }
        self.notifications = Some(false);
        if self.layout.event_idx {
            // The driver has passed this index, so it reaches it only after a wraparound.
            return self.set_avail_event(memory, (self.avail_idx - Wrapping(1)).0);
        }
        memory
            .store(self.layout.used, NO_NOTIFY)
            .ok_or(QueueFault::Outside)
    }

    /// With EVENT_IDX the used ring's flags must be 0 (section 2.7.10.2).
    fn clear_flags(&self, memory: &impl GuestMemory) -> Result<(), QueueFault> {
        if self.notifications.is_none() {
            let stored = memory.store(self.layout.used, 0);
            stored.ok_or(QueueFault::Outside)?;
        }
        Ok(())
    }

    fn set_avail_event(&self, memory: &impl GuestMemory, at: u16) -> Result<(), QueueFault> {
        let event = self.layout.used + 4 + u64::from(self.layout.size) * 8;
        memory.store(event, at).ok_or(QueueFault::Outside)
    }
}
