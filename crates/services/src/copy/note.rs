//! What a copy tells whoever looks on.

use std::path::{Path, PathBuf};

use super::CopyError;
use crate::wire::copy as wire;

/// One entry that did not come about, while the copy goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Which, relative to what is copied.
    pub path: PathBuf,
    /// Why.
    pub why: String,
    /// It is of a kind that is not copied: no failure.
    pub skipped: bool,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files that were sent or made.
    pub files: u64,
    /// Bytes that went over the connection, of files.
    pub bytes: u64,
    /// Bytes that did not have to, since the receiver had them.
    pub resumed: u64,
    /// Entries that did not come about, at either end.
    pub failed: u64,
}

/// Looks on while a copy goes on. It must not take long.
pub trait Observer {
    /// How much it will be, as the sender says.
    fn total(&mut self, _files: u64, _bytes: u64) {}
    /// A file begins, which is as long as the sender says.
    fn file(&mut self, _path: &Path, _size: u64) {}
    /// So many bytes more are done with: sent, or written, or found to be there.
    fn advance(&mut self, _bytes: u64) {}
    /// Something did not come about, at either end.
    fn note(&mut self, _note: &Note) {}
}

/// Nobody looks on.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// The most bytes of a note's path that go over the connection.
const PATH: usize = 4096;

/// The most bytes of a reason that go over the connection.
const WHY: usize = 256;

impl Note {
    pub(super) fn to_wire(&self) -> wire::Note {
        use std::os::unix::ffi::OsStrExt as _;

        let path = self.path.as_os_str().as_bytes();
        wire::Note {
            path: path[..path.len().min(PATH)].to_vec().into(),
            why: bounded(&self.why),
            skipped: self.skipped,
        }
    }

    pub(super) fn from_wire(note: &wire::Note) -> Self {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;

        let path = &note.path[..note.path.len().min(PATH)];
        Self {
            path: PathBuf::from(OsStr::from_bytes(path)),
            why: bounded(&note.why),
            skipped: note.skipped,
        }
    }
}

/// As much of a reason as goes over the connection.
pub(super) fn bounded(why: &str) -> String {
    let mut end = why.len().min(WHY);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why[..end].to_owned()
}

impl wire::Failed {
    /// The other end's last word from this one.
    pub(crate) fn new(error: &CopyError) -> Self {
        let why = bounded(&error.to_string());
        Self { why }
    }
}
