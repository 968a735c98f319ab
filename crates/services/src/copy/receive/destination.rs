//! The destination of a copy.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::CopyError;
use super::super::name::Name;

/// The destination of a copy: a folder, and the name for the single top-level entry if it is renamed.
#[derive(Clone, Debug)]
pub struct Destination {
    pub(super) folder: Arc<OwnedFd>,
    pub(super) rename: Option<Name>,
    pub(super) path: PathBuf,
}

/// Opens a folder to look up names in it.
pub(super) fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(CWD, path, flags, Mode::empty())
}

impl Destination {
    /// Opens a destination. `path` comes from the user who requests the copy and is trusted. It is
    /// an existing folder or, unless `into` is set, a new name in one.
    ///
    /// # Errors
    ///
    /// [`CopyError::Local`] if the folder cannot be opened.
    pub fn open(path: &Path, into: bool) -> Result<Self, CopyError> {
        let error = match open_folder(path) {
            Ok(folder) => {
                return Ok(Self {
                    folder: Arc::new(folder),
                    rename: None,
                    path: path.to_owned(),
                });
            }
            Err(error) => error,
        };
        let trailing = path.as_os_str().as_bytes().ends_with(b"/");
        let named = match error {
            // A file or symbolic link of this name is replaced, like an entry of the same name in a folder.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP if !into && !trailing => {
                path.file_name().map(OsStrExt::as_bytes)
            }
            _ => None,
        };
        let Some(Ok(name)) = named.map(Name::new) else {
            return Err(CopyError::local(path, error));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = open_folder(parent).map_err(|error| CopyError::local(parent, error))?;
        Ok(Self {
            folder: Arc::new(folder),
            rename: Some(name),
            path: path.to_owned(),
        })
    }
}

/// Opens or creates a folder in a folder, and returns whether it was created. Does not follow
/// symbolic links.
pub(super) fn enter(folder: &OwnedFd, name: &Name, mode: u32) -> io::Result<(OwnedFd, bool)> {
    // The owner, this process, must be able to fill it.
    let mode = Mode::from_raw_mode(mode & 0o777 | 0o700);
    let made = match fs::mkdirat(folder, name.as_os_str(), mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(folder, name.as_os_str(), flags, Mode::empty()) {
        Ok(entered) => Ok((entered, made)),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let why = match kind(folder, name) {
                Some(FileType::Symlink) => "a symbolic link is in the way",
                _ => "something other than a folder is in the way",
            };
            Err(io::Error::new(io::ErrorKind::NotADirectory, why))
        }
        Err(error) => Err(error.into()),
    }
}

/// The type of an entry in a folder.
pub(super) fn kind(folder: &OwnedFd, name: &Name) -> Option<FileType> {
    let stat = fs::statat(folder, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}
