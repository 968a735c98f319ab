//! What every store of registrations does: load, change, and follow the changes of others.
//!
//! [`RegistrationStore`] is the interface between the storage of registrations and what enforces them,
//! such as a broker. The folder of TOML files and the keys of the Windows registry implement it. To
//! add a store, implement the trait in a module of its own and run the suite of
//! `hvsock_testkit::registration_store` over it.
//!
//! The user of a store:
//!
//! 1. calls [`load`](RegistrationStore::load) once, and copies the entries;
//! 2. calls [`watch`](RegistrationStore::watch), and [`changes`](RegistrationStore::changes) after each
//!    notification;
//! 3. applies the [`Change`]s that `changes`, [`put`](RegistrationStore::put),
//!    [`edit`](RegistrationStore::edit) and [`remove`](RegistrationStore::remove) return,
//!    in order. The copy then equals the store.
//!
//! Changes are returned to the caller that holds the store and not sent to a queue: so one lock around
//! the store orders a user's own changes and those of others, and a writer needs no second thread to
//! learn what its write led to.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hvsock_address::{ElementName, PartitionName, ServiceId};
use hvsock_text::{printable, printable_path};

use crate::{Clash, Defaults, Edit, EditError, Registration};

#[cfg(target_os = "linux")]
pub use crate::linux::folder_store::{FolderStore, LoadReport, Options, SERVICES};

/// A store of registrations.
///
/// Every change is atomic: after an error other than [`StoreError::NotDurable`], nothing was changed.
/// Ids, names (ignoring case) and ports are unique in a store. What one writer stores, all users of the
/// same storage see, in one order.
pub trait RegistrationStore: fmt::Debug + Send {
    /// The registrations in force, the defaults, and the problems. [`changes`](Self::changes) then
    /// returns what changes from here on.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the storage cannot be read. A faulty entry is no error but a problem.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Adds a registration. Returns all changes since the last call, its own included, in order.
    ///
    /// # Errors
    /// [`StoreError::Clash`] if its id, name or port is taken; [`StoreError::Unstorable`] if the store
    /// cannot represent it; [`StoreError::Limit`] if there are too many; [`StoreError::Broken`] if an
    /// entry with its id has a problem; [`StoreError::Busy`], [`StoreError::Failed`] or
    /// [`StoreError::NotDurable`] if locking or writing fails. The next call returns the changes that
    /// were found before the error.
    fn put(&mut self, registration: Registration) -> Result<Vec<Change>, StoreError>;

    /// Changes the settings of a registration. Returns all changes since the last call.
    ///
    /// # Errors
    /// [`StoreError::NotRegistered`] if there is no such registration; [`StoreError::Edit`] if the
    /// change cannot be made; else as [`put`](Self::put).
    fn edit(&mut self, id: ServiceId, edit: &Edit) -> Result<Vec<Change>, StoreError>;

    /// Enables or disables a registration, for all partitions or for one child. See
    /// [`edit`](Self::edit).
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    fn set_enabled(
        &mut self,
        id: ServiceId,
        enabled: bool,
        vm: Option<&PartitionName>,
    ) -> Result<Vec<Change>, StoreError> {
        self.edit(
            id,
            &match vm {
                None => Edit::SetEnabled {
                    enabled,
                    everywhere: false,
                },
                Some(vm) => Edit::SetEnabledFor {
                    child: vm.clone(),
                    enabled,
                    exception: false,
                },
            },
        )
    }

    /// Removes a registration, even one with a problem. Returns all changes since the last call.
    ///
    /// # Errors
    /// [`StoreError::NotRegistered`] if there is none; [`StoreError::BuiltIn`] if it is built in;
    /// [`StoreError::Busy`], [`StoreError::Failed`] or [`StoreError::NotDurable`] if locking or writing
    /// fails.
    fn remove(&mut self, id: ServiceId) -> Result<Vec<Change>, StoreError>;

    /// Returns what changed since the last call, each change once and in order. A storage that cannot
    /// be read any more is a [`Change::Broken`]: its last good state stays in force.
    fn changes(&mut self) -> Vec<Change>;

    /// Calls `notify` when there may be changes, until the returned [`Watch`] is dropped. Calls it once
    /// soon, so that no change before the watch is missed. `notify` runs on a thread of its own and may
    /// block. Notifications may be coalesced, and some have no change.
    ///
    /// # Errors
    /// The system's error if the watch cannot be started.
    fn watch(&mut self, notify: Box<dyn FnMut() + Send>) -> io::Result<Watch>;

    /// Why the running watch learns of changes late, if it does. `notify` is called when that begins
    /// and when it ends.
    fn watch_fault(&self) -> Option<WatchFault> {
        None
    }

    /// Reads again what could not be read, whose cause may be gone without a notification. Returns all
    /// changes since the last call.
    fn retry(&mut self) -> Vec<Change> {
        self.changes()
    }
}

/// Why a [`Watch`] cannot have the system notify it of changes. It then polls for them, and tries again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchFault {
    /// What is watched.
    pub path: PathBuf,
    /// What failed, and why: one sentence.
    pub what: String,
    /// The limit of the system that is reached, by its name among the system's settings.
    pub limit: Option<&'static str>,
}

/// The content of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The registrations in force. Their ids, names and ports are unique.
    pub entries: Vec<Entry>,
    /// The settings for what a registration leaves out.
    pub defaults: Defaults,
    /// Entries that are not in force, or not with their last content, and why.
    pub problems: Vec<Problem>,
}

/// A registration in force, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The registration.
    pub registration: Registration,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a registration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is built into the program, and no stored entry replaces it.
    BuiltIn,
    /// It is stored, at this path of a file or key.
    Stored(PathBuf),
    /// It is a lease, which ends with the process that made it.
    Lease,
}

/// A difference since the last read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A registration came into force.
    Added(Box<Entry>),
    /// A registration, or where it comes from, changed.
    Updated(Box<Entry>),
    /// A registration is no longer in force.
    Removed(ServiceId),
    /// The settings for what registrations leave out changed.
    Defaults(Defaults),
    /// An entry has a problem. Its last good content stays in force.
    Broken(Problem),
    /// The entry at this path has no problem any more.
    Repaired(PathBuf),
}

/// A problem with an entry, and its position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, or the key in another storage. Empty if the problem concerns no single one.
    pub path: PathBuf,
    /// The line and column, both from 1. `None` if the problem concerns the whole entry.
    pub position: Option<(usize, usize)>,
    /// What is wrong: the end of a sentence whose subject is the path or position.
    pub what: String,
}

impl Problem {
    /// A problem with the whole entry.
    pub fn whole(path: &Path, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            position: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for Problem {
    /// `file:line:column: what`, the format of compilers, which editors parse.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.as_os_str().is_empty() {
            return write!(f, "{}", printable(&self.what));
        }
        write!(f, "{}:", printable_path(&self.path))?;
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", printable(&self.what))
    }
}

impl Error for Problem {}

/// The error of a storage, of a type of its own.
pub type StorageError = Box<dyn Error + Send + Sync>;

/// Why a store cannot be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The id, name or port is taken.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// The maximum number of registrations is reached.
    #[error("there are {0} registrations, which is the limit; unregister one first")]
    Limit(usize),
    /// The registration is not in the store.
    #[error("no service {0} is registered here")]
    NotRegistered(ServiceId),
    /// The registration is built in, so there is nothing to remove.
    #[error("`{0}` is built in and cannot be unregistered; disable it instead")]
    BuiltIn(ElementName),
    /// The entry has a problem that must be corrected first.
    #[error("{0}; correct or remove the file first")]
    Broken(Problem),
    /// The change cannot be made. Nothing was changed.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The store cannot represent the registration.
    #[error("this registration cannot be stored: {0}")]
    Unstorable(String),
    /// Another process is changing the store. Nothing was changed.
    #[error(transparent)]
    Busy(StorageError),
    /// The storage cannot be read or written. Nothing was changed.
    #[error(transparent)]
    Failed(StorageError),
    /// The change is in force, but a loss of power may undo it. The next call returns it.
    #[error(transparent)]
    NotDurable(StorageError),
}

/// A running watch. Dropping it ends the notifications.
pub struct Watch {
    _running: Box<dyn Any + Send + Sync>,
}

impl Watch {
    /// Wraps what stops the watch when it is dropped.
    pub fn new(running: impl Any + Send + Sync) -> Self {
        Self {
            _running: Box::new(running),
        }
    }
}

/// Ends a thread that polls, and waits for it.
struct Poller {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `notify` at once and then every `interval`, for a storage that cannot tell when it
    /// changes.
    ///
    /// # Errors
    /// The system's error if the thread cannot be created.
    pub fn polling(interval: Duration, mut notify: Box<dyn FnMut() + Send>) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("hvsock-watch".to_owned())
            .spawn(move || {
                notify();
                while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                    notify();
                }
            })?;
        Ok(Self::new(Poller {
            stop: Some(stop),
            thread: Some(thread),
        }))
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Do not join from within `notify`: the thread would wait for itself. The panic hook has
        // already reported a panic of `notify`.
        let thread = self.thread.take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
