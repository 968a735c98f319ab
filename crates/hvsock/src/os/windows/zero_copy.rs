//! Bytes in place: there are none, for no bytes go through memory that this process shares.
//!
//! The types are those of Linux, so that one program text does for both; nobody ever has a value
//! of one, since what would give it is an error of kind `Unsupported`.

use std::convert::Infallible;
use std::io;
use std::marker::PhantomData;
use std::os::windows::io::AsHandle;

/// What one end of a ring has done so far; nobody has a ring here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingStats {
    /// Times that it rang the other end's bell.
    pub rings: u64,
    /// Times that one of its threads slept.
    pub sleeps: u64,
    /// Times that one of its threads looked for a moment and need not sleep.
    pub spins: u64,
}

/// Bytes of shared memory, of which there is none here.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(Infallible, PhantomData<&'a [u8]>);

/// Room in shared memory, of which there is none here.
#[derive(Debug)]
pub struct Reserved<'a>(Infallible, PhantomData<&'a mut [u8]>);

/// Bytes that came in shared memory, of which there is none here.
#[derive(Debug)]
pub struct Filled<'a>(Infallible, PhantomData<&'a mut [u8]>);

#[allow(clippy::len_without_is_empty, reason = "no value of this type exists")]
impl Reserved<'_> {
    /// How many bytes there is room for.
    pub fn len(&self) -> usize {
        match self.0 {}
    }

    /// Puts `bytes` at `offset`.
    pub fn put(&mut self, _offset: usize, _bytes: &[u8]) -> io::Result<()> {
        match self.0 {}
    }

    /// Puts what is in other shared memory at `offset`.
    pub fn put_shared(&mut self, _offset: usize, bytes: Bytes<'_>) -> io::Result<()> {
        match bytes.0 {}
    }

    /// Has the system read from a file straight into the room.
    pub fn read_from(&mut self, _file: impl AsHandle, _offset: usize) -> io::Result<usize> {
        match self.0 {}
    }

    /// Gives the first `count` bytes to the other end.
    pub fn commit(self, _count: usize) -> io::Result<()> {
        match self.0 {}
    }
}

#[allow(clippy::len_without_is_empty, reason = "no value of this type exists")]
impl Filled<'_> {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        match self.0 {}
    }

    /// Copies bytes from `offset` on.
    pub fn get(&self, _offset: usize, _buffer: &mut [u8]) -> io::Result<()> {
        match self.0 {}
    }

    /// Where the bytes lie.
    pub fn stretches(&self) -> [Bytes<'_>; 2] {
        match self.0 {}
    }

    /// Copies bytes from `offset` on to other shared memory.
    pub fn get_shared(&self, _offset: usize, to: Bytes<'_>) -> io::Result<()> {
        match to.0 {}
    }

    /// Has the system write the bytes straight to a file.
    pub fn write_to(&self, _file: impl AsHandle, _offset: usize) -> io::Result<usize> {
        match self.0 {}
    }

    /// Frees the first `count` bytes.
    pub fn consume(self, _count: usize) -> io::Result<()> {
        match self.0 {}
    }
}

impl Bytes<'_> {
    /// How many there are.
    pub fn len(self) -> usize {
        match self.0 {}
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        match self.0 {}
    }
}
