//! The shared memory as words and bytes: the one place, beside [`copy`](crate::copy), that turns
//! addresses into accesses.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use hvsock_sys::shared_memory::{self, Mapping};

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
        let len = shared_memory::checked_len(&memory)?;
        let odd = || io::Error::new(io::ErrorKind::InvalidData, "the shared memory is no ring");
        let bytes = len.checked_sub(HEADER as u64).ok_or_else(odd)? / 2;
        let size = u32::try_from(bytes).ok().and_then(RingSize::exactly);
        let size = size.filter(|size| Self::len_for(*size) == len);
        let size = size.ok_or_else(odd)?;
        let whole = usize::try_from(len).map_err(|_| odd())?;
        Ok(Self {
            mapping: Mapping::new(memory, whole)?,
            size,
        })
    }

    /// The size of each ring.
    pub(crate) fn size(&self) -> RingSize {
        self.size
    }

    pub(crate) fn header(&self) -> &Header {
        header(&self.mapping)
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
        self.put_at(first, a);
        self.put_at(second, b);
    }

    /// Copies from the memory into `buffer`.
    pub(crate) fn get(&self, from: Side, position: u64, buffer: &mut [u8]) {
        let [first, second] = self.stretches(from, position, buffer.len());
        let (a, b) = buffer.split_at_mut(first.len());
        self.get_at(first, a);
        self.get_at(second, b);
    }

    fn put_at(&self, to: Range<usize>, bytes: &[u8]) {
        let count = bytes.len().min(to.len());
        if to.end > self.mapping.len() {
            return;
        }
        // SAFETY: `to` lies in the mapping, as was just seen, and there is no reference to what
        // is in it; `bytes` is memory of this process, which a mapping's pages are not.
        unsafe {
            let to = self.mapping.start().as_ptr().add(to.start);
            copy::copy(bytes.as_ptr(), to, count);
        }
    }

    fn get_at(&self, from: Range<usize>, buffer: &mut [u8]) {
        let count = buffer.len().min(from.len());
        if from.end > self.mapping.len() {
            return;
        }
        // SAFETY: as in `put_at`.
        unsafe {
            let from = self.mapping.start().as_ptr().add(from.start);
            copy::copy(from, buffer.as_mut_ptr(), count);
        }
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
        header(&self.0)
    }
}

fn header(mapping: &Mapping) -> &Header {
    // Every mapping here has at least this page; and loom's words lie in no shared memory.
    assert!(mapping.len() >= size_of::<Header>());
    // SAFETY: a mapping begins at a page's bound and is long enough, as was just seen; a header is
    // made of atomic words, for which any bits are a value and which any process may change while
    // there are references to them.
    unsafe { mapping.start().cast::<Header>().as_ref() }
}
