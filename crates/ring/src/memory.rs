//! Typed access to the shared memory. Only [`copy`] turns addresses into accesses.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use hvsock_sys::shared_memory::{Mapping, SharedBytes};

use crate::layout::{HEADER, Header};
use crate::{RingSide, RingSize, copy};

/// A connection's memory, mapped into this process: all of a mapping, or a part of an arena's.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Arc<Mapping>,
    /// The offset of the header.
    header: usize,
    /// The offset of the first ring. The second one follows it.
    rings: usize,
    size: RingSize,
}

/// Where a byte of a direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its number in the stream.
    pub(crate) position: u64,
    /// The part of the ring in use, in bytes.
    pub(crate) window: u64,
}

impl Place {
    /// The place of a byte behind this one.
    pub(crate) fn after(self, count: u64) -> Self {
        let position = self.position.wrapping_add(count);
        Self { position, ..self }
    }
}

impl Memory {
    /// The length in bytes of memory with rings of this size.
    pub(crate) fn len_for(size: RingSize) -> u64 {
        HEADER as u64 + 2 * u64::from(size.bytes())
    }

    /// Maps memory from another process. Its length determines the ring size.
    pub(crate) fn open(memory: impl AsFd) -> io::Result<Self> {
        let mapping = Mapping::whole(memory, Self::len_for(RingSize::MAX))?;
        let len = mapping.len() as u64;
        let invalid = || {
            let text = format!("shared memory of {len} bytes is not a ring");
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let bytes = len.checked_sub(HEADER as u64).ok_or_else(invalid)? / 2;
        let size = u32::try_from(bytes).ok().and_then(RingSize::exactly);
        let size = size.filter(|size| Self::len_for(*size) == len);
        let size = size.ok_or_else(invalid)?;
        Ok(Self {
            mapping: Arc::new(mapping),
            header: 0,
            rings: HEADER,
            size,
        })
    }

    /// A connection's part of a mapping that it shares with others. The caller has computed the offsets
    /// for a mapping of this length.
    pub(crate) fn within(
        mapping: Arc<Mapping>,
        header: usize,
        rings: usize,
        size: RingSize,
    ) -> Self {
        Self {
            mapping,
            header,
            rings,
            size,
        }
    }

    /// The size of each ring.
    pub(crate) fn size(&self) -> RingSize {
        self.size
    }

    #[inline]
    pub(crate) fn header(&self) -> &Header {
        copy::header(&self.mapping, self.header)
    }

    /// The ranges of the memory that hold `count` bytes of a direction, from a place on. They are two contiguous segments, because the bytes may wrap around the ring's end; the
    /// second may be empty.
    pub(crate) fn segments(&self, from: RingSide, place: Place, count: usize) -> [Range<usize>; 2] {
        let size = self.size.bytes() as usize;
        // The peer may have claimed any window. A power of two that is not too large is within the ring.
        let window = place.window as usize;
        let window = if window.is_power_of_two() && window < size {
            window
        } else {
            size
        };
        let count = count.min(window);
        let base = self.rings + from.index() * size;
        // A power of two, so the mask stays right at the counter's wraparound.
        let at = place.position as usize & (window - 1);
        let first = count.min(window - at);
        [base + at..base + at + first, base..base + count - first]
    }

    /// Copies `bytes` into the memory.
    pub(crate) fn put(&self, from: RingSide, place: Place, bytes: &[u8]) {
        let [first, second] = self.segments(from, place, bytes.len());
        let (a, b) = bytes.split_at(first.len());
        self.bytes(first).put(0, a);
        self.bytes(second).put(0, b);
    }

    /// Lets the processor get memory for `count` bytes that are likely to be put there next.
    #[inline]
    pub(crate) fn prefetch_for_writing(&self, from: RingSide, place: Place, count: usize) {
        let [first, _] = self.segments(from, place, count);
        self.bytes(first).prefetch_for_writing();
    }

    /// Copies from the memory into `buffer`.
    pub(crate) fn get(&self, from: RingSide, place: Place, buffer: &mut [u8]) {
        let [first, second] = self.segments(from, place, buffer.len());
        let (a, b) = buffer.split_at_mut(first.len());
        self.bytes(first).get(0, a);
        self.bytes(second).get(0, b);
    }

    /// The bytes of a segment, for copies to and from it.
    pub(crate) fn bytes(&self, segment: Range<usize>) -> SharedBytes<'_> {
        self.mapping.bytes(segment)
    }

    /// The mapping, for system calls that read or write it.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

/// A connection's header page only, for a process that does not access the bytes.
#[derive(Debug)]
pub(crate) struct HeaderMapping(Mapping);

impl HeaderMapping {
    pub(crate) fn open(memory: impl AsFd) -> io::Result<Self> {
        Mapping::new(memory, HEADER).map(Self)
    }

    pub(crate) fn header(&self) -> &Header {
        copy::header(&self.0, 0)
    }
}
