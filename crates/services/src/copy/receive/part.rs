//! A file while it is incomplete, beside its final name.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::super::name::Name;
use super::place;

/// A file while it is incomplete. Dropped, it is gone, unless it is worth going on with.
#[derive(Debug)]
pub(super) struct Part {
    folder: Arc<OwnedFd>,
    name: Name,
    beside: Name,
    file: OwnedFd,
    stat: Stat,
    found: bool,
    keep: bool,
    done: bool,
}

/// How often something else may come between two looks at the same name.
const TRIES: usize = 16;

impl Part {
    /// Makes room for the content of `name`, or finds what there is of it from an attempt that
    /// broke if `resume` says so.
    pub(super) fn open(
        folder: &Arc<OwnedFd>,
        name: Name,
        mode: u32,
        resume: bool,
    ) -> io::Result<Self> {
        if resume && place::kind(folder, &name) == Some(FileType::Directory) {
            // Renaming would say so, but only after all has been sent.
            return Err(Errno::ISDIR.into());
        }
        let beside = name.part();
        let (file, stat, found) = open(folder, &beside, mode, resume)?;
        Ok(Self {
            folder: Arc::clone(folder),
            name,
            beside,
            file,
            stat,
            found,
            keep: resume,
            done: false,
        })
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// What it was when it was opened.
    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Whether it was there.
    pub(super) fn is_found(&self) -> bool {
        self.found
    }

    /// It is worth nothing: what comes next begins anew.
    pub(super) fn discard(mut self) {
        self.keep = false;
    }

    /// It is complete and gets its name, in place of what has it now.
    pub(super) fn finish(mut self) -> rustix::io::Result<()> {
        let (beside, name) = (self.beside.as_os_str(), self.name.as_os_str());
        let renamed = fs::renameat(&self.folder, beside, &self.folder, name);
        self.keep = false;
        self.done = renamed.is_ok();
        renamed
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let empty = || fs::fstat(&self.file).is_ok_and(|now| now.st_size == 0);
        if !self.done && (!self.keep || empty()) {
            let beside = self.beside.as_os_str();
            let _ = fs::unlinkat(&self.folder, beside, AtFlags::empty());
        }
    }
}

/// Opens what is beside the name for this process alone, with its lock, and whether it was there.
fn open(
    folder: &OwnedFd,
    beside: &Name,
    mode: u32,
    resume: bool,
) -> io::Result<(OwnedFd, Stat, bool)> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    for _ in 0..TRIES {
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let (file, new) = match fs::openat(folder, beside.as_os_str(), new, mode) {
            Ok(file) => (file, true),
            Err(Errno::EXIST) => {
                match fs::openat(folder, beside.as_os_str(), flags, Mode::empty()) {
                    Ok(file) => (file, false),
                    Err(Errno::NOENT) => continue,
                    // A link, a folder, or not ours to write: not what we left.
                    Err(_) => {
                        fs::unlinkat(folder, beside.as_os_str(), AtFlags::empty())?;
                        continue;
                    }
                }
            }
            Err(error) => return Err(error.into()),
        };
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let why = "another copy to this name is under way";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
            // There are filesystems without locks.
            Err(_) => {}
        }
        let stat = fs::fstat(&file)?;
        if new {
            return Ok((file, stat, false));
        }
        // Whoever had it may have finished it before we got the lock.
        match fs::statat(folder, beside.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) if (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino) => {}
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        }
        let ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == geteuid().as_raw()
            && stat.st_nlink == 1
            && stat.st_mode & 0o777 & !mode.as_raw_mode() == 0;
        if resume && ours {
            return Ok((file, stat, true));
        }
        // Somebody else may have laid it there to keep a descriptor of what will be the file.
        fs::unlinkat(folder, beside.as_os_str(), AtFlags::empty())?;
    }
    let why = "the name beside it changes all the time";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
}
