//! The registrations of one partition as a directory of TOML files.
//!
//! `services/GUID.toml` is one registration, so that a package or a configuration manager can install
//! one. `defaults.toml` in the parent directory has the settings for what a registration leaves out.
//! `docs/registry.md` documents both. The files follow the rules of an
//! [`EntryFolder`](crate::entry_folder).

#[cfg(test)]
mod edit_tests;
mod format;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hvsock_address::ServiceId;

use super::atomic_file::WriteError;
use super::entry_folder::{
    self, Changed, EntryChange, EntryError, EntryFolder, EntryKind, EntryOptions, WatchHealth,
};
use super::folder::{Folder, FolderError};
use super::lock::LockError;
use crate::store::{
    Change, Entry, Loaded, Origin, Problem, RegistrationStore, StoreError, Watch, WatchFault,
};
use crate::{
    AccessRule, Clash, Defaults, Edit, Inherited, Registration, Registry, TransportSetting,
};

/// The directory of registrations, in the configuration directory.
pub const SERVICES: &str = "services";
/// The file with the settings for what a registration leaves out.
const DEFAULTS: &str = "defaults.toml";

/// The registrations on disk, as last read.
#[derive(Debug)]
pub struct FolderStore {
    config: Folder,
    services: EntryFolder<ServiceFiles>,
    /// What the files of the same services inherit from.
    built_in: BTreeMap<ServiceId, Registration>,
    defaults: Defaults,
    defaults_problem: Option<Problem>,
    /// Changes that nobody has taken yet, in order.
    unreported: Vec<Change>,
    /// What a running watch has reported, and nobody has read yet.
    notified: Weak<Mutex<Option<Changed>>>,
    /// Whether a running watch learns of changes at once.
    health: WatchHealth,
}

/// Decodes `defaults.toml`.
#[cfg(feature = "fuzzing")]
pub(crate) fn decode_defaults(path: &Path, bytes: &[u8]) -> Result<Defaults, Problem> {
    format::decode_defaults(path, bytes)
}

/// Limits of a store, and its built-in registrations.
#[derive(Clone, Debug)]
pub struct Options {
    /// The maximum number of registrations.
    pub limit: usize,
    /// How long a write waits for the lock.
    pub lock_wait: Duration,
    /// Registrations that are in force while they have no file. Changing one writes a file, and what
    /// a file of the same service leaves out is inherited from it; removing the file restores the
    /// built-in registration.
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
    pub problems: Vec<Problem>,
    /// The number of further problems.
    pub more_problems: usize,
    /// The number of removed temporary files of crashed writers.
    pub cleaned: usize,
}

/// Registrations as the entries of a folder.
#[derive(Debug)]
pub(crate) struct ServiceFiles;

/// A value that only one registration may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    /// A port for guests. Two GUIDs may have the same alias port.
    Port(u32),
    /// A case-folded name.
    Name(String),
}

impl EntryKind for ServiceFiles {
    type Key = ServiceId;
    type Entry = Registration;
    type Claim = Claim;
    type Clash = Clash;

    const SINGULAR: &'static str = "registration";
    const PLURAL: &'static str = "registrations";

    fn parse_key(stem: &str) -> Result<ServiceId, String> {
        match stem.parse::<ServiceId>() {
            Ok(id) if id.to_string() == stem => Ok(id),
            Ok(id) => Err(format!(
                "is not the canonical name of this registration; rename it to {id}.toml"
            )),
            Err(_) => Err(
                "is not named after a GUID, such as 0b2f1f0e-0000-4000-8000-000000000001.toml"
                    .to_owned(),
            ),
        }
    }

    fn stem(id: &ServiceId) -> String {
        id.to_string()
    }

    fn key(registration: &Registration) -> ServiceId {
        registration.id
    }

    fn decode(
        path: &Path,
        id: &ServiceId,
        bytes: &[u8],
        built_in: Option<&Registration>,
    ) -> Result<Registration, Problem> {
        format::decode(path, *id, bytes, built_in)
    }

    fn text(registration: &Registration, built_in: Option<&Registration>) -> String {
        format::document(registration, built_in).to_string()
    }

    fn normalized(registration: Registration, built_in: &Registration) -> Registration {
        let own = registration.without(built_in);
        Registration {
            owner: own.owner.or_else(|| built_in.owner.clone()),
            creator: own.creator.or_else(|| built_in.creator.clone()),
            purpose: own.purpose.or_else(|| built_in.purpose.clone()),
            ..own
        }
    }

    fn is_built_in(registration: &Registration, built_in: &Registration) -> bool {
        registration.is_unchanged(built_in)
    }

    fn check(registration: &Registration) -> Result<(), Clash> {
        Registry::new().check(registration)
    }

    fn claims(registration: &Registration) -> Vec<Claim> {
        let port = registration.port_for_guests().map(Claim::Port);
        let name = Claim::Name(registration.name.folded());
        port.into_iter().chain([name]).collect()
    }

    fn clash(existing: &Registration, new: &Registration) -> Clash {
        let mut registry = Registry::new();
        let inserted = registry.insert(existing.clone());
        match inserted.and_then(|()| registry.check(new)) {
            Err(clash) => clash,
            // The caller found a key or claim that both have.
            Ok(()) => Clash::Id {
                existing: Box::new(existing.clone()),
                new: Box::new(new.clone()),
            },
        }
    }
}

impl FolderStore {
    /// Opens and reads the store in a configuration directory. Creates missing directories.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if a directory cannot be opened or created, or may be written by other
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
        let config = Folder::open_or_create(config.as_ref())?;
        let options = EntryOptions {
            limit: options.limit,
            lock_wait: options.lock_wait,
            built_in: options.built_in,
        };
        let built_in = options.built_in.iter();
        let built_in = built_in.map(|one| (one.id, one.clone())).collect();
        let (services, cleaned) = EntryFolder::open(&config.path().join(SERVICES), options)?;
        let mut store = Self {
            config,
            services,
            built_in,
            defaults: Defaults::default(),
            defaults_problem: None,
            unreported: Vec::new(),
            notified: Weak::new(),
            health: WatchHealth::default(),
        };
        store.load_defaults();
        if let Some(problem) = &mut store.defaults_problem {
            let why = "; until it is corrected, the defaults deny all access";
            problem.what.push_str(why);
            store.defaults = deny_all();
        }
        store.unreported.clear();
        let report = LoadReport {
            registrations: store.services.len(),
            problems: store.problems().cloned().collect(),
            more_problems: store.services.more_problems(),
            cleaned,
        };
        Ok((store, report))
    }

    /// A registration in force.
    pub fn get(&self, id: ServiceId) -> Option<&Registration> {
        self.services.get(&id)
    }

    /// The registrations in force, sorted by name.
    pub fn registrations(&self) -> Vec<&Registration> {
        let mut all: Vec<&Registration> = self.services.iter().collect();
        all.sort_by_cached_key(|registration| registration.name.folded());
        all
    }

    /// The number of registrations in force.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether no registration is in force.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The settings for what registrations leave out.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Whether this id has a built-in registration in force and no file.
    pub fn is_built_in(&self, id: ServiceId) -> bool {
        self.services.is_built_in(&id)
    }

    /// The current problems with files: the first thousand, and that of the defaults.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.defaults_problem.iter().chain(self.services.problems())
    }

    /// The configuration directory.
    pub fn config(&self) -> &Path {
        self.config.path()
    }

    /// Reloads the files that [`watch`](entry_folder::watch) reported and returns the changes. They
    /// include changes found during earlier writes.
    pub fn reload(&mut self, changed: &Changed) -> Vec<Change> {
        let moved = self.reopen_config();
        let defaults = self.config.path().join(DEFAULTS);
        match changed {
            Changed::Files(paths) if !moved && !paths.contains(&defaults) => {}
            _ => self.load_defaults(),
        }
        self.services.reload(changed);
        self.take_changes()
    }

    /// Replaces the registration with the same id, keeping comments in its file. Returns all changes
    /// since the last call.
    ///
    /// # Errors
    /// As [`edit`](RegistrationStore::edit).
    pub fn replace(&mut self, registration: &Registration) -> Result<Vec<Change>, StoreError> {
        if registration.lease {
            return Err(unstorable_lease());
        }
        self.change(registration.id, |old| *old = registration.clone())
    }

    fn change(
        &mut self,
        id: ServiceId,
        change: impl FnOnce(&mut Registration),
    ) -> Result<Vec<Change>, StoreError> {
        let written = self.services.change(&id, change);
        self.after(id, written)
    }

    /// The changes since the last call, if the write of `id` succeeded.
    fn after(
        &mut self,
        id: ServiceId,
        written: Result<(), EntryError<Clash>>,
    ) -> Result<Vec<Change>, StoreError> {
        written.map_err(|error| self.store_error(id, error))?;
        Ok(self.take_changes())
    }

    fn store_error(&self, id: ServiceId, error: EntryError<Clash>) -> StoreError {
        match error {
            EntryError::Folder(error) => error.into(),
            EntryError::Lock(error @ LockError::Held { .. }) => StoreError::Busy(error.into()),
            EntryError::Lock(error) => StoreError::Failed(error.into()),
            EntryError::Clash(clash) => clash.into(),
            EntryError::Limit { limit, .. } => StoreError::Limit(limit),
            EntryError::Missing(_) => StoreError::NotRegistered(id),
            EntryError::BuiltIn(_) => match self.get(id) {
                Some(built_in) => StoreError::BuiltIn(built_in.name.clone()),
                None => StoreError::NotRegistered(id),
            },
            EntryError::Broken(problem) => StoreError::Broken(problem),
            EntryError::Unstorable(why) => StoreError::Unstorable(why),
            EntryError::Write(error @ WriteError::NotDurable { .. }) => {
                StoreError::NotDurable(error.into())
            }
            EntryError::Write(error) => StoreError::Failed(error.into()),
        }
    }

    /// Takes all changes that were not yet returned.
    fn take_changes(&mut self) -> Vec<Change> {
        self.collect_changes();
        std::mem::take(&mut self.unreported)
    }

    /// Appends the changes of the folder, so that they have their place among those of the defaults.
    fn collect_changes(&mut self) {
        for change in self.services.take_changes() {
            let change = match change {
                EntryChange::Added { entry, built_in } => {
                    Change::Added(Box::new(self.entry(*entry, built_in)))
                }
                EntryChange::Updated { entry, built_in } => {
                    Change::Updated(Box::new(self.entry(*entry, built_in)))
                }
                EntryChange::Removed(id) => Change::Removed(id),
                EntryChange::Broken(problem) => Change::Broken(problem),
                EntryChange::Repaired(path) => Change::Repaired(path),
            };
            self.unreported.push(change);
        }
    }

    fn entry(&self, registration: Registration, built_in: bool) -> Entry {
        let origin = match built_in {
            true => Origin::BuiltIn,
            false => Origin::Stored(self.services.path_of(&registration.id)),
        };
        Entry {
            registration,
            origin,
        }
    }

    /// Reopens the configuration directory if its path refers to another one. Returns whether it did.
    /// If there is none, the folder of registrations is missing too, and reports that.
    fn reopen_config(&mut self) -> bool {
        if self.config.is_current() {
            return false;
        }
        match Folder::open(self.config.path()) {
            Ok(config) => {
                self.config = config;
                true
            }
            Err(_) => false,
        }
    }

    fn load_defaults(&mut self) {
        self.collect_changes();
        let path = self.config.path().join(DEFAULTS);
        let contents = self.config.read(OsStr::new(DEFAULTS));
        let read = contents.and_then(|contents| match contents {
            Some(contents) => format::decode_defaults(&path, &contents.bytes),
            None => Ok(Defaults::default()),
        });
        match read {
            Ok(defaults) => {
                if let Some(problem) = self.defaults_problem.take() {
                    self.unreported.push(Change::Repaired(problem.path));
                }
                if self.defaults != defaults {
                    self.defaults = defaults.clone();
                    self.unreported.push(Change::Defaults(defaults));
                }
            }
            // At startup a consequence was added to the problem.
            Err(problem)
                if self.defaults_problem.as_ref().is_some_and(|known| {
                    known.position == problem.position && known.what.starts_with(&problem.what)
                }) => {}
            Err(problem) => {
                self.unreported.push(Change::Broken(problem.clone()));
                self.defaults_problem = Some(problem);
            }
        }
    }
}

impl RegistrationStore for FolderStore {
    /// Returns what was read when the store was opened, and the changes since.
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.take_changes();
        let registrations = self.services.iter();
        let entries = registrations.map(|registration| {
            let built_in = self.services.is_built_in(&registration.id);
            self.entry(registration.clone(), built_in)
        });
        Ok(Loaded {
            entries: entries.collect(),
            defaults: self.defaults.clone(),
            problems: self.problems().cloned().collect(),
        })
    }

    fn put(&mut self, registration: Registration) -> Result<Vec<Change>, StoreError> {
        if registration.lease {
            return Err(unstorable_lease());
        }
        let id = registration.id;
        let written = self.services.insert(registration);
        self.after(id, written)
    }

    fn edit(&mut self, id: ServiceId, edit: &Edit) -> Result<Vec<Change>, StoreError> {
        let (defaults, built_in) = (self.defaults.clone(), self.built_in.get(&id).cloned());
        let inherited = Inherited {
            built_in: built_in.as_ref(),
            defaults: &defaults,
        };
        let mut edited = Ok(());
        let written = self.services.change(&id, |registration| {
            edited = edit.apply(registration, inherited);
        });
        let changes = self.after(id, written)?;
        if let Err(refused) = edited {
            self.unreported.splice(0..0, changes);
            return Err(refused.into());
        }
        Ok(changes)
    }

    fn remove(&mut self, id: ServiceId) -> Result<Vec<Change>, StoreError> {
        let written = self.services.remove(&id);
        self.after(id, written)
    }

    /// With a watch, reads what it reported; without one, looks at every file.
    fn changes(&mut self) -> Vec<Change> {
        let changed = match self.notified.upgrade() {
            Some(notified) => locked(&notified).take(),
            None => Some(Changed::Everything),
        };
        match changed {
            Some(changed) => self.reload(&changed),
            None => self.take_changes(),
        }
    }

    fn watch(&mut self, mut notify: Box<dyn FnMut() + Send>) -> io::Result<Watch> {
        let notified = Arc::new(Mutex::new(None));
        self.notified = Arc::downgrade(&notified);
        let (config, health) = (self.config.path(), &self.health);
        let watch = entry_folder::watch(config, &[SERVICES], health, move |changed| {
            let mut before = locked(&notified);
            match &mut *before {
                Some(before) => before.merge(changed),
                None => *before = Some(changed),
            }
            drop(before);
            notify();
        })?;
        Ok(Watch::new(watch))
    }

    fn watch_fault(&self) -> Option<WatchFault> {
        self.health.fault()
    }

    fn retry(&mut self) -> Vec<Change> {
        self.reload(&Changed::Everything)
    }
}

impl From<FolderError> for StoreError {
    fn from(error: FolderError) -> Self {
        Self::Failed(error.into())
    }
}

fn unstorable_lease() -> StoreError {
    StoreError::Unstorable("it is a lease, which ends with its process".to_owned())
}

/// Replaces defaults that cannot be read at startup: an error in the file must not grant access.
fn deny_all() -> Defaults {
    let empty = || AccessRule {
        users: Some(Vec::new()),
        groups: Some(Vec::new()),
        partitions: Some(Vec::new()),
    };
    Defaults {
        bind: empty(),
        connect: empty(),
        allow_wildcard_binds: false,
        only_root_binds: true,
        transport: TransportSetting::Auto,
    }
}

/// What was notified is complete at any time, also if a thread panicked while it held the lock.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
