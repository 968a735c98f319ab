//! The attributes of a file that is replaced: its owner, permissions, access list, extended attributes
//! and inode flags. The file that replaces it takes them over.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{self, Gid, IFlags, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::{self, Errno};

use super::super::name::Name;
use super::attributes::Trust;
use super::target::Existing;

/// The largest list of names and the largest value of extended attributes, in bytes (`XATTR_LIST_MAX`
/// and `XATTR_SIZE_MAX` on Linux).
const LARGEST: usize = 65536;

const ACCESS_LIST: &CStr = c"system.posix_acl_access";
const CAPABILITY: &CStr = c"security.capability";

/// Attributes that are about the old content and would be wrong for the new.
const OF_CONTENT: [&CStr; 2] = [c"security.ima", c"security.evm"];

/// The bits that let a program run as another user.
const SET_ID: u32 = 0o6000;

/// What the new content of a file must not have, although the file had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) set_id: bool,
    pub(super) capabilities: bool,
}

impl Dropped {
    /// What to tell, if something was dropped.
    pub(super) fn describe(self) -> Option<&'static str> {
        match (self.set_id, self.capabilities) {
            (false, false) => None,
            (true, false) => {
                Some("it is no longer setuid or setgid, because its new content is a guest's")
            }
            (false, true) => {
                Some("it no longer has capabilities, because its new content is a guest's")
            }
            (true, true) => Some(
                "it is no longer setuid or setgid and has no capabilities, because its new content is a guest's",
            ),
        }
    }
}

/// An existing file's attributes.
#[derive(Debug)]
pub(super) struct Inherited {
    stat: Stat,
    /// The extended attributes. `None` if not all of them can be read.
    extended: Option<Vec<(CString, Vec<u8>)>>,
    flags: Option<IFlags>,
}

impl Inherited {
    /// Reads the attributes of the file at `name`.
    ///
    /// # Errors
    ///
    /// If they cannot be read, or if another file has the name now.
    pub(super) fn of(existing: &Existing, folder: &OwnedFd, name: &Name) -> std::io::Result<Self> {
        let file = existing.open(folder, name, OFlags::PATH)?;
        // The attributes of an open file, also if it cannot be opened for reading.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = existing
            .open(folder, name, OFlags::RDONLY)
            .ok()
            .and_then(|file| fs::ioctl_getflags(&file).ok());
        let extended = extended(
            |list| fs::listxattr(&path, list),
            |name, value| fs::getxattr(&path, name, value),
        );
        let extended = extended.ok();
        Ok(Self {
            stat: fs::fstat(&file)?,
            extended,
            flags,
        })
    }

    /// Gives them to `file`. Of an `archive`, the permissions come from the sender. What a guest's content
    /// must not have is dropped.
    ///
    /// # Errors
    ///
    /// If `file` cannot have all of them.
    pub(super) fn give_to(
        &self,
        file: &OwnedFd,
        archive: bool,
        trust: Trust,
    ) -> io::Result<Dropped> {
        let mut dropped = Dropped::default();
        let wanted = self.extended.as_ref().ok_or(Errno::ACCESS)?;
        let now = fs::fstat(file)?;
        if (now.st_uid, now.st_gid) != (self.stat.st_uid, self.stat.st_gid) {
            let (uid, gid) = (
                Uid::from_raw(self.stat.st_uid),
                Gid::from_raw(self.stat.st_gid),
            );
            fs::fchown(file, Some(uid), Some(gid))?;
        }
        if let Some(flags) = self.flags {
            give_flags(file, flags)?;
        }
        let present = extended(
            |list| fs::flistxattr(file, list),
            |name, value| fs::fgetxattr(file, name, value),
        )?;
        for (name, _) in &present {
            let gone = !wanted.iter().any(|(other, _)| other == name);
            if gone && (name.as_c_str() == ACCESS_LIST || name.to_bytes().starts_with(b"user.")) {
                fs::fremovexattr(file, name.as_c_str())?;
            }
        }
        for entry @ (name, value) in wanted {
            let name = name.as_c_str();
            if name == CAPABILITY && trust == Trust::NoSetId {
                dropped.capabilities = true;
                continue;
            }
            let skip = OF_CONTENT.contains(&name) || (archive && name == ACCESS_LIST);
            if !skip && !present.contains(entry) {
                fs::fsetxattr(file, name, value, XattrFlags::empty())?;
            }
        }
        // After the owner, because a new owner clears setuid, and after the access list, whose mask it sets.
        let mut mode = self.stat.st_mode & 0o7777;
        if trust == Trust::NoSetId && mode & SET_ID != 0 {
            mode &= !SET_ID;
            dropped.set_id = !archive;
        }
        fs::fchmod(file, Mode::from_raw_mode(mode))?;
        Ok(dropped)
    }

    /// Takes from an open file, before it gets new content, what such content must not have.
    pub(super) fn disarm(&self, file: &OwnedFd, trust: Trust) -> io::Result<Dropped> {
        let mode = self.stat.st_mode & 0o7777;
        let dropped = Dropped {
            set_id: trust == Trust::NoSetId && mode & SET_ID != 0,
            // The kernel drops them at the first write, whoever writes.
            capabilities: trust == Trust::NoSetId && self.capability().is_some(),
        };
        if dropped.set_id {
            fs::fchmod(file, Mode::from_raw_mode(mode & !SET_ID))?;
        }
        Ok(dropped)
    }

    /// Gives back to an open file what the kernel took from it when its content was written.
    pub(super) fn rearm(&self, file: &OwnedFd, trust: Trust) -> io::Result<()> {
        if trust == Trust::NoSetId {
            return Ok(());
        }
        if let Some(value) = self.capability() {
            fs::fsetxattr(file, CAPABILITY, value, XattrFlags::empty())?;
        }
        let mode = self.stat.st_mode & 0o7777;
        match fs::fstat(file)?.st_mode & 0o7777 == mode {
            true => Ok(()),
            false => fs::fchmod(file, Mode::from_raw_mode(mode)),
        }
    }

    fn capability(&self) -> Option<&[u8]> {
        let mut all = self.extended.iter().flatten();
        all.find_map(|(name, value)| (name.as_c_str() == CAPABILITY).then_some(&value[..]))
    }
}

/// Gives `file` the permissions and access list of `sample`.
pub(super) fn give_permissions(sample: &OwnedFd, file: &OwnedFd) -> io::Result<()> {
    let mut value = vec![0; LARGEST];
    match fs::fgetxattr(sample, ACCESS_LIST, &mut value) {
        Ok(length) => fs::fsetxattr(file, ACCESS_LIST, &value[..length], XattrFlags::empty())?,
        Err(_) => match fs::fremovexattr(file, ACCESS_LIST) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        },
    }
    let mode = fs::fstat(sample)?.st_mode & 0o7777;
    fs::fchmod(file, Mode::from_raw_mode(mode))
}

/// Sets the inode flags that users choose.
fn give_flags(file: &OwnedFd, wanted: IFlags) -> io::Result<()> {
    let chosen = IFlags::COMPRESSED
        | IFlags::JOURNALING
        | IFlags::NOATIME
        | IFlags::NOCOW
        | IFlags::NODUMP
        | IFlags::NOTAIL
        | IFlags::SYNC;
    let Ok(now) = fs::ioctl_getflags(file) else {
        return Ok(());
    };
    match (now ^ wanted).intersects(chosen) {
        true => fs::ioctl_setflags(file, now.difference(chosen) | wanted.intersection(chosen)),
        false => Ok(()),
    }
}

/// All extended attributes that this process sees. None if the filesystem has none.
fn extended(
    list: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    value: impl Fn(&CStr, &mut [u8]) -> io::Result<usize>,
) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; LARGEST];
    let length = match list(&mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    let mut buffer = Vec::new();
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        buffer.resize(LARGEST, 0);
        match value(name, &mut buffer) {
            Ok(length) => all.push((name.to_owned(), buffer[..length].to_vec())),
            // It was removed in between.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}
