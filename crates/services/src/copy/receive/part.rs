//! Staged content: complete and checked before it gets its final name.
//!
//! Content that an interrupted copy can resume is in a file of a name that depends on the final one
//! only. Nobody but its owner can open that file, so nobody else can lock it or write to it. All other
//! content is in a file without a name, so nothing is left of it if this process is killed, or, where the
//! filesystem has no such files, in one of a random name.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::super::name::Name;
use super::target::{is_same, replaced};

/// A file with staged content. Its name, if it has one, is removed on drop, unless a later copy can
/// resume it.
#[derive(Debug)]
pub(super) struct Part {
    folder: Arc<OwnedFd>,
    /// The temporary name.
    name: Option<Name>,
    file: OwnedFd,
    // In a box, because errors carry a `Part`.
    stat: Box<Stat>,
    private: bool,
    keep: bool,
}

/// How often to retry when another process changes the temporary name in between.
const TRIES: usize = 16;

/// The mode of a file that nobody else can open.
const PRIVATE: u32 = 0o600;

const OPEN: OFlags = OFlags::RDWR
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

impl Part {
    /// Creates a file for the content of `name`. With `resume`, reuses the one that an interrupted
    /// copy has left. `mode` is the mode of a new file, if the content gets one.
    ///
    /// # Errors
    ///
    /// If no file can be created in the folder, or if another copy of this user is writing to it.
    pub(super) fn open(
        folder: &Arc<OwnedFd>,
        name: &Name,
        mode: u32,
        resume: bool,
    ) -> io::Result<Self> {
        let staged = |name, file, stat, private| Self {
            folder: Arc::clone(folder),
            name,
            file,
            stat: Box::new(stat),
            private,
            keep: private,
        };
        if resume && let Some((file, stat)) = open_resumable(folder, &name.part())? {
            return Ok(staged(Some(name.part()), file, stat, true));
        }
        let (name, file) = match open_unnamed(folder, mode) {
            Ok(file) => (None, file),
            Err(_) => {
                let (name, file) = create_random(folder, name, mode)?;
                (Some(name), file)
            }
        };
        let stat = fs::fstat(&file)?;
        Ok(staged(name, file, stat, false))
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Its state when it was opened.
    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Whether it has the mode of a partial file, not that of a new file.
    pub(super) fn is_private(&self) -> bool {
        self.private
    }

    /// Removes the file, so that the next copy starts anew.
    pub(super) fn discard(mut self) {
        self.keep = false;
    }

    /// Keeps the complete content under a temporary name, which is returned.
    pub(super) fn keep(mut self, name: &Name) -> Option<Name> {
        if self.name.is_none() {
            self.name = self.link_at_random(name).ok();
        }
        self.keep = true;
        self.name.clone()
    }

    /// Gives the file its final name, which nothing has.
    ///
    /// # Errors
    ///
    /// The error and the file. The kind is [`io::ErrorKind::AlreadyExists`] if the name is taken now.
    pub(super) fn create(self, name: &Name) -> Result<(), (io::Error, Self)> {
        let created = match &self.name {
            None => link(&self.file, &self.folder, name).map_err(io::Error::from),
            Some(temporary) => self.is_still(temporary).and_then(|()| {
                let (from, to) = (temporary.as_os_str(), name.as_os_str());
                let flags = RenameFlags::NOREPLACE;
                match fs::renameat_with(&self.folder, from, &self.folder, to, flags) {
                    // The filesystem knows no flags.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        Ok(fs::renameat(&self.folder, from, &self.folder, to)?)
                    }
                    renamed => Ok(renamed?),
                }
            }),
        };
        self.done(created)
    }

    /// Gives the file its final name, in place of the file that has it.
    ///
    /// # Errors
    ///
    /// The error and the file.
    pub(super) fn replace(mut self, name: &Name) -> Result<(), (io::Error, Self)> {
        let temporary = match self.name.clone() {
            Some(temporary) => temporary,
            None => match self.link_at_random(name) {
                Ok(temporary) => {
                    self.name = Some(temporary.clone());
                    temporary
                }
                Err(error) => return Err((error.into(), self)),
            },
        };
        let replaced = self.is_still(&temporary).and_then(|()| {
            let (from, to) = (temporary.as_os_str(), name.as_os_str());
            Ok(fs::renameat(&self.folder, from, &self.folder, to)?)
        });
        self.done(replaced)
    }

    fn done(mut self, done: io::Result<()>) -> Result<(), (io::Error, Self)> {
        match done {
            Ok(()) => {
                self.name = None;
                Ok(())
            }
            Err(error) => Err((error, self)),
        }
    }

    /// Checks that the temporary name still is this file's.
    fn is_still(&self, temporary: &Name) -> io::Result<()> {
        let temporary = temporary.as_os_str();
        let now = fs::statat(&self.folder, temporary, AtFlags::SYMLINK_NOFOLLOW)?;
        match is_same(&now, &self.stat) {
            true => Ok(()),
            false => Err(replaced()),
        }
    }

    /// Gives a file without a name a random one.
    fn link_at_random(&self, name: &Name) -> rustix::io::Result<Name> {
        for _ in 0..TRIES {
            let temporary = name.random_part();
            match link(&self.file, &self.folder, &temporary) {
                Ok(()) => return Ok(temporary),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        let empty = || fs::fstat(&self.file).is_ok_and(|now| now.st_size == 0);
        if (!self.keep || empty()) && self.is_still(name).is_ok() {
            let _ = fs::unlinkat(&self.folder, name.as_os_str(), AtFlags::empty());
        }
    }
}

/// Opens a file that has no name, if the filesystem has such files and they can get a name later.
fn open_unnamed(folder: &OwnedFd, mode: u32) -> rustix::io::Result<OwnedFd> {
    // `link` needs it.
    fs::accessat(CWD, "/proc/self/fd", fs::Access::EXISTS, AtFlags::empty())?;
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    fs::openat(folder, ".", flags, Mode::from_raw_mode(mode & 0o777))
}

/// Gives an open file without a name its first one.
fn link(file: &OwnedFd, folder: &OwnedFd, name: &Name) -> rustix::io::Result<()> {
    // The descriptor itself could be linked only with a capability.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::linkat(CWD, path, folder, name.as_os_str(), AtFlags::SYMLINK_FOLLOW)
}

/// Creates a file of a random name.
fn create_random(folder: &OwnedFd, name: &Name, mode: u32) -> rustix::io::Result<(Name, OwnedFd)> {
    let flags = OPEN | OFlags::CREATE | OFlags::EXCL;
    for _ in 0..TRIES {
        let temporary = name.random_part();
        let mode = Mode::from_raw_mode(mode & 0o777);
        match fs::openat(folder, temporary.as_os_str(), flags, mode) {
            Ok(file) => return Ok((temporary, file)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

/// A file whose permissions and access list are those that a new file of this mode gets in this folder.
pub(super) fn sample(folder: &OwnedFd, name: &Name, mode: u32) -> rustix::io::Result<OwnedFd> {
    if let Ok(file) = open_unnamed(folder, mode) {
        return Ok(file);
    }
    let (name, file) = create_random(folder, name, mode)?;
    fs::unlinkat(folder, name.as_os_str(), AtFlags::empty())?;
    Ok(file)
}

/// Opens the partial file that an earlier copy of this user has left, or a new one. `None` if there
/// is something of another user that cannot be removed.
fn open_resumable(folder: &OwnedFd, temporary: &Name) -> io::Result<Option<(OwnedFd, Stat)>> {
    for _ in 0..TRIES {
        let new = OPEN | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(PRIVATE);
        let (file, new) = match fs::openat(folder, temporary.as_os_str(), new, mode) {
            Ok(file) => (Some(file), true),
            Err(Errno::EXIST) => {
                let there = fs::openat(folder, temporary.as_os_str(), OPEN, Mode::empty());
                match there {
                    Ok(file) => (Some(file), false),
                    Err(Errno::NOENT) => continue,
                    // A symbolic link, a folder, or not writable: not a partial file of this program.
                    Err(_) => (None, false),
                }
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(file) = file {
            let stat = fs::fstat(&file)?;
            if new || is_own(&stat) {
                // Nobody else can open it, so only a copy of this user can hold its lock.
                match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                    Err(Errno::WOULDBLOCK) if !new => return Err(in_use(&stat)),
                    // Some filesystems have no locks.
                    _ => {}
                }
                // The former holder of the lock may have renamed it before this process got the lock.
                match fs::statat(folder, temporary.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(now) if is_same(&now, &stat) => {
                        // Its length is known only with the lock.
                        let stat = fs::fstat(&file)?;
                        return Ok(Some((file, stat)));
                    }
                    Ok(_) | Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        match fs::unlinkat(folder, temporary.as_os_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Of another user in a sticky folder, or a folder.
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// Whether nobody but this user can have opened the file.
fn is_own(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == geteuid().as_raw()
        && stat.st_nlink == 1
        && stat.st_mode & 0o7777 & !PRIVATE == 0
}

/// Another copy holds the lock.
fn in_use(stat: &Stat) -> io::Error {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let why = match lock_holder(&locks, stat) {
        Some(process) if process == std::process::id() => {
            "another copy to this name is in progress here".to_owned()
        }
        Some(process) => format!(
            "its partial file is locked by process {process}, perhaps another copy to this name"
        ),
        None => "its partial file is locked, perhaps by another copy to this name".to_owned(),
    };
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

/// The process that holds the lock of a file, from `/proc/locks`. `None` if it is in another container.
fn lock_holder(locks: &str, stat: &Stat) -> Option<u32> {
    let (major, minor) = (fs::major(stat.st_dev), fs::minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let mut fields = locks.lines().map(|line| line.split_whitespace());
    fields.find_map(|mut fields| {
        let kind = fields.nth(1)?;
        let process = fields.nth(2)?.parse().ok()?;
        (kind == "FLOCK" && fields.next()? == file && process != 0).then_some(process)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_named() {
        let file = tempfile::tempfile().unwrap();
        fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let stat = fs::fstat(&file).unwrap();
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        assert_eq!(lock_holder(&locks, &stat), Some(std::process::id()));
        let other = fs::fstat(tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(lock_holder(&locks, &other), None);
        for line in [
            "",
            "1:",
            "1: FLOCK",
            "1: FLOCK  ADVISORY  WRITE x 00:00:0 0 EOF",
            "1: -> FLOCK",
        ] {
            assert_eq!(lock_holder(line, &stat), None, "{line:?}");
        }
    }
}
