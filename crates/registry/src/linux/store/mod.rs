//! The registrations of one partition as a directory of TOML files.
//!
//! `services/GUID.toml` is one registration, so that a package or a configuration manager can install
//! one. `defaults.toml` in the parent directory has the settings for what a registration leaves out.
//! `docs/registry.md` documents both. [`FolderStore`] loads the files, writes changes, and follows
//! changes by others:
//!
//! 1. [`FolderStore::open`] reads everything and reports problems.
//! 2. [`watch`](fn@watch) calls back after a change; [`FolderStore::reload`] then returns the changes.
//! 3. [`put`](FolderStore::put), [`set_enabled`](FolderStore::set_enabled),
//!    [`replace`](FolderStore::replace) and [`remove`](FolderStore::remove) write.
//!
//! To keep a copy of the [`Registry`], apply the [`Change`]s that 2 and 3 return, in order.
//!
//! Invariants:
//! - A file with a problem has no effect: its last good content stays in force while this process runs.
//!   At startup the file is skipped. A problem is reported once, and again when it is solved.
//! - Names are unique. At startup the first file (by file name) with a name gets it; later, the file
//!   that has it keeps it. The other file is reported with both names, and is loaded when the name
//!   becomes free.
//! - A lock serializes concurrent writers, and each one reads the other's changes before it writes.
//! - If the directory disappears, the last good state stays in force until there is a new one.

mod edit;
mod format;
mod state;
mod watch;
mod write;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hvsock_address::{ElementName, ServiceId};

use self::state::{ChangeLog, DEFAULTS, State};
pub use self::watch::{Changed, Watch, watch};
use crate::atomic_file::{self, WriteError};
use crate::folder::{Folder, FolderError, Stamp};
use crate::lock::{Lock, LockError, LockFile};
use crate::toml_problem::FileProblem;
use crate::{Clash, Defaults, Registration, Registry};

/// The directory of registrations, in the configuration directory.
pub const SERVICES: &str = "services";
const LOCK: &str = ".lock";
/// The key of the problem "the directory is missing" among the names of files with problems.
const GONE: &str = "..";

/// The registrations on disk, as last read.
#[derive(Debug)]
pub struct FolderStore {
    folders: OpenFolders,
    state: State,
    options: Options,
    /// The lock's generation when `state` was read; `None` if the lock was not available.
    generation: Option<u64>,
    /// The directory's state when `state` was read.
    folder_stamp: Option<Stamp>,
    /// Changes found while writing, which the next call returns.
    unreported: ChangeLog,
}

/// Limits of a store, and its built-in registrations.
#[derive(Clone, Debug)]
pub struct Options {
    /// The maximum number of registrations.
    pub limit: usize,
    /// How long a write waits for the lock.
    pub lock_wait: Duration,
    /// Registrations that are in force while they have no file. Changing one writes a file; removing
    /// the file restores the built-in registration.
    pub built_in: Vec<Registration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limit: 1_000_000,
            lock_wait: Duration::from_secs(5),
            built_in: Vec::new(),
        }
    }
}

/// The result of opening a store.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// The number of registrations in force.
    pub registrations: usize,
    /// Problems, sorted by file name: the first thousand.
    pub problems: Vec<FileProblem>,
    /// The number of further problems.
    pub more_problems: usize,
    /// The number of removed temporary files of crashed writers.
    pub cleaned: usize,
}

/// A difference since the last read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A registration came into force.
    Added(Box<Registration>),
    /// A registration changed.
    Updated(Box<Registration>),
    /// A registration is no longer in force.
    Removed(ServiceId),
    /// The settings for what registrations leave out changed.
    Defaults(Defaults),
    /// A file has a problem. Its last good content stays in force.
    Broken(FileProblem),
    /// The problem of this file is solved.
    Repaired(PathBuf),
}

/// Why a store cannot be opened or written to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Another process holds the lock, or the lock cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The id, name or port is taken.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// The maximum number of registrations is reached.
    #[error("there are {0} registrations, which is the limit; unregister one first")]
    Limit(usize),
    /// The registration has no file.
    #[error("no service {0} is registered in this folder")]
    NotRegistered(ServiceId),
    /// The registration is built in and has no file to remove.
    #[error("`{0}` is built in and cannot be unregistered; disable it instead")]
    BuiltIn(ElementName),
    /// The file has a problem that must be corrected by hand first.
    #[error("{0}; correct or remove the file first")]
    Broken(FileProblem),
    /// The file format cannot represent the registration.
    #[error("this registration cannot be stored: {0}")]
    Unstorable(String),
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The open directories. Reopened together when their paths refer to other directories.
#[derive(Debug)]
struct OpenFolders {
    config: Folder,
    services: Folder,
    /// `None` on a read-only file system, which can still be read.
    lock: Option<LockFile>,
}

impl OpenFolders {
    fn open(config: &Path, create: bool) -> Result<Self, FolderError> {
        let open = match create {
            true => Folder::open_or_create,
            false => Folder::open,
        };
        let config = open(config)?;
        let services = open(&config.path().join(SERVICES))?;
        let lock = LockFile::open(&services, OsStr::new(LOCK)).ok();
        Ok(Self {
            config,
            services,
            lock,
        })
    }

    fn is_current(&self) -> bool {
        self.config.is_current() && self.services.is_current()
    }

    fn lock(&mut self, wait: Duration) -> Result<Lock, LockError> {
        let file = match self.lock.take() {
            Some(file) => file,
            None => LockFile::open(&self.services, OsStr::new(LOCK))?,
        };
        self.lock.insert(file).lock(wait)
    }
}

impl FolderStore {
    /// Opens and reads the store in a configuration directory. Creates missing directories.
    ///
    /// # Errors
    /// [`StoreError::Folder`] if a directory cannot be opened or created, or may be written by other
    /// users. Problems with files are no errors; they are in the [`LoadReport`].
    pub fn open(config: impl AsRef<Path>) -> Result<(Self, LoadReport), StoreError> {
        Self::open_with(config, Options::default())
    }

    /// Opens a store with given options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        config: impl AsRef<Path>,
        options: Options,
    ) -> Result<(Self, LoadReport), StoreError> {
        let mut folders = OpenFolders::open(config.as_ref(), true)?;
        let mut report = LoadReport::default();
        let mut generation = None;
        // If another process holds the lock, it is writing and cleans up itself.
        if let Ok(lock) = folders.lock(Duration::ZERO) {
            generation = Some(lock.generation());
            report.cleaned = atomic_file::clean(&folders.services).unwrap_or(0);
        }
        let mut store = Self {
            folder_stamp: folders.services.stamp().ok(),
            folders,
            state: State::new(options.limit, options.built_in.clone()),
            options,
            generation,
            unreported: ChangeLog::default(),
        };
        let mut log = ChangeLog {
            starting: true,
            ..ChangeLog::default()
        };
        store.state.load_defaults(&store.folders.config, &mut log);
        store.state.rescan(&store.folders.services, &mut log);
        store.state.load_built_in(&store.folders.services, &mut log);
        report.registrations = store.state.registry.len();
        report.problems = store.state.problems.values().cloned().collect();
        report.more_problems = store.state.more_problems;
        Ok((store, report))
    }

    /// The registry in force, including the defaults.
    pub fn registry(&self) -> &Registry {
        &self.state.registry
    }

    /// The registrations in force, sorted by name.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.state.registry.iter()
    }

    /// Whether this id has a built-in registration in force and no file.
    pub fn is_built_in(&self, id: ServiceId) -> bool {
        self.state.built_in(id).is_some()
    }

    /// The number of built-in registrations in force.
    pub fn built_in_count(&self) -> usize {
        self.state.built_in_count()
    }

    /// The current problems with files: the first thousand.
    pub fn problems(&self) -> impl Iterator<Item = &FileProblem> {
        self.state.problems.values()
    }

    /// The configuration directory.
    pub fn config(&self) -> &Path {
        self.folders.config.path()
    }

    /// Reloads the files that [`watch`](fn@watch) reported and returns the changes. They include
    /// changes found during earlier writes.
    pub fn reload(&mut self, changed: &Changed) -> Vec<Change> {
        let mut log = std::mem::take(&mut self.unreported);
        let Ok(reopened) = self.reopen_if_moved(&mut log) else {
            return log.changes;
        };
        // Read the stamp before the files: a concurrent change must not be missed later.
        let folder_stamp = self.folders.services.stamp().ok();
        match changed {
            Changed::Files(paths) if !reopened => {
                let mut paths: Vec<&PathBuf> = paths.iter().collect();
                paths.sort_unstable();
                paths.dedup();
                for path in paths {
                    self.reload_file(path, &mut log);
                }
            }
            _ => self.reload_all(&mut log),
        }
        self.folder_stamp = folder_stamp;
        log.changes
    }

    fn reload_file(&mut self, path: &Path, log: &mut ChangeLog) {
        let Some(name) = path.file_name() else {
            return;
        };
        if path.parent() == Some(self.folders.services.path()) {
            self.state.check_file(&self.folders.services, name, log);
        } else if name == DEFAULTS && path.parent() == Some(self.folders.config.path()) {
            self.state.load_defaults(&self.folders.config, log);
        }
    }

    fn reload_all(&mut self, log: &mut ChangeLog) {
        self.state.load_defaults(&self.folders.config, log);
        self.state.rescan(&self.folders.services, log);
    }

    /// Reopens the directories if their paths refer to other ones. Returns whether they did.
    fn reopen_if_moved(&mut self, log: &mut ChangeLog) -> Result<bool, FolderError> {
        let opened = match self.folders.is_current() {
            true => Ok(None),
            false => OpenFolders::open(self.folders.config.path(), false).map(Some),
        };
        match opened {
            Ok(place) => {
                self.state.clear_problem(OsStr::new(GONE), log);
                let elsewhere = place.is_some();
                if let Some(place) = place {
                    self.folders = place;
                    self.generation = None;
                }
                Ok(elsewhere)
            }
            Err(error) => {
                let what = format!("{error}; the last good state stays in force");
                let problem = FileProblem::whole(self.folders.services.path(), what);
                self.state.report_problem(OsStr::new(GONE), problem, log);
                Err(error)
            }
        }
    }
}
