//! The files of one broker's CDI devices, in a folder that other brokers and other vendors write to as well.
//!
//! A file belongs to the broker whose container's folder it mounts. Only such files are changed or removed, so a
//! broker that was killed finds its own again, and leaves those of others alone. Writers of the same name take
//! turns by a lock in the folder, which engines ignore: they read `.json` and `.yaml` only.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hvsock_endpoint::Dirs;
use hvsock_registry::atomic_file::{self, NEW_FILE, WriteError};
use hvsock_registry::folder::{Folder, FolderError};
use hvsock_registry::lock::{Lock, LockFile};
use hvsock_registry::store::Problem;

use super::{CdiConfig, device};
use crate::model::CdiDevice;

/// The name of the lock file.
const LOCK: &str = ".hvsock.lock";
/// How long to wait for another writer.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// The folders that every engine reads, and of which the later one counts.
const DEFAULTS: [&str; 2] = ["/etc/cdi", "/run/cdi"];

/// The folder of the devices, and what the files in it were last found to be.
#[derive(Debug)]
pub(crate) struct CdiFolder {
    config: CdiConfig,
    dirs: Dirs,
    /// The containers that have a device or should have one, and whether they do. By their exact spelling, as
    /// engines compare names.
    known: BTreeMap<String, bool>,
}

/// What became of a container's device.
#[derive(Debug)]
pub(crate) struct CdiChange {
    pub(crate) container: String,
    /// The device, why there is none, or `None` if it is no longer wanted.
    pub(crate) device: Option<Result<CdiDevice, CdiError>>,
}

/// Why a container's device cannot be written or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CdiError {
    #[error(
        "{} is of the broker in {}, whose container has the same name",
        path.display(),
        broker.display()
    )]
    OfOther { path: PathBuf, broker: PathBuf },
    #[error("{} was not written by a broker", .0.display())]
    Foreign(PathBuf),
    #[error("the folder of the endpoint, {}, is not UTF-8", .0.display())]
    NotText(PathBuf),
    /// The folder cannot be opened or locked.
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    Read(#[from] Problem),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Whose a file is.
enum Owner {
    Nobody,
    /// This broker's, with this text and mode.
    Own(Vec<u8>, u32),
}

impl CdiFolder {
    pub(crate) fn new(config: CdiConfig, dirs: Dirs) -> Self {
        let known = BTreeMap::new();
        Self {
            config,
            dirs,
            known,
        }
    }

    /// The device of a container.
    fn device(&self, container: &str) -> CdiDevice {
        CdiDevice {
            device: device::qualified(container),
            file: self.config.folder.join(device::file_name(container)),
        }
    }

    /// Fails if another broker or another program has the file of this container's device.
    pub(crate) fn check_free(&self, container: &str) -> Result<(), CdiError> {
        let folder = match Folder::open(&self.config.folder) {
            Ok(folder) => folder,
            // What else is wrong with the folder is found when the file is written.
            Err(_) => return Ok(()),
        };
        match self.owner(&folder, container) {
            Err(error @ (CdiError::OfOther { .. } | CdiError::Foreign(_))) => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes the files of these containers, and removes those of others. Files that were found to be right
    /// before are read again only if `again` is set.
    pub(crate) fn update(&mut self, wanted: &BTreeSet<String>, again: bool) -> Vec<CdiChange> {
        let is_right = |name: &String| !again && self.known.get(name) == Some(&true);
        let puts: Vec<String> = wanted.iter().filter(|n| !is_right(n)).cloned().collect();
        let is_gone = |name: &&String| !wanted.contains(*name);
        let mut gone: Vec<String> = self.known.keys().filter(is_gone).cloned().collect();
        if puts.is_empty() && gone.is_empty() && !again {
            return Vec::new();
        }
        match self.open(!puts.is_empty()) {
            Ok(None) => gone.into_iter().map(|name| self.forget(name)).collect(),
            Ok(Some((folder, _lock))) => {
                if again {
                    // The temporary files of writers that were killed: those of others are under the lock.
                    let _ = atomic_file::clean(&folder);
                    gone.extend(self.orphans(&folder, wanted));
                }
                let mut changes = Vec::new();
                for name in gone {
                    changes.push(match self.remove(&folder, &name) {
                        Ok(()) => self.forget(name),
                        Err(error) => self.record(name, Err(error)),
                    });
                }
                for name in puts {
                    let put = self.put(&folder, &name);
                    changes.push(self.record(name, put));
                }
                changes
            }
            Err(error) => {
                let text = error.to_string();
                let failed = puts.into_iter().chain(gone);
                let failed =
                    failed.map(|name| self.record(name, Err(CdiError::Unusable(text.clone()))));
                failed.collect()
            }
        }
    }

    fn record(&mut self, container: String, device: Result<CdiDevice, CdiError>) -> CdiChange {
        self.known.insert(container.clone(), device.is_ok());
        let device = Some(device);
        CdiChange { container, device }
    }

    fn forget(&mut self, container: String) -> CdiChange {
        self.known.remove(&container);
        let device = None;
        CdiChange { container, device }
    }

    /// Opens and locks the folder. `None` if there is none and none is to be created.
    fn open(&self, create: bool) -> Result<Option<(Folder, Lock)>, CdiError> {
        let unusable = |error: FolderError| CdiError::Unusable(error.to_string());
        let folder = match create {
            true => Folder::open_or_create(&self.config.folder).map_err(unusable)?,
            false => match Folder::open(&self.config.folder) {
                Err(FolderError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                opened => opened.map_err(unusable)?,
            },
        };
        let locked =
            LockFile::open(&folder, OsStr::new(LOCK)).and_then(|file| file.lock(LOCK_WAIT));
        let lock = locked.map_err(|error| CdiError::Unusable(error.to_string()))?;
        Ok(Some((folder, lock)))
    }

    /// The containers that are not wanted and have a file of this broker: it was killed before it removed them.
    fn orphans(&self, folder: &Folder, wanted: &BTreeSet<String>) -> Vec<String> {
        let container = |name: &OsStr| device::container_of(name.to_str()?).map(str::to_owned);
        let names = folder.names(|name| container(name).is_some());
        let names = names.unwrap_or_default();
        let names = names.iter().filter_map(|name| container(name));
        let is_orphan = |name: &String| {
            !wanted.contains(name)
                && !self.known.contains_key(name)
                && matches!(self.owner(folder, name), Ok(Owner::Own(..)))
        };
        names.filter(is_orphan).collect()
    }

    /// Whose the file of this container's device is. Fails if it is another's.
    fn owner(&self, folder: &Folder, container: &str) -> Result<Owner, CdiError> {
        let name = device::file_name(container);
        let own = self.dirs.container(container);
        let whose = |folder: &Folder| {
            let Some(contents) = folder.read(OsStr::new(&name))? else {
                return Ok(Owner::Nobody);
            };
            let path = || folder.path().join(&name);
            let found = device::folder_in(&contents.bytes);
            let found = found.ok_or_else(|| CdiError::Foreign(path()))?;
            match device::broker_of(&found) {
                _ if found == own => Ok(Owner::Own(contents.bytes, contents.mode)),
                Some(broker) => Err(CdiError::OfOther {
                    path: path(),
                    broker: broker.to_owned(),
                }),
                None => Err(CdiError::Foreign(path())),
            }
        };
        // The same device in the other folder would count in place of this one, or this one in its place.
        let this = std::fs::canonicalize(folder.path()).unwrap_or_default();
        if DEFAULTS.iter().any(|path| this == Path::new(path)) {
            for other in DEFAULTS.iter().filter(|path| this != Path::new(path)) {
                if let Ok(other) = Folder::open(Path::new(other)) {
                    whose(&other)?;
                }
            }
        }
        whose(folder)
    }

    fn put(&self, folder: &Folder, container: &str) -> Result<CdiDevice, CdiError> {
        let path = self.dirs.container(container);
        let text = match path.to_str() {
            Some(path) => device::text(container, path, &self.config.hooks),
            None => return Err(CdiError::NotText(path)),
        };
        match self.owner(folder, container)? {
            Owner::Own(found, NEW_FILE) if found == text.as_bytes() => {}
            Owner::Own(..) | Owner::Nobody => {
                let name = device::file_name(container);
                let written =
                    atomic_file::write(folder, OsStr::new(&name), text.as_bytes(), NEW_FILE);
                match written {
                    // It is there, and written again at the next start if the power fails.
                    Ok(_) | Err(WriteError::NotDurable { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(self.device(container))
    }

    fn remove(&self, folder: &Folder, container: &str) -> Result<(), CdiError> {
        match self.owner(folder, container) {
            Ok(Owner::Own(..)) => {
                let name = device::file_name(container);
                match atomic_file::remove(folder, OsStr::new(&name)) {
                    Ok(_) | Err(WriteError::NotDurable { .. }) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            // It is not there, or another's.
            Ok(Owner::Nobody) | Err(CdiError::OfOther { .. } | CdiError::Foreign(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
