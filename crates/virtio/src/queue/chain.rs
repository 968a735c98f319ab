//! Chains of descriptors, direct and indirect.

use super::{GuestMemory, Layout, MAX_CHAIN};

/// The bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// `VIRTQ_DESC_F_NEXT`
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`
const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
const INDIRECT: u16 = 4;

/// A stretch of the guest's memory that a chain names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: u64,
    /// Its bytes; address and length together do not overflow.
    pub len: u32,
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// A descriptor names a next one that the table does not have.
    #[error("a descriptor names a next one that there is not")]
    Next,
    /// The chain has more descriptors than its table, so it goes round, or than may be.
    #[error("the chain goes round or is too long")]
    TooLong,
    /// A table that is empty, not whole, in another indirect table, or not in the memory.
    #[error("an indirect table is wrong")]
    Indirect,
    /// What the device may write comes before what it may read.
    #[error("what may be written comes before what may be read")]
    Order,
    /// Address and length go beyond 2^64, or the whole beyond 2^32.
    #[error("a descriptor is longer than memory can be")]
    Overflow,
}

/// A chain of descriptors: first those that the device reads, then those that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of them the device reads.
    readable: usize,
    /// Bytes to read, then bytes to write.
    lens: [u32; 2],
}

impl Chain {
    /// Which one it is, for [`Queue::give_back`](super::Queue::give_back).
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device reads.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device writes.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// The bytes that the device reads.
    pub fn readable_len(&self) -> u32 {
        self.lens[0]
    }

    /// The bytes that the device writes.
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
                let is_whole = u64::from(descriptor.len).is_multiple_of(DESCRIPTOR);
                let end = descriptor.address.checked_add(u64::from(descriptor.len));
                // Section 2.7.5.3.2: WRITE is ignored here. Section 2.7.5.3.1: NEXT is forbidden.
                let has_next = descriptor.flags & NEXT != 0;
                if nested || !layout.indirect || has_next || !is_whole || end.is_none() {
                    return Err(BadChain::Indirect);
                }
                // A table may be larger than what is used of it; what is used is counted below.
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
        let writes = descriptor.flags & WRITE != 0;
        // Section 2.7.5.2: a chain is not longer than 2^32 bytes in total.
        let total = self.lens[0] + self.lens[1];
        if total.checked_add(descriptor.len).is_none() {
            return Err(BadChain::Overflow);
        }
        if !writes && self.readable < self.segments.len() {
            return Err(BadChain::Order);
        }
        if descriptor
            .address
            .checked_add(u64::from(descriptor.len))
            .is_none()
        {
            return Err(BadChain::Overflow);
        }
        self.lens[usize::from(writes)] += descriptor.len;
        self.segments.push(Segment {
            address: descriptor.address,
            len: descriptor.len,
        });
        self.readable += usize::from(!writes);
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
        // One load of 16 bytes, as long as they stay in a register.
        let raw = u128::from_le_bytes(*raw);
        Self {
            address: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        }
    }
}
