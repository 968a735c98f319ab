//! Guest memory: one shared memory object, and its layout in guest-physical addresses.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_sys::shared_memory::{self, Mapping, SharedBytes};
use rustix::fs::MemfdFlags;

/// First guest-physical address. Not zero, so that an offset used as an address is detected.
const BEGIN: u64 = 0x1000_0000;
/// First address in the VMM's process (`userspace_addr`). Never dereferenced.
const BEGIN_IN_PROCESS: u64 = 0x7abc_0000_0000;
/// Size of the hole between two regions.
const HOLE: u64 = 0x4000_0000;

/// Layout of the memory in guest-physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Regions {
    /// One region.
    #[default]
    One,
    /// Two regions of about the same size, with a hole between them.
    TwoApart,
    /// Two regions that are adjacent for the guest, but not where the VMM maps them.
    TwoAdjacent,
}

/// A memory region as in the vhost-user memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address (`guest_phys_addr`).
    pub guest: u64,
    /// Length in bytes.
    pub len: u64,
    /// Address in the VMM's process (`userspace_addr`). Ring addresses are given in this space.
    pub process: u64,
    /// Offset in the descriptor (`mmap_offset`).
    pub offset: u64,
}

/// How a VMM allocates the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryKind {
    /// Whether its file is sealed against a change of its size.
    pub sealed: bool,
    /// The first guest-physical address.
    pub begin: u64,
    /// Its addresses in the VMM's process.
    pub process: ProcessAddresses,
}

impl MemoryKind {
    /// A sealed file.
    pub const SEALED: Self = Self {
        sealed: true,
        begin: BEGIN,
        process: ProcessAddresses::Mapped,
    };

    /// A file that can shrink, and that cannot be sealed.
    pub const UNSEALED: Self = Self {
        sealed: false,
        ..Self::SEALED
    };
}

/// Where a VMM's process has the guest's memory, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessAddresses {
    /// Where it was mapped.
    Mapped,
    /// At the guest's addresses.
    AsGuest,
    /// This far above the guest's addresses. It need not be mapped there.
    Above(u64),
}

/// Guest memory.
#[derive(Debug)]
pub struct Memory {
    kind: MemoryKind,
    layout: Regions,
    descriptor: OwnedFd,
    mapping: Arc<Mapping>,
    regions: Vec<Region>,
}

impl Memory {
    /// Allocates at least `len` bytes of zeroed memory. Pages are allocated on first access.
    ///
    /// # Errors
    /// If the memory cannot be allocated or mapped.
    pub fn new(len: usize, regions: Regions) -> io::Result<Self> {
        Self::of(MemoryKind::SEALED, len, regions)
    }

    /// Allocates memory as a VMM does.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn of(kind: MemoryKind, len: usize, regions: Regions) -> io::Result<Self> {
        let len = len.next_multiple_of(2 * PAGE);
        let descriptor = match kind.sealed {
            true => shared_memory::create(len as u64)?,
            false => {
                let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)?;
                rustix::fs::ftruncate(&file, len as u64)?;
                file
            }
        };
        let mapping = Arc::new(Mapping::part(&descriptor, 0, len, !kind.sealed)?);
        let half = (len / 2).next_multiple_of(PAGE);
        let layout = regions;
        let parts: &[(usize, usize, u64, u64)] = match regions {
            Regions::One => &[(0, len, 0, 0)],
            Regions::TwoApart => &[(0, half, 0, 0), (half, len - half, HOLE, 0)],
            Regions::TwoAdjacent => &[(0, half, 0, 0), (half, len - half, 0, HOLE)],
        };
        let regions = parts.iter().map(|&(offset, len, hole, apart)| {
            let guest = kind.begin + offset as u64 + hole;
            Region {
                guest,
                len: len as u64,
                process: match kind.process {
                    ProcessAddresses::Mapped => BEGIN_IN_PROCESS + offset as u64 + hole + apart,
                    ProcessAddresses::AsGuest => guest,
                    ProcessAddresses::Above(by) => guest + by,
                },
                offset: offset as u64,
            }
        });
        Ok(Self {
            kind,
            layout,
            descriptor,
            mapping,
            regions: regions.collect(),
        })
    }

    /// Allocates memory as User-mode Linux does: unsealed, and at the guest's addresses in the VMM.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn unsealed(len: usize, regions: Regions) -> io::Result<Self> {
        let kind = MemoryKind {
            process: ProcessAddresses::AsGuest,
            ..MemoryKind::UNSEALED
        };
        Self::of(kind, len, regions)
    }

    /// Allocates other memory of the same kind, length and layout.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub(super) fn another(&self) -> io::Result<Self> {
        Self::of(self.kind, self.len(), self.layout)
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// The regions.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The offset of a hole in guest-physical addresses, which no buffer may cross.
    pub fn boundary(&self) -> Option<usize> {
        let [first, second] = self.regions.as_slice() else {
            return None;
        };
        let adjacent = first.guest + first.len == second.guest;
        (!adjacent).then_some(second.offset as usize)
    }

    /// The descriptor of the shared memory. All regions are in it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The mapping of all regions in this process.
    pub(super) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The bytes at `offset`. Empty if the range is out of bounds.
    #[inline]
    pub fn bytes(&self, offset: usize, len: usize) -> SharedBytes<'_> {
        self.mapping.bytes(offset..offset.saturating_add(len))
    }

    /// The guest-physical address of `offset`.
    #[inline]
    pub fn guest_address(&self, offset: usize) -> u64 {
        let region = self.region_of(offset);
        region.guest + (offset as u64 - region.offset)
    }

    /// The address of `offset` in the VMM's process.
    pub fn process_address(&self, offset: usize) -> u64 {
        let region = self.region_of(offset);
        region.process + (offset as u64 - region.offset)
    }

    /// The first guest-physical address behind all regions.
    pub fn end(&self) -> u64 {
        let ends = self.regions.iter().map(|region| region.guest + region.len);
        ends.max().unwrap_or(0)
    }

    /// The region that contains `offset`, or precedes it.
    #[inline]
    fn region_of(&self, offset: usize) -> &Region {
        let later = self.regions.get(1);
        match later.filter(|region| region.offset <= offset as u64) {
            Some(region) => region,
            None => &self.regions[0],
        }
    }
}

/// Alignment of regions.
const PAGE: usize = 4096;

/// Allocates ranges of guest memory in ascending order. Nothing is freed.
#[derive(Debug)]
pub(super) struct BumpAllocator {
    next: usize,
    /// The offset that no range may cross.
    boundary: usize,
}

impl BumpAllocator {
    /// An allocator for memory that may have a boundary.
    pub(super) fn new(boundary: Option<usize>) -> Self {
        let boundary = boundary.unwrap_or(usize::MAX);
        Self { next: 0, boundary }
    }

    /// Allocates `len` bytes at a multiple of `align`, on one side of the boundary. Returns the offset.
    pub(super) fn allocate(&mut self, len: usize, align: usize) -> usize {
        let mut at = self.next.next_multiple_of(align);
        if at < self.boundary && at + len > self.boundary {
            at = self.boundary.next_multiple_of(align);
        }
        self.next = at + len;
        at
    }

    /// Bytes allocated so far, including padding.
    pub(super) fn len(&self) -> usize {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_cover_the_memory_at_the_expected_addresses() {
        for kind in [Regions::One, Regions::TwoApart, Regions::TwoAdjacent] {
            let memory = Memory::new(100_000, kind).unwrap();
            let whole: u64 = memory.regions().iter().map(|region| region.len).sum();
            assert_eq!(whole, memory.len() as u64);
            let last = memory.len() - 1;
            assert_eq!(memory.guest_address(last) + 1, memory.end());
            assert_eq!(memory.guest_address(0), BEGIN);
            let contiguous = memory.guest_address(last) - BEGIN == last as u64;
            assert_eq!(contiguous, kind != Regions::TwoApart);
            let contiguous = memory.process_address(last) - BEGIN_IN_PROCESS == last as u64;
            assert_eq!(contiguous, kind == Regions::One);
            assert_eq!(memory.boundary().is_some(), kind == Regions::TwoApart);
        }
    }

    #[test]
    fn no_allocation_crosses_the_boundary() {
        let mut allocator = BumpAllocator::new(Some(100));
        assert_eq!(allocator.allocate(90, 16), 0);
        assert_eq!(allocator.allocate(4, 2), 90);
        assert_eq!(allocator.allocate(10, 16), 112);
        assert_eq!(allocator.len(), 122);
    }
}
