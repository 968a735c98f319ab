//! Filesystems at rest: frozen, one has everything on its disk, and whoever writes to it waits
//! until it is thawed.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

const FIFREEZE: Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<libc::c_int>(b'X', 120);

/// Freezes the filesystem that `fd` is on, and waits until it is. `EBUSY` if it is frozen already,
/// `EOPNOTSUPP` if its kind cannot be.
///
/// It stays frozen until somebody thaws it, whatever becomes of this process.
pub fn freeze(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the kernel reads no argument, and the number is that of linux/fs.h.
    unsafe { ioctl(fd, NoArg::<FIFREEZE>::new()) }.map_err(Into::into)
}

/// Lets a frozen filesystem go on. `EINVAL` if it is not frozen.
pub fn thaw(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: as above.
    unsafe { ioctl(fd, NoArg::<FITHAW>::new()) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Of a filesystem that cannot be frozen, so that this is harmless wherever it runs. That a
    /// real one freezes is tested in a guest.
    #[test]
    fn the_kernel_knows_both_calls() {
        let proc = File::open("/proc").unwrap();
        let frozen = freeze(&proc).unwrap_err().raw_os_error();
        assert!(matches!(frozen, Some(libc::EOPNOTSUPP | libc::EPERM)));
        let thawed = thaw(&proc).unwrap_err().raw_os_error();
        assert!(matches!(thawed, Some(libc::EINVAL | libc::EPERM)));
    }
}
