//! Registrations as a `.reg` file, the text that Windows' registry editor exports and imports.
//!
//! On Windows a service is registered as a key named by its GUID under [`KEY`], with its friendly
//! name in the value `ElementName`; that is all that Windows itself looks at. [`export`] writes
//! such keys, with owner, creator and purpose as further values, which Windows keeps and ignores.
//! A service that is switched off goes under [`DISABLED_KEY`], where hvsock on Windows has those.
//! Who may use a service is kept elsewhere on Windows, so a comment in the file says what could not
//! go with it.
//!
//! [`import`] reads what the registry editor, podman and people write: version 5 and version 4
//! files in UTF-16, UTF-8 or Windows-1252, values as text or as bytes, keys to be deleted. A
//! mistake in the file is an error with its line. What is well written and not for us (other keys,
//! unknown values) is left out, and the [notes](Import::notes) say so.

pub(crate) mod decode;
mod export;
mod import;
mod syntax;

use std::fmt;

use hvsock_address::ServiceId;

use crate::Registration;

pub use export::export;
pub use import::import;

/// The key under which Windows keeps the registrations, by whatever root.
pub const KEY: &str = r"HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices";

/// The key under which hvsock on Windows keeps the services that are switched off.
pub const DISABLED_KEY: &str = r"HKEY_LOCAL_MACHINE\SOFTWARE\hvsock\Disabled";

/// The most bytes that [`import`] takes.
pub const MAX_LEN: usize = 64 * 1024 * 1024;

/// The most notes that are kept.
pub const MAX_NOTES: usize = 1000;

/// The first line of a file in UTF-16.
const VERSION_5: &str = "Windows Registry Editor Version 5.00";
/// The first line of a file in the language's own encoding.
const VERSION_4: &str = "REGEDIT4";

/// What a file asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// What is to be done, in this order.
    pub entries: Vec<Entry>,
    /// What was left out or made up, and why: the first thousand.
    pub notes: Vec<Note>,
    /// How many more notes there were.
    pub more_notes: usize,
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A service is to be registered.
    Register {
        /// The line of its key.
        line: usize,
        /// The service.
        registration: Box<Registration>,
    },
    /// A service is to be unregistered, if it is registered (`[-KEY]`).
    Unregister {
        /// The line of its key.
        line: usize,
        /// The service.
        id: ServiceId,
    },
}

/// Something that the importer should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line that it is about, from 1.
    pub line: usize,
    /// What there is to know.
    pub what: String,
}

/// Why a file cannot be imported. Nothing of it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportError {
    /// The line with the mistake, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ImportError {}

impl ImportError {
    fn new(line: usize, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { line, what }
    }
}
