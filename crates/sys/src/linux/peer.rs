//! Credentials of the process at the other end of a Unix socket, as the kernel recorded them at connect.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};

/// `SO_PEERPIDFD`, since Linux 6.5 (`include/uapi/asm-generic/socket.h`).
const SO_PEERPIDFD: i32 = 77;

/// Credentials of the peer process at the time of its connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id; `None` if it has none in this process's PID namespace.
    pub pid: Option<u32>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Reads the credentials of the peer process (`SO_PEERCRED`).
///
/// # Errors
///
/// Those of `getsockopt`, such as `ENOTSOCK`; `InvalidData` if the kernel returns another structure.
pub fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    // rustix's version cannot represent pid 0, which the kernel returns across PID namespaces.
    let mut ucred = [MaybeUninit::<libc::ucred>::uninit()];
    let len = get(socket.as_fd(), libc::SO_PEERCRED, &mut ucred)?;
    if len != size_of::<libc::ucred>() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the kernel wrote all of it, and it consists of integers.
    let ucred = unsafe { ucred[0].assume_init() };
    Ok(Credentials {
        pid: u32::try_from(ucred.pid).ok().filter(|pid| *pid != 0),
        uid: ucred.uid,
        gid: ucred.gid,
    })
}

/// Reads the supplementary groups of the peer process (`SO_PEERGROUPS`). Its primary group is in
/// [`Credentials`].
///
/// # Errors
///
/// Those of `getsockopt`, such as `ENOTSOCK`.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    /// `NGROUPS_MAX` of Linux.
    const MAX: usize = 65_536;
    let mut groups = vec![MaybeUninit::<u32>::uninit(); 32];
    loop {
        match get(socket.as_fd(), libc::SO_PEERGROUPS, &mut groups) {
            Ok(len) => {
                let known = groups.iter().take(len / size_of::<u32>());
                // SAFETY: the kernel wrote the first `len` bytes.
                return Ok(known.map(|group| unsafe { group.assume_init() }).collect());
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < MAX => {
                groups.resize(MAX, MaybeUninit::uninit());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the peer process has the mount namespace and the root folder of this one, so that a path means the
/// same file to both. `false` if that cannot be said for certain, as before Linux 6.5 or once it has ended.
pub fn shares_paths(socket: impl AsFd) -> bool {
    let check = || -> io::Result<bool> {
        let mut fd = [MaybeUninit::<i32>::uninit()];
        // The number alone may be another process's by now.
        get(socket.as_fd(), SO_PEERPIDFD, &mut fd)?;
        // SAFETY: the kernel has written a new descriptor, which nobody else owns.
        let process = unsafe { OwnedFd::from_raw_fd(fd[0].assume_init()) };
        let process = super::pidfd::Process::from_descriptor(process)?;
        let Some(id) = process.id()? else {
            return Ok(false);
        };
        let of = |process: &str| -> io::Result<_> {
            let namespace = std::fs::read_link(format!("/proc/{process}/ns/mnt"))?;
            let root = rustix::fs::stat(format!("/proc/{process}/root"))?;
            Ok((namespace, root.st_dev, root.st_ino))
        };
        let shares = of(&id.pid.to_string())? == of("self")?;
        // What was read is that process's, if it has not ended meanwhile.
        Ok(shares && !process.has_ended()?)
    };
    check().unwrap_or(false)
}

/// A descriptor of the peer process (a pidfd), which is readable once the process has ended. It is the process
/// that connected or called `listen`.
///
/// # Errors
///
/// `InvalidData` if the process has ended, or has no number here and the system is older than Linux 6.5;
/// those of `pidfd_open`.
#[doc(alias = "pidfd")]
pub fn process(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd = [MaybeUninit::<i32>::uninit()];
    match get(socket.as_fd(), SO_PEERPIDFD, &mut fd) {
        Ok(len) if len == size_of::<i32>() => {
            // SAFETY: the kernel wrote it, and it is a new descriptor that nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(fd[0].assume_init()) })
        }
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let pid = credentials(socket)?.pid;
            let pid = pid.and_then(|pid| i32::try_from(pid).ok());
            let pid = pid.and_then(Pid::from_raw);
            let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
            Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
        }
        Err(error) => Err(error),
    }
}

/// Reads a socket option into `values`. Returns its length in bytes.
pub(super) fn get<T: Copy>(
    socket: BorrowedFd<'_>,
    option: i32,
    values: &mut [MaybeUninit<T>],
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(size_of_val(values))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the kernel writes at most `len` bytes to `values`, which has that many, and the
    // number of bytes written to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok((len as usize).min(size_of_val(values)))
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_the_peer_process() {
        let (a, _b) = crate::seqpacket::pair().unwrap();
        let peer = credentials(&a).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
    }

    #[test]
    fn groups_are_those_of_the_peer_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = crate::seqpacket::listen(&path, 0o600, 1).unwrap();
        let _client = crate::seqpacket::connect(&path, std::time::Duration::ZERO).unwrap();
        let socket = crate::seqpacket::accept(&listener).unwrap().unwrap();
        let mut got = groups(&socket).unwrap();
        let own = rustix::process::getgroups().unwrap();
        let mut own: Vec<u32> = own.iter().map(|group| group.as_raw()).collect();
        got.sort_unstable();
        own.sort_unstable();
        assert_eq!(got, own);
    }

    #[test]
    fn a_file_has_no_peer() {
        let file = tempfile::tempfile().unwrap();
        assert!(credentials(&file).is_err());
        assert!(groups(&file).is_err());
    }
}
