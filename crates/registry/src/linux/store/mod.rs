//! The registrations of one partition as a folder of TOML files.
//!
//! `services/GUID.toml` is one registration, so that a package or a configuration manager can
//! drop one in; `defaults.toml` beside the folder is what holds where a registration says
//! nothing; `docs/registry.md` shows what is in them. [`FolderStore`] holds what they say, writes
//! what is registered, and follows what others change:
//!
//! 1. [`FolderStore::open`] reads everything and reports what is wrong.
//! 2. [`watch`] calls back when something changed; [`FolderStore::reload`] then says what.
//! 3. [`put`](FolderStore::put), [`set_enabled`](FolderStore::set_enabled),
//!    [`replace`](FolderStore::replace) and [`remove`](FolderStore::remove) write.
//!
//! Who keeps a [`Registry`] of its own in step applies the [`Change`]s that 2 and 3 give, in the
//! order in which they are given, and needs nothing else.
//!
//! What holds at all times:
//! - A file with a problem changes nothing: what it said before stays in force while this
//!   process lives, and at the start it is left out. A problem is reported once, and again when
//!   it is over.
//! - Names are unique. At the start the first file by name has it; later the one that has it
//!   keeps it. The other file is reported, naming both, and comes into force when the name is
//!   free.
//! - Two processes that write at once take turns by a lock, and each sees what the other wrote
//!   before it writes.
//! - If the folder is gone, what was in force stays until there is one again.

mod edit;
mod format;
mod state;
mod watch;
mod write;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hvsock_address::{ElementName, ServiceId};

use self::state::{DEFAULTS, Log, State};
pub use self::watch::{Changed, Watch, watch};
use crate::atomic_file::{self, WriteError};
use crate::folder::{Folder, FolderError, Stamp};
use crate::lock::{Lock, LockError, LockFile};
use crate::toml_problem::FileProblem;
use crate::{Clash, Defaults, Registration, Registry};

/// The folder of registrations, in the folder of configuration.
pub const SERVICES: &str = "services";
const LOCK: &str = ".lock";
/// Stands for the lack of a folder among the names of files with problems.
const GONE: &str = "..";

/// The registrations on disk, as last read.
#[derive(Debug)]
pub struct FolderStore {
    place: Place,
    state: State,
    options: Options,
    /// The lock's generation that `state` is of; none if the lock could not be had.
    generation: Option<u64>,
    /// The folder's own state that `state` is of.
    listed: Option<Stamp>,
    /// What was learnt while writing and is not yet told by `reload`.
    untold: Log,
}

/// Bounds of a store, and what it knows without files.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most registrations.
    pub limit: usize,
    /// How long a write waits for another process's.
    pub lock_wait: Duration,
    /// Registrations that hold while they have no file. Changing one gives it a file; removing
    /// that file brings back what is built in.
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

/// What came of opening a store.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// How many registrations are in force.
    pub registrations: usize,
    /// What is wrong, by file name: the first thousand.
    pub problems: Vec<FileProblem>,
    /// How many more problems there are.
    pub more_problems: usize,
    /// How many files of crashed writers were removed.
    pub cleaned: usize,
}

/// Something that is different since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A registration that was not in force is now.
    Added(Box<Registration>),
    /// A registration says something else.
    Updated(Box<Registration>),
    /// A registration is gone.
    Removed(ServiceId),
    /// What holds where registrations say nothing is different.
    Defaults(Defaults),
    /// Something is wrong with a file; what it said before stays in force.
    Broken(FileProblem),
    /// What was wrong with this file no longer is.
    Repaired(PathBuf),
}

/// Why a store cannot be opened or written to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Another process is writing, or the lock cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What must be unique is not.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// There are as many registrations as there may be.
    #[error("there are {0} registrations, the most that are kept; unregister one first")]
    Limit(usize),
    /// No such registration is on disk.
    #[error("no service {0} is registered in this folder")]
    NotRegistered(ServiceId),
    /// It is there without a file, so there is nothing to remove.
    #[error("`{0}` is built in and cannot be unregistered; disable it instead")]
    BuiltIn(ElementName),
    /// The file must be mended by hand before it can be changed.
    #[error("{0}; mend or remove the file first")]
    Broken(FileProblem),
    /// The registration holds something that its file could not say.
    #[error("this registration cannot be stored: {0}")]
    Unstorable(String),
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The open folders. Replaced as a whole when their paths lead elsewhere.
#[derive(Debug)]
struct Place {
    config: Folder,
    services: Folder,
    /// None on a read-only disk, which can be read all the same.
    lock: Option<LockFile>,
}

impl Place {
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
    /// Opens the store in a folder of configuration, creating what is missing, and reads it.
    pub fn open(config: impl AsRef<Path>) -> Result<(Self, LoadReport), StoreError> {
        Self::open_with(config, Options::default())
    }

    /// Opens a store with other bounds than the usual ones.
    pub fn open_with(
        config: impl AsRef<Path>,
        options: Options,
    ) -> Result<(Self, LoadReport), StoreError> {
        let mut place = Place::open(config.as_ref(), true)?;
        let mut report = LoadReport::default();
        let mut generation = None;
        // Whoever holds the lock is writing and cleans up after itself.
        if let Ok(lock) = place.lock(Duration::ZERO) {
            generation = Some(lock.generation());
            report.cleaned = atomic_file::clean(&place.services).unwrap_or(0);
        }
        let mut store = Self {
            listed: place.services.stamp().ok(),
            place,
            state: State::new(options.limit, options.built_in.clone()),
            options,
            generation,
            untold: Log::default(),
        };
        let mut log = Log {
            starting: true,
            ..Log::default()
        };
        store.state.load_defaults(&store.place.config, &mut log);
        store.state.rescan(&store.place.services, &mut log);
        store.state.load_built_in(&store.place.services, &mut log);
        report.registrations = store.state.registry.len();
        report.problems = store.state.problems.values().cloned().collect();
        report.more_problems = store.state.more_problems;
        Ok((store, report))
    }

    /// What is in force, defaults included.
    pub fn registry(&self) -> &Registry {
        &self.state.registry
    }

    /// The registrations in force, by name.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.state.registry.iter()
    }

    /// Whether what holds for this id is what is built in, and no file.
    pub fn is_built_in(&self, id: ServiceId) -> bool {
        self.state.built_in(id).is_some()
    }

    /// How many registrations are as they were built in.
    pub fn built_in_count(&self) -> usize {
        self.state.built_in_count()
    }

    /// What is wrong with files at present: the first thousand.
    pub fn problems(&self) -> impl Iterator<Item = &FileProblem> {
        self.state.problems.values()
    }

    /// The folder of configuration.
    pub fn config(&self) -> &Path {
        self.place.config.path()
    }

    /// Looks at what [`watch`] said has changed, and tells what is different; also what was
    /// learnt by the way while writing.
    pub fn reload(&mut self, changed: &Changed) -> Vec<Change> {
        let mut log = std::mem::take(&mut self.untold);
        let Ok(reopened) = self.follow(&mut log) else {
            return log.changes;
        };
        // Taken before looking, so that what changes meanwhile is not taken for seen.
        let listed = self.place.services.stamp().ok();
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
        self.listed = listed;
        log.changes
    }

    fn reload_file(&mut self, path: &Path, log: &mut Log) {
        let Some(name) = path.file_name() else {
            return;
        };
        if path.parent() == Some(self.place.services.path()) {
            self.state.look(&self.place.services, name, log);
        } else if name == DEFAULTS && path.parent() == Some(self.place.config.path()) {
            self.state.load_defaults(&self.place.config, log);
        }
    }

    fn reload_all(&mut self, log: &mut Log) {
        self.state.load_defaults(&self.place.config, log);
        self.state.rescan(&self.place.services, log);
    }

    /// Opens the folders again if their paths lead elsewhere; says whether they did.
    fn follow(&mut self, log: &mut Log) -> Result<bool, FolderError> {
        let opened = match self.place.is_current() {
            true => Ok(None),
            false => Place::open(self.place.config.path(), false).map(Some),
        };
        match opened {
            Ok(place) => {
                self.state.solved(OsStr::new(GONE), log);
                let elsewhere = place.is_some();
                if let Some(place) = place {
                    self.place = place;
                    self.generation = None;
                }
                Ok(elsewhere)
            }
            Err(error) => {
                let what = format!("{error}; the last good state stays in force");
                let problem = FileProblem::whole(self.place.services.path(), what);
                self.state.problem(OsStr::new(GONE), problem, log);
                Err(error)
            }
        }
    }
}
