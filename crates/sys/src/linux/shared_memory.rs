//! Memory shared between two processes.
//!
//! It is a memfd sealed against any change of size. So the other process cannot invalidate a mapping, and
//! no access raises `SIGBUS`. Memory that another process made ([`Mapping::part`]) may be unsealed: then the
//! signal is handled, and the mapping says that its memory is lost. The contents may change at any time. This
//! module therefore returns no references to it, only pointers, and makes system calls on ranges.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::bus_error::{self, Guard};
pub use super::shared_bytes::{SharedBytes, recv, send};

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Creates shared memory of `len` zero bytes with a fixed size. Pages are allocated on first access.
///
/// # Errors
///
/// Those of `memfd_create`, `ftruncate` and `fcntl`.
#[doc(alias = "memfd")]
pub fn create(len: u64) -> io::Result<OwnedFd> {
    let memory = unsealed(len)?;
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// Creates shared memory of `len` zero bytes with a fixed size, which only the holder of the returned
/// mapping can write: every process with the descriptor can map it for reading only.
///
/// # Errors
///
/// `InvalidData` if `len` is 0; those of `memfd_create`, `ftruncate`, `mmap` and `fcntl`.
#[doc(alias = "F_SEAL_FUTURE_WRITE")]
pub fn create_read_only(len: usize) -> io::Result<(OwnedFd, Mapping)> {
    if len == 0 {
        return Err(invalid("a mapping has at least one byte"));
    }
    let memory = unsealed(len as u64)?;
    let mapping = Mapping::map(&memory, 0, len)?;
    rustix::fs::fcntl_add_seals(&memory, SEALS | SealFlags::FUTURE_WRITE)?;
    Ok((memory, mapping))
}

fn unsealed(len: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not have MFD_NOEXEC_SEAL.
    let memory = match rustix::fs::memfd_create("hvsock-ring", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("hvsock-ring", flags)?,
        result => result?,
    };
    rustix::fs::ftruncate(&memory, len)?;
    Ok(memory)
}

/// Allocates the pages of the first `len` bytes now, so that the first access costs less.
///
/// # Errors
///
/// Those of `fallocate`, such as `StorageFull` if the system has no memory for them.
#[doc(alias = "fallocate")]
pub fn allocate(memory: impl AsFd, len: u64) -> io::Result<()> {
    let mode = rustix::fs::FallocateFlags::KEEP_SIZE;
    super::retry(|| rustix::fs::fallocate(&memory, mode, 0, len))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Returns the length in bytes of shared memory received from another process.
///
/// # Errors
///
/// `InvalidData` if it is not a memfd or is not sealed against a change of size.
pub fn checked_len(memory: impl AsFd) -> io::Result<u64> {
    len_with_seals(
        memory,
        SEALS,
        "the shared memory is not sealed against a change of size",
    )
}

fn len_with_seals(memory: impl AsFd, needed: SealFlags, otherwise: &str) -> io::Result<u64> {
    let seals = rustix::fs::fcntl_get_seals(&memory)
        .map_err(|_| invalid("the descriptor is not a memfd"))?;
    if !seals.contains(needed) {
        return Err(invalid(otherwise));
    }
    let len = rustix::fs::fstat(&memory)?.st_size;
    u64::try_from(len).map_err(|_| invalid("the shared memory has a negative size"))
}

/// A readable and writable mapping of shared memory, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Bytes in whole pages of the file.
    mapped: usize,
    /// If the loss of its memory is handled.
    guard: Option<Guard>,
}

// SAFETY: a mapping belongs to the process and not to a thread. Accesses through the pointer are the
// responsibility of their unsafe blocks.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods here leave all access to the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes.
    ///
    /// # Errors
    ///
    /// `InvalidData` if `len` is 0, or the memory is shorter or not sealed; those of `mmap`.
    pub fn new(memory: impl AsFd, len: usize) -> io::Result<Self> {
        if len == 0 || checked_len(&memory)? < len as u64 {
            let text = "the shared memory is shorter than the mapping";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Self::map(memory, 0, len)
    }

    /// Maps the whole memory.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is empty, longer than `most` bytes or not sealed; those of `mmap`.
    pub fn whole(memory: impl AsFd, most: u64) -> io::Result<Self> {
        let len = checked_len(&memory)?;
        match usize::try_from(len) {
            Ok(whole) if 0 < len && len <= most => Self::map(memory, 0, whole),
            _ => {
                let text = format!("the shared memory has {len} bytes, not 1 to {most}");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }

    /// Maps `len` bytes from `offset` on, of memory that another process created, such as a guest's. If the
    /// memory is lost (its file was truncated, or the system cannot supply a page), the mapping has private
    /// zero pages from then on, and [`is_lost`](Self::is_lost) is true. The first call installs a handler for
    /// `SIGBUS`, which passes on every signal that is not of such a mapping.
    ///
    /// If the program has replaced that handler by its own, the loss is not handled: unsealed memory is then
    /// accepted with `may_shrink` only, and every process with the descriptor can end this one.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the range is empty or outside the memory; `ResourceBusy` if the memory is not sealed
    /// against shrinking, the signal is not handled, and `may_shrink` is false; those of `mmap`.
    #[doc(alias = "SIGBUS")]
    pub fn part(memory: impl AsFd, offset: u64, len: usize, may_shrink: bool) -> io::Result<Self> {
        let handled = bus_error::handle();
        if let Err(error) = &handled
            && !may_shrink
        {
            let seals = rustix::fs::fcntl_get_seals(&memory).unwrap_or(SealFlags::empty());
            if !seals.contains(SealFlags::SHRINK) {
                let text = format!("the memory is not sealed against shrinking, and {error}");
                return Err(io::Error::new(error.kind(), text));
            }
        }
        let size = u64::try_from(rustix::fs::fstat(&memory)?.st_size).unwrap_or(0);
        let end = offset.checked_add(len as u64);
        if len == 0 || end.is_none_or(|end| end > size) {
            return Err(invalid(&format!(
                "the range of {len} bytes at {offset} is outside the memory of {size} bytes"
            )));
        }
        let mut mapping = Self::map(memory, offset, len)?;
        if handled.is_ok() {
            let start = mapping.start.as_ptr().expose_provenance();
            mapping.guard = Some(Guard::register(start, mapping.mapped));
        }
        Ok(mapping)
    }

    /// Whether the memory was lost. Only a [`part`](Self::part) can be.
    #[inline]
    pub fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_lost)
    }

    fn map(memory: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        Self::map_for(ProtFlags::READ | ProtFlags::WRITE, memory, offset, len)
    }

    /// Maps `len` bytes, which core dumps leave out. The caller has checked that they exist and are not 0.
    fn map_for(
        protection: ProtFlags,
        memory: impl AsFd,
        offset: u64,
        len: usize,
    ) -> io::Result<Self> {
        // SAFETY: no address is given, so no existing mapping is replaced.
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
        let mapping = Self {
            start,
            len,
            mapped: len
                .checked_next_multiple_of(page_size(&memory))
                .unwrap_or(len),
            guard: None,
        };
        // A core dump of this process is not to have a guest's memory or the data of other programs.
        let advice = Advice::LinuxDontDump;
        // SAFETY: the mapping was just made, and the advice does not change its contents.
        unsafe { rustix::mm::madvise(mapping.start.as_ptr().cast(), len, advice)? };
        Ok(mapping)
    }

    /// Pointer to the first byte, page-aligned; valid for [`Mapping::len`] bytes while the mapping lives.
    #[inline]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a range, to copy to and from. Empty if the range is not in the mapping.
    #[inline]
    pub fn bytes(&self, range: Range<usize>) -> SharedBytes<'_> {
        let within = range.start <= range.end && range.end <= self.len;
        let (offset, len) = match within {
            true => (range.start, range.end - range.start),
            false => (0, 0),
        };
        // SAFETY: the range was checked to lie in the mapping, which outlives the result.
        unsafe { SharedBytes::new(self.start.add(offset), len) }
    }

    /// Writes the bytes of `ranges`, in order, to `fd` with one `writev`. Returns the number of bytes
    /// written.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if a range is not in the mapping; those of `writev`, except `EINTR`.
    pub fn write_to(&self, fd: impl AsFd, ranges: [Range<usize>; 2]) -> io::Result<usize> {
        let slices = self.slices(ranges)?;
        // SAFETY: `slices` lie in the mapping, which outlives the call; the kernel only reads.
        let write = || unsafe { libc::writev(fd.as_fd().as_raw_fd(), slices.as_ptr(), 2) };
        Ok(super::sigpipe::without(|| super::count(write))?)
    }

    /// Reads from `fd` into `ranges`, in order, with one `readv`. Returns the number of bytes read; 0 at
    /// the end.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if a range is not in the mapping; those of `readv`, except `EINTR`.
    pub fn read_from(&self, fd: impl AsFd, ranges: [Range<usize>; 2]) -> io::Result<usize> {
        let slices = self.slices(ranges)?;
        // SAFETY: `slices` lie in the mapping, which outlives the call, and there are no references
        // to its bytes.
        let read = || unsafe { libc::readv(fd.as_fd().as_raw_fd(), slices.as_ptr(), 2) };
        Ok(super::count(read)?)
    }

    /// Gives the pages of a range back to the system, in every mapping of this memory: its bytes are 0
    /// afterwards, and use memory again once they are written. Only whole pages are given back.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is not in the mapping or does not begin at a page; those of `madvise`.
    #[doc(alias = "MADV_REMOVE")]
    pub fn give_back(&self, range: Range<usize>) -> io::Result<()> {
        if range.start > range.end || range.end > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = range.end - range.start;
        // SAFETY: the range was checked to lie in the mapping. There are no references to its bytes,
        // except to atomic words, which other processes may change as well.
        let given = unsafe {
            let start = self.start.as_ptr().add(range.start).cast();
            rustix::mm::madvise(start, len, Advice::LinuxRemove)
        };
        Ok(given?)
    }

    fn slices(&self, ranges: [Range<usize>; 2]) -> io::Result<[libc::iovec; 2]> {
        if ranges
            .iter()
            .any(|range| range.start > range.end || range.end > self.len)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(ranges.map(|range| libc::iovec {
            // SAFETY: the range was checked to lie in the mapping.
            iov_base: unsafe { self.start.as_ptr().add(range.start) }.cast(),
            iov_len: range.end - range.start,
        }))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: this object owns the mapping, and its pointer is not used after it. Fails only for
        // bounds that are not those of a mapping.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

/// The size of the pages that a file is mapped in. Huge pages cannot be unmapped or replaced in part.
fn page_size(memory: impl AsFd) -> usize {
    let page = rustix::param::page_size();
    match rustix::fs::fstatfs(&memory) {
        Ok(system) if system.f_type == libc::HUGETLBFS_MAGIC => {
            usize::try_from(system.f_bsize).map_or(page, |huge| huge.max(page))
        }
        _ => page,
    }
}

/// A mapping of memory that [`create_read_only`] made, in a process that can only read it. Another process
/// may change it at any time.
#[derive(Debug)]
pub struct ReadOnlyMapping(Mapping);

impl ReadOnlyMapping {
    /// Maps the first `len` bytes.
    ///
    /// # Errors
    ///
    /// `InvalidData` if `len` is 0, or the memory is shorter, not sealed against a change of size, or not
    /// sealed against new writers; those of `mmap`.
    pub fn new(memory: impl AsFd, len: usize) -> io::Result<Self> {
        let otherwise = "the shared memory is not sealed against writing";
        let found = len_with_seals(&memory, SEALS | SealFlags::FUTURE_WRITE, otherwise)?;
        if len == 0 || found < len as u64 {
            return Err(invalid("the shared memory is shorter than the mapping"));
        }
        Mapping::map_for(ProtFlags::READ, memory, 0, len).map(Self)
    }

    /// Pointer to the first byte, page-aligned; valid for reads of [`ReadOnlyMapping::len`] bytes while the
    /// mapping lives.
    #[inline]
    pub fn start(&self) -> NonNull<u8> {
        self.0.start
    }

    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;

    fn read(mapping: &ReadOnlyMapping, at: usize) -> u8 {
        assert!(at < mapping.len());
        // SAFETY: the byte is in the mapping, which nothing writes during the call.
        unsafe { mapping.start().add(at).read_volatile() }
    }

    #[test]
    fn memory_for_one_writer_can_be_read_and_not_written_by_other_holders() {
        let (memory, writer) = create_read_only(4096).unwrap();
        let reader = ReadOnlyMapping::new(&memory, 4096).unwrap();
        writer.bytes(0..4096).put(10, b"x");
        assert_eq!((read(&reader, 10), read(&reader, 11)), (b'x', 0));
        // A mapping for writing, a write and a change of size all fail.
        let denied = Mapping::new(&memory, 4096).unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(rustix::io::pwrite(&memory, b"y", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&memory, 0), Err(Errno::PERM));
        assert_eq!(read(&reader, 0), 0);
        assert!(create_read_only(0).is_err());
    }

    #[test]
    fn memory_that_others_may_write_is_no_read_only_memory() {
        for (memory, len) in [
            (create(4096).unwrap(), 4096),
            (create_read_only(4096).unwrap().0, 4097),
            (create_read_only(4096).unwrap().0, 0),
        ] {
            let error = ReadOnlyMapping::new(&memory, len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn allocated_pages_are_zero_and_use_memory_before_they_are_accessed() {
        let memory = create(4 * 4096).unwrap();
        let blocks = || rustix::fs::fstat(&memory).unwrap().st_blocks;
        assert_eq!(blocks(), 0);
        allocate(&memory, 4096).unwrap();
        assert_eq!(blocks(), 8);
        let mut bytes = [1; 4096];
        let mapping = Mapping::new(&memory, 4096).unwrap();
        mapping.bytes(0..4096).get(0, &mut bytes);
        assert_eq!((bytes, blocks()), ([0; 4096], 8));
    }

    #[test]
    fn pages_that_were_given_back_are_zero_and_use_no_memory() {
        let memory = create(8 * 4096).unwrap();
        let [a, b] = [(); 2].map(|()| Mapping::new(&memory, 8 * 4096).unwrap());
        let blocks = || rustix::fs::fstat(&memory).unwrap().st_blocks;
        a.bytes(0..8 * 4096).put(0, &[7; 8 * 4096]);
        let full = blocks();
        a.give_back(4096..7 * 4096).unwrap();
        assert_eq!(blocks(), full / 4);
        for (at, expected) in [(4095, 7), (4096, 0), (7 * 4096 - 1, 0), (7 * 4096, 7)] {
            let mut byte = [1];
            b.bytes(at..at + 1).get(0, &mut byte);
            assert_eq!(byte, [expected], "{at}");
        }
        b.bytes(4096..8192).put(0, b"again");
        let mut again = [0; 5];
        a.bytes(4096..8192).get(0, &mut again);
        assert_eq!(&again, b"again");
        assert!(a.give_back(0..8 * 4096 + 1).is_err());
        assert!(a.give_back(1..4096).is_err());
    }

    #[test]
    fn created_memory_is_sealed_and_passes_the_check() {
        let memory = create(8192).unwrap();
        assert_eq!(checked_len(&memory).unwrap(), 8192);
        for size in [0, 4096, 16384] {
            assert_eq!(rustix::fs::ftruncate(&memory, size), Err(Errno::PERM));
        }
        let flags = rustix::io::fcntl_getfd(&memory).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn memory_that_can_shrink_is_rejected() {
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
    fn core_dumps_leave_every_mapping_out() {
        let memory = create(3 * 4096).unwrap();
        let mappings = [
            Mapping::new(&memory, 4096).unwrap(),
            Mapping::whole(&memory, 1 << 20).unwrap(),
            Mapping::part(&memory, 4096, 8192, false).unwrap(),
        ];
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for mapping in mappings {
            let start = format!("{:x}-", mapping.start().as_ptr().addr());
            let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
            let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
            let flags = flags.unwrap_or_else(|| panic!("{start} is not listed: {maps}"));
            assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
        }
    }

    #[test]
    fn two_mappings_share_memory_that_system_calls_read_and_write() {
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
