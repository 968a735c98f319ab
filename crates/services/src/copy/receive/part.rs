//! A partial file: the content under a temporary name beside the final one.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::super::name::Name;
use super::destination;

/// A partial file. It is removed on drop, unless a later copy can resume it.
#[derive(Debug)]
pub(super) struct Part {
    folder: Arc<OwnedFd>,
    name: Name,
    temporary: Name,
    file: OwnedFd,
    stat: Stat,
    resumed: bool,
    keep: bool,
    done: bool,
}

/// How often to retry when another process changes the temporary name in between.
const TRIES: usize = 16;

impl Part {
    /// Creates the temporary file for the content of `name`. With `resume`, reuses the one that an
    /// interrupted copy has left.
    pub(super) fn open(
        folder: &Arc<OwnedFd>,
        name: Name,
        mode: u32,
        resume: bool,
    ) -> io::Result<Self> {
        if resume && destination::kind(folder, &name) == Some(FileType::Directory) {
            // The final rename would fail as well, but only after the whole content was transferred.
            return Err(Errno::ISDIR.into());
        }
        let temporary = name.part();
        let (file, stat, resumed) = open(folder, &temporary, mode, resume)?;
        Ok(Self {
            folder: Arc::clone(folder),
            name,
            temporary,
            file,
            stat,
            resumed,
            keep: resume,
            done: false,
        })
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Its state when it was opened.
    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Whether it existed before.
    pub(super) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Removes the file, so that the next copy starts anew.
    pub(super) fn discard(mut self) {
        self.keep = false;
    }

    /// Renames the complete file to its final name, replacing an existing file.
    pub(super) fn finish(mut self) -> rustix::io::Result<()> {
        let (temporary, name) = (self.temporary.as_os_str(), self.name.as_os_str());
        let renamed = fs::renameat(&self.folder, temporary, &self.folder, name);
        self.keep = false;
        self.done = renamed.is_ok();
        renamed
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let empty = || fs::fstat(&self.file).is_ok_and(|now| now.st_size == 0);
        if !self.done && (!self.keep || empty()) {
            let temporary = self.temporary.as_os_str();
            let _ = fs::unlinkat(&self.folder, temporary, AtFlags::empty());
        }
    }
}

/// Opens the temporary name exclusively, with a lock. Returns also whether the file existed before.
fn open(
    folder: &OwnedFd,
    temporary: &Name,
    mode: u32,
    resume: bool,
) -> io::Result<(OwnedFd, Stat, bool)> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    for _ in 0..TRIES {
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let (file, new) = match fs::openat(folder, temporary.as_os_str(), new, mode) {
            Ok(file) => (file, true),
            Err(Errno::EXIST) => {
                match fs::openat(folder, temporary.as_os_str(), flags, Mode::empty()) {
                    Ok(file) => (file, false),
                    Err(Errno::NOENT) => continue,
                    // A symbolic link, a folder, or not writable: not a partial file of this program.
                    Err(_) => {
                        fs::unlinkat(folder, temporary.as_os_str(), AtFlags::empty())?;
                        continue;
                    }
                }
            }
            Err(error) => return Err(error.into()),
        };
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let why = "another copy to this name is in progress";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
            // Some filesystems have no locks.
            Err(_) => {}
        }
        let stat = fs::fstat(&file)?;
        if new {
            return Ok((file, stat, false));
        }
        // The former holder of the lock may have renamed the file before this process got the lock.
        match fs::statat(folder, temporary.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) if (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino) => {}
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        }
        let own = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == geteuid().as_raw()
            && stat.st_nlink == 1
            && stat.st_mode & 0o777 & !mode.as_raw_mode() == 0;
        if resume && own {
            return Ok((file, stat, true));
        }
        // Another user may have placed the file there, to keep a descriptor of the final file.
        fs::unlinkat(folder, temporary.as_os_str(), AtFlags::empty())?;
    }
    let why = "the temporary name keeps changing";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
}
