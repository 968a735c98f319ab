//! The store's changes to the folder, each one under the lock and either made or not.
//!
//! Each gives all that is different since the last time it was told, its own change among it, in
//! the order in which it came about. After an error nothing was changed, but for
//! [`WriteError::NotDurable`]; what was learnt by the way is told by the next call.

use hvsock_address::{PartitionName, ServiceId};

use super::state::{Log, Wish, file_name};
use super::{Change, FolderStore, StoreError, edit, format};
use crate::atomic_file::{self, NEW_FILE, WriteError};
use crate::lock::Lock;
use crate::toml_problem::FileProblem;
use crate::{Override, Registration};

impl FolderStore {
    /// Writes a new registration, unless its id or its name is taken. Gives all that changed.
    pub fn put(&mut self, registration: Registration) -> Result<Vec<Change>, StoreError> {
        let id = registration.id;
        let text = format::document(&registration).to_string();
        self.check_storable(&registration, &text)?;
        let lock = self.locked()?;
        self.look_at(id);
        if self.state.registry.get(id).is_none() {
            if self.state.knows(id) {
                return Err(StoreError::Broken(self.problem_of(id)));
            }
            if !self.state.has_room() {
                return Err(StoreError::Limit(self.options.limit));
            }
        }
        self.state.registry.insert(registration)?;
        self.commit(lock, id, None, &text, NEW_FILE)?;
        Ok(self.told())
    }

    /// Switches a registration on or off, for everybody or for one child. Gives all that changed.
    ///
    /// For a child it is on if it is on for everybody and for that child.
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

    /// Writes a registration in place of the one with its id. Gives all that changed.
    pub fn replace(&mut self, registration: &Registration) -> Result<Vec<Change>, StoreError> {
        self.change(registration.id, |old| *old = registration.clone())
    }

    /// Removes a registration's file, even one with a problem. Gives all that changed.
    pub fn remove(&mut self, id: ServiceId) -> Result<Vec<Change>, StoreError> {
        let mut lock = self.locked()?;
        self.look_at(id);
        if let Some(built_in) = self.state.built_in(id) {
            return Err(StoreError::BuiltIn(built_in.name.clone()));
        }
        if !self.state.knows(id) {
            return Err(StoreError::NotRegistered(id));
        }
        // A full disk must not keep anyone from making room, even where raising needs room.
        self.generation = lock.raise().ok();
        let removed = atomic_file::remove(&self.place.services, &file_name(id));
        if let Err(error @ WriteError::Unchanged { .. }) = removed {
            return Err(error.into());
        }
        // Whoever waits for what it had comes into force, or what is built in for its id.
        self.state.load(&self.place.services, id, &mut self.untold);
        self.listed = self.place.services.stamp().ok();
        removed?;
        Ok(self.told())
    }

    /// Changes a registration as it is on disk now, leaving what a person wrote beside it.
    fn change(
        &mut self,
        id: ServiceId,
        change: impl FnOnce(&mut Registration),
    ) -> Result<Vec<Change>, StoreError> {
        let lock = self.locked()?;
        self.state.load(&self.place.services, id, &mut self.untold);
        let name = file_name(id);
        if let Some(problem) = self.state.problems.get(&name) {
            return Err(StoreError::Broken(problem.clone()));
        }
        let contents = self.place.services.read(&name);
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
            return Ok(self.told());
        }
        let (text, mode) = match contents {
            Some(contents) => {
                let path = self.place.services.path().join(&name);
                let text = edit::edit(&path, &contents.bytes, &new);
                (text.map_err(StoreError::Broken)?, contents.mode)
            }
            // What is built in gets a file once it says something else.
            None => (format::document(&new).to_string(), NEW_FILE),
        };
        self.check_storable(&new, &text)?;
        let (old_name, new_name) = (old.name.folded(), new.name.folded());
        self.state.registry.replace(new)?;
        self.commit(lock, id, Some(old), &text, mode)?;
        if old_name != new_name {
            self.freed(&[Wish::Name(old_name)]);
        }
        Ok(self.told())
    }

    /// All that was not told yet.
    fn told(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.untold.changes)
    }

    /// Takes the lock, and looks at what others changed since this store last looked.
    fn locked(&mut self) -> Result<Lock, StoreError> {
        let mut log = std::mem::take(&mut self.untold);
        let result = self.lock_and_look(&mut log);
        self.untold = log;
        result
    }

    fn lock_and_look(&mut self, log: &mut Log) -> Result<Lock, StoreError> {
        let elsewhere = self.follow(log)?;
        let lock = self.place.lock(self.options.lock_wait)?;
        let listed = self.place.services.stamp().ok();
        let generation = Some(lock.generation());
        if elsewhere {
            self.reload_all(log);
        } else if self.generation != generation || self.listed != listed {
            self.state.rescan(&self.place.services, log);
        }
        self.generation = generation;
        self.listed = listed;
        Ok(lock)
    }

    /// Reads a file that is there and was not when the folder was last looked at: a folder's time
    /// is too coarse to tell of every new file.
    fn look_at(&mut self, id: ServiceId) {
        let there = self.place.services.stamp_of(&file_name(id));
        if !self.state.knows(id) && !matches!(there, Ok(None)) {
            self.state.load(&self.place.services, id, &mut self.untold);
        }
    }

    /// Writes what the registry says already, and takes it back there if that fails.
    fn commit(
        &mut self,
        mut lock: Lock,
        id: ServiceId,
        old: Option<Registration>,
        text: &str,
        mode: u32,
    ) -> Result<(), StoreError> {
        let (services, name) = (&self.place.services, file_name(id));
        let written = lock.raise().map_err(StoreError::from).and_then(|raised| {
            self.generation = Some(raised);
            Ok(atomic_file::write(services, &name, text.as_bytes(), mode)?)
        });
        self.listed = self.place.services.stamp().ok();
        let stamp = match &written {
            Ok(stamp) => Some(*stamp),
            Err(StoreError::Write(WriteError::NotDurable { .. })) => None,
            Err(_) => {
                self.state.registry.remove(id);
                // It was there a moment ago, so nothing can clash with it.
                let _ = old.map(|old| self.state.registry.insert(old));
                return written.map(drop);
            }
        };
        self.state.wrote(id, stamp);
        let new = self.state.registry.get(id).cloned().map(Box::new);
        let change = match old.is_some() {
            true => Change::Updated,
            false => Change::Added,
        };
        self.untold.changes.extend(new.map(change));
        written.map(drop)
    }

    /// Lets the files that wait for something come into force, now that it is free.
    fn freed(&mut self, what: &[Wish]) {
        self.state
            .load_waiting(&self.place.services, what, &mut self.untold);
    }

    /// Whether the text, read again, says what the registration says, so that nothing is ever
    /// written that this or another process could not read.
    fn check_storable(&self, registration: &Registration, text: &str) -> Result<(), StoreError> {
        if registration.lease {
            let what = "it is a lease, which ends with the process that has it";
            return Err(StoreError::Unstorable(what.to_owned()));
        }
        if text.len() as u64 > crate::folder::MAX_FILE {
            let (len, most) = (text.len(), crate::folder::MAX_FILE);
            let what = format!("its file would have {len} bytes; at most {most} are read");
            return Err(StoreError::Unstorable(what));
        }
        let path = self.place.services.path().join(file_name(registration.id));
        match format::decode(&path, registration.id, text.as_bytes()) {
            Ok(read) if read == *registration => Ok(()),
            Ok(_) => {
                let what = "its file would say something else when read again";
                Err(StoreError::Unstorable(what.to_owned()))
            }
            Err(problem) => Err(StoreError::Unstorable(problem.what)),
        }
    }

    /// What is wrong with a file that is there and not in force.
    fn problem_of(&self, id: ServiceId) -> FileProblem {
        let name = file_name(id);
        let known = self.state.problems.get(&name).cloned();
        known.unwrap_or_else(|| {
            let path = self.place.services.path().join(&name);
            FileProblem::whole(&path, "is there already and has a problem")
        })
    }
}
