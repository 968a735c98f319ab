//! Writes to the folder. Each is atomic and holds the lock.
//!
//! After an error other than [`WriteError::NotDurable`] nothing was changed. The changes that a write
//! found or made are taken by [`EntryFolder::take_changes`].

use std::path::PathBuf;

use super::EntryFolder;
use super::edit::edit;
use super::kind::{EntryKind, file_name};
use crate::atomic_file::{self, NEW_FILE, WriteError};
use crate::folder::{FolderError, MAX_FILE};
use crate::lock::{Lock, LockError};
use crate::store::Problem;

/// Why a folder cannot be written to.
#[derive(Debug, thiserror::Error)]
pub enum EntryError<C> {
    /// The directory cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Another process holds the lock, or the lock cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Another entry has the key or a claim.
    #[error("{0}")]
    Clash(C),
    /// The maximum number of entries is reached.
    #[error("there are {limit} {plural}, which is the limit; remove one first")]
    Limit {
        /// The limit.
        limit: usize,
        /// What the entries are.
        plural: &'static str,
    },
    /// The entry has no file.
    #[error("{}: does not exist", .0.display())]
    Missing(PathBuf),
    /// The entry is built in and has no file to remove.
    #[error("{}: is built in and cannot be removed", .0.display())]
    BuiltIn(PathBuf),
    /// The file has a problem that must be corrected by hand first.
    #[error("{0}; correct or remove the file first")]
    Broken(Problem),
    /// The file format cannot represent the entry.
    #[error("this entry cannot be stored: {0}")]
    Unstorable(String),
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

type Error<K> = EntryError<<K as EntryKind>::Clash>;

impl<K: EntryKind> EntryFolder<K> {
    /// Adds an entry.
    ///
    /// # Errors
    /// [`EntryError::Clash`] if its key or a claim is taken or reserved; [`EntryError::Unstorable`] if
    /// its file could not represent it; [`EntryError::Limit`] if there are too many;
    /// [`EntryError::Broken`] if its file exists and has a problem; [`EntryError::Lock`],
    /// [`EntryError::Folder`] or [`EntryError::Write`] if locking or writing fails.
    pub fn insert(&mut self, entry: K::Entry) -> Result<(), Error<K>> {
        let key = K::key(&entry);
        let base = self.state.base(&key);
        let entry = match base {
            Some(base) => K::normalized(entry, base),
            None => entry,
        };
        let text = K::text(&entry, base);
        self.check_storable(&key, &entry, &text)?;
        let lock = self.lock_and_update()?;
        self.load_if_new(&key);
        if let Some(existing) = self.state.get(&key) {
            return Err(EntryError::Clash(K::clash(existing, &entry)));
        }
        if self.state.has_file(&key) {
            let problem = self.state.problem_in_the_way(&key, &self.path_of(&key));
            return Err(EntryError::Broken(problem));
        }
        if !self.state.has_capacity() {
            return Err(EntryError::Limit {
                limit: self.state.limit(),
                plural: K::PLURAL,
            });
        }
        self.check(&key, &entry)?;
        self.commit(lock, &key, entry, &text, NEW_FILE)
    }

    /// Changes the entry that is on disk now. Its file keeps its comments and formatting, and a value
    /// that does not change keeps its spelling. `change` must not change the key. The file of a
    /// built-in entry is removed if nothing is left of what it changed.
    ///
    /// # Errors
    /// [`EntryError::Missing`] if there is no such entry; [`EntryError::Broken`] if its file has a
    /// problem; else as [`insert`](Self::insert).
    pub fn change(
        &mut self,
        key: &K::Key,
        change: impl FnOnce(&mut K::Entry),
    ) -> Result<(), Error<K>> {
        let lock = self.lock_and_update()?;
        self.state.load(&self.folder.files, key);
        if let Some(problem) = self.state.problem_of(key) {
            return Err(EntryError::Broken(problem.clone()));
        }
        let contents = self.folder.files.read(&file_name::<K>(key));
        let contents = contents.map_err(EntryError::Broken)?;
        let built_in = self.state.built_in(key).is_some();
        let old = self
            .state
            .get(key)
            .filter(|_| contents.is_some() || built_in);
        let Some(old) = old else {
            return Err(EntryError::Missing(self.path_of(key)));
        };
        let mut new = old.clone();
        change(&mut new);
        if new == *old {
            return Ok(());
        }
        let base = self.state.base(key);
        if let Some(base) = base {
            new = K::normalized(new, base);
        }
        let commented = contents.as_ref();
        let commented = commented.is_some_and(|contents| contents.bytes.contains(&b'#'));
        let (text, mode) = match contents {
            Some(contents) => {
                let path = self.path_of(key);
                let text = edit::<K>(&path, &contents.bytes, key, &new, base);
                (text.map_err(EntryError::Broken)?, contents.mode)
            }
            // A changed built-in entry gets a file.
            None => (K::text(&new, base), NEW_FILE),
        };
        // A file without anything of its own is removed, unless somebody has commented it.
        if base.is_some_and(|base| K::is_built_in(&new, base)) && !commented {
            return self.remove_file(lock, key);
        }
        self.check_storable(key, &new, &text)?;
        self.check(key, &new)?;
        self.commit(lock, key, new, &text, mode)
    }

    /// Removes an entry's file, even one with a problem.
    ///
    /// # Errors
    /// [`EntryError::Missing`] if there is no file; [`EntryError::BuiltIn`] if the entry is built in;
    /// [`EntryError::Lock`], [`EntryError::Folder`] or [`EntryError::Write`] if locking or removing
    /// fails.
    pub fn remove(&mut self, key: &K::Key) -> Result<(), Error<K>> {
        let lock = self.lock_and_update()?;
        self.load_if_new(key);
        if self.state.built_in(key).is_some() {
            return Err(EntryError::BuiltIn(self.path_of(key)));
        }
        if !self.state.has_file(key) {
            return Err(EntryError::Missing(self.path_of(key)));
        }
        self.remove_file(lock, key)
    }

    fn remove_file(&mut self, mut lock: Lock, key: &K::Key) -> Result<(), Error<K>> {
        // On a full disk, updating the lock file may fail. Ignore that, so that files can be removed.
        self.generation = lock.bump_generation().ok();
        let removed = atomic_file::remove(&self.folder.files, &file_name::<K>(key));
        if let Err(error @ WriteError::Unchanged { .. }) = removed {
            return Err(error.into());
        }
        // Loads the files that waited for its claims, or the built-in entry with its key.
        self.state.load(&self.folder.files, key);
        self.folder_stamp = self.folder.files.stamp().ok();
        removed?;
        Ok(())
    }

    /// Acquires the lock, and reads the changes that other processes made.
    fn lock_and_update(&mut self) -> Result<Lock, Error<K>> {
        let elsewhere = self.reopen_if_moved()?;
        let lock = self.folder.lock(self.lock_wait)?;
        let folder_stamp = self.folder.files.stamp().ok();
        let generation = Some(lock.generation());
        if elsewhere || self.generation != generation || self.folder_stamp != folder_stamp {
            self.state.rescan(&self.folder.files);
        }
        self.generation = generation;
        self.folder_stamp = folder_stamp;
        Ok(lock)
    }

    /// Reads a file that is not known yet. The directory's timestamp is too coarse to detect every new
    /// file.
    fn load_if_new(&mut self, key: &K::Key) {
        let stamp = self.folder.files.stamp_of(&file_name::<K>(key));
        if !self.state.has_file(key) && !matches!(stamp, Ok(None)) {
            self.state.load(&self.folder.files, key);
        }
    }

    fn check(&self, key: &K::Key, new: &K::Entry) -> Result<(), Error<K>> {
        let checked = self.state.check(key, new);
        checked.map_err(|(clash, _)| EntryError::Clash(clash))
    }

    /// Writes the file of an entry, which then comes into force.
    fn commit(
        &mut self,
        mut lock: Lock,
        key: &K::Key,
        entry: K::Entry,
        text: &str,
        mode: u32,
    ) -> Result<(), Error<K>> {
        let name = file_name::<K>(key);
        self.generation = Some(lock.bump_generation()?);
        let written = atomic_file::write(&self.folder.files, &name, text.as_bytes(), mode);
        self.folder_stamp = self.folder.files.stamp().ok();
        let (stamp, durable) = match written {
            Ok(stamp) => (Some(stamp), Ok(())),
            Err(error @ WriteError::NotDurable { .. }) => (None, Err(error.into())),
            Err(error) => return Err(error.into()),
        };
        self.state
            .record_write(&self.folder.files, key, entry, stamp);
        durable
    }

    /// Checks that the text decodes to the entry again, so that every written file is readable.
    fn check_storable(&self, key: &K::Key, entry: &K::Entry, text: &str) -> Result<(), Error<K>> {
        if text.len() as u64 > MAX_FILE {
            let (len, most) = (text.len(), MAX_FILE);
            let what = format!("its file would have {len} bytes; the limit is {most}");
            return Err(EntryError::Unstorable(what));
        }
        match K::decode(
            &self.path_of(key),
            key,
            text.as_bytes(),
            self.state.base(key),
        ) {
            Ok(read) if read == *entry => Ok(()),
            Ok(_) => {
                let what = format!("its file would not decode to the same {}", K::SINGULAR);
                Err(EntryError::Unstorable(what))
            }
            Err(problem) => Err(EntryError::Unstorable(problem.what)),
        }
    }
}
