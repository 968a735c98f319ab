//! Permissions, times and owners.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::super::name::Name;
use crate::wire::copy::Meta;

/// Which of the sender's attributes are preserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// All, as far as this process may. For a guest, because the host controls it anyway.
    Full,
    /// All but setuid and setgid: a guest must not create programs on its host that run as other users.
    NoSetId,
}

/// The permission bits, reduced by the umask.
pub(super) fn umasked_mode(meta: &Meta) -> Mode {
    Mode::from_raw_mode(meta.mode & 0o777 & !umask())
}

/// Applies owner, permissions and times to an open file or folder, in this order: changing the
/// owner clears setuid.
pub(super) fn apply(file: &OwnedFd, meta: &Meta, trust: Trust) -> rustix::io::Result<()> {
    let mut mode = meta.mode & 0o7777;
    if trust == Trust::NoSetId {
        mode &= 0o1777;
    }
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    let owned = match geteuid().is_root() {
        true => fs::fchown(file, Some(uid), Some(gid)),
        false => Err(Errno::PERM),
    };
    match owned {
        Ok(()) => {}
        // This process stays the owner, so setuid must not give its rights to others. Even root may
        // fail to change the owner, in a container without the capability or for a user that does
        // not exist there.
        Err(Errno::PERM | Errno::INVAL) => mode &= 0o1777,
        Err(error) => return Err(error),
    }
    fs::fchmod(file, Mode::from_raw_mode(mode))?;
    fs::futimens(file, &times(meta))
}

/// Applies owner and times to a symbolic link.
pub(super) fn apply_to_link(folder: &OwnedFd, name: &Name, meta: &Meta) -> rustix::io::Result<()> {
    let (name, flags) = (name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
    if geteuid().is_root() {
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        match fs::chownat(folder, name, Some(uid), Some(gid), flags) {
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    fs::utimensat(folder, name, &times(meta), flags)
}

#[allow(
    clippy::useless_conversion,
    reason = "the types differ between architectures"
)]
fn times(meta: &Meta) -> Timestamps {
    let time = |tv_nsec| Timespec {
        tv_sec: meta.seconds,
        tv_nsec,
    };
    Timestamps {
        last_access: time(fs::UTIME_OMIT.into()),
        last_modification: time(meta.nanoseconds.min(999_999_999).into()),
    }
}

/// The process's umask. This program never changes it.
fn umask() -> u32 {
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mut lines = status.lines();
        let found = lines.find_map(|line| line.strip_prefix("Umask:"));
        found
            .and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
            .unwrap_or(0o022)
    })
}
