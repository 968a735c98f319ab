//! The folder of partition files, and which of them the core has put in force.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use hvsock_address::PartitionName;
use hvsock_endpoint::Dirs;
use hvsock_fabric::PartitionSpec;
use hvsock_registry::atomic_file::WriteError;
use hvsock_registry::entry_folder::{Changed, EntryChange, EntryError, EntryFolder, EntryOptions};
use hvsock_registry::folder::FolderError;
use hvsock_registry::store::{self, Problem};
use hvsock_sys::sync;
use hvsock_virtio::GuestCid;

use super::partition_entry::{PartitionClash, PartitionEntry, PartitionKinds};
use super::vm::{CidSpace, VmEntry};
use crate::CdiConfig;
use crate::cdi::{CdiChange, CdiError, CdiFolder, has_device};

/// The partitions on disk: one file each, named after the partition.
#[derive(Debug)]
pub(crate) struct PartitionStore {
    files: Mutex<PartitionFiles>,
}

/// The folder of partition files while its lock is held.
#[derive(Debug)]
pub(crate) struct PartitionFiles {
    folder: EntryFolder<PartitionKinds>,
    /// The partitions in the core that come from a file, by the file's key.
    in_force: BTreeMap<String, PartitionName>,
    /// The files that the core has refused. They are tried again at each change.
    refused: BTreeSet<String>,
    /// The devices of the containers.
    cdi: Option<CdiFolder>,
}

/// What the core has to do after a change of the files.
#[derive(Debug)]
pub(crate) enum PartitionStep {
    /// Adds a partition or, if `known`, changes it.
    Put {
        key: String,
        path: PathBuf,
        spec: PartitionSpec,
        /// The settings of a VM, or why it cannot have them.
        vm: Result<Option<Box<VmEntry>>, String>,
        /// Whether a container is removed with that of its runtime.
        ephemeral: bool,
        known: bool,
        /// Whether somebody changed the file; otherwise it is tried again.
        edited: bool,
    },
    /// Removes the partition of a file that is gone, if it was in force.
    Remove {
        path: PathBuf,
        name: Option<PartitionName>,
    },
    /// A file has a problem.
    Broken(Problem),
    /// The problem of this file is solved.
    Repaired(PathBuf),
}

/// What became of a [`PartitionStep::Put`].
#[derive(Debug)]
pub(crate) struct PutResult {
    pub(crate) key: String,
    pub(crate) name: PartitionName,
    /// Whether the partition is in force, if not as the file wants.
    pub(crate) in_force: bool,
    /// Whether the core has refused the file.
    pub(crate) refused: bool,
}

impl PartitionStore {
    /// Opens the folder and reads its files.
    pub(crate) fn open(dirs: &Dirs, cdi: Option<CdiConfig>) -> Result<Self, FolderError> {
        let defaults = store::Options::default();
        let options = EntryOptions {
            limit: defaults.limit,
            lock_wait: defaults.lock_wait,
            built_in: Vec::new(),
        };
        let (folder, _) = EntryFolder::open(&dirs.partitions(), options)?;
        Ok(Self {
            files: Mutex::new(PartitionFiles {
                folder,
                in_force: BTreeMap::new(),
                refused: BTreeSet::new(),
                cdi: cdi.map(|cdi| CdiFolder::new(cdi, dirs.clone())),
            }),
        })
    }

    /// Locks the store. A poisoned lock is safe to use: what the core has is known after each call.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PartitionFiles> {
        sync::lock(&self.files)
    }
}

impl PartitionFiles {
    /// Reads the files that a watch reported.
    pub(crate) fn reload(&mut self, changed: &Changed) {
        self.folder.reload(changed);
    }

    /// The steps that bring all files into force, for the start.
    pub(crate) fn first_steps(&self) -> Vec<PartitionStep> {
        let problems = self.folder.problems().cloned().map(PartitionStep::Broken);
        let mut entries: Vec<&PartitionEntry> = self.folder.iter().collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let puts = entries.into_iter().map(|entry| self.put(entry, false));
        problems.chain(puts).collect()
    }

    /// The steps that bring all files into force in a core that has these partitions already.
    pub(crate) fn first_steps_with(
        &mut self,
        known: BTreeSet<PartitionName>,
    ) -> Vec<PartitionStep> {
        self.folder.reload(&Changed::Everything);
        self.folder.take_changes();
        for name in known {
            self.in_force.insert(name.to_string(), name);
        }
        let mut steps = self.first_steps();
        let gone: Vec<_> = (self.in_force.keys())
            .filter(|key| self.folder.get(key).is_none())
            .cloned()
            .collect();
        for key in gone {
            steps.push(PartitionStep::Remove {
                path: self.folder.path_of(&key),
                name: self.in_force.remove(&key),
            });
        }
        steps
    }

    /// The steps for what changed since the last call. `own` is an entry that the core has already.
    pub(crate) fn take_steps(&mut self, own: Option<&PartitionEntry>) -> Vec<PartitionStep> {
        let (mut steps, mut tried) = (Vec::new(), BTreeSet::new());
        for change in self.folder.take_changes() {
            match change {
                EntryChange::Added { entry, .. } | EntryChange::Updated { entry, .. } => {
                    let key = entry.name.to_string();
                    // An earlier change of the file, which is applied now, would undo it.
                    if own == Some(&*entry) && !tried.contains(&key) {
                        continue;
                    }
                    let edited = true;
                    steps.push(self.put(&entry, edited));
                    tried.insert(key);
                }
                EntryChange::Removed(key) => {
                    self.refused.remove(&key);
                    steps.push(PartitionStep::Remove {
                        path: self.folder.path_of(&key),
                        name: self.in_force.remove(&key),
                    });
                    tried.insert(key);
                }
                EntryChange::Broken(problem) => steps.push(PartitionStep::Broken(problem)),
                EntryChange::Repaired(path) => steps.push(PartitionStep::Repaired(path)),
            }
        }
        let own_is_refused = own.is_some_and(|own| self.refused.contains(own.name.as_str()));
        if !steps.is_empty() || own_is_refused {
            steps.extend(self.refused_steps(&tried));
        }
        steps
    }

    /// The steps for what changed since the last call, and for all files that the core has refused.
    pub(crate) fn take_all_steps(&mut self) -> Vec<PartitionStep> {
        let steps = self.take_steps(None);
        match steps.is_empty() {
            true => self.refused_steps(&BTreeSet::new()),
            false => steps,
        }
    }

    /// The steps for the files that the core has refused, except `tried`.
    fn refused_steps(&self, tried: &BTreeSet<String>) -> Vec<PartitionStep> {
        let again = self.refused.difference(tried);
        let again = again.filter_map(|key| Some(self.put(self.folder.get(key)?, false)));
        again.collect()
    }

    fn put(&self, entry: &PartitionEntry, edited: bool) -> PartitionStep {
        let key = entry.name.to_string();
        PartitionStep::Put {
            path: self.folder.path_of(&key),
            spec: entry.spec(),
            vm: entry.resolved_vm().map(|vm| vm.map(Box::new)),
            ephemeral: entry.ephemeral,
            known: self.in_force.contains_key(&key),
            edited,
            key,
        }
    }

    /// Records what the core has done.
    pub(crate) fn record(&mut self, result: PutResult) {
        let PutResult {
            key,
            name,
            in_force,
            refused,
        } = result;
        match refused {
            true => self.refused.insert(key.clone()),
            false => self.refused.remove(&key),
        };
        match in_force {
            true => self.in_force.insert(key, name),
            false => self.in_force.remove(&key),
        };
    }

    /// The CIDs of the broker in files that the core has refused.
    pub(crate) fn reserved_cids(&self) -> BTreeSet<GuestCid> {
        let refused = self.refused.iter();
        refused
            .filter_map(|key| self.folder.get(key)?.cid_key())
            .filter(|key| key.space == CidSpace::Broker)
            .map(|key| key.cid)
            .collect()
    }

    /// The entry in force of the partition with this name.
    pub(crate) fn in_force(&self, name: &PartitionName) -> Option<&PartitionEntry> {
        let key = name.to_string();
        self.in_force.get(&key).and(self.folder.get(&key))
    }

    /// Fails if a container's device cannot have this name.
    pub(crate) fn check_device(&self, container: &PartitionName) -> Result<(), CdiError> {
        match &self.cdi {
            Some(cdi) if has_device(container.as_str()) => cdi.check_free(container.as_str()),
            _ => Ok(()),
        }
    }

    /// Writes and removes devices for the containers in force. All files are checked if `again` is set.
    pub(crate) fn update_devices(&mut self, again: bool) -> Vec<CdiChange> {
        let Some(cdi) = &mut self.cdi else {
            return Vec::new();
        };
        let entries = self.in_force.keys().filter_map(|key| self.folder.get(key));
        let wanted = entries.filter(|entry| entry.vm.is_none() && entry.cdi);
        let wanted = wanted.map(|entry| entry.name.to_string());
        cdi.update(&wanted.filter(|name| has_device(name)).collect(), again)
    }

    /// Writes the file of a partition that the core has added, in place of one that it had refused.
    pub(crate) fn save(
        &mut self,
        entry: &PartitionEntry,
    ) -> Result<(), EntryError<PartitionClash>> {
        let key = entry.name.to_string();
        let saved = match self.folder.get(&key) {
            Some(_) => self.folder.change(&key, |old| *old = entry.clone()),
            None => self.folder.insert(entry.clone()),
        };
        let is_there = match &saved {
            Ok(()) => true,
            Err(EntryError::Write(WriteError::NotDurable { .. })) => true,
            Err(_) => false,
        };
        if is_there {
            self.in_force.insert(key, entry.name.clone());
        }
        saved
    }

    /// Changes the groups in the file of a partition. Returns the changed entry, or `None` if it has no
    /// file.
    pub(crate) fn set_groups(
        &mut self,
        name: &PartitionName,
        groups: &[String],
    ) -> Result<Option<PartitionEntry>, EntryError<PartitionClash>> {
        let key = name.to_string();
        match self
            .folder
            .change(&key, |entry| entry.groups = groups.to_vec())
        {
            Ok(()) => Ok(self.folder.get(&key).cloned()),
            Err(EntryError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the file of a partition, if it has one. The core removes the partition itself.
    pub(crate) fn remove(
        &mut self,
        name: &PartitionName,
    ) -> Result<(), EntryError<PartitionClash>> {
        let key = name.to_string();
        match self.folder.remove(&key) {
            Ok(()) | Err(EntryError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        self.in_force.remove(&key);
        self.refused.remove(&key);
        Ok(())
    }
}

impl PartitionStep {
    /// What becomes of it if the core does not answer in time: it still does the step.
    pub(crate) fn presumed(&self) -> Option<PutResult> {
        match self {
            Self::Put { key, spec, .. } => Some(PutResult {
                key: key.clone(),
                name: spec.name.clone(),
                in_force: true,
                refused: false,
            }),
            Self::Remove { .. } | Self::Broken(_) | Self::Repaired(_) => None,
        }
    }
}
