//! The driver's side of a split virtqueue, lawful or not.
//!
//! The lawful side: [`Virtqueue::add`] buffers, [`Virtqueue::publish`] them, [`Virtqueue::take`]
//! what the device has used. The lawless one: [`Virtqueue::write_descriptor`],
//! [`Virtqueue::write_available`] and [`Virtqueue::set_available_index`] put anything anywhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hvsock_sys::event::Event;
use hvsock_sys::shared_memory::SharedBytes;

use super::memory::{Memory, Plan};
use super::vmm::RingAddresses;

/// Bits of a descriptor.
pub mod flags {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes it.
    pub const WRITE: u16 = 2;
    /// It is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 16;
/// Descriptors of an indirect table.
pub const TABLE: usize = 40;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// The guest's address.
    pub address: u64,
    /// Its length.
    pub len: u32,
    /// [`flags`].
    pub flags: u16,
    /// Where the chain goes on.
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

/// A stretch of guest memory, as a part of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Its offset in the memory.
    pub offset: usize,
    /// Its length.
    pub len: usize,
}

/// A queue and its memory.
#[derive(Debug)]
pub struct Virtqueue {
    memory: Arc<Memory>,
    size: u16,
    places: Places,
    event_idx: bool,
    indirect: bool,
    /// Others than the device write the used ring, too.
    lawless: bool,
    /// Descriptors that are in no chain; the last is taken first, which keeps few of them warm.
    free: Vec<u16>,
    /// For each descriptor that begins a chain: the chain's others, and the owner's mark.
    chains: Vec<Chain>,
    /// The next available entry, and what of them the device was last told.
    available: u16,
    told: u16,
    /// The next used entry to look at.
    used: u16,
    kick: Event,
    call: Event,
}

#[derive(Clone, Debug, Default)]
struct Chain {
    others: Vec<u16>,
    mark: u32,
    lent: bool,
}

/// Offsets of a queue's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    descriptors: usize,
    available: usize,
    used: usize,
    tables: usize,
}

impl Places {
    pub(super) fn take(plan: &mut Plan, size: u16) -> Self {
        let size = usize::from(size);
        Self {
            descriptors: plan.take(DESCRIPTOR * size, 16),
            available: plan.take(6 + 2 * size, 2),
            // A line of its own: the device writes it.
            used: plan.take(6 + 8 * size, 64),
            tables: plan.take(TABLE * DESCRIPTOR * size, 64),
        }
    }
}

impl Virtqueue {
    pub(super) fn new(memory: &Arc<Memory>, size: u16, places: Places) -> io::Result<Self> {
        let mut queue = Self {
            memory: Arc::clone(memory),
            size,
            places,
            event_idx: false,
            indirect: false,
            lawless: false,
            free: Vec::new(),
            chains: Vec::new(),
            available: 0,
            told: 0,
            used: 0,
            kick: Event::new()?,
            call: Event::new()?,
        };
        queue.forget();
        Ok(queue)
    }

    /// Uses these features from the next chain on.
    pub(super) fn agree(&mut self, event_idx: bool, indirect: bool) {
        (self.event_idx, self.indirect) = (event_idx, indirect);
    }

    /// Passes over what makes no sense in the used ring from now on.
    pub(super) fn be_lawless(&mut self) {
        self.lawless = true;
    }

    /// As a driver that begins anew finds it: nothing in it, all entries zero.
    pub(super) fn forget(&mut self) {
        let zeros = vec![0; 64 * usize::from(self.size)];
        self.table(0, usize::from(self.size)).put(0, &zeros);
        self.available_ring().put(0, &zeros);
        self.used_ring().put(0, &zeros);
        self.free = (0..self.size).rev().collect();
        self.chains = vec![Chain::default(); usize::from(self.size)];
        (self.available, self.told, self.used) = (0, 0, 0);
        self.kick.clear();
        self.call.clear();
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where its parts are, for the device.
    pub fn addresses(&self) -> RingAddresses {
        let [descriptors, available, used] = [
            self.places.descriptors,
            self.places.available,
            self.places.used,
        ]
        .map(|place| self.memory.process_address(place));
        RingAddresses {
            descriptors,
            available,
            used,
        }
    }

    /// The event by which the device is told.
    pub fn kick_event(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The event by which the device tells.
    pub fn call_event(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// The number of the next available entry.
    pub fn available_index(&self) -> u16 {
        self.available
    }

    /// The number of the first entry that is not known to be used; where a machine whose device
    /// is gone begins again.
    pub fn used_index(&self) -> u16 {
        self.used
    }

    /// Whether a chain of so many pieces can be added.
    #[inline]
    pub fn has_room(&self, pieces: usize) -> bool {
        let needed = if self.is_indirect(pieces) { 1 } else { pieces };
        self.free.len() >= needed
    }

    #[inline]
    fn is_indirect(&self, pieces: usize) -> bool {
        self.indirect && pieces > 1 && pieces <= TABLE
    }

    /// Adds a chain; `mark` is given back with it. False, and nothing done, if there is no room.
    /// The device sees it after [`Virtqueue::publish`].
    #[inline]
    pub fn add(&mut self, pieces: &[Piece], write: bool, mark: u32) -> bool {
        let (Some(last), true) = (pieces.len().checked_sub(1), self.has_room(pieces.len())) else {
            return false;
        };
        let write = if write { flags::WRITE } else { 0 };
        let Some(head) = self.free.pop() else {
            return false;
        };
        if self.is_indirect(pieces.len()) {
            let table = self.places.tables + usize::from(head) * TABLE * DESCRIPTOR;
            for (piece, at) in pieces.iter().zip(0..) {
                let next = if usize::from(at) < last {
                    flags::NEXT
                } else {
                    0
                };
                let descriptor = self.describe(piece, write | next, at + 1);
                let offset = table + usize::from(at) * DESCRIPTOR;
                self.memory
                    .bytes(offset, DESCRIPTOR)
                    .put(0, &descriptor.encode());
            }
            let whole = Descriptor {
                address: self.memory.guest_address(table),
                len: (pieces.len() * DESCRIPTOR) as u32,
                flags: flags::INDIRECT,
                next: 0,
            };
            self.write_descriptor(head, &whole);
        } else {
            let mut at = head;
            for (place, piece) in pieces.iter().enumerate() {
                let next = if place < last { self.free.pop() } else { None };
                let more = if next.is_some() { flags::NEXT } else { 0 };
                let descriptor = self.describe(piece, write | more, next.unwrap_or(0));
                self.write_descriptor(at, &descriptor);
                if let Some(next) = next {
                    self.chains[usize::from(head)].others.push(next);
                    at = next;
                }
            }
        }
        let chain = &mut self.chains[usize::from(head)];
        (chain.mark, chain.lent) = (mark, true);
        self.write_available(self.available, head);
        self.available = self.available.wrapping_add(1);
        true
    }

    #[inline]
    fn describe(&self, piece: &Piece, flags: u16, next: u16) -> Descriptor {
        Descriptor {
            address: self.memory.guest_address(piece.offset),
            len: piece.len as u32,
            flags,
            next,
        }
    }

    /// Makes what was added visible to the device, and wakes it if it asked for that.
    #[inline]
    pub fn publish(&mut self) {
        if self.told == self.available {
            return;
        }
        self.set_available_index(self.available);
        let told = std::mem::replace(&mut self.told, self.available);
        // The index must be visible before what the device wishes is read.
        fence(Ordering::SeqCst);
        let used = self.used_ring();
        let wanted = if self.event_idx {
            let event = used.load_u16(4 + 8 * usize::from(self.size)).unwrap_or(0);
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(told)
        } else {
            used.load_u16(0).unwrap_or(0) & NO_NOTIFY == 0
        };
        if wanted {
            self.kick();
        }
    }

    /// Wakes the device, asked for or not.
    pub fn kick(&self) {
        self.kick.set();
    }

    /// Whether the device has used something that was not taken yet.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.used_ring().load_u16(2).unwrap_or(0) != self.used
    }

    /// Takes the next chain that the device has used: its mark, and how many bytes were written.
    ///
    /// # Panics
    /// If the device uses a chain that it does not have: a bug of the device.
    #[inline]
    pub fn take(&mut self) -> Option<(u32, usize)> {
        if !self.has_used() {
            return None;
        }
        if self.lawless {
            return self.take_if_lent();
        }
        let mut entry = [0; 8];
        let place = 4 + 8 * usize::from(self.used % self.size);
        self.used_ring().get(place, &mut entry);
        let entry = u64::from_le_bytes(entry);
        let (head, len) = (entry as u32, (entry >> 32) as usize);
        let chain = match self.chains.get_mut(head as usize) {
            Some(chain) if chain.lent => chain,
            _ => panic!("the device used {head}, which it did not have"),
        };
        chain.lent = false;
        self.free.append(&mut chain.others);
        self.free.push(head as u16);
        self.used = self.used.wrapping_add(1);
        Some((chain.mark, len))
    }

    /// The next chain that the used ring names and that the device has.
    fn take_if_lent(&mut self) -> Option<(u32, usize)> {
        let index = self.used_ring().load_u16(2).unwrap_or(0);
        // What is further back was written over.
        let behind = index.wrapping_sub(self.used).min(self.size);
        self.used = index.wrapping_sub(behind);
        while self.used != index {
            let mut entry = [0; 8];
            let place = 4 + 8 * usize::from(self.used % self.size);
            self.used_ring().get(place, &mut entry);
            self.used = self.used.wrapping_add(1);
            let entry = u64::from_le_bytes(entry);
            let head = entry as u32;
            if let Some(chain) = self.chains.get_mut(head as usize)
                && std::mem::take(&mut chain.lent)
            {
                self.free.append(&mut chain.others);
                self.free.push(head as u16);
                return Some((chain.mark, (entry >> 32) as usize));
            }
        }
        None
    }

    /// Asks to be called when the next chain is used. True if one is used already: then no call
    /// may come.
    #[inline]
    pub fn want_call(&mut self) -> bool {
        if self.event_idx {
            let place = 4 + 2 * usize::from(self.size);
            self.available_ring().store_u16(place, self.used);
        } else {
            self.available_ring().store_u16(0, 0);
        }
        // The wish must be visible before the look.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks not to be called. With EVENT_IDX nothing need be said: the device has passed the place
    /// where a call was asked for.
    #[inline]
    pub fn want_no_call(&mut self) {
        if !self.event_idx {
            self.available_ring().store_u16(0, NO_INTERRUPT);
        }
    }

    /// Takes back a call.
    pub fn clear_call(&self) {
        self.call.clear();
    }

    /// Writes a descriptor, as it is.
    #[inline]
    pub fn write_descriptor(&self, index: u16, descriptor: &Descriptor) {
        let table = self.table(0, usize::from(self.size));
        table.put(usize::from(index) * DESCRIPTOR, &descriptor.encode());
    }

    /// Writes a descriptor of the indirect table number `table`; where that table is for the guest.
    pub fn write_indirect(&self, table: u16, index: usize, descriptor: &Descriptor) -> u64 {
        let offset = self.places.tables + usize::from(table) * TABLE * DESCRIPTOR;
        self.memory
            .bytes(offset, TABLE * DESCRIPTOR)
            .put(index * DESCRIPTOR, &descriptor.encode());
        self.memory.guest_address(offset)
    }

    /// Writes entry number `number` of the available ring.
    #[inline]
    pub fn write_available(&self, number: u16, head: u16) {
        let place = 4 + 2 * usize::from(number % self.size);
        self.available_ring().store_u16(place, head);
    }

    /// Writes the available ring's index, whatever is in the ring.
    #[inline]
    pub fn set_available_index(&self, index: u16) {
        self.available_ring().store_u16(2, index);
    }

    /// What the available ring is in: flags, index, entries, the wished event.
    pub fn available_ring(&self) -> SharedBytes<'_> {
        let len = 6 + 2 * usize::from(self.size);
        self.memory.bytes(self.places.available, len)
    }

    /// What the used ring is in: flags, index, entries, the wished event.
    #[inline]
    pub fn used_ring(&self) -> SharedBytes<'_> {
        let len = 6 + 8 * usize::from(self.size);
        self.memory.bytes(self.places.used, len)
    }

    fn table(&self, from: usize, count: usize) -> SharedBytes<'_> {
        let offset = self.places.descriptors + from * DESCRIPTOR;
        self.memory.bytes(offset, count * DESCRIPTOR)
    }
}
