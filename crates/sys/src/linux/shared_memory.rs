//! Memory that two processes have in common.
//!
//! It is a memfd that can change its size no more: a mapping of it stays whole whatever the other
//! process does, so that no access to it ends in `SIGBUS`. Everything that is in it may change at
//! any time. So this module gives out no reference to it: only a pointer, and system calls that
//! the kernel makes on it.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

pub use super::shared_bytes::{SharedBytes, recv, send};

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Makes memory of `len` bytes, all zero, of fixed size. Pages come into being when they are
/// touched.
pub fn create(len: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know that memory may not be executed.
    let memory = match rustix::fs::memfd_create("hvsock-ring", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("hvsock-ring", flags)?,
        result => result?,
    };
    rustix::fs::ftruncate(&memory, len)?;
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// The length of memory that came from elsewhere, if it can change no more; `InvalidData` if it
/// could.
pub fn checked_len(memory: impl AsFd) -> io::Result<u64> {
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    let seals = rustix::fs::fcntl_get_seals(&memory)
        .map_err(|_| invalid("what came as shared memory is something else"))?;
    if !seals.contains(SEALS) {
        return Err(invalid("the shared memory can still change its size"));
    }
    let len = rustix::fs::fstat(&memory)?.st_size;
    u64::try_from(len).map_err(|_| invalid("the shared memory has no size"))
}

/// Shared memory in this process's address space, for reading and writing, until it is dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process and not to a thread. What is done through the pointer
// is for those who do it to justify.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods here leave all access to the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes, of which there must be as many.
    pub fn new(memory: impl AsFd, len: usize) -> io::Result<Self> {
        if len == 0 || checked_len(&memory)? < len as u64 {
            let text = "the shared memory is smaller than what is to be mapped";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Self::map(memory, 0, len)
    }

    /// Maps all of it, of which there must be some, and no more than `most` bytes.
    pub fn whole(memory: impl AsFd, most: u64) -> io::Result<Self> {
        let len = checked_len(&memory)?;
        match usize::try_from(len) {
            Ok(whole) if 0 < len && len <= most => Self::map(memory, 0, whole),
            _ => {
                let text = format!("there is shared memory of {len} bytes, not of 1 to {most}");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }

    /// Maps `len` bytes from `offset` on, which must be there: another's memory, such as a
    /// guest's. `InvalidData` if it is not, or if it could shrink later and `may_shrink` does not
    /// allow that.
    ///
    /// With `may_shrink`, whoever has the descriptor can end this process: an access to memory
    /// that was there and is no more raises `SIGBUS`.
    pub fn part(memory: impl AsFd, offset: u64, len: usize, may_shrink: bool) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        if !may_shrink {
            let seals = rustix::fs::fcntl_get_seals(&memory).unwrap_or(SealFlags::empty());
            if !seals.contains(SealFlags::SHRINK) {
                return Err(invalid("the memory is not sealed against shrinking".into()));
            }
        }
        let size = u64::try_from(rustix::fs::fstat(&memory)?.st_size).unwrap_or(0);
        let end = offset.checked_add(len as u64);
        if len == 0 || end.is_none_or(|end| end > size) {
            let text = format!("{len} bytes from {offset} on are not in memory of {size} bytes");
            return Err(invalid(text));
        }
        Self::map(memory, offset, len)
    }

    /// Maps `len` bytes, which were seen to be there, and not to be none.
    fn map(memory: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so no mapping of this process is replaced.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                &memory,
                offset,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Where it starts, at a page's bound; valid for [`Mapping::len`] bytes while this lives.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length in bytes, which is not 0.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a range, for copies to and from them; none for a range that is not in the
    /// mapping.
    #[inline]
    pub fn bytes(&self, range: Range<usize>) -> SharedBytes<'_> {
        let within = range.start <= range.end && range.end <= self.len;
        let (offset, len) = match within {
            true => (range.start, range.end - range.start),
            false => (0, 0),
        };
        // SAFETY: the range lies in the mapping, as was just seen, which outlives the result.
        unsafe { SharedBytes::new(self.start.add(offset), len) }
    }

    /// Has the kernel write what is in `ranges`, in their order, to `fd`: one `writev`.
    pub fn write_to(&self, fd: impl AsFd, ranges: [Range<usize>; 2]) -> io::Result<usize> {
        let slices = self.slices(ranges)?;
        // SAFETY: `slices` lie in the mapping, which outlives the call; the kernel only reads.
        let write = || unsafe { libc::writev(fd.as_fd().as_raw_fd(), slices.as_ptr(), 2) };
        Ok(super::sigpipe::without(|| super::count(write))?)
    }

    /// Has the kernel read from `fd` into `ranges`, in their order: one `readv`. 0 is the end.
    pub fn read_from(&self, fd: impl AsFd, ranges: [Range<usize>; 2]) -> io::Result<usize> {
        let slices = self.slices(ranges)?;
        // SAFETY: `slices` lie in the mapping, which outlives the call, and nobody has a
        // reference to what is in it.
        let read = || unsafe { libc::readv(fd.as_fd().as_raw_fd(), slices.as_ptr(), 2) };
        Ok(super::count(read)?)
    }

    fn slices(&self, ranges: [Range<usize>; 2]) -> io::Result<[libc::iovec; 2]> {
        if ranges
            .iter()
            .any(|range| range.start > range.end || range.end > self.len)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(ranges.map(|range| libc::iovec {
            // SAFETY: the range was just seen to lie in the mapping.
            iov_base: unsafe { self.start.as_ptr().add(range.start) }.cast(),
            iov_len: range.end - range.start,
        }))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and whoever had its pointer had it for no
        // longer than this object. It fails only for bounds that are not a mapping's.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;

    #[test]
    fn what_is_made_here_passes_the_check_and_cannot_change_its_size() {
        let memory = create(8192).unwrap();
        assert_eq!(checked_len(&memory).unwrap(), 8192);
        for size in [0, 4096, 16384] {
            assert_eq!(rustix::fs::ftruncate(&memory, size), Err(Errno::PERM));
        }
        let flags = rustix::io::fcntl_getfd(&memory).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn memory_that_could_shrink_under_a_reader_is_turned_down() {
        let open = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&open, 8192).unwrap();
        for seals in [SealFlags::empty(), SealFlags::SHRINK | SealFlags::GROW] {
            rustix::fs::fcntl_add_seals(&open, seals).unwrap();
            let error = checked_len(&open).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(Mapping::new(&open, 4096).is_err());
        }
        let (socket, _other) = stream::pair().unwrap();
        assert_eq!(
            checked_len(&socket).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let small = create(4096).unwrap();
        assert!(Mapping::new(&small, 8192).is_err());
        assert!(Mapping::new(&small, 0).is_err());
        assert!(Mapping::whole(&small, 4095).is_err());
        assert_eq!(Mapping::whole(&small, 4096).unwrap().len(), 4096);
        assert!(Mapping::whole(create(0).unwrap(), 4096).is_err());
    }

    #[test]
    fn two_mappings_are_the_same_memory_and_the_kernel_moves_it() {
        let memory = create(8192).unwrap();
        let [a, b] = [(); 2].map(|()| Mapping::new(&memory, 8192).unwrap());
        let (from, to) = stream::pair().unwrap();
        stream::send(&from, b"abcdef").unwrap();
        assert_eq!(a.read_from(&to, [8188..8192, 0..100]).unwrap(), 6);
        assert_eq!(b.write_to(&from, [8188..8192, 0..2]).unwrap(), 6);
        let mut bytes = [0; 8];
        assert_eq!(stream::recv(&to, &mut bytes).unwrap(), 6);
        assert_eq!(&bytes[..6], b"abcdef");
        assert!(a.read_from(&to, [0..1, 8000..8193]).is_err());
        #[allow(clippy::reversed_empty_ranges, reason = "that is what is tested")]
        let backwards = [5..1, 0..0];
        assert!(a.write_to(&from, backwards).is_err());
    }
}
