//! Freezing filesystems (`FIFREEZE`): a frozen filesystem is consistent on its disk, and writers wait
//! until it is thawed.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

const FIFREEZE: Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<libc::c_int>(b'X', 120);

/// Freezes the filesystem of `fd`, and returns when it is frozen. It stays frozen until it is thawed,
/// even if this process ends.
///
/// # Errors
///
/// `EBUSY` if it is already frozen, `EOPNOTSUPP` if its type cannot be frozen, `EPERM` without
/// `CAP_SYS_ADMIN`.
pub fn freeze(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the kernel reads no argument, and the number is that of linux/fs.h.
    unsafe { ioctl(fd, NoArg::<FIFREEZE>::new()) }.map_err(Into::into)
}

/// Thaws the filesystem of `fd`.
///
/// # Errors
///
/// `EINVAL` if it is not frozen, `EPERM` without `CAP_SYS_ADMIN`.
pub fn thaw(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: as above.
    unsafe { ioctl(fd, NoArg::<FITHAW>::new()) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// `/proc` cannot be frozen, so this is harmless. A test in a guest freezes a real filesystem.
    #[test]
    fn the_kernel_supports_both_calls() {
        let proc = File::open("/proc").unwrap();
        let frozen = freeze(&proc).unwrap_err().raw_os_error();
        assert!(matches!(frozen, Some(libc::EOPNOTSUPP | libc::EPERM)));
        let thawed = thaw(&proc).unwrap_err().raw_os_error();
        assert!(matches!(thawed, Some(libc::EINVAL | libc::EPERM)));
    }
}
