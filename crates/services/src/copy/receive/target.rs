//! What is at the name that content is received for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, Access, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::super::name::Name;

/// What content for a name goes to.
#[derive(Debug)]
pub(super) enum Target {
    /// Nothing has the name.
    New,
    /// A regular file, whose content is replaced.
    File(Existing),
    /// A pipe or a device, which is written to.
    Special(Existing),
}

/// A file that is at the name.
#[derive(Clone, Debug)]
pub(super) struct Existing {
    pub(super) stat: Stat,
    /// The name is a symbolic link, and the file is what it leads to.
    pub(super) linked: bool,
}

/// Which symbolic links content goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    None,
    /// Those of this process's user and of root, which nobody else has made.
    Own,
    /// All: the user has named the link itself.
    All,
}

/// What content may go to, apart from a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) links: Links,
    /// To a pipe or a device: only where the user has named it, not where a tree happens to have an
    /// entry of its name.
    pub(super) special: bool,
}

/// Looks at `name` in `folder`.
///
/// # Errors
///
/// If something is there that content cannot go to, or that this process may not write to.
pub(super) fn look(folder: &OwnedFd, name: &Name, reach: Reach) -> io::Result<Target> {
    let stat = match fs::statat(folder, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Target::New),
        Err(error) => return Err(error.into()),
    };
    let linked = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let stat = match linked {
        false => stat,
        true if !reach.links.include(&stat) => {
            return Err(in_the_way(
                "a symbolic link is in the way, and is neither followed nor replaced",
            ));
        }
        true => match fs::statat(folder, name.as_os_str(), AtFlags::empty()) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                return Err(in_the_way(
                    "a symbolic link that leads nowhere is in the way",
                ));
            }
            Err(error) => return Err(error.into()),
        },
    };
    let existing = Existing { stat, linked };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            existing.may_be_replaced(folder, name)?;
            Ok(Target::File(existing))
        }
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice if reach.special => {
            Ok(Target::Special(existing))
        }
        kind => Err(in_the_way(&format!("{} is in the way", describe(kind)))),
    }
}

/// Checks that a symbolic link may take the place of what is at `name`: of nothing, a regular file
/// or another link.
///
/// # Errors
///
/// If something else is there.
pub(super) fn may_become_link(folder: &OwnedFd, name: &Name) -> io::Result<()> {
    match kind(folder, name) {
        None | Some(FileType::RegularFile | FileType::Symlink) => Ok(()),
        Some(kind) => Err(in_the_way(&format!("{} is in the way", describe(kind)))),
    }
}

/// The type of an entry in a folder.
pub(super) fn kind(folder: &OwnedFd, name: &Name) -> Option<FileType> {
    let stat = fs::statat(folder, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

/// Whether two states are of the same file.
pub(super) fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

impl Links {
    fn include(self, link: &Stat) -> bool {
        match self {
            Self::None => false,
            Self::Own => link.st_uid == 0 || link.st_uid == geteuid().as_raw(),
            Self::All => true,
        }
    }
}

impl Existing {
    /// A file that this process may not write to is not replaced either, although the folder might
    /// allow it. Only the owner may, who could change the mode.
    fn may_be_replaced(&self, folder: &OwnedFd, name: &Name) -> io::Result<()> {
        match fs::accessat(folder, name.as_os_str(), Access::WRITE_OK, AtFlags::EACCESS) {
            Ok(()) => Ok(()),
            Err(Errno::ROFS) => {
                // Without the error number: it concerns this file, and maybe no other.
                let why = "it is on a filesystem that is mounted read-only";
                Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, why))
            }
            Err(Errno::ACCESS) if self.stat.st_uid == geteuid().as_raw() => Ok(()),
            // Where the kernel cannot tell, opening the file does.
            Err(Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the file with these flags.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, or if another file has the name now.
    pub(super) fn open(
        &self,
        folder: impl AsFd,
        name: &Name,
        access: OFlags,
    ) -> io::Result<OwnedFd> {
        let follow = match self.linked {
            true => OFlags::empty(),
            false => OFlags::NOFOLLOW,
        };
        let flags = access | follow | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = fs::openat(folder, name.as_os_str(), flags, Mode::empty())?;
        if !is_same(&fs::fstat(&file)?, &self.stat) {
            return Err(replaced());
        }
        Ok(file)
    }
}

/// The name has another file than before.
pub(super) fn replaced() -> io::Error {
    let why = "another program has replaced it during the copy";
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

fn in_the_way(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, why)
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Socket => "a socket",
        FileType::Fifo => "a pipe",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something that is no regular file",
    }
}
