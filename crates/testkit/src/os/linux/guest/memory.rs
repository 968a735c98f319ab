//! A guest's memory: one piece of shared memory, and where in the guest's addresses it lies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_sys::shared_memory::{self, Mapping, SharedBytes};

/// Where the guest's memory begins, in its own addresses. Not at zero, so that an offset taken
/// for an address is found.
const BEGIN: u64 = 0x1000_0000;
/// Where it begins in the addresses of the process that plays the machine; never dereferenced.
const BEGIN_IN_PROCESS: u64 = 0x7abc_0000_0000;
/// Between two regions that do not touch.
const HOLE: u64 = 0x4000_0000;

/// How the memory lies in the guest's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Regions {
    /// In one region.
    #[default]
    One,
    /// In two of about the same length with a hole between them.
    TwoApart,
    /// In two that touch, though not where they are mapped.
    TwoTouching,
}

/// A region as the device is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins for the guest.
    pub guest: u64,
    /// Its length.
    pub len: u64,
    /// Where it begins for the process that plays the machine: rings are named by this.
    pub process: u64,
    /// Where it begins in the descriptor.
    pub offset: u64,
}

/// A guest's memory.
#[derive(Debug)]
pub struct Memory {
    descriptor: OwnedFd,
    mapping: Mapping,
    regions: Vec<Region>,
}

impl Memory {
    /// At least `len` bytes, all zero. Pages come into being when they are touched.
    pub fn new(len: usize, regions: Regions) -> io::Result<Self> {
        let len = len.next_multiple_of(2 * PAGE);
        let descriptor = shared_memory::create(len as u64)?;
        let mapping = Mapping::new(&descriptor, len)?;
        let half = (len / 2).next_multiple_of(PAGE);
        let parts: &[(usize, usize, u64, u64)] = match regions {
            Regions::One => &[(0, len, 0, 0)],
            Regions::TwoApart => &[(0, half, 0, 0), (half, len - half, HOLE, 0)],
            Regions::TwoTouching => &[(0, half, 0, 0), (half, len - half, 0, HOLE)],
        };
        let regions = parts.iter().map(|&(offset, len, hole, apart)| Region {
            guest: BEGIN + offset as u64 + hole,
            len: len as u64,
            process: BEGIN_IN_PROCESS + offset as u64 + hole + apart,
            offset: offset as u64,
        });
        Ok(Self {
            descriptor,
            mapping,
            regions: regions.collect(),
        })
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Its regions.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The offset across which nothing can reach, if there is one.
    pub fn seam(&self) -> Option<usize> {
        let [first, second] = self.regions.as_slice() else {
            return None;
        };
        let touch = first.guest + first.len == second.guest;
        (!touch).then_some(second.offset as usize)
    }

    /// The descriptor that all regions are in.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The bytes at `offset`; none if they are not there.
    #[inline]
    pub fn bytes(&self, offset: usize, len: usize) -> SharedBytes<'_> {
        self.mapping.bytes(offset..offset.saturating_add(len))
    }

    /// The guest's address of what is at `offset`.
    #[inline]
    pub fn guest_address(&self, offset: usize) -> u64 {
        let region = self.region_of(offset);
        region.guest + (offset as u64 - region.offset)
    }

    /// The address by which the machine's process names what is at `offset` to the device.
    pub fn process_address(&self, offset: usize) -> u64 {
        let region = self.region_of(offset);
        region.process + (offset as u64 - region.offset)
    }

    /// The first address of the guest behind all of its memory.
    pub fn end(&self) -> u64 {
        let ends = self.regions.iter().map(|region| region.guest + region.len);
        ends.max().unwrap_or(0)
    }

    /// The region that has this offset, or would be the next.
    #[inline]
    fn region_of(&self, offset: usize) -> &Region {
        let later = self.regions.get(1);
        match later.filter(|region| region.offset <= offset as u64) {
            Some(region) => region,
            None => &self.regions[0],
        }
    }
}

/// Regions begin and end at a page.
const PAGE: usize = 4096;

/// Gives out stretches of memory, one behind the other.
#[derive(Debug)]
pub(super) struct Plan {
    next: usize,
    /// Where a stretch must not reach across.
    bound: usize,
}

impl Plan {
    /// A plan for memory that may have a seam.
    pub(super) fn new(seam: Option<usize>) -> Self {
        let bound = seam.unwrap_or(usize::MAX);
        Self { next: 0, bound }
    }

    /// The offset of the next `len` bytes, at a multiple of `align`, on one side of the seam.
    pub(super) fn take(&mut self, len: usize, align: usize) -> usize {
        let mut at = self.next.next_multiple_of(align);
        if at < self.bound && at + len > self.bound {
            at = self.bound.next_multiple_of(align);
        }
        self.next = at + len;
        at
    }

    /// How much memory the plan takes.
    pub(super) fn len(&self) -> usize {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_cover_the_memory_and_their_addresses_differ() {
        for kind in [Regions::One, Regions::TwoApart, Regions::TwoTouching] {
            let memory = Memory::new(100_000, kind).unwrap();
            let whole: u64 = memory.regions().iter().map(|region| region.len).sum();
            assert_eq!(whole, memory.len() as u64);
            let last = memory.len() - 1;
            assert_eq!(memory.guest_address(last) + 1, memory.end());
            assert_eq!(memory.guest_address(0), BEGIN);
            let straight = memory.guest_address(last) - BEGIN == last as u64;
            assert_eq!(straight, kind != Regions::TwoApart);
            let straight = memory.process_address(last) - BEGIN_IN_PROCESS == last as u64;
            assert_eq!(straight, kind == Regions::One);
            assert_eq!(memory.seam().is_some(), kind == Regions::TwoApart);
        }
    }

    #[test]
    fn a_plan_keeps_off_the_seam() {
        let mut plan = Plan::new(Some(100));
        assert_eq!(plan.take(90, 16), 0);
        assert_eq!(plan.take(4, 2), 90);
        assert_eq!(plan.take(10, 16), 112);
        assert_eq!(plan.len(), 122);
    }
}
