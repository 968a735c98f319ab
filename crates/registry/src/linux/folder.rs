//! Directories that only their owner may write to, and reading files in them.
//!
//! A user who can write to the directory of registrations controls all access. So a directory or file
//! that other users may write to is rejected, and so is a path that they may change. The directory
//! stays open after the check, which avoids a TOCTOU race: later reads and writes use the checked
//! directory even if its path is replaced. Reading never blocks and never follows a symbolic link.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

pub use super::folder_error::{Distrust, FolderError};
use super::trusted_path;
use crate::store::Problem;

/// The maximum size in bytes of a configuration file.
pub const MAX_FILE: u64 = 64 * 1024;

/// An open directory whose owner and mode were checked.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// The state of a file, for detecting changes without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The content of a file, and its state when it was read.
#[derive(Debug)]
pub struct Contents {
    /// The bytes: at most [`MAX_FILE`].
    pub bytes: Vec<u8>,
    /// The file's state.
    pub stamp: Stamp,
    /// The file's permission bits.
    pub mode: u32,
}

impl Folder {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// [`FolderError::Untrusted`] if another user may write to it, [`FolderError::UntrustedParent`] or
    /// [`FolderError::ForeignLink`] if one may replace it; [`FolderError::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        Self::at(path, None)
    }

    /// Opens a directory. Creates it and its missing parents: with mode 0755 for root, since reading
    /// the registry needs no privilege, else with mode 0700. The umask does not matter.
    ///
    /// # Errors
    /// As [`open`](Self::open), also if it cannot be created.
    pub fn open_or_create(path: &Path) -> Result<Self, FolderError> {
        let mode = if own_uid() == 0 { 0o755 } else { 0o700 };
        Self::at(path, Some(mode))
    }

    fn at(path: &Path, create: Option<u32>) -> Result<Self, FolderError> {
        let io = |error: rustix::io::Errno| FolderError::Io {
            doing: "open",
            path: path.to_owned(),
            error: error.into(),
        };
        let found = trusted_path::open(path, create)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&found, ".", flags, Mode::empty()).map_err(io)?;
        let stat = rustix::fs::fstat(&fd).map_err(io)?;
        if let Some(why) = untrusted_reason(&stat) {
            let path = path.to_owned();
            return Err(FolderError::Untrusted { path, why });
        }
        let path = path.to_owned();
        Ok(Self { fd, path })
    }

    /// Gives the directory this mode.
    ///
    /// # Errors
    /// The system's error if it belongs to another user.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode))?)
    }

    /// The permission bits of the directory.
    ///
    /// # Errors
    /// The system's error if they cannot be read.
    pub fn mode(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&self.fd)?.st_mode & 0o7777)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still refers to this directory.
    pub fn is_current(&self) -> bool {
        let here = rustix::fs::fstat(&self.fd);
        let there = rustix::fs::stat(&self.path);
        matches!((here, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// The state of the directory itself. It changes when an entry is created, removed or replaced.
    ///
    /// # Errors
    /// The system's error if the state cannot be read.
    pub fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&rustix::fs::fstat(&self.fd)?))
    }

    /// The names in the directory for which `wanted` returns true, sorted.
    ///
    /// # Errors
    /// The system's error if the directory cannot be listed.
    pub fn names(&self, wanted: impl Fn(&OsStr) -> bool) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." && wanted(name) {
                names.push(OsString::from_vec(entry.file_name().to_bytes().to_vec()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The state of the entry `name`, without opening it or following a link. `None` if there is none.
    ///
    /// # Errors
    /// The system's error if the state cannot be read.
    pub fn stamp_of(&self, name: &OsStr) -> io::Result<Option<Stamp>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stamp::of(&stat))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads a file. `None` if it does not exist.
    ///
    /// # Errors
    /// [`Problem`] if it is not a regular file, is a symbolic link, is larger than [`MAX_FILE`], may
    /// be written by other users, or cannot be read.
    pub fn read(&self, name: &OsStr) -> Result<Option<Contents>, Problem> {
        let path = self.path.join(name);
        let problem = |what: String| Problem::whole(&path, what);
        let io =
            |errno: rustix::io::Errno| problem(format!("cannot be read: {}", error_text(errno)));
        let flags =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP) => {
                let what =
                    "is a symbolic link, which is not followed; replace it by the file itself";
                return Err(problem(what.to_owned()));
            }
            // Opening a socket, or a device without a driver.
            Err(rustix::io::Errno::NXIO) => return Err(problem(NOT_A_FILE.to_owned())),
            Err(errno) => return Err(io(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(io)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(problem(NOT_A_FILE.to_owned()));
        }
        if let Some(why) = untrusted_reason(&stat) {
            return Err(problem(format!("{why}; {}", why.advice())));
        }
        let mut bytes = Vec::with_capacity(stat.st_size.clamp(0, MAX_FILE as i64) as usize);
        // One byte more than allowed, to detect a file that has grown since fstat.
        File::from(fd)
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| problem(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MAX_FILE {
            let size = (stat.st_size as u64).max(bytes.len() as u64);
            return Err(problem(format!(
                "has {size} bytes; the limit is {MAX_FILE}"
            )));
        }
        Ok(Some(Contents {
            bytes,
            stamp: Stamp::of(&stat),
            mode: stat.st_mode & 0o777,
        }))
    }
}

const NOT_A_FILE: &str = "is not a regular file";

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Stamp {
    /// Converts the result of `stat`.
    #[allow(
        clippy::unnecessary_cast,
        reason = "the fields' types differ by architecture"
    )]
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as u64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    /// Whether the file changed so shortly before `now` (seconds since 1970) that a later change could
    /// have the same timestamp. File systems have a time resolution of up to 2 s (FAT).
    pub(crate) fn is_fresh(&self, now: i64) -> bool {
        self.changed.0.max(self.modified.0) + 2 >= now
    }
}

/// Why other users could write to a file or directory, if they could.
fn untrusted_reason(stat: &Stat) -> Option<Distrust> {
    let (owner, own) = (stat.st_uid, own_uid());
    if owner != 0 && owner != own {
        return Some(Distrust::Owner { owner, own });
    }
    match (stat.st_mode & 0o020 != 0, stat.st_mode & 0o002 != 0) {
        (false, false) => None,
        (true, false) => Some(Distrust::Group { gid: stat.st_gid }),
        (_, true) => Some(Distrust::Everyone),
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The text of an error.
fn error_text(errno: rustix::io::Errno) -> String {
    io::Error::from(errno).to_string()
}

/// Converts a name that this crate generated.
pub(crate) fn os(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}
