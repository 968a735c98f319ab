//! An inter-process lock that only root and the file's owner can take.
//!
//! It is the advisory lock of [`std::fs::File`] on a permanent file. The kernel releases it when the
//! holder exits or crashes, and says who the holder is. The file contains a
//! [generation](Lock::generation) that a holder increments before it changes the guarded data. The next
//! holder compares it to decide whether to rescan.
//!
//! Whoever can open a file, even for reading, can lock it for ever. So the file has mode 0600. One with
//! another mode is replaced, unless a trusted process holds its lock: other users may have opened it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_sys::locks::{self, Holder};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use crate::folder::Folder;

/// The size of the file in bytes. Writes always have this size, so that a full disk does not affect an
/// existing file.
const LEN: usize = 128;

/// The mode of the file.
const MODE: u32 = 0o600;

/// The most attempts to open a file that other processes replace at the same time.
const ATTEMPTS: usize = 8;

/// How long to wait for another process that replaces the file.
const REPLACE_WAIT: Duration = Duration::from_secs(1);

/// An open lock file, not locked.
#[doc(alias = "flock")]
#[derive(Debug)]
pub struct LockFile {
    place: Place,
    file: Arc<OpenFile>,
}

/// Where a lock file is.
#[derive(Debug)]
struct Place {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
}

/// The held lock. Dropping it releases the lock.
#[derive(Debug)]
pub struct Lock {
    file: Arc<OpenFile>,
    generation: u64,
}

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{} is locked by {}{}; try again later",
        path.display(),
        named(holder.as_ref()),
        waited(*wait)
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// The holder, if the kernel names it.
        holder: Option<Holder>,
        /// How long this call waited.
        wait: Duration,
    },
    /// The file cannot be used.
    #[error("cannot lock {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

fn named(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), Holder::to_string)
}

fn waited(wait: Duration) -> String {
    if wait.is_zero() {
        return String::new();
    }
    format!(", for more than {} ms", wait.as_millis())
}

impl LockFile {
    /// Opens the file. Creates it if it is missing, and replaces it if others could open it.
    ///
    /// # Errors
    /// [`LockError::Io`] if it cannot be opened, created or replaced.
    pub fn open(folder: &Folder, name: &OsStr) -> Result<Self, LockError> {
        let path = folder.path().join(name);
        let own = folder.as_fd().try_clone_to_owned();
        let place = Place {
            folder: own.map_err(|error| LockError::Io {
                path: path.clone(),
                error,
            })?,
            name: name.to_owned(),
            path,
        };
        let file = place.open_private()?;
        Ok(Self { place, file })
    }

    /// Acquires the lock. Waits for another holder at most `wait`, polling with backoff.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process holds it for too long; [`LockError::Io`] if locking fails.
    pub fn lock(&self, wait: Duration) -> Result<Lock, LockError> {
        let deadline = Instant::now() + wait;
        let mut file = Arc::clone(&self.file);
        for _ in 0..ATTEMPTS {
            file.acquire(deadline, wait)?;
            // Another process may have replaced the file since it was opened here.
            if self.place.is_at(&file) {
                let generation = file.generation();
                file.allocate(generation);
                return Ok(Lock { file, generation });
            }
            file = self.place.open_private()?;
        }
        Err(self.place.replaced_too_often())
    }
}

impl Place {
    /// Opens the file, which then only root and its owner can open.
    fn open_private(&self) -> Result<Arc<OpenFile>, LockError> {
        for _ in 0..ATTEMPTS {
            let file = self.open().map_err(|error| self.failed(error))?;
            let stat = rustix::fs::fstat(&file.file).map_err(|errno| self.failed(errno.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                let error = io::Error::other("it is not a regular file");
                return Err(self.failed(error));
            }
            if is_private(&stat) {
                return Ok(Arc::new(file));
            }
            if self.is_held_by_trusted(&file) {
                return Ok(Arc::new(file));
            }
            self.replace(&file)?;
        }
        Err(self.replaced_too_often())
    }

    fn open(&self) -> io::Result<OpenFile> {
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(MODE);
        let file = rustix::fs::openat(&self.folder, &self.name, flags, mode)?;
        // A umask may have removed the owner's own permissions from a new file.
        let stat = rustix::fs::fstat(&file)?;
        if stat.st_mode & 0o777 != MODE && is_private(&stat) {
            let _ = rustix::fs::fchmod(&file, mode);
        }
        Ok(OpenFile {
            file: File::from(file),
            path: self.path.clone(),
        })
    }

    /// Whether a process of root or of this process's user holds the lock, or one that nobody names.
    fn is_held_by_trusted(&self, file: &OpenFile) -> bool {
        match file.file.try_lock() {
            Ok(()) => {
                let _ = file.file.unlock();
                false
            }
            Err(_) => match locks::flock_holder(&file.file) {
                Some(holder) => holder
                    .users
                    .is_some_and(|users| users.map(is_trusted) == [true; 2]),
                None => true,
            },
        }
    }

    /// Puts a new file in the place of `old`, if that is still there.
    fn replace(&self, old: &OpenFile) -> Result<(), LockError> {
        // Of several processes that replace the file, one at a time looks at it.
        let mut guard = self.name.clone();
        guard.push(".replace");
        let guard = Self {
            folder: self
                .folder
                .try_clone()
                .map_err(|error| self.failed(error))?,
            path: self.path.with_file_name(&guard),
            name: guard,
        };
        let guard = guard.open().map_err(|error| self.failed(error))?;
        guard.acquire(Instant::now() + REPLACE_WAIT, REPLACE_WAIT)?;
        if !self.is_at(old) {
            return Ok(());
        }
        // The generation must not decrease. Other users could only read it.
        let text = text(old.generation());
        let mut temporary = self.name.clone();
        temporary.push(".new");
        let replaced = (|| {
            let _ = rustix::fs::unlinkat(&self.folder, &temporary, AtFlags::empty());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(MODE);
            let new = rustix::fs::openat(&self.folder, &temporary, flags, mode)?;
            rustix::fs::fchmod(&new, mode)?;
            File::from(new).write_all_at(&text, 0)?;
            rustix::fs::renameat(&self.folder, &temporary, &self.folder, &self.name)?;
            Ok(())
        })();
        replaced.map_err(|error: io::Error| self.failed(error))
    }

    /// Whether `file` is the one at this place.
    fn is_at(&self, file: &OpenFile) -> bool {
        let there = rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let here = rustix::fs::fstat(&file.file);
        matches!((here, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    fn failed(&self, error: io::Error) -> LockError {
        let path = self.path.clone();
        LockError::Io { path, error }
    }

    fn replaced_too_often(&self) -> LockError {
        self.failed(io::Error::other(
            "other processes replace it again and again",
        ))
    }
}

/// Whether nobody but root and the file's owner, who is trusted, can open it.
fn is_private(stat: &Stat) -> bool {
    stat.st_mode & 0o077 == 0 && is_trusted(stat.st_uid)
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

fn text(generation: u64) -> Vec<u8> {
    let mut text = generation.to_string().into_bytes();
    text.resize(LEN - 1, b' ');
    text.push(b'\n');
    text
}

impl OpenFile {
    /// Takes the lock, or fails at the deadline.
    fn acquire(&self, deadline: Instant, wait: Duration) -> Result<(), LockError> {
        let mut backoff = Duration::from_micros(200);
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        let path = self.path.clone();
                        let holder = locks::flock_holder(&self.file);
                        return Err(LockError::Held { path, holder, wait });
                    }
                    std::thread::sleep(backoff.min(left));
                    backoff = (backoff * 2).min(Duration::from_millis(10));
                }
                Err(TryLockError::Error(error)) => {
                    let path = self.path.clone();
                    return Err(LockError::Io { path, error });
                }
            }
        }
    }

    /// Gives a new file its size, so that later writes need no space on the disk.
    fn allocate(&self, generation: u64) {
        let len = self.file.metadata().map_or(0, |meta| meta.len());
        if len < LEN as u64 {
            // Ignore a failure: it only matters to a write on a full disk.
            let _ = self.file.write_all_at(&text(generation), 0);
        }
    }

    /// The generation, 0 in a new file.
    fn generation(&self) -> u64 {
        let mut bytes = [0; LEN];
        let len = self.file.read_at(&mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..len]);
        let first = text.lines().next();
        first.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
    }
}

impl Lock {
    /// The number of changes to the guarded data so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Increments the generation. Call this before changing the guarded data.
    ///
    /// # Errors
    /// [`LockError::Io`] if the file cannot be written.
    pub fn bump_generation(&mut self) -> Result<u64, LockError> {
        self.generation += 1;
        let written = self.file.file.write_all_at(&text(self.generation), 0);
        written.map_err(|error| LockError::Io {
            path: self.file.path.clone(),
            error,
        })?;
        Ok(self.generation)
    }
}

impl Lock {
    /// The descriptor of the lock. Another process that receives a duplicate holds the lock as well, until both have
    /// closed theirs, or one has released the lock.
    ///
    /// # Errors
    /// Those of duplicating it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.file.as_fd().try_clone_to_owned()
    }

    /// Keeps the lock for those who have a duplicate: this process does not release it.
    pub fn leave(self) {
        // Closing the file releases the lock only if nobody else has it open.
        std::mem::forget(self);
    }
}

impl LockFile {
    /// The lock of which another process has passed its [duplicate](Lock::duplicate).
    ///
    /// # Errors
    /// [`LockError::Io`] if it is not that of this file; [`LockError::Held`] if it is not locked by it.
    pub fn adopt(&self, duplicate: OwnedFd) -> Result<Lock, LockError> {
        let path = self.place.path.clone();
        let file = File::from(duplicate);
        let file = Arc::new(OpenFile { file, path });
        if !self.place.is_at(&file) {
            let error = io::Error::other("the descriptor is that of another file");
            return Err(self.place.failed(error));
        }
        // It has the lock already, or nobody has.
        file.acquire(Instant::now(), Duration::ZERO)?;
        let generation = file.generation();
        Ok(Lock { file, generation })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Ignore a failure: closing the file releases the lock too.
        let _ = self.file.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn in_folder() -> (tempfile::TempDir, Folder, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let path = dir.path().join("lock");
        (dir, folder, path)
    }

    fn open(folder: &Folder) -> LockFile {
        LockFile::open(folder, OsStr::new("lock")).unwrap()
    }

    fn mode(path: &PathBuf) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn widen(path: &PathBuf, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_waiter_times_out_with_the_holders_process_and_gets_the_lock_later() {
        let (_dir, folder, _) = in_folder();
        let (first, second) = (open(&folder), open(&folder));
        let mut held = first.lock(Duration::ZERO).unwrap();
        assert_eq!(held.bump_generation().unwrap(), 1);
        let before = Instant::now();
        let error = second.lock(Duration::from_millis(30)).unwrap_err();
        assert!(before.elapsed() >= Duration::from_millis(30));
        let me = format!("is locked by process {} (", std::process::id());
        assert!(error.to_string().contains(&me), "{error}");
        drop(held);
        assert_eq!(second.lock(Duration::ZERO).unwrap().generation(), 1);
    }

    #[test]
    fn a_file_that_others_could_open_is_replaced_and_keeps_its_generation() {
        let (_dir, folder, path) = in_folder();
        let mut lock = open(&folder).lock(Duration::ZERO).unwrap();
        lock.bump_generation().unwrap();
        drop(lock);
        for wide in [0o644, 0o640, 0o604, 0o666, 0o610] {
            widen(&path, wide);
            // Another user has opened it, and locks it whenever it is free.
            let others = File::open(&path).unwrap();
            let lock = open(&folder);
            assert_eq!(mode(&path), 0o600);
            others.lock().unwrap();
            assert_eq!(lock.lock(Duration::ZERO).unwrap().generation(), 1);
        }
    }

    #[test]
    fn a_file_is_not_replaced_while_a_trusted_process_holds_its_lock() {
        let (_dir, folder, path) = in_folder();
        let held = open(&folder).lock(Duration::ZERO).unwrap();
        widen(&path, 0o644);
        let second = open(&folder);
        let error = second.lock(Duration::ZERO).unwrap_err();
        assert!(
            matches!(
                error,
                LockError::Held {
                    holder: Some(_),
                    ..
                }
            ),
            "{error}"
        );
        drop(held);
        drop(second.lock(Duration::ZERO).unwrap());
        open(&folder);
        assert_eq!(mode(&path), 0o600);
        // The one that was opened before follows to the new file.
        let held = second.lock(Duration::ZERO).unwrap();
        assert!(open(&folder).lock(Duration::ZERO).is_err());
        drop(held);
    }

    #[test]
    fn a_deleted_file_is_created_again_by_the_next_lock() {
        let (_dir, folder, path) = in_folder();
        let (first, second) = (open(&folder), open(&folder));
        fs::remove_file(&path).unwrap();
        let _held = first.lock(Duration::ZERO).unwrap();
        assert!(second.lock(Duration::ZERO).is_err());
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_link_or_a_pipe_is_no_lock() {
        let (dir, folder, path) = in_folder();
        let elsewhere = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        LockFile::open(&folder, OsStr::new("lock")).unwrap_err();
        assert!(!elsewhere.exists());
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        LockFile::open(&folder, OsStr::new("lock")).unwrap_err();
    }
}
