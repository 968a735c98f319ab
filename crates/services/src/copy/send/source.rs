//! The paths to copy, and the entries found below them.

use std::collections::HashSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, OFlags};

use super::super::name::Name;

/// A path to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    name: Option<Name>,
    is_standard_input: bool,
}

impl Source {
    /// Copies the file or folder at `path`. Its name at the destination is the path's last component. A path
    /// that ends in `.`, `..` or the root has no name: the contents of that folder are copied.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/');
        let bytes = &bytes[..end.map_or(0, |last| last + 1)];
        let last = bytes.rsplit(|byte| *byte == b'/').next();
        let name = last.and_then(|last| Name::new(last).ok());
        Self {
            path,
            name,
            is_standard_input: false,
        }
    }

    /// Copies what can be read from this process's standard input. It has no name at the destination, which
    /// must be a single file.
    pub fn standard_input() -> Self {
        Self {
            path: PathBuf::from("standard input"),
            name: None,
            is_standard_input: true,
        }
    }

    /// Whether it is the standard input.
    pub fn is_standard_input(&self) -> bool {
        self.is_standard_input
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path can only mean a folder: it has no name, or ends in a slash.
    pub(in crate::copy) fn is_folder_by_name(&self) -> bool {
        self.name.is_none() || self.path.as_os_str().as_bytes().ends_with(b"/")
    }

    /// Finds a source whose name at the destination is that of an earlier one, and which would
    /// replace it there.
    pub fn find_clash(sources: &[Self]) -> Option<&Self> {
        let mut names = HashSet::new();
        sources.iter().find(|source| !names.insert(source.name()))
    }

    /// The name at the destination.
    pub fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }
}

/// An entry: a name in an open folder, or the path of a source.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub folder: BorrowedFd<'a>,
    pub name: &'a Path,
    pub follow: bool,
}

/// Opens a file or folder for reading, without side effects of opening.
pub(super) fn open(at: At<'_>, kind: OFlags) -> rustix::io::Result<OwnedFd> {
    let follow = match at.follow {
        true => OFlags::empty(),
        false => OFlags::NOFOLLOW,
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    fs::openat(at.folder, at.name, flags | follow | kind, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_the_name_of_its_last_component_or_none() {
        for (path, name) in [
            ("a", Some("a")),
            ("/x/a", Some("a")),
            ("a/", Some("a")),
            ("a//", Some("a")),
            ("..a", Some("..a")),
            ("/", None),
            ("", None),
            (".", None),
            ("a/.", None),
            ("a/./", None),
            ("..", None),
            ("a/..", None),
        ] {
            let source = Source::new(path);
            let found = source.name().map(|name| name.as_os_str().to_str().unwrap());
            assert_eq!(found, name, "{path:?}");
        }
    }
}
