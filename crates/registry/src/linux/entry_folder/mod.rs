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
mod state;
mod watch;
mod write;

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(test)]
pub(crate) use self::edit::edit;
use self::state::State;
pub use self::watch::{Changed, FolderWatch, watch};
pub use self::write::EntryError;
use crate::atomic_file;
use crate::folder::{Folder, FolderError, Stamp};
use crate::lock::{Lock, LockError, LockFile};
use crate::store::Problem;

const LOCK: &str = ".lock";

/// A kind of entry, of which a folder holds many.
pub trait EntryKind: 'static {
    /// Identifies an entry. It is the name of its file, without `.toml`.
    type Key: Clone + Ord + Hash + fmt::Debug + Send + Sync;
    /// The content of a file.
    type Entry: Clone + PartialEq + fmt::Debug + Send + Sync;
    /// A value that only one entry may have.
    type Claim: Clone + Eq + Hash + fmt::Debug + Send + Sync;
    /// Why two entries exclude each other, with what to do.
    type Clash: Error + Send + Sync;

    /// What an entry is, for messages.
    const SINGULAR: &'static str;
    /// The plural of [`SINGULAR`](Self::SINGULAR).
    const PLURAL: &'static str;

    /// The key that a file's name without `.toml` stands for.
    ///
    /// # Errors
    /// What is wrong with the name: the end of a sentence whose subject is the file.
    fn parse_key(stem: &str) -> Result<Self::Key, String>;

    /// The name of a file without `.toml`, for which [`parse_key`](Self::parse_key) returns `key`.
    fn stem(key: &Self::Key) -> String;

    /// The key of an entry.
    fn key(entry: &Self::Entry) -> Self::Key;

    /// Decodes a file. An entry that is not [allowed](Self::check) is no problem here.
    ///
    /// # Errors
    /// The first [`Problem`] of the file.
    fn decode(path: &Path, key: &Self::Key, bytes: &[u8]) -> Result<Self::Entry, Problem>;

    /// The content of a new file.
    fn text(entry: &Self::Entry) -> String;

    /// Checks an entry by itself.
    ///
    /// # Errors
    /// The clash with something that is not a file, such as a reserved name.
    fn check(entry: &Self::Entry) -> Result<(), Self::Clash>;

    /// The values that no other entry may have. The key is unique without being listed here.
    fn claims(entry: &Self::Entry) -> Vec<Self::Claim>;

    /// Why `new` cannot be added: `existing` has its key or one of its claims.
    fn clash(existing: &Self::Entry, new: &Self::Entry) -> Self::Clash;
}

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

/// Limits of a folder, and its built-in entries.
#[derive(Clone, Debug)]
pub struct EntryOptions<E> {
    /// The maximum number of entries in force.
    pub limit: usize,
    /// How long a write waits for the lock.
    pub lock_wait: Duration,
    /// Entries that are in force while they have no file. Changing one writes a file; removing the
    /// file restores the built-in entry.
    pub built_in: Vec<E>,
}

/// A difference since the last read.
pub enum EntryChange<K: EntryKind> {
    /// An entry came into force.
    Added {
        /// The entry.
        entry: Box<K::Entry>,
        /// Whether it is a built-in one.
        built_in: bool,
    },
    /// An entry changed.
    Updated {
        /// The entry.
        entry: Box<K::Entry>,
        /// Whether it is a built-in one.
        built_in: bool,
    },
    /// An entry is no longer in force.
    Removed(K::Key),
    /// A file has a problem. Its last good content stays in force.
    Broken(Problem),
    /// The problem of this file is solved.
    Repaired(PathBuf),
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
                self.state.clear_problem(OsStr::new(state::GONE));
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
                self.state.report_problem(OsStr::new(state::GONE), problem);
                Err(error)
            }
        }
    }
}

/// The name of an entry's file.
fn file_name<K: EntryKind>(key: &K::Key) -> OsString {
    format!("{}.toml", K::stem(key)).into()
}

impl<K: EntryKind> fmt::Debug for EntryFolder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryFolder")
            .field("path", &self.path())
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

impl<K: EntryKind> fmt::Debug for EntryChange<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { entry, .. } => f.debug_tuple("Added").field(entry).finish(),
            Self::Updated { entry, .. } => f.debug_tuple("Updated").field(entry).finish(),
            Self::Removed(key) => f.debug_tuple("Removed").field(key).finish(),
            Self::Broken(problem) => f.debug_tuple("Broken").field(problem).finish(),
            Self::Repaired(path) => f.debug_tuple("Repaired").field(path).finish(),
        }
    }
}
