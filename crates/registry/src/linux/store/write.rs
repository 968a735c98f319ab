//! Writes to the store. Each is atomic and holds the lock.
//!
//! Each returns all changes since the last call, including its own, in order. After an error other than
//! [`WriteError::NotDurable`] nothing was changed; the next call returns the changes that were found.

use hvsock_address::{PartitionName, ServiceId};

use super::state::{ChangeLog, Claim, file_name};
use super::{Change, FolderStore, StoreError, edit, format};
use crate::atomic_file::{self, NEW_FILE, WriteError};
use crate::lock::Lock;
use crate::toml_problem::FileProblem;
use crate::{Override, Registration};

impl FolderStore {
    /// Adds a registration. Returns all changes since the last call.
    ///
    /// # Errors
    /// [`StoreError::Clash`] if its id, name or port is taken; [`StoreError::Unstorable`] if its file
    /// could not represent it; [`StoreError::Limit`] if there are too many; [`StoreError::Broken`] if
    /// its file exists and has a problem; [`StoreError::Lock`], [`StoreError::Folder`] or
    /// [`StoreError::Write`] if locking or writing fails.
    pub fn put(&mut self, registration: Registration) -> Result<Vec<Change>, StoreError> {
        let id = registration.id;
        let text = format::document(&registration).to_string();
        self.check_storable(&registration, &text)?;
        let lock = self.lock_and_update()?;
        self.load_if_new(id);
        if self.state.registry.get(id).is_none() {
            if self.state.has_file(id) {
                return Err(StoreError::Broken(self.problem_of(id)));
            }
            if !self.state.has_capacity() {
                return Err(StoreError::Limit(self.options.limit));
            }
        }
        self.state.registry.insert(registration)?;
        self.commit(lock, id, None, &text, NEW_FILE)?;
        Ok(self.take_changes())
    }

    /// Enables or disables a registration, for all partitions or for one child. Returns all changes
    /// since the last call.
    ///
    /// # Errors
    /// [`StoreError::NotRegistered`] if there is no such registration; [`StoreError::Broken`] if its
    /// file has a problem; else as [`put`](Self::put).
    pub fn set_enabled(
        &mut self,
        id: ServiceId,
        enabled: bool,
        vm: Option<&PartitionName>,
    ) -> Result<Vec<Change>, StoreError> {
        self.change(id, |registration| match vm {
            None => registration.enabled = enabled,
            Some(vm) => match registration.vm.get_mut(vm) {
                Some(differs) => differs.enabled = Some(enabled),
                None if enabled => {}
                None => {
                    let differs = Override {
                        enabled: Some(false),
                        ..Override::default()
                    };
                    registration.vm.insert(vm.clone(), differs);
                }
            },
        })
    }

    /// Replaces the registration with the same id, keeping comments in its file. Returns all changes
    /// since the last call.
    ///
    /// # Errors
    /// As [`set_enabled`](Self::set_enabled).
    pub fn replace(&mut self, registration: &Registration) -> Result<Vec<Change>, StoreError> {
        self.change(registration.id, |old| *old = registration.clone())
    }

    /// Removes a registration's file, even one with a problem. Returns all changes since the last call.
    ///
    /// # Errors
    /// [`StoreError::NotRegistered`] if there is no file; [`StoreError::BuiltIn`] if it is built in;
    /// [`StoreError::Lock`], [`StoreError::Folder`] or [`StoreError::Write`] if locking or removing
    /// fails.
    pub fn remove(&mut self, id: ServiceId) -> Result<Vec<Change>, StoreError> {
        let mut lock = self.lock_and_update()?;
        self.load_if_new(id);
        if let Some(built_in) = self.state.built_in(id) {
            return Err(StoreError::BuiltIn(built_in.name.clone()));
        }
        if !self.state.has_file(id) {
            return Err(StoreError::NotRegistered(id));
        }
        // On a full disk, updating the lock file may fail. Ignore that, so that files can be removed.
        self.generation = lock.bump_generation().ok();
        let removed = atomic_file::remove(&self.folders.services, &file_name(id));
        if let Err(error @ WriteError::Unchanged { .. }) = removed {
            return Err(error.into());
        }
        // Loads the files that waited for its name or port, or the built-in registration with its id.
        self.state
            .load(&self.folders.services, id, &mut self.unreported);
        self.folder_stamp = self.folders.services.stamp().ok();
        removed?;
        Ok(self.take_changes())
    }

    /// Changes the registration that is on disk now, keeping comments and formatting.
    fn change(
        &mut self,
        id: ServiceId,
        change: impl FnOnce(&mut Registration),
    ) -> Result<Vec<Change>, StoreError> {
        let lock = self.lock_and_update()?;
        self.state
            .load(&self.folders.services, id, &mut self.unreported);
        let name = file_name(id);
        if let Some(problem) = self.state.problems.get(&name) {
            return Err(StoreError::Broken(problem.clone()));
        }
        let contents = self.folders.services.read(&name);
        let contents = contents.map_err(StoreError::Broken)?;
        let Some(old) = self.state.registry.get(id).cloned() else {
            return Err(StoreError::NotRegistered(id));
        };
        let built_in = self.state.built_in(id).is_some();
        if contents.is_none() && !built_in {
            return Err(StoreError::NotRegistered(id));
        }
        let mut new = old.clone();
        change(&mut new);
        if new == old {
            return Ok(self.take_changes());
        }
        let (text, mode) = match contents {
            Some(contents) => {
                let path = self.folders.services.path().join(&name);
                let text = edit::edit(&path, &contents.bytes, &new);
                (text.map_err(StoreError::Broken)?, contents.mode)
            }
            // A changed built-in registration gets a file.
            None => (format::document(&new).to_string(), NEW_FILE),
        };
        self.check_storable(&new, &text)?;
        let (old_name, new_name) = (old.name.folded(), new.name.folded());
        self.state.registry.replace(new)?;
        self.commit(lock, id, Some(old), &text, mode)?;
        if old_name != new_name {
            self.load_claimants_of(&[Claim::Name(old_name)]);
        }
        Ok(self.take_changes())
    }

    /// Takes all changes that were not yet returned.
    fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.unreported.changes)
    }

    /// Acquires the lock, and reads the changes that other processes made.
    fn lock_and_update(&mut self) -> Result<Lock, StoreError> {
        let mut log = std::mem::take(&mut self.unreported);
        let result = self.lock_and_rescan(&mut log);
        self.unreported = log;
        result
    }

    fn lock_and_rescan(&mut self, log: &mut ChangeLog) -> Result<Lock, StoreError> {
        let elsewhere = self.reopen_if_moved(log)?;
        let lock = self.folders.lock(self.options.lock_wait)?;
        let folder_stamp = self.folders.services.stamp().ok();
        let generation = Some(lock.generation());
        if elsewhere {
            self.reload_all(log);
        } else if self.generation != generation || self.folder_stamp != folder_stamp {
            self.state.rescan(&self.folders.services, log);
        }
        self.generation = generation;
        self.folder_stamp = folder_stamp;
        Ok(lock)
    }

    /// Reads a file that is not known yet. The directory's timestamp is too coarse to detect every new
    /// file.
    fn load_if_new(&mut self, id: ServiceId) {
        let stamp = self.folders.services.stamp_of(&file_name(id));
        if !self.state.has_file(id) && !matches!(stamp, Ok(None)) {
            self.state
                .load(&self.folders.services, id, &mut self.unreported);
        }
    }

    /// Writes a registration that the registry already contains. Restores the registry if that fails.
    fn commit(
        &mut self,
        mut lock: Lock,
        id: ServiceId,
        old: Option<Registration>,
        text: &str,
        mode: u32,
    ) -> Result<(), StoreError> {
        let (services, name) = (&self.folders.services, file_name(id));
        let written = lock
            .bump_generation()
            .map_err(StoreError::from)
            .and_then(|generation| {
                self.generation = Some(generation);
                Ok(atomic_file::write(services, &name, text.as_bytes(), mode)?)
            });
        self.folder_stamp = self.folders.services.stamp().ok();
        let stamp = match &written {
            Ok(stamp) => Some(*stamp),
            Err(StoreError::Write(WriteError::NotDurable { .. })) => None,
            Err(_) => {
                self.state.registry.remove(id);
                // It was in the registry before, so it cannot clash.
                let _ = old.map(|old| self.state.registry.insert(old));
                return written.map(drop);
            }
        };
        self.state.record_write(id, stamp);
        let new = self.state.registry.get(id).cloned().map(Box::new);
        let change = match old.is_some() {
            true => Change::Updated,
            false => Change::Added,
        };
        self.unreported.changes.extend(new.map(change));
        written.map(drop)
    }

    /// Loads the files that wait for released claims.
    fn load_claimants_of(&mut self, what: &[Claim]) {
        self.state
            .load_claimants(&self.folders.services, what, &mut self.unreported);
    }

    /// Checks that the text decodes to the registration again, so that every written file is readable.
    fn check_storable(&self, registration: &Registration, text: &str) -> Result<(), StoreError> {
        if registration.lease {
            let what = "it is a lease, which ends with its process";
            return Err(StoreError::Unstorable(what.to_owned()));
        }
        if text.len() as u64 > crate::folder::MAX_FILE {
            let (len, most) = (text.len(), crate::folder::MAX_FILE);
            let what = format!("its file would have {len} bytes; the limit is {most}");
            return Err(StoreError::Unstorable(what));
        }
        let path = self
            .folders
            .services
            .path()
            .join(file_name(registration.id));
        match format::decode(&path, registration.id, text.as_bytes()) {
            Ok(read) if read == *registration => Ok(()),
            Ok(_) => {
                let what = "its file would not decode to the same registration";
                Err(StoreError::Unstorable(what.to_owned()))
            }
            Err(problem) => Err(StoreError::Unstorable(problem.what)),
        }
    }

    /// The problem of a file that exists but is not in force.
    fn problem_of(&self, id: ServiceId) -> FileProblem {
        let name = file_name(id);
        let known = self.state.problems.get(&name).cloned();
        known.unwrap_or_else(|| {
            let path = self.folders.services.path().join(&name);
            FileProblem::whole(&path, "already exists and has a problem")
        })
    }
}
