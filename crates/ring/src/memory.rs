//! The shared memory as words and bytes. Addresses become accesses in [`copy`](crate::copy) only.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use hvsock_sys::shared_memory::{Mapping, SharedBytes};

use crate::layout::{HEADER, Header};
use crate::{RingSize, Side, copy};

/// A connection's memory in this process.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Mapping,
    size: RingSize,
}

impl Memory {
    /// How much memory rings of this size need.
    pub(crate) fn len_for(size: RingSize) -> u64 {
        HEADER as u64 + 2 * u64::from(size.bytes())
    }

    /// Maps memory that came from elsewhere, whose size says that of the rings in it.
    pub(crate) fn open(memory: impl AsFd) -> io::Result<Self> {
        let mapping = Mapping::whole(memory, Self::len_for(RingSize::MAX))?;
        let len = mapping.len() as u64;
        let odd = || io::Error::new(io::ErrorKind::InvalidData, "the shared memory is no ring");
        let bytes = len.checked_sub(HEADER as u64).ok_or_else(odd)? / 2;
        let size = u32::try_from(bytes).ok().and_then(RingSize::exactly);
        let size = size.filter(|size| Self::len_for(*size) == len);
        let size = size.ok_or_else(odd)?;
        Ok(Self { mapping, size })
    }

    /// The size of each ring.
    pub(crate) fn size(&self) -> RingSize {
        self.size
    }

    pub(crate) fn header(&self) -> &Header {
        copy::header(&self.mapping)
    }

    /// Where `count` bytes of a direction lie in the memory, from the byte with number `position`
    /// on: two stretches, of which the second may be empty.
    pub(crate) fn stretches(&self, from: Side, position: u64, count: usize) -> [Range<usize>; 2] {
        let size = self.size.bytes() as usize;
        let count = count.min(size);
        let base = HEADER + from.index() * size;
        // The size is a power of two, so this is right when the counter wraps, too.
        let at = position as usize & (size - 1);
        let first = count.min(size - at);
        [base + at..base + at + first, base..base + count - first]
    }

    /// Copies from `bytes` into the memory.
    pub(crate) fn put(&self, from: Side, position: u64, bytes: &[u8]) {
        let [first, second] = self.stretches(from, position, bytes.len());
        let (a, b) = bytes.split_at(first.len());
        self.bytes(first).put(0, a);
        self.bytes(second).put(0, b);
    }

    /// Copies from the memory into `buffer`.
    pub(crate) fn get(&self, from: Side, position: u64, buffer: &mut [u8]) {
        let [first, second] = self.stretches(from, position, buffer.len());
        let (a, b) = buffer.split_at_mut(first.len());
        self.bytes(first).get(0, a);
        self.bytes(second).get(0, b);
    }

    /// A stretch, for copies to and from it.
    pub(crate) fn bytes(&self, stretch: Range<usize>) -> SharedBytes<'_> {
        self.mapping.bytes(stretch)
    }

    /// The mapping, for the kernel to read and write.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

/// The words of a connection only, for who does not look at its bytes.
#[derive(Debug)]
pub(crate) struct Words(Mapping);

impl Words {
    pub(crate) fn open(memory: impl AsFd) -> io::Result<Self> {
        Mapping::new(memory, HEADER).map(Self)
    }

    pub(crate) fn header(&self) -> &Header {
        copy::header(&self.0)
    }
}
