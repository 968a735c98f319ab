//! Registrations as keys of the registry of Windows: what they mean and how they are changed,
//! without any I/O, so that all of it is tested wherever hvsock is built.
//!
//! Windows knows a service by a key that is named after its GUID, and looks at nothing in it but
//! the value `ElementName`; not even that has to be there. So **a key under its GUID is in force
//! from the moment that it has that name**, and whatever is to be there all at once is written
//! under another name, [`STAGE`], and then renamed. A service that is switched off has its key in
//! another place, [`Place::Disabled`], which Windows does not look at.
//!
//! [`Store`] has the operations, over whatever implements [`Keys`]:
//!
//! 1. [`Keys::read`] gives a [`Snapshot`], as much of the keys as its bounds allow.
//! 2. From that comes a [`Listing`], in the words of the [model](crate::model).
//! 3. A change becomes a list of [`Step`]s, in an order in which a crash after any of them leaves
//!    each service as it was or as it was to be; [`Keys::apply`] takes them one by one.

mod error;
mod lease;
mod plan;
mod store;
mod survey;
#[cfg(test)]
mod tests;

pub use error::KeyError;
pub use lease::Lease;
pub use store::Store;

use crate::Registry;
use crate::text::shown;

/// The most keys of services that are read.
pub const MAX_SERVICES: usize = 4096;
/// The most values of one key that are read.
pub const MAX_VALUES: usize = 64;
/// The most bytes of one value that are read.
pub const MAX_VALUE: usize = 16 * 1024;
/// The most bytes of all values together that are read.
pub const MAX_TOTAL: usize = 64 * 1024 * 1024;
/// The most problems that are listed one by one.
pub const MAX_PROBLEMS: usize = 1000;

/// The name of a key that is being written: a GUID, for whoever expects every key to be named by
/// one, and nobody's service.
///
/// It sorts behind every GUID that is in use, braces or not. Windows does not mind, but Wine 8
/// loses a key when its neighbour is renamed to what sorts behind it.
pub const STAGE: &str = "{FFFFFFFF-68D1-4E1C-9C5A-5B0E6A7C4D31}";

/// Which process has a lease, in a service's key.
pub(crate) const LEASE_PROCESS: &str = "LeaseProcess";
/// When that process began.
pub(crate) const LEASE_STARTED: &str = "LeaseStarted";

/// Types of values: `REG_SZ`, `REG_EXPAND_SZ`, `REG_DWORD` and `REG_QWORD` (winnt.h).
pub(crate) const REG_SZ: u32 = 1;
pub(crate) const REG_EXPAND_SZ: u32 = 2;
pub(crate) const REG_DWORD: u32 = 4;
pub(crate) const REG_QWORD: u32 = 11;

/// Where a service's key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Windows' own key, `GuestCommunicationServices`: what is here is in force.
    Services,
    /// Ours, for services that are switched off.
    Disabled,
}

/// A value, as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// Its name, in whatever case.
    pub name: String,
    /// Its type, by the number of winnt.h.
    pub kind: u32,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// A service's key, as the registry has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawKey {
    /// Its name, in whatever case, perhaps with braces.
    pub name: String,
    /// Its values.
    pub values: Vec<RawValue>,
    /// How many keys it has of its own, which are not read.
    pub subkeys: usize,
    /// What else of the key is not here, and why; parts of a sentence about the key.
    pub left_out: Vec<String>,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The keys of [`Place::Services`].
    pub services: Vec<RawKey>,
    /// The keys of [`Place::Disabled`].
    pub disabled: Vec<RawKey>,
    /// What kept any key from being read at all, as sentences.
    pub problems: Vec<String>,
    /// Whether there are more keys than were read.
    pub truncated: bool,
}

/// One change, which is made as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes a key without values.
    Create {
        /// Where.
        place: Place,
        /// Its name.
        name: String,
        /// Whether it is to be gone when Windows starts again.
        volatile: bool,
    },
    /// Sets a value of a key that is there.
    Set {
        /// Where the key is.
        place: Place,
        /// The key's name.
        name: String,
        /// The value.
        value: RawValue,
    },
    /// Takes a value from a key, if it is there.
    Unset {
        /// Where the key is.
        place: Place,
        /// The key's name.
        name: String,
        /// The value's name.
        value: String,
    },
    /// Gives a key another name, which no key has.
    Rename {
        /// Where the key is.
        place: Place,
        /// Its name so far.
        from: String,
        /// Its name from now on.
        to: String,
    },
    /// Takes a key away with all that is in it, if it is there.
    Delete {
        /// Where the key is.
        place: Place,
        /// Its name.
        name: String,
    },
}

/// A process, told from those that had or will have its id by when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process's id.
    pub process: u32,
    /// When it began, as the system counts.
    pub started: u64,
}

/// What the system says of a process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No process has it.
    Gone,
    /// A process has it that began at this time.
    Since(u64),
    /// A process has it, about which nothing may be asked.
    Unknown,
}

/// Where keys are: the registry of Windows, or whatever stands in for it in a test.
pub trait Keys {
    /// A writer's turn, which ends when it is dropped.
    type Turn;

    /// Waits until no other process is writing; a crashed one is not.
    fn turn(&mut self) -> Result<Self::Turn, KeyError>;

    /// Reads all keys of services.
    fn read(&self) -> Result<Snapshot, KeyError>;

    /// Makes one change.
    fn apply(&mut self, step: &Step) -> Result<(), KeyError>;

    /// Whether a process lives.
    fn life(&self, process: u32) -> Life;

    /// The process that asks.
    fn myself(&self) -> Result<Holder, KeyError>;
}

/// What is registered, in force or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The services, but for those of Windows itself ([`Registration::in_box`]), which no registry
    /// holds. What a key does not say is as in [`Registration::new`].
    ///
    /// [`Registration::in_box`]: crate::Registration::in_box
    /// [`Registration::new`]: crate::Registration::new
    pub registry: Registry,
    /// What is wrong with keys, as sentences that name them: the first thousand.
    pub problems: Vec<String>,
}

/// Whether a key of this name is a service's.
pub fn is_service(name: &str) -> bool {
    survey::service_id(name).is_some()
}

/// What is wrong where a value was not read, as it is in [`RawKey::left_out`].
pub fn unread(name: &str, len: usize) -> String {
    format!("the value \"{}\" of {len} bytes is left out", shown(name))
}

impl Holder {
    /// Whether the process that took a lease still lives, by what the system says of its id.
    pub fn lives(self, now: Life) -> bool {
        match now {
            Life::Gone => false,
            Life::Since(started) => started == self.started,
            // It may be another one by now; taking a lease from a process that lives is worse.
            Life::Unknown => true,
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

impl Place {
    /// The place's name in a problem.
    fn shown(self) -> &'static str {
        match self {
            Place::Services => "GuestCommunicationServices",
            Place::Disabled => r"hvsock\Disabled",
        }
    }
}
