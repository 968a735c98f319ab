//! Zero-copy access: writes and reads bytes in place, in the ring's memory.
//!
//! The peer can write this memory at any time. A Rust reference promises that its target does not
//! change, so there are none here. [`Bytes`](crate::Bytes) copies bytes out, passes them to the
//! kernel, or gives a raw pointer.

use std::io;
use std::os::fd::AsFd;
use std::sync::MutexGuard;

use hvsock_sys::shared_memory::SharedBytes;

use crate::consumer::Consumer;
use crate::producer::Producer;
use crate::{RingEnd, RingError, RingSide};

/// Free space in the ring, borrowed for writing in place until [`Reserved::commit`]. Created by
/// [`RingEnd::try_reserve`].
///
/// An honest peer sees nothing of it before the commit. **A hostile peer can read bytes as soon as
/// they are put here, and change them** before and after the commit. Never read them back from
/// here: keep a private copy of data that must not change.
///
/// Holds this direction's lock: no other thread can write until it is dropped. Dropping it without
/// a commit writes nothing.
#[derive(Debug)]
#[must_use = "nothing is written before `commit`"]
pub struct Reserved<'a> {
    end: &'a RingEnd,
    outgoing: MutexGuard<'a, Producer>,
    len: usize,
}

/// Received bytes, borrowed for reading in place until [`Filled::consume`]. Created by
/// [`RingEnd::try_fill`].
///
/// **A hostile peer can change the bytes between two reads** (TOCTOU). Copy out what a decision
/// depends on, decide on the copy, and use the same copy. [`Filled::write_to`] passes whatever the
/// memory holds at that moment to the kernel. The number of bytes does not change.
///
/// Holds this direction's lock: no other thread can read until it is dropped. Dropping it without
/// consuming leaves the bytes in the ring.
#[derive(Debug)]
#[must_use = "the bytes stay in the ring until `consume`"]
pub struct Filled<'a> {
    end: &'a RingEnd,
    incoming: MutexGuard<'a, Consumer>,
    len: usize,
}

impl RingEnd {
    /// Borrows between 1 and `wanted` bytes of free space for zero-copy writing.
    ///
    /// # Errors
    ///
    /// [`RingError::WouldBlock`] without free space; otherwise as [`RingEnd::try_write`].
    #[doc(alias = "zero-copy")]
    pub fn try_reserve(&self, wanted: usize) -> Result<Reserved<'_>, RingError> {
        let mut outgoing = self.outgoing();
        let free = self.free_to_write(&mut outgoing, wanted as u64)?;
        Ok(Reserved {
            end: self,
            outgoing,
            len: wanted.min(free as usize),
        })
    }

    /// Borrows all readable bytes, at least one, for zero-copy reading.
    ///
    /// # Errors
    ///
    /// [`RingError::WouldBlock`] without readable bytes; otherwise as [`RingEnd::try_read`].
    #[doc(alias = "zero-copy")]
    pub fn try_fill(&self) -> Result<Filled<'_>, RingError> {
        let mut incoming = self.incoming();
        let known = self.available_to_read(&mut incoming, u64::MAX)?;
        Ok(Filled {
            end: self,
            incoming,
            len: known as usize,
        })
    }
}

#[allow(
    clippy::len_without_is_empty,
    reason = "it is empty only once all of it was published"
)]
impl Reserved<'_> {
    /// The number of reserved bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if they do not fit into the reserved space.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        check_bounds(self.len, offset, bytes.len())?;
        let place = self.outgoing.place().after(offset as u64);
        self.end.memory.put(self.end.side(), place, bytes);
        Ok(())
    }

    /// The reserved space as two contiguous segments. The second follows the first in the stream and may be
    /// empty.
    pub fn segments(&self) -> [SharedBytes<'_>; 2] {
        let memory = &self.end.memory;
        memory
            .segments(self.end.side(), self.outgoing.place(), self.len)
            .map(|range| memory.bytes(range))
    }

    /// Copies bytes of other shared memory to `offset`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if they do not fit into the reserved space.
    pub fn put_shared(&mut self, offset: usize, bytes: SharedBytes<'_>) -> io::Result<()> {
        check_bounds(self.len, offset, bytes.len())?;
        let place = self.outgoing.place().after(offset as u64);
        let segments = self
            .end
            .memory
            .segments(self.end.side(), place, bytes.len());
        let [first, second] = segments.map(|range| self.end.memory.bytes(range));
        let copied = bytes.copy_to(first);
        bytes.part(copied, bytes.len()).copy_to(second);
        Ok(())
    }

    /// Reads from a file or socket straight into the reserved space, from `offset` on, with one
    /// `readv`. Returns the number of bytes read; 0 is the end of the file.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `offset` is beyond the reserved space; otherwise the error of `readv`.
    pub fn read_from(&mut self, file: impl AsFd, offset: usize) -> io::Result<usize> {
        check_bounds(self.len, offset, 0)?;
        let place = self.outgoing.place().after(offset as u64);
        let memory = &self.end.memory;
        let free = memory.segments(self.end.side(), place, self.len - offset);
        memory.mapping().read_from(file, free)
    }

    /// Publishes the first `count` bytes to the peer.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `count` is more than was reserved; `BrokenPipe` if the peer closed without
    /// reading the bytes.
    pub fn commit(mut self, count: usize) -> io::Result<()> {
        self.publish(count)
    }

    /// As [`commit`](Self::commit), and keeps the rest of the space: offset 0 is then the byte after
    /// the published ones. For bytes that the peer is to read while further ones are copied.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub fn publish(&mut self, count: usize) -> io::Result<()> {
        check_bounds(self.len, 0, count)?;
        self.len -= count;
        self.end.publish(&mut self.outgoing, count as u64);
        self.end.check_not_closed().map_err(Into::into)
    }
}

#[allow(
    clippy::len_without_is_empty,
    reason = "it is empty only once all of it was released"
)]
impl Filled<'_> {
    /// The number of readable bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes from `offset` on into `buffer`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range ends beyond the readable bytes.
    pub fn get(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        check_bounds(self.len, offset, buffer.len())?;
        let place = self.incoming.place().after(offset as u64);
        let from = self.end.side().other();
        self.end.memory.get(from, place, buffer);
        Ok(())
    }

    /// The readable bytes as two contiguous segments. The second follows the first in the stream
    /// and may be empty.
    pub fn segments(&self) -> [SharedBytes<'_>; 2] {
        let memory = &self.end.memory;
        let from: RingSide = self.end.side().other();
        memory
            .segments(from, self.incoming.place(), self.len)
            .map(|range| memory.bytes(range))
    }

    /// Copies bytes from `offset` on to other shared memory, which they fill.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range ends beyond the readable bytes.
    pub fn get_shared(&self, offset: usize, to: SharedBytes<'_>) -> io::Result<()> {
        check_bounds(self.len, offset, to.len())?;
        let place = self.incoming.place().after(offset as u64);
        let from = self.end.side().other();
        let [first, second] = self.end.memory.segments(from, place, to.len());
        let copied = self.end.memory.bytes(first).copy_to(to);
        self.end
            .memory
            .bytes(second)
            .copy_to(to.part(copied, to.len()));
        Ok(())
    }

    /// Writes the bytes from `offset` on straight to a file or socket, with one `writev`. Returns
    /// the number of bytes written.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `offset` is beyond the readable bytes; otherwise the error of `writev`.
    pub fn write_to(&self, file: impl AsFd, offset: usize) -> io::Result<usize> {
        check_bounds(self.len, offset, 0)?;
        let place = self.incoming.place().after(offset as u64);
        let memory = &self.end.memory;
        let bytes = memory.segments(self.end.side().other(), place, self.len - offset);
        memory.mapping().write_to(file, bytes)
    }

    /// Frees the first `count` bytes.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `count` exceeds [`Filled::len`].
    pub fn consume(mut self, count: usize) -> io::Result<()> {
        self.release(count)
    }

    /// As [`consume`](Self::consume), and keeps the rest of the bytes: offset 0 is then the byte after
    /// the freed ones. For space that the peer is to fill while further bytes are copied.
    ///
    /// # Errors
    ///
    /// As [`consume`](Self::consume).
    pub fn release(&mut self, count: usize) -> io::Result<()> {
        check_bounds(self.len, 0, count)?;
        self.len -= count;
        self.end.release(&mut self.incoming, count as u64);
        Ok(())
    }
}

fn check_bounds(len: usize, offset: usize, count: usize) -> io::Result<()> {
    if offset.checked_add(count).is_some_and(|end| end <= len) {
        return Ok(());
    }
    let text = format!("{count} bytes at {offset} exceed the {len} bytes borrowed from the ring");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}
