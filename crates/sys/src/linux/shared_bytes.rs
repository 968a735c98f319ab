//! A segment of shared memory that another process may write at any time.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::io::Errno;

use crate::copy::{copy, prefetch_for_writing};

/// A contiguous segment of a [`Mapping`](super::shared_memory::Mapping), to copy to and from.
///
/// Two reads of the same byte may return two values (TOCTOU): copy what a decision depends on, and use
/// only the copy. Nothing here creates a reference to the bytes.
#[derive(Clone, Copy, Debug)]
pub struct SharedBytes<'a> {
    start: NonNull<u8>,
    len: usize,
    mapping: PhantomData<&'a u8>,
}

// SAFETY: as for a mapping: it belongs to the process and not to a thread, and every access here is
// sound whatever other threads and processes do.
unsafe impl Send for SharedBytes<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes<'_> {}

impl<'a> SharedBytes<'a> {
    /// # Safety
    ///
    /// For `'a`, the `len` bytes from `start` on are shared memory that may be read and written (or `len`
    /// is 0), and there are no references to them except to atomic words.
    #[inline]
    pub(super) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            mapping: PhantomData,
        }
    }

    /// No bytes.
    #[inline]
    pub const fn empty() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
            mapping: PhantomData,
        }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Pointer to the first byte, valid for [`SharedBytes::len`] bytes while the mapping lives.
    pub fn as_ptr(self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The part from `offset` on, of at most `len` bytes; shorter at the end of the segment.
    #[doc(alias = "segment")]
    #[inline]
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> SharedBytes<'a> {
        let offset = offset.min(self.len);
        // SAFETY: the offset is at most `self.len`, so the part lies in the range that the caller of
        // `new` has promised.
        unsafe { Self::new(self.start.add(offset), len.min(self.len - offset)) }
    }

    /// Reads from `offset` into `buffer`. Returns the number of bytes copied, at most `buffer.len()`.
    #[doc(alias = "read")]
    #[inline]
    pub fn get(self, offset: usize, buffer: &mut [u8]) -> usize {
        let from = self.part(offset, buffer.len());
        // SAFETY: both are valid for that many bytes. `buffer` is exclusively borrowed, so it is not
        // shared memory.
        unsafe { copy(from.start.as_ptr(), buffer.as_mut_ptr(), from.len) };
        from.len
    }

    /// Writes `bytes` at `offset`. Returns the number of bytes copied, less than `bytes.len()` at the end
    /// of the segment.
    #[doc(alias = "write")]
    #[inline]
    pub fn put(self, offset: usize, bytes: &[u8]) -> usize {
        let to = self.part(offset, bytes.len());
        // SAFETY: as in `get`.
        unsafe { copy(bytes.as_ptr(), to.start.as_ptr(), to.len) };
        to.len
    }

    /// Asks the processor to get the cache lines of these bytes for writing, without waiting for them. For
    /// bytes that are likely to be written next.
    #[inline]
    pub fn prefetch_for_writing(self) {
        prefetch_for_writing(self.start.as_ptr(), self.len);
    }

    /// Copies to the front of `to`. Returns the number of bytes copied, the shorter of both lengths. If
    /// both overlap, the resulting bytes are unspecified.
    #[inline]
    pub fn copy_to(self, to: SharedBytes<'_>) -> usize {
        let len = self.len.min(to.len);
        // SAFETY: both are valid for that many bytes, and there are no references to them. They may be
        // the same memory, mapped once or twice: the copy consists of opaque or volatile accesses, so
        // an overlap only affects the resulting values.
        unsafe { copy(self.start.as_ptr(), to.start.as_ptr(), len) };
        len
    }

    /// Loads the `u16` at `offset` atomically with acquire ordering. `None` if it is outside or not
    /// aligned.
    #[inline]
    pub fn load_u16(self, offset: usize) -> Option<u16> {
        Some(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Stores the `u16` at `offset` atomically with release ordering. `None` if it is outside or not
    /// aligned.
    #[inline]
    pub fn store_u16(self, offset: usize, value: u16) -> Option<()> {
        self.word(offset)?.store(value, Ordering::Release);
        Some(())
    }

    #[inline]
    fn word(&self, offset: usize) -> Option<&'a AtomicU16> {
        let end = offset.checked_add(2)?;
        let word = self.start.as_ptr().wrapping_add(offset).cast::<AtomicU16>();
        if end > self.len || !word.is_aligned() {
            return None;
        }
        // SAFETY: two aligned bytes of the segment, valid for `'a`. Other processes may change an
        // atomic word while there are references to it.
        Some(unsafe { &*word })
    }
}

/// Maximum number of segments in one call; further ones are ignored.
const MAX_SEGMENTS: usize = 32;

/// Receives from a stream socket into segments, in order, with one `recvmsg`. Returns the number of bytes;
/// 0 at the end of the stream.
///
/// # Errors
///
/// Those of `recvmsg`, except `EINTR`; `WouldBlock` on a non-blocking socket without data.
#[doc(alias = "zero-copy")]
pub fn recv(socket: impl AsFd, to: &[SharedBytes<'_>]) -> io::Result<usize> {
    transfer(to, |message| {
        // SAFETY: the segments may be written while they are borrowed, which is longer than the call,
        // and there are no references to their bytes.
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), message, 0) }
    })
}

/// Sends segments to a stream socket, in order, with one `sendmsg`. Returns the number of bytes sent.
///
/// # Errors
///
/// Those of `sendmsg`, except `EINTR`; `WouldBlock` if a non-blocking socket is full; `BrokenPipe` if the
/// peer is gone.
#[doc(alias = "zero-copy")]
pub fn send(socket: impl AsFd, from: &[SharedBytes<'_>]) -> io::Result<usize> {
    transfer(from, |message| {
        // SAFETY: as above; the kernel only reads.
        unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), message, libc::MSG_NOSIGNAL) }
    })
}

fn transfer(
    segments: &[SharedBytes<'_>],
    call: impl Fn(*mut libc::msghdr) -> libc::ssize_t,
) -> io::Result<usize> {
    let mut vectors = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; MAX_SEGMENTS];
    let count = segments.len().min(MAX_SEGMENTS);
    for (vector, segment) in vectors.iter_mut().zip(segments) {
        vector.iov_base = segment.start.as_ptr().cast();
        vector.iov_len = segment.len;
    }
    // SAFETY: all zero is a valid message without address, data and ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = count as _;
    let moved = super::count(|| call(&raw mut message));
    if moved == Err(Errno::FAULT) {
        touch(&segments[..count]);
    }
    Ok(moved?)
}

/// Reads a byte of each page. The kernel only reports an error for memory that was lost; an access marks the
/// mapping as lost.
#[cold]
fn touch(segments: &[SharedBytes<'_>]) {
    for segment in segments {
        let last = segment.len.checked_sub(1);
        for at in (0..segment.len).step_by(4096).chain(last) {
            segment.get(at, &mut [0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SharedBytes, recv, send};
    use crate::shared_memory::{Mapping, create};
    use crate::stream;

    #[test]
    fn a_prefetch_changes_no_byte_and_needs_none() {
        let mapping = Mapping::whole(create(4096).unwrap(), 4096).unwrap();
        let bytes = mapping.bytes(0..4096);
        bytes.put(0, &[7; 4096]);
        for (from, len) in [
            (0, 4096),
            (1, 1),
            (63, 130),
            (4095, 1),
            (4096, 9),
            (5000, 9),
        ] {
            bytes.part(from, len).prefetch_for_writing();
        }
        SharedBytes::empty().prefetch_for_writing();
        let mut read = [0; 4096];
        bytes.get(0, &mut read);
        assert_eq!(read, [7; 4096]);
    }

    #[test]
    fn segments_are_sent_and_received_in_order() {
        let mapping = Mapping::new(create(8192).unwrap(), 8192).unwrap();
        let (from, to) = stream::pair().unwrap();
        mapping.bytes(0..3).put(0, b"abc");
        mapping.bytes(5000..5003).put(0, b"def");
        let text = [mapping.bytes(5000..5003), mapping.bytes(0..3)];
        assert_eq!(send(&from, &text).unwrap(), 6);
        let space = [mapping.bytes(100..101), mapping.bytes(200..300)];
        assert_eq!(recv(&to, &space).unwrap(), 6);
        let mut back = [0; 6];
        space[0].get(0, &mut back[..1]);
        space[1].get(0, &mut back[1..]);
        assert_eq!(&back, b"defabc");
        drop(from);
        assert_eq!(recv(&to, &space).unwrap(), 0);
        let error = send(&to, &text).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn no_access_reaches_beyond_the_segment() {
        let mapping = Mapping::new(create(4096).unwrap(), 4096).unwrap();
        let bytes = mapping.bytes(4000..4096);
        assert_eq!(bytes.len(), 96);
        assert_eq!(bytes.put(90, b"0123456789"), 6);
        let mut all = [0xEE; 100];
        assert_eq!(bytes.get(88, &mut all), 8);
        assert_eq!(&all[..9], b"\0\x00012345\xEE");
        assert_eq!(bytes.get(96, &mut all), 0);
        assert_eq!(bytes.get(usize::MAX, &mut all), 0);
        assert_eq!(bytes.part(90, 100).len(), 6);
        assert!(mapping.bytes(4090..4097).is_empty());
        #[allow(clippy::reversed_empty_ranges, reason = "that is what is tested")]
        let backwards = 5..1;
        assert!(mapping.bytes(backwards).is_empty());
        assert!(mapping.bytes(4096..4096).is_empty());
    }

    #[test]
    fn words_outside_or_unaligned_are_none() {
        let mapping = Mapping::new(create(4096).unwrap(), 4096).unwrap();
        let bytes = mapping.bytes(0..10);
        assert_eq!(bytes.store_u16(8, 0x1234), Some(()));
        assert_eq!(bytes.load_u16(8), Some(0x1234));
        let mut raw = [0; 2];
        bytes.get(8, &mut raw);
        assert_eq!(u16::from_ne_bytes(raw), 0x1234);
        for bad in [1, 9, 10, usize::MAX] {
            assert_eq!(bytes.load_u16(bad), None);
            assert_eq!(bytes.store_u16(bad, 1), None);
        }
    }

    #[test]
    fn shared_memory_is_copied_to_shared_memory() {
        let [a, b] = [(); 2].map(|()| Mapping::new(create(8192).unwrap(), 8192).unwrap());
        let text: Vec<u8> = (0..=255).cycle().take(5000).collect();
        a.bytes(100..8192).put(0, &text);
        assert_eq!(a.bytes(100..5100).copy_to(b.bytes(3000..8192)), 5000);
        let mut back = vec![0; 5000];
        b.bytes(3000..8000).get(0, &mut back);
        assert_eq!(back, text);
        assert_eq!(a.bytes(0..10).copy_to(b.bytes(0..3)), 3);
    }
}
