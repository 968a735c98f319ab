//! A value in memory that can be passed to another process, and that nobody can change any more: a memfd
//! with all its seals.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE)
    .union(SealFlags::SEAL);

/// A sealed value, to read.
#[derive(Debug)]
pub struct Sealed {
    file: File,
    len: u64,
}

/// Creates a sealed value of `parts`, one after the other.
///
/// # Errors
///
/// Those of `memfd_create`, `write` and `fcntl`; `StorageFull` or `OutOfMemory` if the system has no memory for it.
pub fn create(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not have MFD_NOEXEC_SEAL.
    let memory = match rustix::fs::memfd_create("hvsock-value", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("hvsock-value", flags)?,
        result => result?,
    };
    let mut file = File::from(memory);
    for part in parts {
        file.write_all(part)?;
    }
    rustix::fs::fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

impl Sealed {
    /// Opens a value that another process has passed.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is no memfd, could still be changed, or is longer than `most` bytes.
    pub fn open(memory: OwnedFd, most: u64) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let seals = rustix::fs::fcntl_get_seals(&memory)
            .map_err(|_| invalid("the descriptor is not a memfd".into()))?;
        if !seals.contains(SEALS) {
            return Err(invalid("the memory is not sealed against a change".into()));
        }
        let len = rustix::fs::fstat(&memory)?.st_size;
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        if len > most {
            return Err(invalid(format!(
                "the memory has {len} bytes, not at most {most}"
            )));
        }
        let file = File::from(memory);
        Ok(Self { file, len })
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty one is as any other")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The `len` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the value does not have that many; nothing is allocated then. Those of `pread`.
    pub fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        let (Some(_), Ok(len)) = (end, usize::try_from(len)) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_can_be_read_and_not_changed() {
        let memory = create(&[b"one", b"", b"two"]).unwrap();
        assert_eq!(rustix::io::pwrite(&memory, b"y", 0), Err(Errno::PERM));
        for size in [0, 7] {
            assert_eq!(rustix::fs::ftruncate(&memory, size), Err(Errno::PERM));
        }
        let value = Sealed::open(memory, 6).unwrap();
        assert_eq!(value.len(), 6);
        assert_eq!(value.read(0, 6).unwrap(), b"onetwo");
        assert_eq!(value.read(2, 2).unwrap(), b"et");
        assert!(value.read(6, 0).unwrap().is_empty());
        for (offset, len) in [(0, 7), (6, 1), (u64::MAX, 1), (1, u64::MAX), (7, 0)] {
            let error = value.read(offset, len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {len}");
        }
    }

    #[test]
    fn a_value_that_could_change_or_is_too_long_is_rejected() {
        let open = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::fcntl_add_seals(&open, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let (socket, _other) = crate::stream::pair().unwrap();
        let shared = crate::shared_memory::create(10).unwrap();
        let long = create(&[b"1234567"]).unwrap();
        for memory in [open, socket, shared, long] {
            let error = Sealed::open(memory, 6).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
