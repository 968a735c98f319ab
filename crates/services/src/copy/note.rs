//! The reports of a running copy: its progress, and the entries that it does not copy.

use std::path::{Path, PathBuf};

use super::CopyError;
use crate::wire::copy as wire;

/// An entry that was not copied while the copy continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The path, relative to the copied tree.
    pub path: PathBuf,
    /// The reason.
    pub why: String,
    /// This is not a failure, or one that is counted already: the entry is of a kind that is never copied,
    /// or something was not preserved.
    pub skipped: bool,
}

/// The counters of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCounters {
    /// Files that were sent or created.
    pub files: u64,
    /// Bytes of files that were transferred.
    pub bytes: u64,
    /// Bytes that were not transferred, because the receiver had them.
    pub resumed: u64,
    /// Entries that failed, at either end.
    pub failed: u64,
}

impl CopyCounters {
    /// The counters in a few words: `3 files, 120 bytes, 1 failed`.
    pub fn summary(&self) -> String {
        let Self {
            files,
            bytes,
            resumed,
            failed,
        } = self;
        let mut text = format!("{files} files, {bytes} bytes");
        if *resumed > 0 {
            text.push_str(&format!(", {resumed} resumed"));
        }
        if *failed > 0 {
            text.push_str(&format!(", {failed} failed"));
        }
        text
    }
}

/// Observes a running copy. The methods must not block.
pub trait Observer {
    /// The expected amount of data, as the sender reports it.
    fn total(&mut self, _files: u64, _bytes: u64) {}
    /// A file begins, of the size that the sender reports.
    fn file(&mut self, _path: &Path, _size: u64) {}
    /// More bytes are done: sent, written, or found to exist.
    fn advance(&mut self, _bytes: u64) {}
    /// The copy waits at this path, at either end, for what is named: "a process that writes to the pipe".
    fn waiting(&mut self, _path: &Path, _what: &str) {}
    /// An entry was not copied, at either end.
    fn note(&mut self, _note: &Note) {}
}

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// The longest path of a note that is sent, in bytes.
const PATH: usize = 4096;

/// The longest reason that is sent, in bytes.
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

/// Truncates a reason to the limit, at a character boundary.
pub(super) fn bounded(why: &str) -> String {
    let mut end = why.len().min(WHY);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why[..end].to_owned()
}

impl wire::Failed {
    /// The final error message to the peer.
    pub(crate) fn new(error: &CopyError) -> Self {
        let why = bounded(&error.to_string());
        Self { why }
    }
}
