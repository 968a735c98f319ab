//! Writing over the content of an existing file, where no other file can take its place: it is a mount
//! point, as `/etc/hosts` is in containers, it has several names, its folder or owner forbids it, or there
//! is no space for two.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{self, SeekFrom, Stat};
use rustix::io::{Errno, pread, pwrite};

use super::super::BUFFER;
use super::disk::{Disk, write_all};

/// How much content is held in memory until all of it is there, in bytes. A file of at most this size is
/// either overwritten as a whole or not touched.
const HOLD: usize = 1 << 20;

/// Content for an existing file that cannot be staged beside it.
#[derive(Debug)]
pub(super) struct InPlace {
    file: OwnedFd,
    held: Vec<u8>,
    /// Whether the old content is gone.
    begun: bool,
    failure: OnceLock<io::Error>,
    buffer: Vec<u8>,
}

impl InPlace {
    /// `file` is open for writing.
    pub(super) fn new(file: OwnedFd) -> Self {
        Self {
            file,
            held: Vec::new(),
            begun: false,
            failure: OnceLock::new(),
            buffer: Vec::new(),
        }
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Whether the file has lost its old content, and is incomplete unless it was completed.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// The file is complete.
    pub(super) fn finish(&mut self) {
        self.begun = false;
    }

    /// The first error.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Completes the file, whose content has this size.
    pub(super) fn complete(&mut self, size: u64) -> io::Result<()> {
        self.begin();
        match self.failure.take() {
            Some(error) => Err(error),
            None => set_size(&self.file, size),
        }
    }

    /// Writes all bytes, unless there was an error before. A setting of the kernel may have no offsets and
    /// takes its content at once.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() || self.failure.get().is_some() {
            return;
        }
        let written = match pwrite(&self.file, bytes, offset) {
            Err(Errno::SPIPE) => rustix::io::write(&self.file, bytes),
            written => written,
        };
        match written {
            Ok(count) => write_all(
                &self.file,
                offset + count as u64,
                &bytes[count..],
                &self.failure,
            ),
            Err(Errno::INTR) => write_all(&self.file, offset, bytes, &self.failure),
            Err(error) => {
                let _ = self.failure.set(error.into());
            }
        }
    }

    /// Removes the old content, and writes what was held.
    fn begin(&mut self) {
        if mem::replace(&mut self.begun, true) {
            return;
        }
        match set_size(&self.file, 0) {
            Ok(()) => {
                let held = mem::take(&mut self.held);
                self.write_at(0, &held);
            }
            Err(error) => {
                // Nothing was changed.
                self.begun = false;
                let _ = self.failure.set(error);
            }
        }
        self.held = Vec::new();
    }
}

impl Disk for InPlace {
    fn take_buffer(&mut self) -> Vec<u8> {
        let mut buffer = mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        buffer
    }

    fn write(&mut self, offset: u64, buffer: Vec<u8>, length: usize) {
        let end = offset.saturating_add(length as u64);
        if !self.begun && end <= HOLD as u64 {
            self.held.resize(offset as usize, 0);
            self.held.extend(&buffer[..length]);
        } else {
            self.begin();
            self.write_at(offset, &buffer[..length]);
        }
        self.buffer = buffer;
    }

    fn error(&self) -> Option<&io::Error> {
        self.failure.get()
    }
}

/// Sets the size of a file. A file that has no blocks, such as a setting in `/sys`, may have none to set.
fn set_size(file: &OwnedFd, size: u64) -> io::Result<()> {
    match fs::ftruncate(file, size) {
        Ok(()) => Ok(()),
        Err(error) => match fs::fstat(file) {
            Ok(stat) if stat.st_blocks == 0 => Ok(()),
            _ => Err(error.into()),
        },
    }
}

/// Whether the old content must go before new content of `size` bytes has space, and would make enough.
pub(super) fn needs_space_of(folder: &OwnedFd, old: &Stat, size: u64) -> bool {
    let Ok(free) = free_space(folder) else {
        return false;
    };
    free < size && free.saturating_add(allocated(old)) >= size
}

/// The space that is left to this user on a filesystem, in bytes.
fn free_space(file: &OwnedFd) -> rustix::io::Result<u64> {
    let filesystem = fs::fstatvfs(file)?;
    Ok(filesystem.f_bavail.saturating_mul(filesystem.f_frsize))
}

/// The space that a file takes, in bytes.
#[allow(
    clippy::unnecessary_cast,
    reason = "the types differ between architectures"
)]
fn allocated(stat: &Stat) -> u64 {
    (stat.st_blocks as u64).saturating_mul(512)
}

/// Why the content of a file was not overwritten as a whole.
#[derive(Debug)]
pub(super) enum NotWritten {
    /// The file has its old content.
    Untouched(io::Error),
    /// The file has lost its old content, and has not all of the new.
    Incomplete(io::Error),
}

/// Overwrites the content of `to` by that of `from`, with its holes. Calls `working` repeatedly; its
/// error ends that.
pub(super) fn overwrite<E>(
    from: &OwnedFd,
    to: &OwnedFd,
    mut working: impl FnMut() -> Result<(), E>,
) -> Result<Result<(), NotWritten>, E> {
    let size = match prepare(from, to) {
        Ok(size) => size,
        Err(error) => return Ok(Err(NotWritten::Untouched(error))),
    };
    let mut position = 0;
    let mut buffer = vec![0; BUFFER];
    while position < size {
        working()?;
        match copy_some(from, to, position, size, &mut buffer) {
            Ok(next) => position = next,
            Err(error) => return Ok(Err(NotWritten::Incomplete(error))),
        }
    }
    Ok(set_size(to, size).map_err(NotWritten::Incomplete))
}

/// Removes the old content if there is space for the new. Returns the size of the new.
fn prepare(from: &OwnedFd, to: &OwnedFd) -> io::Result<u64> {
    let (new, old) = (fs::fstat(from)?, fs::fstat(to)?);
    let free = free_space(to).unwrap_or(u64::MAX);
    if free.saturating_add(allocated(&old)) < allocated(&new) {
        let why = "there is no space for its new content";
        return Err(io::Error::new(io::ErrorKind::StorageFull, why));
    }
    set_size(to, 0)?;
    Ok(new.st_size as u64)
}

/// Copies data at or after `position`. Returns where it ends.
fn copy_some(
    from: &OwnedFd,
    to: &OwnedFd,
    position: u64,
    size: u64,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let start = match fs::seek(from, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(size),
        // The filesystem does not report holes.
        Err(Errno::INVAL) => position,
        Err(error) => return Err(error.into()),
    };
    let end = fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size);
    let wanted = end.saturating_sub(start).min(buffer.len() as u64) as usize;
    let count = match pread(from, &mut buffer[..wanted], start) {
        // The file is this process's own, so it has not become shorter.
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => count,
        Err(Errno::INTR) => 0,
        Err(error) => return Err(error.into()),
    };
    let failure = OnceLock::new();
    write_all(to, start, &buffer[..count], &failure);
    match failure.into_inner() {
        None => Ok(start + count as u64),
        Some(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    fn file() -> std::fs::File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn the_content_is_overwritten_with_its_holes() {
        let (from, to) = (file(), file());
        from.write_all_at(&[7; 5000], 3 << 20).unwrap();
        from.set_len(9 << 20).unwrap();
        to.write_all_at(&[9; 70_000], 0).unwrap();
        to.set_len(20 << 20).unwrap();
        let (from, to): (OwnedFd, OwnedFd) = (from.into(), to.into());
        let mut calls = 0;
        let done = overwrite(&from, &to, || {
            calls += 1;
            Ok::<_, Infallible>(())
        });
        done.unwrap().unwrap();
        assert!(calls > 0);
        let to = std::fs::File::from(to);
        let mut content = vec![1; 9 << 20];
        to.read_exact_at(&mut content, 0).unwrap();
        assert!(content[..3 << 20].iter().all(|byte| *byte == 0));
        assert!(content[3 << 20..][..5000].iter().all(|byte| *byte == 7));
        assert!(content[(3 << 20) + 5000..].iter().all(|byte| *byte == 0));
        let stat = to.metadata().unwrap();
        assert_eq!(stat.len(), 9 << 20);
        assert!(stat.blocks() < 100, "{} blocks", stat.blocks());
    }

    #[test]
    fn a_small_file_is_not_touched_before_its_content_is_complete() {
        let target = file();
        target.write_all_at(b"old content", 0).unwrap();
        let mut disk = InPlace::new(target.try_clone().unwrap().into());
        let mut buffer = disk.take_buffer();
        buffer[..3].copy_from_slice(b"new");
        disk.write(2, buffer, 3);
        assert!(!disk.has_begun());
        assert_eq!(target.metadata().unwrap().len(), 11);
        disk.complete(6).unwrap();
        let mut content = [9; 6];
        target.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(
            (&content, target.metadata().unwrap().len()),
            (b"\0\0new\0", 6)
        );
    }

    #[test]
    fn a_large_file_is_written_as_it_arrives_and_counts_as_begun() {
        let target = file();
        target.write_all_at(b"old content", 0).unwrap();
        let mut disk = InPlace::new(target.try_clone().unwrap().into());
        let step = BUFFER as u64;
        let steps = HOLD as u64 / step + 1;
        for number in 0..steps {
            let mut buffer = disk.take_buffer();
            buffer.fill(number as u8 + 1);
            assert!(!disk.has_begun());
            disk.write(number * step, buffer, BUFFER);
        }
        assert!(disk.has_begun());
        disk.complete(steps * step).unwrap();
        let mut content = vec![0; (steps * step) as usize];
        target.read_exact_at(&mut content, 0).unwrap();
        assert!((0..content.len()).all(|at| content[at] == (at / BUFFER) as u8 + 1));
    }
}
