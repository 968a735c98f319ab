//! Zero-copy access, which Windows does not have: no bytes go through shared memory.
//!
//! The types are those of Linux, so that the same code compiles. No value of them ever exists,
//! since the functions that return one fail with `Unsupported`.

use std::convert::Infallible;
use std::io;
use std::marker::PhantomData;
use std::os::windows::io::AsHandle;

/// The counters of one end of a ring. No ring exists on Windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingStats {
    /// Notifications sent to the peer's doorbell.
    pub notifications: u64,
    /// Times that one of its threads parked.
    pub parks: u64,
    /// Times that one of its threads spun and did not have to park.
    pub spins: u64,
    /// Wakeup requests made to the peer, including those withdrawn or satisfied before a park.
    pub wakeup_requests: u64,
}

/// Bytes of shared memory. No value exists on Windows.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(Infallible, PhantomData<&'a [u8]>);

/// Reserved free space in shared memory. No value exists on Windows.
#[derive(Debug)]
pub struct Reserved<'a>(Infallible, PhantomData<&'a mut [u8]>);

/// Received bytes in shared memory. No value exists on Windows.
#[derive(Debug)]
pub struct Filled<'a>(Infallible, PhantomData<&'a mut [u8]>);

#[allow(clippy::len_without_is_empty, reason = "no value of this type exists")]
impl Reserved<'_> {
    /// Returns the number of reserved bytes.
    pub fn len(&self) -> usize {
        match self.0 {}
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn put(&mut self, _offset: usize, _bytes: &[u8]) -> io::Result<()> {
        match self.0 {}
    }

    /// Returns the reserved space as two segments.
    pub fn segments(&self) -> [Bytes<'_>; 2] {
        match self.0 {}
    }

    /// Copies bytes of other shared memory to `offset`.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn put_shared(&mut self, _offset: usize, bytes: Bytes<'_>) -> io::Result<()> {
        match bytes.0 {}
    }

    /// Reads from a file directly into the reserved space.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn read_from(&mut self, _file: impl AsHandle, _offset: usize) -> io::Result<usize> {
        match self.0 {}
    }

    /// Sends the first `count` bytes to the peer.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn commit(self, _count: usize) -> io::Result<()> {
        match self.0 {}
    }
}

#[allow(clippy::len_without_is_empty, reason = "no value of this type exists")]
impl Filled<'_> {
    /// Returns the number of received bytes.
    pub fn len(&self) -> usize {
        match self.0 {}
    }

    /// Copies bytes from `offset` to `buffer`.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn get(&self, _offset: usize, _buffer: &mut [u8]) -> io::Result<()> {
        match self.0 {}
    }

    /// Returns the bytes as two segments.
    pub fn segments(&self) -> [Bytes<'_>; 2] {
        match self.0 {}
    }

    /// Copies bytes from `offset` to other shared memory.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn get_shared(&self, _offset: usize, to: Bytes<'_>) -> io::Result<()> {
        match to.0 {}
    }

    /// Writes the bytes directly to a file.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn write_to(&self, _file: impl AsHandle, _offset: usize) -> io::Result<usize> {
        match self.0 {}
    }

    /// Releases the first `count` bytes.
    ///
    /// # Errors
    ///
    /// None on Windows.
    pub fn consume(self, _count: usize) -> io::Result<()> {
        match self.0 {}
    }
}

impl Bytes<'_> {
    /// Returns the number of bytes.
    pub fn len(self) -> usize {
        match self.0 {}
    }

    /// Returns true if there are none.
    pub fn is_empty(self) -> bool {
        match self.0 {}
    }
}
