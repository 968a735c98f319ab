//! What the entries of a folder are, and how they change.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::Problem;

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

    /// Decodes a file. An entry that is not [allowed](Self::check) is no problem here. What the file
    /// leaves out is inherited from `built_in`, the built-in entry with this key.
    ///
    /// # Errors
    /// The first [`Problem`] of the file.
    fn decode(
        path: &Path,
        key: &Self::Key,
        bytes: &[u8],
        built_in: Option<&Self::Entry>,
    ) -> Result<Self::Entry, Problem>;

    /// The content of a new file. It leaves out what is inherited from `built_in`.
    fn text(entry: &Self::Entry, built_in: Option<&Self::Entry>) -> String;

    /// An entry as its file would be [decoded](Self::decode): without what is inherited.
    fn normalized(entry: Self::Entry, built_in: &Self::Entry) -> Self::Entry {
        let _ = built_in;
        entry
    }

    /// Whether an entry says nothing that the built-in one does not, so that it needs no file.
    fn is_built_in(entry: &Self::Entry, built_in: &Self::Entry) -> bool {
        entry == built_in
    }

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

/// The name of an entry's file.
pub(super) fn file_name<K: EntryKind>(key: &K::Key) -> OsString {
    format!("{}.toml", K::stem(key)).into()
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
