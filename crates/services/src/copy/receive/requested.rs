//! What the host has asked a guest for. Nothing else is accepted, and what does not arrive has failed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::note::Note;
use super::super::send::Source;

/// The kinds of entry that a sender can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink,
}

/// The requested sources, by their name at the destination. The contents of a folder have an empty
/// name.
#[derive(Debug)]
pub(super) struct Requested {
    sources: HashMap<Vec<u8>, Request>,
    recursive: bool,
}

#[derive(Debug)]
struct Request {
    path: PathBuf,
    /// Only a folder can be meant: its contents, or a path that ends in a slash.
    folder: bool,
    arrived: bool,
    /// The sender has said why it does not arrive.
    explained: bool,
}

impl Requested {
    pub(super) fn new(sources: &[Source], recursive: bool) -> Self {
        let request = |source: &Source| {
            let name = source.name().map_or(&b""[..], |name| name.as_bytes());
            let request = Request {
                path: source.path().to_owned(),
                folder: source.is_folder_by_name(),
                arrived: false,
                explained: false,
            };
            (name.to_vec(), request)
        };
        Self {
            sources: sources.iter().map(request).collect(),
            recursive,
        }
    }

    /// An entry arrives at the top level. Returns why it is not accepted.
    pub(super) fn arrives(&mut self, name: &[u8], kind: Kind) -> Result<(), &'static str> {
        let Some(request) = self.sources.get_mut(name) else {
            return Err("an entry that was not requested");
        };
        if request.arrived {
            return Err("an entry that was requested once and sent again");
        }
        match (kind, self.recursive, request.folder) {
            (Kind::File, false, _) | (Kind::File | Kind::Symlink, true, false) => {}
            (Kind::Folder, true, _) => {}
            (Kind::Folder, false, _) => return Err("a folder in place of a file"),
            (Kind::Symlink, false, _) => return Err("a symbolic link in place of a file"),
            (_, true, true) => return Err("something else in place of a folder"),
        }
        request.arrived = true;
        Ok(())
    }

    /// The sender reports that an entry is not copied.
    pub(super) fn note(&mut self, note: &Note) {
        for (name, request) in &mut self.sources {
            use std::os::unix::ffi::OsStrExt as _;

            let path = note.path.as_os_str().as_bytes();
            let named = !name.is_empty() && path == name;
            // The guest sees a relative path from its root.
            request.explained |= named || note.path == Path::new("/").join(&request.path);
        }
    }

    /// The sources that have not arrived, and whether the sender has said why.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&Path, bool)> {
        let missing = self.sources.values().filter(|request| !request.arrived);
        missing.map(|request| (request.path.as_path(), request.explained))
    }
}
