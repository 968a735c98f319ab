//! Registrations as keys of the Windows registry: their meaning, and crash-safe changes to them.
//! This module does no I/O, so it is tested on every platform that builds hvsock.
//!
//! Windows registers a service by a key named after its GUID. It reads only the value `ElementName`,
//! which is optional. So **a key takes effect as soon as it has a GUID as its name**. A new key is
//! therefore written under another name, [`STAGE`], and then renamed in one step. The key of a
//! disabled service is at another location, [`KeyLocation::Disabled`], which Windows does not read.
//!
//! [`Store`] has the operations, generic over a [`KeyBackend`]:
//!
//! 1. [`KeyBackend::read`] returns a [`Snapshot`] of the keys, limited by the bounds below.
//! 2. The snapshot is converted to a [`Listing`] of the [model](crate::model)'s types.
//! 3. A change is planned as a list of [`KeyStep`]s. They are ordered so that a crash after any step
//!    leaves each service in its old or its new state. [`KeyBackend::apply`] executes them in turn.

mod error;
mod inventory;
mod key_name;
mod lease;
mod plan;
mod registrations;
mod store;
#[cfg(test)]
mod tests;

pub use error::KeyError;
pub use key_name::is_service;
pub use lease::Lease;
pub use registrations::KeyRegistrations;
pub use store::Store;

use std::path::PathBuf;

use crate::Registry;
use crate::text::escaped;

/// The maximum number of service keys that are read at each location.
pub const MAX_SERVICES: usize = 4096;
/// The maximum number of values that are read from one key.
pub const MAX_VALUES: usize = 64;
/// The maximum size in bytes of one value that is read.
pub const MAX_VALUE: usize = 16 * 1024;
/// The maximum size in bytes of all values together.
pub const MAX_TOTAL: usize = 64 * 1024 * 1024;
/// The maximum number of problems in a listing.
pub const MAX_PROBLEMS: usize = 1000;

/// The temporary name of a key while it is written. It is a GUID, because other programs may expect
/// GUIDs as key names, but it is not a service.
///
/// It sorts after every GUID in use, with or without braces. Windows does not need that, but Wine 8
/// loses a key when a neighbouring key is renamed to a name that sorts after it.
pub const STAGE: &str = "{FFFFFFFF-68D1-4E1C-9C5A-5B0E6A7C4D31}";

/// The value with the id of the process that holds a lease.
pub(crate) const LEASE_PROCESS: &str = "LeaseProcess";
/// The value with the start time of that process.
pub(crate) const LEASE_STARTED: &str = "LeaseStarted";

/// Value types: `REG_SZ`, `REG_EXPAND_SZ`, `REG_DWORD` and `REG_QWORD` (winnt.h).
pub(crate) const REG_SZ: u32 = 1;
pub(crate) const REG_EXPAND_SZ: u32 = 2;
pub(crate) const REG_DWORD: u32 = 4;
pub(crate) const REG_QWORD: u32 = 11;

/// The parent key of a service's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyLocation {
    /// The key of Windows, `GuestCommunicationServices`. Services here are enabled.
    Services,
    /// The key of hvsock for disabled services.
    Disabled,
}

/// A registry value, not yet validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// The name, in any case.
    pub name: String,
    /// The type, as numbered in winnt.h.
    pub kind: u32,
    /// The data.
    pub data: Vec<u8>,
}

/// A service's key, not yet validated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawKey {
    /// The name, in any case, with or without braces.
    pub name: String,
    /// The values.
    pub values: Vec<RawValue>,
    /// The number of subkeys. Subkeys are not read.
    pub subkeys: usize,
    /// What was not read and why. Each entry is the end of a sentence whose subject is the key.
    pub left_out: Vec<String>,
}

/// The keys of all services at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The keys of [`KeyLocation::Services`].
    pub services: Vec<RawKey>,
    /// The keys of [`KeyLocation::Disabled`].
    pub disabled: Vec<RawKey>,
    /// Why keys are missing from the snapshot, as sentences.
    pub problems: Vec<String>,
    /// Whether there are more keys than the limit.
    pub truncated: bool,
}

/// One change of the registry, atomic by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyStep {
    /// Creates a key without values.
    Create {
        /// The parent.
        location: KeyLocation,
        /// The key's name.
        name: String,
        /// Whether the key disappears at the next boot (`REG_OPTION_VOLATILE`).
        volatile: bool,
    },
    /// Sets a value of an existing key.
    Set {
        /// The key's parent.
        location: KeyLocation,
        /// The key's name.
        name: String,
        /// The value.
        value: RawValue,
    },
    /// Removes a value of an existing key. A missing value is no error.
    Unset {
        /// The key's parent.
        location: KeyLocation,
        /// The key's name.
        name: String,
        /// The value's name.
        value: String,
    },
    /// Renames a key. The new name must be free.
    Rename {
        /// The key's parent.
        location: KeyLocation,
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// Deletes a key with its values and subkeys. A missing key is no error.
    Delete {
        /// The key's parent.
        location: KeyLocation,
        /// The key's name.
        name: String,
    },
}

/// The process that holds a lease. The start time distinguishes it from other processes that have or
/// had the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseHolder {
    /// The process id.
    pub process: u32,
    /// The start time in the system's unit (on Windows a FILETIME).
    pub started: u64,
}

/// The liveness of a process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// No process has the id.
    Gone,
    /// A process with this start time has the id.
    StartedAt(u64),
    /// A process has the id, but its start time cannot be read.
    Unknown,
}

/// Storage of keys: the Windows registry, or a fake in tests.
pub trait KeyBackend {
    /// The write lock, released when it is dropped.
    type Guard;

    /// Acquires the write lock, which excludes other processes. A crash releases it.
    ///
    /// # Errors
    /// [`KeyError::Busy`] if another process holds the lock for too long; another [`KeyError`] if
    /// locking fails.
    fn lock(&mut self) -> Result<Self::Guard, KeyError>;

    /// Reads the keys of all services.
    ///
    /// # Errors
    /// [`KeyError::Denied`] or [`KeyError::System`] if the parent keys cannot be read.
    fn read(&self) -> Result<Snapshot, KeyError>;

    /// Executes one step.
    ///
    /// # Errors
    /// [`KeyError::Denied`] or [`KeyError::System`]; the step then changed nothing.
    fn apply(&mut self, step: &KeyStep) -> Result<(), KeyError>;

    /// The liveness of a process.
    fn process_state(&self, process: u32) -> ProcessState;

    /// The calling process.
    ///
    /// # Errors
    /// [`KeyError::System`] if its start time cannot be read.
    fn current_process(&self) -> Result<LeaseHolder, KeyError>;
}

/// The registrations that keys define, enabled or disabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The services, without those of Windows itself ([`Registration::in_box`]). Settings that a key
    /// leaves out are as in [`Registration::new`].
    ///
    /// [`Registration::in_box`]: crate::Registration::in_box
    /// [`Registration::new`]: crate::Registration::new
    pub registry: Registry,
    /// Problems with keys, as sentences that name the key: the first [`MAX_PROBLEMS`], then a count.
    pub problems: Vec<String>,
}

/// The entry of [`RawKey::left_out`] for a value that was not read.
pub fn skipped_value(name: &str, len: usize) -> String {
    format!("the value \"{}\" of {len} bytes is left out", escaped(name))
}

impl LeaseHolder {
    /// Whether the process still runs, given the current state of its process id.
    pub fn is_running(self, now: ProcessState) -> bool {
        match now {
            ProcessState::Gone => false,
            ProcessState::StartedAt(started) => started == self.started,
            // The id may have been reused, but revoking the lease of a live process would be worse.
            ProcessState::Unknown => true,
        }
    }
}

impl RawValue {
    pub(crate) fn text(name: &str, text: &str) -> Self {
        let units = text.encode_utf16().chain([0]);
        Self {
            name: name.to_owned(),
            kind: REG_SZ,
            data: units.flat_map(u16::to_le_bytes).collect(),
        }
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

impl KeyLocation {
    /// The name of the location in messages.
    fn label(self) -> &'static str {
        match self {
            KeyLocation::Services => "GuestCommunicationServices",
            KeyLocation::Disabled => r"hvsock\Disabled",
        }
    }

    /// The path of a key in messages.
    fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}\\{}", self.label(), escaped(name)))
    }
}
