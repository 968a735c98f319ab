//! Persistent state: the registrations and partitions that the broker keeps on disk.
//!
//! A store's lock serialises every change to its files and to the core's copy of them. The holder
//! writes the file and updates the core before it unlocks, so the two differ only during a change.

use std::ffi::OsString;
use std::sync::{Mutex, MutexGuard};

use hvsock_address::{PartitionName, VmId};
use hvsock_endpoint::Dirs;
use hvsock_fabric::{PartitionKind, PartitionSpec, PartitionState};
use hvsock_registry::atomic_file;
use hvsock_registry::folder::Folder;
use hvsock_registry::store::{Problem, RegistrationStore};
use hvsock_registry::toml_problem;
use hvsock_sys::sync::lock;
use hvsock_virtio::GuestCid;
use serde::{Deserialize, Serialize};

use crate::{ControlError, StartError};

/// The locked store of registrations.
pub(crate) type ServiceStoreGuard<'a> = MutexGuard<'a, Box<dyn RegistrationStore>>;

/// The store of registrations.
#[derive(Debug)]
pub(crate) struct ServiceStore(Mutex<Box<dyn RegistrationStore>>);

impl ServiceStore {
    pub(crate) fn new(store: Box<dyn RegistrationStore>) -> Self {
        Self(Mutex::new(store))
    }

    /// Locks the store. A poisoned lock is safe to use: the store still matches its storage.
    pub(crate) fn lock(&self) -> ServiceStoreGuard<'_> {
        lock(&self.0)
    }
}

/// The partitions on disk: one file each, named after the partition.
#[derive(Debug)]
pub(crate) struct PartitionStore {
    files: Mutex<PartitionFiles>,
    problems: Mutex<Vec<String>>,
}

/// The folder of partition files while its lock is held.
#[derive(Debug)]
pub(crate) struct PartitionFiles {
    folder: Folder,
}

/// The contents of a partition's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartitionEntry {
    kind: EntryKind,
    id: VmId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    /// The context id (CID). VMs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cid: Option<u64>,
    /// Maps the VM's memory even if its VMM can shrink it (no `F_SEAL_SHRINK`). VMs only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsealed_memory: bool,
    /// Name or uid of the user that the VMM runs as, if not the broker's. VMs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

/// The settings that only VMs have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmEntry {
    pub(crate) cid: GuestCid,
    /// Maps the memory even if the VMM can shrink it, which would kill the broker with SIGBUS.
    pub(crate) unsealed_memory: bool,
    /// The user that the VMM runs as, if not the broker's.
    pub(crate) user: Option<VmmUser>,
}

/// The user that a VMM runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmmUser {
    /// The name or number as the operator wrote it.
    pub(crate) name: String,
    pub(crate) uid: u32,
}

impl VmmUser {
    /// Looks up a user by name or number.
    pub(crate) fn find(name: String) -> Result<Self, String> {
        match hvsock_sys::accounts::uid(&name) {
            Some(uid) => Ok(Self { name, uid }),
            None => Err(format!("this machine has no user `{name}`")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EntryKind {
    Container,
    Vm,
}

impl PartitionEntry {
    /// The entry of a container.
    pub(crate) fn container(id: VmId, groups: Vec<String>) -> Self {
        Self {
            kind: EntryKind::Container,
            id,
            groups,
            cid: None,
            unsealed_memory: false,
            user: None,
        }
    }

    /// The entry of a VM.
    pub(crate) fn vm(id: VmId, groups: Vec<String>, vm: VmEntry) -> Self {
        Self {
            kind: EntryKind::Vm,
            id,
            groups,
            cid: Some(vm.cid.get().into()),
            unsealed_memory: vm.unsealed_memory,
            user: vm.user.map(|user| user.name),
        }
    }

    /// The VM settings, or `None` for a container.
    pub(crate) fn as_vm(&self) -> Result<Option<VmEntry>, String> {
        if self.kind == EntryKind::Container {
            return Ok(None);
        }
        let cid = GuestCid::try_from(self.cid.unwrap_or_default());
        Ok(Some(VmEntry {
            cid: cid.map_err(|error| format!("`cid`: {error}"))?,
            unsealed_memory: self.unsealed_memory,
            user: self.user.clone().map(VmmUser::find).transpose()?,
        }))
    }

    /// The first semantic error, which types and key names alone do not rule out.
    fn problem(&self) -> Option<String> {
        match self.kind {
            EntryKind::Vm if self.cid.is_none() => {
                Some("describes a VM and has no `cid` (its context id)".to_owned())
            }
            EntryKind::Vm => self.as_vm().err(),
            EntryKind::Container => {
                let of_vms = self.cid.is_some() || self.unsealed_memory || self.user.is_some();
                let what =
                    "describes a container; only a VM has `cid`, `unsealed_memory` and `user`";
                of_vms.then(|| what.to_owned())
            }
        }
    }

    /// The partition's description for the fabric.
    pub(crate) fn spec(&self, name: PartitionName) -> PartitionSpec {
        PartitionSpec {
            kind: match self.kind {
                EntryKind::Container => PartitionKind::Container,
                EntryKind::Vm => PartitionKind::Vm,
            },
            name,
            vm_id: self.id,
            groups: self.groups.clone(),
            state: match self.kind {
                // A container runs for as long as it is configured.
                EntryKind::Container => PartitionState::Running,
                // A VM runs once its VMM connects.
                EntryKind::Vm => PartitionState::Off,
            },
        }
    }
}

impl PartitionStore {
    /// Opens the folder and reads its files. An unreadable file is reported as a problem and does
    /// not affect the others.
    pub(crate) fn open(
        dirs: &Dirs,
    ) -> Result<(Self, Vec<(PartitionName, PartitionEntry)>), StartError> {
        let folder = Folder::open_or_create(&dirs.partitions())?;
        let _ = atomic_file::clean(&folder);
        let names = folder
            .names(|name| name.to_str().is_some_and(|name| name.ends_with(".toml")))
            .map_err(StartError::io(format!("list {}", folder.path().display())))?;
        let mut entries = Vec::new();
        let mut problems = Vec::new();
        for file in names {
            match read(&folder, &file) {
                Ok(entry) => entries.extend(entry),
                Err(problem) => problems.push(problem.to_string()),
            }
        }
        Ok((
            Self {
                files: Mutex::new(PartitionFiles { folder }),
                problems: Mutex::new(problems),
            },
            entries,
        ))
    }

    /// Locks the store.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PartitionFiles> {
        lock(&self.files)
    }

    /// The problems found when the broker started, one sentence each.
    pub(crate) fn problems(&self) -> Vec<String> {
        lock(&self.problems).clone()
    }

    /// Records a problem with a partition that a file describes.
    pub(crate) fn add_problem(&self, problem: String) {
        lock(&self.problems).push(problem);
    }
}

impl PartitionFiles {
    /// Writes a partition's file atomically.
    pub(crate) fn put(
        &mut self,
        name: &PartitionName,
        entry: &PartitionEntry,
    ) -> Result<(), ControlError> {
        let text = toml::to_string(entry).map_err(|e| ControlError::System(e.to_string()))?;
        atomic_file::write(&self.folder, &file_name(name), text.as_bytes(), 0o644)
            .map(drop)
            .map_err(|error| ControlError::System(error.to_string()))
    }

    /// Whether a partition has a file.
    pub(crate) fn contains(&self, name: &PartitionName) -> Result<bool, ControlError> {
        let read = self.folder.read(&file_name(name));
        let contents = read.map_err(|problem| ControlError::System(problem.to_string()))?;
        Ok(contents.is_some())
    }

    /// Removes a partition's file.
    pub(crate) fn remove(&mut self, name: &PartitionName) -> Result<(), ControlError> {
        atomic_file::remove(&self.folder, &file_name(name))
            .map(drop)
            .map_err(|error| ControlError::System(error.to_string()))
    }
}

fn file_name(name: &PartitionName) -> OsString {
    format!("{name}.toml").into()
}

fn read(
    folder: &Folder,
    file: &OsString,
) -> Result<Option<(PartitionName, PartitionEntry)>, Problem> {
    let path = folder.path().join(file);
    let stem = file.to_string_lossy();
    let name = PartitionName::new(stem.trim_end_matches(".toml")).map_err(|error| {
        Problem::whole(&path, format!("is not named after a partition: {error}"))
    })?;
    let Some(contents) = folder.read(file)? else {
        return Ok(None);
    };
    let text = toml_problem::text(&path, &contents.bytes)?;
    let entry: PartitionEntry = toml_problem::parse(&path, text)?;
    match entry.problem() {
        None => Ok(Some((name, entry))),
        Some(problem) => Err(Problem::whole(&path, problem)),
    }
}
