//! Registrations as a `.reg` file, the text format of the Windows registry editor.
//!
//! Windows registers a service by a key under [`KEY`] that is named after its GUID. It reads only the
//! value `ElementName`, the friendly name. [`export`](fn@export) writes such keys, with owner, creator
//! and purpose as further values that Windows ignores. Disabled services go under [`DISABLED_KEY`],
//! where hvsock on Windows keeps them. Windows stores access rules elsewhere, so
//! [`export`](fn@export) writes a comment for each registration that has some.
//!
//! [`import`](fn@import) reads files of the registry editor, of podman and of people: version 5 and
//! version 4, in UTF-16, UTF-8 or Windows-1252, with values as text or as bytes and with keys to
//! delete. A syntax error is reported with its line. Other keys and unknown values are skipped with a
//! [note](Import::notes).

pub(crate) mod decode;
mod export;
mod import;
mod syntax;

use std::fmt;

use hvsock_address::ServiceId;

use crate::Registration;

pub use export::export;
pub use import::import;

/// The key where Windows keeps registrations.
pub const KEY: &str = r"HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices";

/// The key where hvsock on Windows keeps disabled services.
pub const DISABLED_KEY: &str = r"HKEY_LOCAL_MACHINE\SOFTWARE\hvsock\Disabled";

/// The maximum size in bytes of a file that [`import`](fn@import) accepts.
pub const MAX_LEN: usize = 64 * 1024 * 1024;

/// The maximum number of notes in an [`Import`].
pub const MAX_NOTES: usize = 1000;

/// The first line of a file in UTF-16.
const VERSION_5: &str = "Windows Registry Editor Version 5.00";
/// The first line of a file in the ANSI code page.
const VERSION_4: &str = "REGEDIT4";

/// The contents of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// The changes that the file requests, in the order to apply them.
    pub entries: Vec<Entry>,
    /// What was skipped or generated, and why: the first [`MAX_NOTES`].
    pub notes: Vec<ImportNote>,
    /// The number of further notes.
    pub more_notes: usize,
}

/// One requested change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Register a service.
    Register {
        /// The line of its key.
        line: usize,
        /// The service.
        registration: Box<Registration>,
    },
    /// Unregister a service, if it is registered (`[-KEY]`).
    Unregister {
        /// The line of its key.
        line: usize,
        /// The service.
        id: ServiceId,
    },
}

/// A message about a part of the file that was skipped or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportNote {
    /// The line, from 1.
    pub line: usize,
    /// The message.
    pub what: String,
}

/// A syntax error. Nothing of the file is imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportError {
    /// The line with the error, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for ImportNote {
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
