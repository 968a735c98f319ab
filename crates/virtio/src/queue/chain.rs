//! Descriptor chains, through the descriptor table and indirect tables (section 2.7.5).

use super::layout::{GuestMemory, Layout, MAX_CHAIN};

/// Size of a descriptor in bytes.
const DESCRIPTOR: u64 = 16;
/// `VIRTQ_DESC_F_NEXT`
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`
const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
const INDIRECT: u16 = 4;

/// A contiguous buffer in guest memory, named by one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes. `address + len` does not overflow.
    pub len: u32,
}

/// Why a descriptor chain is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// A descriptor's `next` is outside its table.
    #[error("a descriptor's next is outside its table")]
    Next,
    /// The chain has more descriptors than its table, so it loops, or more than
    /// [`MAX_CHAIN`](super::MAX_CHAIN).
    #[error("the chain loops or has too many descriptors")]
    TooLong,
    /// An indirect table is empty, not a multiple of 16 bytes, nested in another, combined with
    /// `VIRTQ_DESC_F_NEXT`, not negotiated, or a descriptor table is outside guest memory.
    #[error("an indirect table is malformed, nested or outside guest memory")]
    Indirect,
    /// A device-writable descriptor comes before a device-readable one (section 2.7.4.2).
    #[error("a device-writable descriptor precedes a device-readable one")]
    Order,
    /// A segment extends beyond address 2^64, or the whole chain is 2^32 bytes or longer.
    #[error("a segment or the chain is longer than the address space allows")]
    Overflow,
}

/// A descriptor chain: device-readable segments, then device-writable ones. Reused between chains to
/// avoid allocation.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of the segments are device-readable.
    readable: usize,
    /// Device-readable and device-writable bytes.
    lens: [u32; 2],
}

impl Chain {
    /// Index of the head descriptor, to pass to [`Queue::add_used`](super::Queue::add_used).
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The device-readable segments.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// The device-writable segments.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// Total length of the device-readable segments in bytes.
    pub fn readable_len(&self) -> u32 {
        self.lens[0]
    }

    /// Total length of the device-writable segments in bytes.
    pub fn writable_len(&self) -> u32 {
        self.lens[1]
    }

    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.readable = 0;
        self.lens = [0; 2];
    }

    pub(super) fn read(
        &mut self,
        layout: &Layout,
        head: u16,
        memory: &impl GuestMemory,
    ) -> Result<(), BadChain> {
        self.head = head;
        let mut table = (layout.descriptors, u32::from(layout.size));
        let (mut index, mut left, mut nested) = (u32::from(head), table.1, false);
        loop {
            let mut raw = [0; DESCRIPTOR as usize];
            if !memory.read(table.0 + u64::from(index) * DESCRIPTOR, &mut raw) {
                return Err(BadChain::Indirect);
            }
            left = left.checked_sub(1).ok_or(BadChain::TooLong)?;
            let descriptor = Descriptor::decode(&raw);
            if descriptor.flags & INDIRECT != 0 {
                let entries = u64::from(descriptor.len) / DESCRIPTOR;
                let is_multiple = u64::from(descriptor.len).is_multiple_of(DESCRIPTOR);
                let end = descriptor.address.checked_add(u64::from(descriptor.len));
                // Section 2.7.5.3.2: WRITE is ignored here. Section 2.7.5.3.1: NEXT is forbidden.
                let has_next = descriptor.flags & NEXT != 0;
                if nested || !layout.indirect || has_next || !is_multiple || end.is_none() {
                    return Err(BadChain::Indirect);
                }
                // A table may be larger than the chain in it; `push` limits the chain.
                let entries = entries.min(1 << 16) as u32;
                if entries == 0 {
                    return Err(BadChain::Indirect);
                }
                (table, index, left, nested) = ((descriptor.address, entries), 0, entries, true);
                continue;
            }
            self.push(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = u32::from(descriptor.next);
            if index >= table.1 {
                return Err(BadChain::Next);
            }
        }
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), BadChain> {
        if self.segments.len() == MAX_CHAIN {
            return Err(BadChain::TooLong);
        }
        let is_writable = descriptor.flags & WRITE != 0;
        // Section 2.7.5.2 limits a chain to 2^32 bytes in total. One of exactly 2^32 is rejected as
        // well, because the lengths here are 32-bit numbers.
        let total = self.lens[0] + self.lens[1];
        if total.checked_add(descriptor.len).is_none() {
            return Err(BadChain::Overflow);
        }
        if !is_writable && self.readable < self.segments.len() {
            return Err(BadChain::Order);
        }
        if descriptor
            .address
            .checked_add(u64::from(descriptor.len))
            .is_none()
        {
            return Err(BadChain::Overflow);
        }
        self.lens[usize::from(is_writable)] += descriptor.len;
        self.segments.push(Segment {
            address: descriptor.address,
            len: descriptor.len,
        });
        self.readable += usize::from(!is_writable);
        Ok(())
    }
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn decode(raw: &[u8; DESCRIPTOR as usize]) -> Self {
        // The compiler makes one 16-byte load of this.
        let raw = u128::from_le_bytes(*raw);
        Self {
            address: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        }
    }
}
