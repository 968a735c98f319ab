//! An inter-process lock that records its holder.
//!
//! It is the advisory lock of [`std::fs::File`] on a permanent file. The kernel releases it when the holder exits
//! or crashes. The file contains the holder's process, and a [generation](Lock::generation) that a
//! holder increments before it changes the guarded data. The next holder compares it to decide whether
//! to rescan.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::folder::Folder;

/// The size of the file in bytes. Writes always have this size, so that a full disk does not affect an
/// existing file.
const LEN: usize = 128;

/// An open lock file, not locked.
#[doc(alias = "flock")]
#[derive(Debug)]
pub struct LockFile {
    file: Arc<OpenFile>,
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
        "{} is locked by {holder}{}; try again later",
        path.display(),
        waited(*wait)
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// The holder: process id and program.
        holder: String,
        /// How long this call waited.
        wait: Duration,
    },
    /// The file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn waited(wait: Duration) -> String {
    if wait.is_zero() {
        return String::new();
    }
    format!(", for more than {} ms", wait.as_millis())
}

impl LockFile {
    /// Opens the file. Creates it if it is missing.
    ///
    /// # Errors
    /// [`LockError::Io`] if it cannot be opened or created.
    pub fn open(folder: &Folder, name: &OsStr) -> Result<Self, LockError> {
        let path = folder.path().join(name);
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        // Mode 0600: any user who can open the file, even for reading, could lock it for ever.
        match rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => {
                let file = File::from(fd);
                Ok(Self {
                    file: Arc::new(OpenFile { file, path }),
                })
            }
            Err(errno) => {
                let source = errno.into();
                Err(LockError::Io { path, source })
            }
        }
    }

    /// Acquires the lock. Waits for another holder at most `wait`, polling with backoff.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process holds it for too long; [`LockError::Io`] if locking fails.
    pub fn lock(&self, wait: Duration) -> Result<Lock, LockError> {
        let deadline = Instant::now() + wait;
        let mut backoff = Duration::from_micros(200);
        loop {
            match self.file.file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        let path = self.file.path.clone();
                        let (_, holder) = self.file.read();
                        return Err(LockError::Held { path, holder, wait });
                    }
                    std::thread::sleep(backoff.min(left));
                    backoff = (backoff * 2).min(Duration::from_millis(10));
                }
                Err(TryLockError::Error(error)) => return Err(self.file.failed(error)),
            }
        }
        let (generation, _) = self.file.read();
        let lock = Lock {
            file: Arc::clone(&self.file),
            generation,
        };
        // Ignore a failure: it only affects the error messages of waiters.
        let _ = lock.write();
        Ok(lock)
    }
}

impl OpenFile {
    /// The generation and the last holder.
    fn read(&self) -> (u64, String) {
        let mut bytes = [0; LEN];
        let len = self.file.read_at(&mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..len]);
        let mut lines = text.lines();
        let generation = lines.next().and_then(|line| line.trim().parse().ok());
        let holder = lines.next().unwrap_or_default().trim();
        let holder = match holder {
            "" => "another process".to_owned(),
            known => known.chars().filter(|c| !c.is_control()).collect(),
        };
        (generation.unwrap_or(0), holder)
    }

    fn failed(&self, source: io::Error) -> LockError {
        let path = self.path.clone();
        LockError::Io { path, source }
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
        self.write().map_err(|error| self.file.failed(error))?;
        Ok(self.generation)
    }

    fn write(&self) -> io::Result<()> {
        let pid = std::process::id();
        let program = std::env::current_exe().ok();
        let program = program
            .as_deref()
            .and_then(|path| path.file_name())
            .map_or("?".into(), OsStr::to_string_lossy);
        let program: String = program.chars().take(40).collect();
        let mut text = format!("{}\nprocess {pid} ({program})", self.generation).into_bytes();
        text.resize(LEN - 1, b' ');
        text.push(b'\n');
        self.file.file.write_all_at(&text, 0)
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
    use super::*;

    #[test]
    fn a_waiter_times_out_with_the_holders_process_and_gets_the_lock_later() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let name = OsStr::new("lock");
        let (first, second) = (
            LockFile::open(&folder, name).unwrap(),
            LockFile::open(&folder, name).unwrap(),
        );
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
}
