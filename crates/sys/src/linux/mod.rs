//! Linux: system calls through rustix, and through libc where rustix has none that is sound.

pub mod accounts;
pub mod clock;
pub mod doorbell;
pub mod errno;
pub mod event;
pub mod freeze;
pub mod limits;
mod listening;
pub mod message;
pub mod peer;
pub mod poll;
pub mod processor;
pub mod seqpacket;
pub mod session;
mod shared_bytes;
pub mod shared_memory;
mod sigpipe;
pub mod stream;
pub mod vsock;

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// Makes calls on this descriptor, and on every duplicate of it, return at once or wait.
pub fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<()> {
    rustix::io::ioctl_fionbio(fd, nonblocking).map_err(Into::into)
}

/// Takes the socket's pending error (`SO_ERROR`).
pub fn take_error(fd: impl AsFd) -> io::Result<Option<io::Error>> {
    Ok(rustix::net::sockopt::socket_error(fd)?
        .err()
        .map(Into::into))
}

/// Makes `call` again for as long as a signal interrupts it.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(Into::into),
        }
    }
}

/// Makes a call that counts bytes, again for as long as a signal interrupts it.
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
