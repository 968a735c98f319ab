//! Linux: system calls through rustix, or through libc where rustix lacks a sound one.

pub mod accounts;
pub mod activation;
pub mod bus_error;
pub mod capabilities;
pub mod cgroup_freezer;
pub mod child;
pub mod clock;
pub mod closed_sockets;
pub mod container_mount;
pub mod container_user;
pub mod descriptor;
pub mod doorbell;
pub mod errno;
pub mod event;
pub mod foreign_socket;
pub mod freeze;
pub mod futex;
pub mod identity;
pub mod impersonation;
pub mod inherit;
pub mod init;
pub mod journal;
pub mod landlock;
pub mod limits;
mod listening;
pub mod locks;
pub mod machine;
pub mod message;
pub mod netns;
pub mod notify_socket;
pub mod owner;
pub mod peer;
pub mod pidfd;
pub mod poll;
pub mod processor;
pub mod remote;
pub mod sealed;
pub mod seccomp;
pub mod secure_exec;
pub mod seqpacket;
pub mod service_manager;
pub mod session;
mod shared_bytes;
pub mod shared_memory;
pub mod signals;
mod sigpipe;
mod sock_diag;
pub mod socket_folder;
pub mod splice;
pub mod standard_streams;
pub mod stream;
pub mod supervisor;
mod temporary;
pub mod unix_diag;
pub mod vhost;
pub mod vsock;
pub mod vsock_diag;

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// Sets the non-blocking mode of the open file description, which all duplicates share.
///
/// # Errors
///
/// Those of `FIONBIO`.
pub fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<()> {
    rustix::io::ioctl_fionbio(fd, nonblocking).map_err(Into::into)
}

/// Writes to a descriptor of any kind, once. Returns the number of bytes written. A pipe without a reader
/// raises no signal.
///
/// # Errors
///
/// Those of `write`, except `EINTR`.
pub fn write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let write = || rustix::io::retry_on_intr(|| rustix::io::write(&fd, bytes));
    Ok(sigpipe::without(write)?)
}

/// As [`write()`], but does not block, whatever the mode of the descriptor. For pipes since Linux 6.4.
///
/// # Errors
///
/// `WouldBlock` if it would block; `EOPNOTSUPP` if the kernel cannot write so to this kind of file; those of
/// [`write()`].
pub fn try_write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let (slices, flags) = (
        [io::IoSlice::new(bytes)],
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    // This offset is that of files without positions.
    let write = || rustix::io::pwritev2(&fd, &slices, u64::MAX, flags);
    Ok(sigpipe::without(|| rustix::io::retry_on_intr(write))?)
}

/// Returns and clears the socket's pending error (`SO_ERROR`).
///
/// # Errors
///
/// `ENOTSOCK` if `fd` is not a socket.
pub fn take_error(fd: impl AsFd) -> io::Result<Option<io::Error>> {
    Ok(rustix::net::sockopt::socket_error(fd)?
        .err()
        .map(Into::into))
}

/// The bytes of kernel memory of what was sent on a socket and not read yet (`SIOCOUTQ`).
fn unsent(fd: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request stores an int at the pointer, which is valid for the call.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Repeats `call` while it fails with `EINTR`.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(Into::into),
        }
    }
}

/// Repeats a call that returns a byte count while it fails with `EINTR`.
fn count(mut call: impl FnMut() -> libc::ssize_t) -> Result<usize, Errno> {
    loop {
        let Ok(count) = usize::try_from(call()) else {
            let error = io::Error::last_os_error();
            match Errno::from_io_error(&error) {
                Some(Errno::INTR) => continue,
                error => return Err(error.unwrap_or(Errno::IO)),
            }
        };
        return Ok(count);
    }
}
