//! The destination of a copy.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::CopyError;
use super::super::name::Name;
use super::super::own_descriptor;
use super::target::kind;

/// The destination of a copy: a folder, a name in one for the single top-level entry, or an open
/// descriptor for the content of a single file.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The folder. Of a descriptor it is the descriptor itself, in which no name can be looked up.
    pub(super) folder: Arc<OwnedFd>,
    pub(super) rename: Option<Name>,
    pub(super) is_stream: bool,
    pub(super) path: PathBuf,
    descriptor: Option<i32>,
}

/// Opens a folder to look up names in it.
fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(CWD, path, flags, Mode::empty())
}

impl Destination {
    /// Opens a destination. `path` comes from the user who requests the copy and is trusted. It is
    /// an existing folder or, unless `into` is set, a name in one: of nothing yet, of a file, a pipe
    /// or a device, or of a symbolic link to one.
    ///
    /// The standard output or error of this process, as `/dev/stdout` or `/dev/fd/2`, is written to
    /// at its current position.
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
                    is_stream: false,
                    path: path.to_owned(),
                    descriptor: None,
                });
            }
            Err(error) => error,
        };
        // `file_name` would ignore a final `/` or `/.`, which only a folder can have.
        let bytes = path.as_os_str().as_bytes();
        let start = bytes.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = bytes.split_at(start.map_or(0, |slash| slash + 1));
        let name = match Name::new(name) {
            Ok(name) if !into => name,
            _ => return Err(CopyError::local(path, error)),
        };
        let parent = match parent {
            b"" => Path::new("."),
            parent => Path::new(OsStr::from_bytes(parent)),
        };
        let folder = open_folder(parent).map_err(|error| CopyError::local(parent, error))?;
        let descriptor = own_descriptor::named(&folder, &name);
        let standard = match descriptor {
            Some(1) => io::stdout().as_fd().try_clone_to_owned().ok(),
            Some(2) => io::stderr().as_fd().try_clone_to_owned().ok(),
            _ => None,
        };
        if let Some(standard) = standard {
            return Ok(Self::descriptor(standard, path));
        }
        Ok(Self {
            folder: Arc::new(folder),
            rename: Some(name),
            is_stream: false,
            path: path.to_owned(),
            descriptor,
        })
    }

    /// An open descriptor, which the content of a single file is written to, at its current
    /// position. Messages to people call it `label`.
    pub fn descriptor(descriptor: OwnedFd, label: impl Into<PathBuf>) -> Self {
        Self {
            descriptor: Some(descriptor.as_raw_fd()),
            folder: Arc::new(descriptor),
            rename: None,
            is_stream: true,
            path: label.into(),
        }
    }

    /// Whether it is a descriptor of this process, by whatever name.
    pub fn is_descriptor(&self) -> bool {
        self.descriptor.is_some()
    }

    /// Whether the destination takes one entry, and not the entries of a folder.
    pub(super) fn is_single(&self) -> bool {
        self.is_stream || self.rename.is_some()
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
