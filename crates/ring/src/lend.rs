//! Bytes in place: what is written or read where it lies, without a copy into memory of one's own.
//!
//! The bytes lie in memory that the other process can write at any time. Rust's references
//! promise that what they point to does not change, so there are none here: [`Bytes`] copies
//! out, hands bytes to the kernel, or gives a raw pointer, by name.

use std::io;
use std::os::fd::AsFd;
use std::sync::MutexGuard;

use hvsock_sys::shared_memory::SharedBytes;

use crate::consumer::Consumer;
use crate::producer::Producer;
use crate::{End, Side, Stop};

/// Room in the ring that is being written, until [`Reserved::commit`]; from [`End::try_reserve`].
///
/// The other end sees nothing of it before the commit, if it is honest. **If it is not, it can
/// read what is put here at once, and change it** before and after the commit: what is to stay as
/// it is must not be read back from here, only from memory of one's own.
///
/// While it lives no other thread can write this direction. Dropping it writes nothing.
#[derive(Debug)]
#[must_use = "nothing is written before `commit`"]
pub struct Reserved<'a> {
    end: &'a End,
    outgoing: MutexGuard<'a, Producer>,
    len: usize,
}

/// Bytes that have come and are being read, until [`Filled::consume`]; from [`End::try_fill`].
///
/// **A hostile peer can change them while they are looked at**: two looks at the same byte may
/// give two values. So copy out what a decision depends on, decide on the copy, and act on the
/// same copy. What is handed to the kernel by [`Filled::write_to`] is whatever is there at that
/// moment. How many bytes there are does not change.
///
/// While it lives no other thread can read this direction. Dropping it leaves the bytes to be
/// read again.
#[derive(Debug)]
#[must_use = "the bytes stay to be read before `consume`"]
pub struct Filled<'a> {
    end: &'a End,
    incoming: MutexGuard<'a, Consumer>,
    len: usize,
}

impl End {
    /// Reserves at most `wanted` bytes of room, as much as there is; at least one.
    pub fn try_reserve(&self, wanted: usize) -> Result<Reserved<'_>, Stop> {
        let mut outgoing = self.outgoing();
        let room = self.to_write(&mut outgoing, wanted as u64)?;
        Ok(Reserved {
            end: self,
            outgoing,
            len: wanted.min(room as usize),
        })
    }

    /// Lends all bytes that there are to read; at least one.
    pub fn try_fill(&self) -> Result<Filled<'_>, Stop> {
        let mut incoming = self.incoming();
        let known = self.to_read(&mut incoming, u64::MAX)?;
        Ok(Filled {
            end: self,
            incoming,
            len: known as usize,
        })
    }
}

#[allow(clippy::len_without_is_empty, reason = "neither is ever empty")]
impl Reserved<'_> {
    /// How many bytes there is room for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts `bytes` at `offset`; `InvalidInput` beyond the room.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        within(self.len, offset, bytes.len())?;
        let position = self.outgoing.position().wrapping_add(offset as u64);
        self.end.memory.put(self.end.side(), position, bytes);
        Ok(())
    }

    /// Puts what is in other shared memory at `offset`; `InvalidInput` beyond the room.
    pub fn put_shared(&mut self, offset: usize, bytes: SharedBytes<'_>) -> io::Result<()> {
        within(self.len, offset, bytes.len())?;
        let position = self.outgoing.position().wrapping_add(offset as u64);
        let stretches = self
            .end
            .memory
            .stretches(self.end.side(), position, bytes.len());
        let [first, second] = stretches.map(|range| self.end.memory.bytes(range));
        let put = bytes.copy_to(first);
        bytes.part(put, bytes.len()).copy_to(second);
        Ok(())
    }

    /// Has the kernel read from a file or socket straight into the room, from `offset` on; one
    /// system call. Returns how many bytes came, 0 at the end of the file.
    pub fn read_from(&mut self, file: impl AsFd, offset: usize) -> io::Result<usize> {
        within(self.len, offset, 0)?;
        let position = self.outgoing.position().wrapping_add(offset as u64);
        let memory = &self.end.memory;
        let room = memory.stretches(self.end.side(), position, self.len - offset);
        memory.mapping().read_from(file, room)
    }

    /// Gives the first `count` bytes to the other end; `InvalidInput` beyond the room.
    pub fn commit(mut self, count: usize) -> io::Result<()> {
        within(self.len, 0, count)?;
        self.end.publish(&mut self.outgoing, count as u64);
        self.end.still_read().map_err(Into::into)
    }
}

#[allow(clippy::len_without_is_empty, reason = "neither is ever empty")]
impl Filled<'_> {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes from `offset` on; `InvalidInput` beyond the last.
    pub fn get(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        within(self.len, offset, buffer.len())?;
        let position = self.incoming.position().wrapping_add(offset as u64);
        let from = self.end.side().other();
        self.end.memory.get(from, position, buffer);
        Ok(())
    }

    /// Where the bytes lie: the second stretch follows the first, and may be empty.
    pub fn stretches(&self) -> [SharedBytes<'_>; 2] {
        let memory = &self.end.memory;
        let from: Side = self.end.side().other();
        memory
            .stretches(from, self.incoming.position(), self.len)
            .map(|range| memory.bytes(range))
    }

    /// Copies bytes from `offset` on to other shared memory, which is filled; `InvalidInput`
    /// beyond the last.
    pub fn get_shared(&self, offset: usize, to: SharedBytes<'_>) -> io::Result<()> {
        within(self.len, offset, to.len())?;
        let position = self.incoming.position().wrapping_add(offset as u64);
        let from = self.end.side().other();
        let [first, second] = self.end.memory.stretches(from, position, to.len());
        let taken = self.end.memory.bytes(first).copy_to(to);
        self.end
            .memory
            .bytes(second)
            .copy_to(to.part(taken, to.len()));
        Ok(())
    }

    /// Has the kernel write the bytes from `offset` on straight to a file or socket; one system
    /// call. Returns how many it took.
    pub fn write_to(&self, file: impl AsFd, offset: usize) -> io::Result<usize> {
        within(self.len, offset, 0)?;
        let position = self.incoming.position().wrapping_add(offset as u64);
        let memory = &self.end.memory;
        let bytes = memory.stretches(self.end.side().other(), position, self.len - offset);
        memory.mapping().write_to(file, bytes)
    }

    /// Frees the first `count` bytes; `InvalidInput` beyond the last.
    pub fn consume(mut self, count: usize) -> io::Result<()> {
        within(self.len, 0, count)?;
        self.end.release(&mut self.incoming, count as u64);
        Ok(())
    }
}

fn within(len: usize, offset: usize, count: usize) -> io::Result<()> {
    if offset.checked_add(count).is_some_and(|end| end <= len) {
        return Ok(());
    }
    let text = "outside of what was lent of the ring";
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}
