//! A stretch of memory that others may write at any time.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::copy::copy;

/// Some bytes of a [`Mapping`](super::shared_memory::Mapping), to copy to and from.
///
/// Two looks at the same byte may give two values: copy out what a decision depends on, decide on
/// the copy, and act on the same copy. Nothing here makes a reference to the bytes.
#[derive(Clone, Copy, Debug)]
pub struct SharedBytes<'a> {
    start: NonNull<u8>,
    len: usize,
    lent: PhantomData<&'a u8>,
}

// SAFETY: as a mapping's: it belongs to the process and not to a thread, and no access here is one
// that another thread or process could make wrong.
unsafe impl Send for SharedBytes<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes<'_> {}

impl<'a> SharedBytes<'a> {
    /// # Safety
    ///
    /// `len` bytes from `start` on are shared memory, or none, for reading and writing as long as
    /// `'a`, and there is no reference to any of them but to atomic words.
    #[inline]
    pub(super) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            lent: PhantomData,
        }
    }

    /// How many bytes they are.
    #[inline]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Where they begin. Valid for [`SharedBytes::len`] bytes as long as their mapping lives.
    pub fn as_ptr(self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Those from `offset` on, at most `len`; fewer where there are no more.
    #[inline]
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> SharedBytes<'a> {
        let offset = offset.min(self.len);
        // SAFETY: the offset is within or at the end, and what is from there on was promised to
        // `new`.
        unsafe { Self::new(self.start.add(offset), len.min(self.len - offset)) }
    }

    /// Copies to the front of `buffer` what is there from `offset` on, as much as fits; how much
    /// that was.
    #[inline]
    pub fn get(self, offset: usize, buffer: &mut [u8]) -> usize {
        let from = self.part(offset, buffer.len());
        // SAFETY: both are valid for that many bytes; memory of this process's own, to which
        // there is an exclusive reference, is no shared memory.
        unsafe { copy(from.start.as_ptr(), buffer.as_mut_ptr(), from.len) };
        from.len
    }

    /// Copies the front of `bytes` to `offset`, as much as there is room for; how much that was.
    #[inline]
    pub fn put(self, offset: usize, bytes: &[u8]) -> usize {
        let to = self.part(offset, bytes.len());
        // SAFETY: as in `get`.
        unsafe { copy(bytes.as_ptr(), to.start.as_ptr(), to.len) };
        to.len
    }

    /// Copies to the front of `to`, as much as fits; how much that was. Where both are the same
    /// memory, what arrives is not defined, and nothing else comes of it.
    #[inline]
    pub fn copy_to(self, to: SharedBytes<'_>) -> usize {
        let len = self.len.min(to.len);
        // SAFETY: both are valid for that many bytes, and there is no reference to any of them.
        // They may be the same memory, mapped once or twice: the copies are opaque or volatile
        // accesses byte by byte or word by word, for which the order decides and nothing else.
        unsafe { copy(self.start.as_ptr(), to.start.as_ptr(), len) };
        len
    }

    /// The word at `offset`, read at once and before everything after it; `None` outside, and
    /// where no word can lie.
    #[inline]
    pub fn load_u16(self, offset: usize) -> Option<u16> {
        Some(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Writes the word at `offset` at once and after everything before it; `None` outside, and
    /// where no word can lie.
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
        // SAFETY: two bytes of the stretch, aligned, for as long as `'a`; an atomic word may be
        // changed by anybody while there are references to it.
        Some(unsafe { &*word })
    }
}

/// The most stretches of one call; what is beyond them is left for another one.
const STRETCHES: usize = 32;

/// Receives from a stream socket into the stretches, in their order; 0 is the end. One call.
pub fn recv(socket: impl AsFd, to: &[SharedBytes<'_>]) -> io::Result<usize> {
    transfer(to, |message| {
        // SAFETY: the stretches may be written as long as they are borrowed, which is longer than
        // the call; nobody has a reference to what is in them.
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), message, 0) }
    })
}

/// Sends the stretches to a stream socket, in their order; how many bytes it took. One call.
pub fn send(socket: impl AsFd, from: &[SharedBytes<'_>]) -> io::Result<usize> {
    transfer(from, |message| {
        // SAFETY: as above; the kernel only reads.
        unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), message, libc::MSG_NOSIGNAL) }
    })
}

fn transfer(
    stretches: &[SharedBytes<'_>],
    call: impl Fn(*mut libc::msghdr) -> libc::ssize_t,
) -> io::Result<usize> {
    let mut vectors = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; STRETCHES];
    let count = stretches.len().min(STRETCHES);
    for (vector, stretch) in vectors.iter_mut().zip(stretches) {
        vector.iov_base = stretch.start.as_ptr().cast();
        vector.iov_len = stretch.len;
    }
    // SAFETY: all zero is a message without address, data and ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = count as _;
    Ok(super::count(|| call(&raw mut message))?)
}

#[cfg(test)]
mod tests {
    use super::{recv, send};
    use crate::shared_memory::{Mapping, create};
    use crate::stream;

    #[test]
    fn sockets_take_and_give_stretches_in_their_order() {
        let mapping = Mapping::new(create(8192).unwrap(), 8192).unwrap();
        let (from, to) = stream::pair().unwrap();
        mapping.bytes(0..3).put(0, b"abc");
        mapping.bytes(5000..5003).put(0, b"def");
        let text = [mapping.bytes(5000..5003), mapping.bytes(0..3)];
        assert_eq!(send(&from, &text).unwrap(), 6);
        let room = [mapping.bytes(100..101), mapping.bytes(200..300)];
        assert_eq!(recv(&to, &room).unwrap(), 6);
        let mut back = [0; 6];
        room[0].get(0, &mut back[..1]);
        room[1].get(0, &mut back[1..]);
        assert_eq!(&back, b"defabc");
        drop(from);
        assert_eq!(recv(&to, &room).unwrap(), 0);
        let error = send(&to, &text).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn nothing_reaches_beyond_the_stretch() {
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
    fn words_lie_within_and_aligned_or_not_at_all() {
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
    fn bytes_go_from_shared_memory_to_shared_memory() {
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
