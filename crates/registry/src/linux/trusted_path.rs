//! Opens a directory by a path that no other user can change.
//!
//! Whoever may rename an entry of a directory above, or owns a symbolic link on the way, decides which
//! directory a path leads to. So each directory above must belong to a trusted user, and nobody else may
//! write to it, unless it is sticky (as `/tmp`) and the next entry is a trusted user's, too. Trusted are
//! root, the current user, and the owner of `/`: in a user namespace that is root outside.
//!
//! The path is walked by descriptors, so that what was checked is what is opened.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::folder_error::{Distrust, FolderError};

/// The most symbolic links in one path, as the kernel's limit.
const MAX_LINKS: usize = 40;

/// Opens the directory at `path` without reading it. With `create`, creates it and its missing parents
/// with exactly this mode, whatever the umask and the parents' default ACL and set-group-id bit are.
///
/// The directory itself is not checked, the ones above it are.
///
/// # Errors
/// [`FolderError::UntrustedParent`], [`FolderError::ForeignLink`], or [`FolderError::Io`].
pub(super) fn open(path: &Path, create: Option<u32>) -> Result<OwnedFd, FolderError> {
    let mut walk = Walk::start(path)?;
    while let Some(name) = walk.pending.pop_front() {
        walk.enter(&name, create)?;
    }
    Ok(walk.here)
}

struct Walk<'a> {
    /// The path that was asked for.
    path: &'a Path,
    /// What remains of it.
    pending: VecDeque<OsString>,
    /// The directory that was reached, and its path.
    here: OwnedFd,
    at: PathBuf,
    root_owner: u32,
    links: usize,
}

/// How a directory can be changed by others.
enum Sharing {
    /// Not at all.
    Own,
    /// Others may add entries, and change only their own ones.
    Sticky,
}

impl<'a> Walk<'a> {
    fn start(path: &'a Path) -> Result<Self, FolderError> {
        let io = |error| FolderError::Io {
            doing: "open",
            path: path.to_owned(),
            error,
        };
        let absolute = std::path::absolute(path).map_err(io)?;
        let here = root().map_err(|errno| io(errno.into()))?;
        let stat = rustix::fs::fstat(&here).map_err(|errno| io(errno.into()))?;
        Ok(Self {
            path,
            pending: names(&absolute),
            here,
            at: PathBuf::from("/"),
            root_owner: stat.st_uid,
            links: 0,
        })
    }

    /// Goes to the entry `name` of the directory that was reached.
    fn enter(&mut self, name: &OsStr, create: Option<u32>) -> Result<(), FolderError> {
        let sharing = self.check_here()?;
        if name == ".." {
            self.here = self
                .open_at("..".as_ref())
                .map_err(|e| self.io("open", e))?;
            self.at.pop();
            return Ok(());
        }
        let entry = match self.open_at(name) {
            Err(Errno::NOENT) => match create {
                Some(mode) => {
                    self.create(name, mode)?;
                    self.open_at(name)
                }
                None => Err(Errno::NOENT),
            },
            opened => opened,
        };
        let entry = entry.map_err(|errno| self.io("open", errno))?;
        let stat = rustix::fs::fstat(&entry).map_err(|errno| self.io("open", errno))?;
        let at = self.at.join(name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => self.follow(&entry, at, stat.st_uid),
            FileType::Directory => {
                // The caller checks the last one, for more than its owner.
                let is_last = self.pending.is_empty();
                if matches!(sharing, Sharing::Sticky) && !is_own(stat.st_uid) && !is_last {
                    let why = owner(&stat);
                    return Err(self.untrusted(at, why));
                }
                (self.here, self.at) = (entry, at);
                Ok(())
            }
            _ => Err(self.io("open", Errno::NOTDIR)),
        }
    }

    /// Checks who else may change the entries of the directory that was reached.
    fn check_here(&self) -> Result<Sharing, FolderError> {
        let stat = rustix::fs::fstat(&self.here).map_err(|errno| self.io("open", errno))?;
        if !is_own(stat.st_uid) && stat.st_uid != self.root_owner {
            return Err(self.untrusted(self.at.clone(), owner(&stat)));
        }
        let why = match (stat.st_mode & 0o002 != 0, stat.st_mode & 0o020 != 0) {
            (true, _) => Distrust::Everyone,
            // Members of root's own group are as good as root.
            (false, true) if stat.st_gid != 0 => Distrust::Group { gid: stat.st_gid },
            (false, _) => return Ok(Sharing::Own),
        };
        match stat.st_mode & 0o1000 {
            0 => Err(self.untrusted(self.at.clone(), why)),
            _ => Ok(Sharing::Sticky),
        }
    }

    fn create(&self, name: &OsStr, mode: u32) -> Result<(), FolderError> {
        let io = |errno| self.io("create", errno);
        match rustix::fs::mkdirat(&self.here, name, Mode::from_raw_mode(mode)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(io(errno)),
        }
        // No other user can have replaced it: this directory was checked.
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::chmodat(&self.here, name, mode, AtFlags::empty()).map_err(io)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.here, ".", flags, Mode::empty()) {
            Ok(above) => match rustix::fs::fsync(above) {
                // Some file systems do not support syncing a directory.
                Ok(()) | Err(Errno::INVAL) => Ok(()),
                Err(errno) => Err(io(errno)),
            },
            // A directory that may be written to and not be read cannot be synced.
            Err(Errno::ACCESS) => Ok(()),
            Err(errno) => Err(io(errno)),
        }
    }

    fn follow(&mut self, link: &OwnedFd, at: PathBuf, owner: u32) -> Result<(), FolderError> {
        if !is_own(owner) && owner != self.root_owner {
            let path = self.path.to_owned();
            return Err(FolderError::ForeignLink {
                path,
                link: at,
                owner,
            });
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(self.io("open", Errno::LOOP));
        }
        let target = rustix::fs::readlinkat(link, "", Vec::new());
        let target = target.map_err(|errno| self.io("open", errno))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.here = root().map_err(|errno| self.io("open", errno))?;
            self.at = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            self.pending.push_front(name);
        }
        Ok(())
    }

    fn open_at(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.here, name, flags, Mode::empty())
    }

    fn untrusted(&self, parent: PathBuf, why: Distrust) -> FolderError {
        let path = self.path.to_owned();
        FolderError::UntrustedParent { path, parent, why }
    }

    fn io(&self, doing: &'static str, errno: Errno) -> FolderError {
        FolderError::Io {
            doing,
            path: self.path.to_owned(),
            error: io::Error::from(errno),
        }
    }
}

fn root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/", flags, Mode::empty())
}

/// The entries that a path goes through.
fn names(path: &Path) -> VecDeque<OsString> {
    let normal = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    normal.collect()
}

fn is_own(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

fn owner(stat: &Stat) -> Distrust {
    Distrust::Owner {
        owner: stat.st_uid,
        own: rustix::process::geteuid().as_raw(),
    }
}
