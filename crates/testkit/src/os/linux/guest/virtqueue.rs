//! The driver's side of a split virtqueue (virtio 1.2 §2.7), conforming or hostile.
//!
//! A conforming driver [adds](Virtqueue::add) buffers, [publishes](Virtqueue::publish) them and
//! [pops](Virtqueue::pop_used) used ones. A hostile driver writes any value anywhere by
//! [`Virtqueue::write_descriptor`], [`Virtqueue::write_available`] and
//! [`Virtqueue::set_available_index`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hvsock_sys::event::Event;
use hvsock_sys::shared_memory::SharedBytes;

use super::call::Call;
use super::memory::{BumpAllocator, Memory};
use super::vmm::RingAddresses;

/// Descriptor flags (virtio 1.2 §2.7.5).
pub mod flags {
    /// `VIRTQ_DESC_F_NEXT`: the chain continues at `next`.
    pub const NEXT: u16 = 1;
    /// `VIRTQ_DESC_F_WRITE`: the buffer is device-writable.
    pub const WRITE: u16 = 2;
    /// `VIRTQ_DESC_F_INDIRECT`: the buffer is an indirect descriptor table.
    pub const INDIRECT: u16 = 4;
}

/// Size of a descriptor in bytes.
pub const DESCRIPTOR: usize = 16;
/// Most descriptors of an indirect table.
pub const TABLE: usize = 40;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` in the available ring's flags: the driver wants no call.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY` in the used ring's flags: the device wants no kick.
const NO_NOTIFY: u16 = 1;

/// A descriptor (`struct virtq_desc`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// Bits of [`flags`].
    pub flags: u16,
    /// Index of the next descriptor of the chain.
    pub next: u16,
}

impl Descriptor {
    #[inline]
    fn encode(&self) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A contiguous part of guest memory: one descriptor of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Offset in the guest memory.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// A split virtqueue.
#[derive(Debug)]
pub struct Virtqueue {
    memory: Arc<Memory>,
    size: u16,
    offsets: QueueOffsets,
    event_idx: bool,
    indirect: bool,
    /// Whether the test overwrites the used ring.
    hostile: bool,
    /// Free descriptors. The last is used first, so that few cache lines are in use.
    free: Vec<u16>,
    /// The state of each chain, by its head.
    chains: Vec<Chain>,
    /// The next available index, and the one that the device last saw.
    available: u16,
    published: u16,
    /// The next used index to read.
    used: u16,
    kick: Event,
    call: Call,
}

#[derive(Clone, Debug, Default)]
struct Chain {
    /// All descriptors but the head.
    others: Vec<u16>,
    /// The caller's token.
    token: u32,
    /// Whether the device has the chain.
    in_flight: bool,
}

/// Offsets of the parts of a queue in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueOffsets {
    descriptors: usize,
    available: usize,
    used: usize,
    tables: usize,
}

impl QueueOffsets {
    pub(super) fn allocate(allocator: &mut BumpAllocator, size: u16) -> Self {
        let size = usize::from(size);
        Self {
            descriptors: allocator.allocate(DESCRIPTOR * size, 16),
            available: allocator.allocate(6 + 2 * size, 2),
            // In a separate cache line, because the device writes it.
            used: allocator.allocate(6 + 8 * size, 64),
            tables: allocator.allocate(TABLE * DESCRIPTOR * size, 64),
        }
    }
}

impl Virtqueue {
    pub(super) fn new(
        memory: &Arc<Memory>,
        size: u16,
        offsets: QueueOffsets,
        call: Call,
    ) -> io::Result<Self> {
        let mut queue = Self {
            memory: Arc::clone(memory),
            size,
            offsets,
            event_idx: false,
            indirect: false,
            hostile: false,
            free: Vec::new(),
            chains: Vec::new(),
            available: 0,
            published: 0,
            used: 0,
            kick: Event::new()?,
            call,
        };
        queue.reset();
        Ok(queue)
    }

    /// Sets the negotiated features, for later chains.
    pub(super) fn set_features(&mut self, event_idx: bool, indirect: bool) {
        (self.event_idx, self.indirect) = (event_idx, indirect);
    }

    /// Makes the queue skip invalid entries of the used ring instead of panicking.
    pub(super) fn tolerate_hostile_writes(&mut self) {
        self.hostile = true;
    }

    /// Resets the queue: all memory zero, nothing in flight.
    pub(super) fn reset(&mut self) {
        let zeros = vec![0; 64 * usize::from(self.size)];
        self.table(0, usize::from(self.size)).put(0, &zeros);
        self.available_ring().put(0, &zeros);
        self.used_ring().put(0, &zeros);
        self.free = (0..self.size).rev().collect();
        self.chains = vec![Chain::default(); usize::from(self.size)];
        (self.available, self.published, self.used) = (0, 0, 0);
        self.kick.clear();
        self.call.clear();
    }

    /// Moves the queue to other memory with the same layout. It must be reset then.
    pub(super) fn set_memory(&mut self, memory: &Arc<Memory>) {
        self.memory = Arc::clone(memory);
    }

    /// The queue size.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Addresses of the queue's parts, for the device.
    pub fn addresses(&self) -> RingAddresses {
        let [descriptors, available, used] = [
            self.offsets.descriptors,
            self.offsets.available,
            self.offsets.used,
        ]
        .map(|offset| self.memory.process_address(offset));
        RingAddresses {
            descriptors,
            available,
            used,
        }
    }

    /// Offsets of the descriptor table, the available ring and the used ring in the guest memory.
    pub(super) fn offsets(&self) -> [usize; 3] {
        let at = self.offsets;
        [at.descriptors, at.available, at.used]
    }

    /// The kick descriptor: the driver's notifications to the device.
    pub fn kick_event(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The call descriptor that the driver reads: the device's notifications.
    pub fn call_event(&self) -> BorrowedFd<'_> {
        self.call.near()
    }

    /// The call descriptor that the device gets.
    pub fn call_descriptor(&self) -> BorrowedFd<'_> {
        self.call.far()
    }

    /// Whether the device holds its end of the call descriptor, and has notified nothing.
    pub(super) fn call_is_open_and_silent(&self) -> bool {
        self.call.is_open_and_silent()
    }

    /// The available index in the guest's memory, which a VMM can read.
    pub(super) fn available_index_in_memory(&self) -> u16 {
        self.available_ring().load_u16(2).unwrap_or(0)
    }

    /// The next available index.
    pub fn available_index(&self) -> u16 {
        self.available
    }

    /// The next used index to read. A VMM whose device restarted resumes here.
    pub fn used_index(&self) -> u16 {
        self.used
    }

    /// Whether enough descriptors are free for a chain of this many segments.
    #[inline]
    pub fn has_free_descriptors(&self, segments: usize) -> bool {
        let needed = if self.is_indirect(segments) {
            1
        } else {
            segments
        };
        self.free.len() >= needed
    }

    #[inline]
    fn is_indirect(&self, segments: usize) -> bool {
        self.indirect && segments > 1 && segments <= TABLE
    }

    /// Adds a chain. [`Virtqueue::pop_used`] returns its `token`. False if too few descriptors are free.
    /// The device sees the chain after [`Virtqueue::publish`].
    #[inline]
    pub fn add(&mut self, segments: &[Segment], write: bool, token: u32) -> bool {
        let (Some(last), true) = (
            segments.len().checked_sub(1),
            self.has_free_descriptors(segments.len()),
        ) else {
            return false;
        };
        let write = if write { flags::WRITE } else { 0 };
        let Some(head) = self.free.pop() else {
            return false;
        };
        if self.is_indirect(segments.len()) {
            let table = self.offsets.tables + usize::from(head) * TABLE * DESCRIPTOR;
            for (segment, at) in segments.iter().zip(0..) {
                let next = if usize::from(at) < last {
                    flags::NEXT
                } else {
                    0
                };
                let descriptor = self.describe(segment, write | next, at + 1);
                let offset = table + usize::from(at) * DESCRIPTOR;
                self.memory
                    .bytes(offset, DESCRIPTOR)
                    .put(0, &descriptor.encode());
            }
            let whole = Descriptor {
                address: self.memory.guest_address(table),
                len: (segments.len() * DESCRIPTOR) as u32,
                flags: flags::INDIRECT,
                next: 0,
            };
            self.write_descriptor(head, &whole);
        } else {
            let mut at = head;
            for (index, segment) in segments.iter().enumerate() {
                let next = if index < last { self.free.pop() } else { None };
                let more = if next.is_some() { flags::NEXT } else { 0 };
                let descriptor = self.describe(segment, write | more, next.unwrap_or(0));
                self.write_descriptor(at, &descriptor);
                if let Some(next) = next {
                    self.chains[usize::from(head)].others.push(next);
                    at = next;
                }
            }
        }
        let chain = &mut self.chains[usize::from(head)];
        (chain.token, chain.in_flight) = (token, true);
        self.write_available(self.available, head);
        self.available = self.available.wrapping_add(1);
        true
    }

    #[inline]
    fn describe(&self, segment: &Segment, flags: u16, next: u16) -> Descriptor {
        Descriptor {
            address: self.memory.guest_address(segment.offset),
            len: segment.len as u32,
            flags,
            next,
        }
    }

    /// Publishes added chains, and kicks the device unless it suppresses notifications.
    #[inline]
    pub fn publish(&mut self) {
        if self.published == self.available {
            return;
        }
        self.set_available_index(self.available);
        let before = std::mem::replace(&mut self.published, self.available);
        // Memory barrier: the index must be visible before the device's suppression state is read.
        fence(Ordering::SeqCst);
        let used = self.used_ring();
        let needs_kick = if self.event_idx {
            let event = used.load_u16(4 + 8 * usize::from(self.size)).unwrap_or(0);
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before)
        } else {
            used.load_u16(0).unwrap_or(0) & NO_NOTIFY == 0
        };
        if needs_kick {
            self.kick();
        }
    }

    /// Kicks the device unconditionally.
    pub fn kick(&self) {
        self.kick.set();
    }

    /// Whether the used ring has entries that were not popped yet.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.used_ring().load_u16(2).unwrap_or(0) != self.used
    }

    /// Pops the next used chain. Returns its token and the count of bytes written by the device.
    ///
    /// # Panics
    /// If the device returns a chain that is not in flight, which is a protocol violation.
    #[inline]
    pub fn pop_used(&mut self) -> Option<(u32, usize)> {
        if !self.has_used() {
            return None;
        }
        if self.hostile {
            return self.pop_used_tolerant();
        }
        let mut entry = [0; 8];
        let offset = 4 + 8 * usize::from(self.used % self.size);
        self.used_ring().get(offset, &mut entry);
        let entry = u64::from_le_bytes(entry);
        let (head, len) = (entry as u32, (entry >> 32) as usize);
        let chain = match self.chains.get_mut(head as usize) {
            Some(chain) if chain.in_flight => chain,
            _ => panic!("the device returned descriptor {head}, which is not in flight"),
        };
        chain.in_flight = false;
        self.free.append(&mut chain.others);
        self.free.push(head as u16);
        self.used = self.used.wrapping_add(1);
        Some((chain.token, len))
    }

    /// Pops the next used entry that names a chain in flight, and skips all others.
    fn pop_used_tolerant(&mut self) -> Option<(u32, usize)> {
        let index = self.used_ring().load_u16(2).unwrap_or(0);
        // Older entries were overwritten.
        let behind = index.wrapping_sub(self.used).min(self.size);
        self.used = index.wrapping_sub(behind);
        while self.used != index {
            let mut entry = [0; 8];
            let offset = 4 + 8 * usize::from(self.used % self.size);
            self.used_ring().get(offset, &mut entry);
            self.used = self.used.wrapping_add(1);
            let entry = u64::from_le_bytes(entry);
            let head = entry as u32;
            if let Some(chain) = self.chains.get_mut(head as usize)
                && std::mem::take(&mut chain.in_flight)
            {
                self.free.append(&mut chain.others);
                self.free.push(head as u16);
                return Some((chain.token, (entry >> 32) as usize));
            }
        }
        None
    }

    /// Enables the call for the next used chain. True if one is used already: then no call may come,
    /// and the caller must not wait for it.
    #[doc(alias = "virtqueue_enable_cb")]
    #[inline]
    pub fn enable_notification(&mut self) -> bool {
        if self.event_idx {
            let used_event = 4 + 2 * usize::from(self.size);
            self.available_ring().store_u16(used_event, self.used);
        } else {
            self.available_ring().store_u16(0, 0);
        }
        // Memory barrier: the request must be visible before the used ring is checked again.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Disables calls. With EVENT_IDX there is nothing to write: the device is past the last requested
    /// event.
    #[doc(alias = "virtqueue_disable_cb")]
    #[inline]
    pub fn disable_notification(&mut self) {
        if !self.event_idx {
            self.available_ring().store_u16(0, NO_INTERRUPT);
        }
    }

    /// Drains pending calls.
    pub fn clear_call(&self) {
        self.call.clear();
    }

    /// Writes a descriptor, unchecked.
    #[inline]
    pub fn write_descriptor(&self, index: u16, descriptor: &Descriptor) {
        let table = self.table(0, usize::from(self.size));
        table.put(usize::from(index) * DESCRIPTOR, &descriptor.encode());
    }

    /// Writes a descriptor of indirect table `table`, unchecked. Returns the table's guest-physical address.
    pub fn write_indirect(&self, table: u16, index: usize, descriptor: &Descriptor) -> u64 {
        let offset = self.offsets.tables + usize::from(table) * TABLE * DESCRIPTOR;
        self.memory
            .bytes(offset, TABLE * DESCRIPTOR)
            .put(index * DESCRIPTOR, &descriptor.encode());
        self.memory.guest_address(offset)
    }

    /// Writes entry `number` (modulo the queue size) of the available ring, unchecked.
    #[inline]
    pub fn write_available(&self, number: u16, head: u16) {
        let offset = 4 + 2 * usize::from(number % self.size);
        self.available_ring().store_u16(offset, head);
    }

    /// Writes the index of the available ring, unchecked.
    #[inline]
    pub fn set_available_index(&self, index: u16) {
        self.available_ring().store_u16(2, index);
    }

    /// Memory of the available ring: flags, index, entries, `used_event`.
    pub fn available_ring(&self) -> SharedBytes<'_> {
        let len = 6 + 2 * usize::from(self.size);
        self.memory.bytes(self.offsets.available, len)
    }

    /// Memory of the used ring: flags, index, entries, `avail_event`.
    #[inline]
    pub fn used_ring(&self) -> SharedBytes<'_> {
        let len = 6 + 8 * usize::from(self.size);
        self.memory.bytes(self.offsets.used, len)
    }

    fn table(&self, from: usize, count: usize) -> SharedBytes<'_> {
        let offset = self.offsets.descriptors + from * DESCRIPTOR;
        self.memory.bytes(offset, count * DESCRIPTOR)
    }
}
