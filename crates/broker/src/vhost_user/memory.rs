//! A guest's memory, mapped from the regions of the memory table that its VMM shares.

pub(super) mod snapshot;

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hvsock_sys::shared_memory::{Mapping, SharedBytes};
use hvsock_virtio::queue::{GuestMemory, Segment};

/// The most memory regions of one guest: as many as fit into the protocol's largest message, and
/// more than any VMM has memory slots.
pub(super) const MAX_REGIONS: usize = 512;

/// One mapped memory region.
#[derive(Debug)]
struct Region {
    /// Its guest physical address.
    base: u64,
    /// Its address in the VMM. The VMM states ring addresses in this address space.
    vmm_base: u64,
    /// Its offset in the file.
    offset: u64,
    /// The file, for another process that maps it again.
    file: OwnedFd,
    mapping: Mapping,
}

/// One region of the memory table, as the VMM sends it. Not validated.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegionSpec {
    pub(super) base: u64,
    pub(super) vmm_base: u64,
    pub(super) len: u64,
    /// Offset in the file.
    pub(super) offset: u64,
}

/// A guest's memory. It is immutable: adding or removing a region makes a new value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ram {
    /// Sorted by `base`. Regions do not overlap.
    regions: Vec<Arc<Region>>,
    /// The VMM has taken memory away before it could be mapped again.
    is_lost: bool,
}

impl Ram {
    /// Returns this memory with one more region.
    ///
    /// # Errors
    /// If the region overflows or overlaps another, if there are [`MAX_REGIONS`] already, or if its file
    /// cannot be mapped. `may_shrink`: see [`Mapping::part`].
    pub(super) fn with(
        &self,
        spec: RegionSpec,
        file: impl AsFd,
        may_shrink: bool,
    ) -> io::Result<Self> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        if self.regions.len() >= MAX_REGIONS {
            return Err(invalid("the guest's memory has too many regions"));
        }
        // The VMM may use any addresses of its own, up to the last one.
        let last = spec.len.saturating_sub(1);
        let ends = [(spec.base, spec.len), (spec.vmm_base, last)];
        if ends.iter().any(|(at, len)| at.checked_add(*len).is_none()) {
            return Err(invalid("a region of the guest's memory ends beyond 2^64"));
        }
        let overlaps = |other: &Region| {
            let len = other.mapping.len() as u64;
            spec.base < other.base + len && other.base < spec.base + spec.len
        };
        if self.regions.iter().any(|other| overlaps(other)) {
            return Err(invalid("two regions of the guest's memory overlap"));
        }
        let len = usize::try_from(spec.len).map_err(|_| invalid("a region is too large"))?;
        let region = Region {
            base: spec.base,
            vmm_base: spec.vmm_base,
            offset: spec.offset,
            mapping: Mapping::part(&file, spec.offset, len, may_shrink)?,
            file: file.as_fd().try_clone_to_owned()?,
        };
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|other| other.base < spec.base);
        regions.insert(at, Arc::new(region));
        let is_lost = self.is_lost;
        Ok(Self { regions, is_lost })
    }

    /// Returns this memory without the region of `len` bytes at `base`, if there is one.
    pub(super) fn without(&self, base: u64, len: u64) -> Option<Self> {
        let is_it = |region: &Region| region.base == base && region.mapping.len() as u64 == len;
        let at = self.regions.iter().position(|region| is_it(region))?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        let is_lost = self.is_lost;
        Some(Self { regions, is_lost })
    }

    /// Whether the VMM has taken memory away, or the system had none for a page. The region has zero pages
    /// instead.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost || self.regions.iter().any(|region| region.mapping.is_lost())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.regions.is_empty() && !self.is_lost
    }

    /// The lowest guest physical address.
    pub(super) fn lowest(&self) -> Option<u64> {
        self.regions.first().map(|region| region.base)
    }

    /// Translates an address of the VMM's address space to a guest physical address.
    pub(super) fn guest_address(&self, address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.vmm_base)?;
            (offset < region.mapping.len() as u64).then(|| region.base + offset)
        })
    }

    /// The bytes from `address` to the end of its region, at most `len`. `None` if `address` is in
    /// no region.
    #[inline]
    pub(super) fn bytes(&self, address: u64, len: usize) -> Option<SharedBytes<'_>> {
        let region = self.region(address)?;
        let offset = usize::try_from(address - region.base).ok()?;
        let end = offset.saturating_add(len).min(region.mapping.len());
        (offset < end || len == 0).then(|| region.mapping.bytes(offset..end))
    }

    /// The region with the highest base that is not above `address`.
    #[inline]
    fn region(&self, address: u64) -> Option<&Region> {
        let after = self
            .regions
            .partition_point(|region| region.base <= address);
        Some(&**self.regions.get(after.checked_sub(1)?)?)
    }

    /// Appends to `to` the memory that `segments` describe: `len` bytes after the first `skip`.
    /// Returns whether all of it is inside guest memory.
    pub(super) fn gather<'a>(
        &'a self,
        segments: &[Segment],
        mut skip: usize,
        mut len: usize,
        to: &mut Chunks<'a>,
    ) -> bool {
        for segment in segments {
            let whole = segment.len as usize;
            if skip >= whole {
                skip -= whole;
                continue;
            }
            let mut at = segment.address + skip as u64;
            let mut left = (whole - skip).min(len);
            skip = 0;
            while left > 0 {
                // A segment may continue in the next region.
                let Some(bytes) = self.bytes(at, left) else {
                    return false;
                };
                at += bytes.len() as u64;
                left -= bytes.len();
                len -= bytes.len();
                to.push(bytes);
            }
            if len == 0 {
                break;
            }
        }
        len == 0
    }
}

impl GuestMemory for Ram {
    #[inline]
    fn read(&self, address: u64, to: &mut [u8]) -> bool {
        let Some(bytes) = self.bytes(address, to.len()) else {
            return false;
        };
        if bytes.len() < to.len() {
            return self.read_segments(&[segment(address, to.len())], to);
        }
        bytes.get(0, to) == to.len()
    }

    #[inline]
    fn write(&self, address: u64, from: &[u8]) -> bool {
        let Some(bytes) = self.bytes(address, from.len()) else {
            return false;
        };
        if bytes.len() < from.len() {
            return self.write_segments(&[segment(address, from.len())], from);
        }
        bytes.put(0, from) == from.len()
    }

    #[inline]
    fn load(&self, address: u64) -> Option<u16> {
        self.bytes(address, 2)?.load_u16(0).map(u16::from_le)
    }

    #[inline]
    fn store(&self, address: u64, value: u16) -> Option<()> {
        self.bytes(address, 2)?.store_u16(0, value.to_le())
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl Ram {
    /// Fills `to` from the start of `segments`. Returns whether all of it is inside guest memory.
    #[cold]
    pub(super) fn read_segments(&self, segments: &[Segment], to: &mut [u8]) -> bool {
        let mut chunks = Chunks::new();
        if !self.gather(segments, 0, to.len(), &mut chunks) {
            return false;
        }
        let mut done = 0;
        for chunk in chunks.iter() {
            done += chunk.get(0, &mut to[done..]);
        }
        done == to.len()
    }

    /// Copies `from` to the start of `segments`. Returns whether all of it is inside guest memory.
    #[cold]
    pub(super) fn write_segments(&self, segments: &[Segment], from: &[u8]) -> bool {
        let mut chunks = Chunks::new();
        if !self.gather(segments, 0, from.len(), &mut chunks) {
            return false;
        }
        let mut done = 0;
        for chunk in chunks.iter() {
            done += chunk.put(0, &from[done..]);
        }
        done == from.len()
    }
}

/// The number of segments that [`Chunks`] hold without allocating.
const INLINE: usize = 4;

/// Segments of guest memory, in order. Few are kept in place: most packets have one or two, and the data
/// path allocates nothing for them.
#[derive(Debug)]
pub(super) struct Chunks<'a> {
    inline: [SharedBytes<'a>; INLINE],
    len: usize,
    /// All of them, if they are more than [`INLINE`].
    all: Vec<SharedBytes<'a>>,
}

impl<'a> Chunks<'a> {
    pub(super) fn new() -> Self {
        Self {
            inline: [SharedBytes::empty(); INLINE],
            len: 0,
            all: Vec::new(),
        }
    }

    fn push(&mut self, bytes: SharedBytes<'a>) {
        if let Some(place) = self.inline.get_mut(self.len) {
            *place = bytes;
            self.len += 1;
            return;
        }
        if self.all.is_empty() {
            self.all.extend(self.inline);
        }
        self.all.push(bytes);
    }
}

impl<'a> Deref for Chunks<'a> {
    type Target = [SharedBytes<'a>];

    fn deref(&self) -> &Self::Target {
        match self.all.as_slice() {
            [] => &self.inline[..self.len],
            all => all,
        }
    }
}

fn segment(address: u64, len: usize) -> Segment {
    Segment {
        address,
        len: u32::try_from(len).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use hvsock_sys::shared_memory::create;

    use super::*;

    fn spec(base: u64, len: u64) -> RegionSpec {
        RegionSpec {
            base,
            vmm_base: base.wrapping_add(0x7000_0000_0000),
            len,
            offset: 0,
        }
    }

    fn ram() -> Ram {
        let low = create(0x2000).unwrap();
        let high = create(0x1000).unwrap();
        let apart = create(0x1000).unwrap();
        let ram = Ram::default().with(spec(0x1000, 0x1000), &high, false);
        let ram = ram.unwrap().with(spec(0x10_0000, 0x1000), &apart, false);
        let low_half = RegionSpec {
            offset: 0x1000,
            ..spec(0, 0x1000)
        };
        ram.unwrap().with(low_half, &low, false).unwrap()
    }

    #[test]
    fn accesses_may_span_two_adjacent_regions() {
        let ram = ram();
        assert!(ram.write(0xffc, b"12345678"));
        let mut back = [0; 8];
        assert!(ram.read(0xffc, &mut back));
        assert_eq!(&back, b"12345678");
        assert!(ram.read(0x1000, &mut back[..4]));
        assert_eq!(&back[..4], b"5678");
        let mut chunks = Chunks::new();
        let segments = [segment(0xff0, 0x20), segment(0x10_0000, 0x10)];
        assert!(ram.gather(&segments, 4, 0x2c, &mut chunks));
        let lens: Vec<usize> = chunks.iter().map(|chunk| chunk.len()).collect();
        assert_eq!(lens, [12, 16, 16]);
    }

    #[test]
    fn chunks_keep_their_order_whatever_their_number() {
        let ram = ram();
        for count in 0..3 * INLINE {
            let segments: Vec<Segment> = (0..count)
                .map(|at| segment(0x100 * at as u64, 1 + at))
                .collect();
            let len = segments.iter().map(|segment| segment.len as usize).sum();
            let mut chunks = Chunks::new();
            assert!(ram.gather(&segments, 0, len, &mut chunks));
            let lens = chunks.iter().map(|chunk| chunk.len());
            assert!(lens.eq(1..=count), "{count}");
        }
    }

    #[test]
    fn accesses_outside_all_regions_fail() {
        let ram = ram();
        for (address, len) in [
            (0x1ffc, 8),
            (0x2000, 1),
            (0xf_ffff, 1),
            (0xf_fffc, 8),
            (0x10_0ffc, 8),
            (0x10_1000, 1),
            (u64::MAX, 1),
            (u64::MAX - 3, 8),
        ] {
            let mut bytes = vec![0; len];
            assert!(!ram.read(address, &mut bytes), "{address:x}");
            assert!(!ram.write(address, &bytes), "{address:x}");
        }
        assert_eq!(ram.load(0x1001), None);
        assert_eq!(ram.load(0x2000), None);
        assert_eq!(ram.store(0x1ffe, 7), Some(()));
        assert_eq!(ram.load(0x1ffe), Some(7));
        let mut chunks = Chunks::new();
        assert!(!ram.gather(&[segment(0x1000, 0x1001)], 0, 0x1001, &mut chunks));
        let mut chunks = Chunks::new();
        assert!(!ram.gather(&[segment(0x1000, 4)], 0, 5, &mut chunks));
    }

    #[test]
    fn regions_that_overlap_or_exceed_their_file_are_refused() {
        let ram = ram();
        let more = create(0x1000).unwrap();
        assert!(ram.with(spec(0xfff, 0x1000), &more, false).is_err());
        assert!(ram.with(spec(0x5000, 0x1001), &more, false).is_err());
        assert!(ram.with(spec(0x5000, 0), &more, false).is_err());
        assert!(ram.with(spec(u64::MAX - 5, 0x1000), &more, false).is_err());
        let open = tempfile::tempfile().unwrap();
        open.set_len(0x1000).unwrap();
        assert!(ram.with(spec(0x5000, 0x1001), &open, true).is_err());
        assert!(ram.with(spec(0x5000, 0x1000), &open, false).is_ok());
        assert_eq!(ram.guest_address(0x7000_0000_1004), Some(0x1004));
        assert_eq!(ram.guest_address(0x7000_0000_2000), None);
        // The VMM's own addresses may be any, also the last ones.
        for vmm_base in [0, 1, 0x5000 + (1 << 52), u64::MAX - 0xfff] {
            let ram = RegionSpec {
                vmm_base,
                ..spec(0x5000, 0x1000)
            };
            let ram = Ram::default().with(ram, &more, false).unwrap();
            assert_eq!(ram.guest_address(vmm_base + 0xfff), Some(0x5fff));
        }
        let less = ram.without(0x1000, 0x1000).unwrap();
        assert_eq!(less.load(0x1ffe), None);
        assert!(less.without(0x1000, 0x1000).is_none());
    }

    #[test]
    fn memory_that_was_taken_away_is_lost_and_its_pages_are_zero() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let whole = ram().with(spec(0x40_0000, 0x2000), &file, false).unwrap();
        assert!(whole.write(0x40_1000, b"data"));
        file.set_len(0x1000).unwrap();
        assert!(!whole.is_lost());
        let mut back = [1; 4];
        assert!(whole.read(0x40_1000, &mut back));
        assert_eq!(back, [0; 4]);
        assert!(whole.is_lost());
        assert!(!whole.without(0x40_0000, 0x2000).unwrap().is_lost());
    }
}
