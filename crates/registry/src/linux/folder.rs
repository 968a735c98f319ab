//! Folders that only their owner may write to, and reading the files in them.
//!
//! Whoever can write to the folder of registrations decides who reaches whom, so a folder that
//! other users may write to is refused with the command that mends it, and so is a file in it.
//! A folder is held open: what is read and written later is in the folder that was checked, even
//! if its path leads elsewhere by then. Reading never blocks and never follows a link, whatever
//! lies under the name (a FIFO, a device, a link to a file elsewhere).

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

use crate::toml_problem::FileProblem;

/// The most bytes that a configuration file may have.
pub const MAX_FILE: u64 = 64 * 1024;

/// A folder, open and checked.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Somebody else may write to it.
    #[error("{} {why}, so others could change who may connect; run: {fix}", path.display())]
    Untrusted {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// The command that mends it.
        fix: String,
    },
    /// Opening or creating it failed.
    #[error("cannot {doing} the folder {}: {source}", path.display())]
    Io {
        /// What failed: `open` or `create`.
        doing: &'static str,
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The bytes of a file and the state that they were read in.
#[derive(Debug)]
pub struct Contents {
    /// The bytes: [`MAX_FILE`] at most.
    pub bytes: Vec<u8>,
    /// The file's state.
    pub stamp: Stamp,
    /// The file's permission bits.
    pub mode: u32,
}

impl Folder {
    /// Opens a folder that is there.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let io = |source: rustix::io::Errno| FolderError::Io {
            doing: "open",
            path: path.to_owned(),
            source: source.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io)?;
        let stat = rustix::fs::fstat(&fd).map_err(io)?;
        if let Some((why, fix)) = distrust(&stat, path) {
            let path = path.to_owned();
            return Err(FolderError::Untrusted { path, why, fix });
        }
        let path = path.to_owned();
        Ok(Self { fd, path })
    }

    /// Opens a folder, and creates it and those above it first if they are missing: readable by
    /// all for root, since reading the registry needs no privilege, else private.
    pub fn open_or_create(path: &Path) -> Result<Self, FolderError> {
        match Self::open(path) {
            Err(FolderError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let mode = if own_uid() == 0 { 0o755 } else { 0o700 };
        let io = |source| FolderError::Io {
            doing: "create",
            path: path.to_owned(),
            source,
        };
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
            .collect();
        for folder in missing.into_iter().rev() {
            match rustix::fs::mkdirat(CWD, folder, Mode::from_raw_mode(mode)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(io(errno.into())),
            }
            if let Some(above) = folder.parent().filter(|above| above.exists()) {
                File::open(above).and_then(|f| f.sync_all()).map_err(io)?;
            }
        }
        Self::open(path)
    }

    /// Where it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to this folder.
    pub fn is_current(&self) -> bool {
        let here = rustix::fs::fstat(&self.fd);
        let there = rustix::fs::stat(&self.path);
        matches!((here, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// The folder's own state, which changes when a name in it comes, goes or is replaced.
    pub fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&rustix::fs::fstat(&self.fd)?))
    }

    /// The names in the folder that `wanted` takes, in order.
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

    /// The state of what lies under a name, without opening or following it.
    pub fn stamp_of(&self, name: &OsStr) -> io::Result<Option<Stamp>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stamp::of(&stat))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads a file, if there is one, or says what is wrong with what lies under its name.
    pub fn read(&self, name: &OsStr) -> Result<Option<Contents>, FileProblem> {
        let path = self.path.join(name);
        let problem = |what: String| FileProblem::whole(&path, what);
        let io = |errno: rustix::io::Errno| problem(format!("cannot be read: {}", say(errno)));
        let flags =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP) => {
                let what = "is a symbolic link, which is not followed; put the file itself here";
                return Err(problem(what.to_owned()));
            }
            // What a socket answers, and a device without a driver.
            Err(rustix::io::Errno::NXIO) => return Err(problem(NOT_A_FILE.to_owned())),
            Err(errno) => return Err(io(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(io)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(problem(NOT_A_FILE.to_owned()));
        }
        if let Some((why, fix)) = distrust(&stat, &path) {
            return Err(problem(format!("{why}; run: {fix}")));
        }
        let mut bytes = Vec::with_capacity(stat.st_size.clamp(0, MAX_FILE as i64) as usize);
        // One byte more than is allowed, in case the file has grown since.
        File::from(fd)
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| problem(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MAX_FILE {
            let size = (stat.st_size as u64).max(bytes.len() as u64);
            return Err(problem(format!(
                "has {size} bytes; at most {MAX_FILE} are read"
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
    /// The state that the system gave.
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

    /// Whether the file was last changed so shortly before `now` (seconds since 1970) that it
    /// might change again without a new time: file systems keep time as coarsely as 2 s.
    pub(crate) fn is_fresh(&self, now: i64) -> bool {
        self.changed.0.max(self.modified.0) + 2 >= now
    }
}

/// Why others could write to a file or folder, and the command that ends it.
fn distrust(stat: &Stat, path: &Path) -> Option<(String, String)> {
    let own = own_uid();
    let path = quoted(path);
    if stat.st_uid != 0 && stat.st_uid != own {
        let why = format!("belongs to the user {}, not to you or root", stat.st_uid);
        return Some((why, format!("chown {own} {path}")));
    }
    let who = match (stat.st_mode & 0o020 != 0, stat.st_mode & 0o002 != 0) {
        (false, false) => return None,
        (true, false) => format!("may be written to by its group ({})", stat.st_gid),
        (_, true) => "may be written to by everyone".to_owned(),
    };
    Some((who, format!("chmod go-w {path}")))
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// An error's text without its number.
fn say(errno: rustix::io::Errno) -> String {
    io::Error::from(errno).to_string()
}

/// The path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The name as the system calls take it, for names that this crate makes itself.
pub(crate) fn os(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}
