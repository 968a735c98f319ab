//! A directory of TOML files, one entry each: loading, watching, and crash-safe changes.
//!
//! An [`EntryKind`] says what the entries are. [`FolderStore`](crate::store::FolderStore) is built on
//! it, and a broker's folder of partitions.
//!
//! 1. [`EntryFolder::open`] reads everything and reports problems.
//! 2. [`watch`](fn@watch) calls back after a change, and [`EntryFolder::reload`] reads what changed.
//! 3. [`insert`](EntryFolder::insert), [`change`](EntryFolder::change) and
//!    [`remove`](EntryFolder::remove) write.
//! 4. [`take_changes`](EntryFolder::take_changes) returns the changes that 2 and 3 found or made, in
//!    order.
//!
//! Invariants:
//! - A file with a problem has no effect: its last good content stays in force while this process runs.
//!   At startup the file is skipped. A problem is reported once, and again when it is solved.
//! - [Claims](EntryKind::claims), such as names, are unique. At startup the first file (by file name)
//!   with a claim gets it; later, the file that has it keeps it. The other file is reported with both,
//!   and is loaded when the claim becomes free.
//! - A lock serializes concurrent writers, and each one reads the other's changes before it writes.
//! - If the directory disappears, the last good state stays in force until there is a new one.

mod edit;
mod kind;
mod state;
mod watch;
mod write;

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(test)]
pub(crate) use self::edit::edit;
use self::kind::file_name;
pub use self::kind::{EntryChange, EntryKind, EntryOptions};
use self::state::{GONE, State};
pub use self::watch::{Changed, FolderWatch, WatchHealth, watch};
pub use self::write::EntryError;
use crate::atomic_file;
use crate::folder::{Folder, FolderError, Stamp};
use crate::lock::{Lock, LockError, LockFile};
use crate::store::Problem;

const LOCK: &str = ".lock";

/// The entries of a directory, as last read.
pub struct EntryFolder<K: EntryKind> {
    folder: OpenFolder,
    state: State<K>,
    lock_wait: Duration,
    /// The lock's generation when `state` was read; `None` if the lock was not available.
    generation: Option<u64>,
    /// The directory's state when `state` was read.
    folder_stamp: Option<Stamp>,
}

/// The open directory with its lock. Reopened when its path refers to another one.
#[derive(Debug)]
struct OpenFolder {
    files: Folder,
    /// `None` on a read-only file system, which can still be read.
    lock: Option<LockFile>,
}

impl OpenFolder {
    fn open(path: &Path, create: bool) -> Result<Self, FolderError> {
        let files = match create {
            true => Folder::open_or_create(path)?,
            false => Folder::open(path)?,
        };
        let lock = LockFile::open(&files, OsStr::new(LOCK)).ok();
        Ok(Self { files, lock })
    }

    fn lock(&mut self, wait: Duration) -> Result<Lock, LockError> {
        let file = match self.lock.take() {
            Some(file) => file,
            None => LockFile::open(&self.files, OsStr::new(LOCK))?,
        };
        self.lock.insert(file).lock(wait)
    }
}

impl<K: EntryKind> EntryFolder<K> {
    /// Opens and reads a directory. Creates it if it is missing. Returns the number of temporary files
    /// of crashed writers, which it removed. The entries are no changes.
    ///
    /// # Errors
    /// [`FolderError`] if the directory cannot be opened or created, or may be written by other users.
    pub fn open(
        path: &Path,
        options: EntryOptions<K::Entry>,
    ) -> Result<(Self, usize), FolderError> {
        let mut folder = OpenFolder::open(path, true)?;
        let (mut generation, mut cleaned) = (None, 0);
        // If another process holds the lock, it is writing and cleans up itself.
        if let Ok(lock) = folder.lock(Duration::ZERO) {
            generation = Some(lock.generation());
            cleaned = atomic_file::clean(&folder.files).unwrap_or(0);
        }
        let mut opened = Self {
            folder_stamp: folder.files.stamp().ok(),
            folder,
            state: State::new(options.limit, options.built_in),
            lock_wait: options.lock_wait,
            generation,
        };
        opened.state.load_everything(&opened.folder.files);
        Ok((opened, cleaned))
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        self.folder.files.path()
    }

    /// The path of an entry's file, which need not exist.
    pub fn path_of(&self, key: &K::Key) -> PathBuf {
        self.path().join(file_name::<K>(key))
    }

    /// An entry in force.
    pub fn get(&self, key: &K::Key) -> Option<&K::Entry> {
        self.state.get(key)
    }

    /// The entries in force, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &K::Entry> {
        self.state.iter()
    }

    /// The number of entries in force.
    pub fn len(&self) -> usize {
        self.state.len()
    }

    /// Whether no entry is in force.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a built-in entry with this key is in force.
    pub fn is_built_in(&self, key: &K::Key) -> bool {
        self.state.is_built_in(key)
    }

    /// The current problems: the first thousand, sorted by file name.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.state.problems()
    }

    /// The number of further problems.
    pub fn more_problems(&self) -> usize {
        self.state.more_problems
    }

    /// Takes the changes since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<EntryChange<K>> {
        std::mem::take(&mut self.state.changes)
    }

    /// Reads the files that [`watch`](fn@watch) reported. Paths of other directories are ignored.
    pub fn reload(&mut self, changed: &Changed) {
        let Ok(reopened) = self.reopen_if_moved() else {
            return;
        };
        // Read the stamp before the files: a concurrent change must not be missed later.
        let folder_stamp = self.folder.files.stamp().ok();
        match changed {
            Changed::Files(paths) if !reopened => {
                let mut names: Vec<&OsStr> = paths
                    .iter()
                    .filter(|path| path.parent() == Some(self.folder.files.path()))
                    .filter_map(|path| path.file_name())
                    .collect();
                names.sort_unstable();
                names.dedup();
                for name in names {
                    self.state.check_file(&self.folder.files, name);
                }
            }
            _ => self.state.rescan(&self.folder.files),
        }
        self.folder_stamp = folder_stamp;
    }

    /// Reopens the directory if its path refers to another one. Returns whether it did.
    fn reopen_if_moved(&mut self) -> Result<bool, FolderError> {
        let opened = match self.folder.files.is_current() {
            true => Ok(None),
            false => OpenFolder::open(self.folder.files.path(), false).map(Some),
        };
        match opened {
            Ok(place) => {
                self.state.clear_problem(OsStr::new(GONE));
                let elsewhere = place.is_some();
                if let Some(place) = place {
                    self.folder = place;
                    self.generation = None;
                }
                Ok(elsewhere)
            }
            Err(error) => {
                let what = format!("{error}; the last good state stays in force");
                let problem = Problem::whole(self.folder.files.path(), what);
                self.state.report_problem(OsStr::new(GONE), problem);
                Err(error)
            }
        }
    }
}

impl<K: EntryKind> fmt::Debug for EntryFolder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryFolder")
            .field("path", &self.path())
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}
