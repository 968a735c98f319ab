//! System calls on descriptors that are numbers of the program.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::timeval;

use crate::last_error::{LastError, Result, fail};

/// Lends a descriptor of the program to a function.
pub(crate) fn lend<T>(number: RawFd, body: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T> {
    if number < 0 {
        return fail(libc::EBADF);
    }
    // SAFETY: the program passes the number for the length of this call. If it is closed, or by another thread
    // meanwhile, calls with it fail or concern another file, as with any call of the C library.
    Ok(body(unsafe { BorrowedFd::borrow_raw(number) }))
}

/// Creates a Unix stream socket, close-on-exec.
pub(crate) fn unix_socket(nonblocking: bool) -> Result<OwnedFd> {
    let mut kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    if nonblocking {
        kind |= libc::SOCK_NONBLOCK;
    }
    // SAFETY: no pointer is passed.
    let number = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if number < 0 {
        return Err(of_system());
    }
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Connects a Unix stream socket to the socket that a descriptor opened with `O_PATH` is.
pub(crate) fn connect_to(socket: BorrowedFd<'_>, at: BorrowedFd<'_>) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", at.as_raw_fd());
    let address = rustix::net::SocketAddrUnix::new(path)?;
    Ok(rustix::io::retry_on_intr(|| {
        rustix::net::connect(socket, &address)
    })?)
}

/// Puts another open file under a number of the program, close-on-exec.
pub(crate) fn replace(number: RawFd, by: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointer is passed. The program's number stays the program's.
    match unsafe { libc::dup3(by.as_raw_fd(), number, libc::O_CLOEXEC) } {
        -1 => Err(of_system()),
        _ => Ok(()),
    }
}

/// Whether a descriptor is in non-blocking mode.
pub(crate) fn is_nonblocking(number: RawFd) -> Result<bool> {
    let flags = lend(number, |fd| rustix::fs::fcntl_getfl(fd))?;
    let flags = flags.map_err(io::Error::from)?;
    Ok(flags.contains(rustix::fs::OFlags::NONBLOCK))
}

/// Sets non-blocking mode.
pub(crate) fn set_nonblocking(number: RawFd, on: bool) -> Result<()> {
    lend(number, |fd| rustix::io::ioctl_fionbio(fd, on))?.map_err(|e| io::Error::from(e).into())
}

/// Sets the mode, the timeouts and the buffers of a socket on another one.
pub(crate) fn copy_options(from: RawFd, to: BorrowedFd<'_>) -> Result<()> {
    let nonblocking = is_nonblocking(from)?;
    set_nonblocking(to.as_raw_fd(), nonblocking)?;
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let mut value = timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        let mut length = size_of::<timeval>() as libc::socklen_t;
        // SAFETY: both calls get a value of that length.
        unsafe {
            let pointer: *mut timeval = &raw mut value;
            if libc::getsockopt(from, libc::SOL_SOCKET, option, pointer.cast(), &mut length) == 0 {
                libc::setsockopt(
                    to.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    pointer.cast(),
                    length,
                );
            }
        }
    }
    Ok(())
}

/// Whether a descriptor is a socket of messages.
pub(crate) fn is_seqpacket(fd: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_type(fd) == Ok(rustix::net::SocketType::SEQPACKET)
}

/// Waits until a message can be received, or the connection has ended.
///
/// # Errors
///
/// `Interrupted` after a signal, unless its handler has `SA_RESTART`; `WouldBlock` after the time of `SO_RCVTIMEO`, and in
/// non-blocking mode.
pub(crate) fn wait_for_message(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut byte = [0_u8];
    match rustix::net::recv(fd, &mut byte, rustix::net::RecvFlags::PEEK) {
        Err(error @ (rustix::io::Errno::INTR | rustix::io::Errno::AGAIN)) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Shuts down both directions of a socket, which ends every call that waits for it.
pub(crate) fn shutdown(fd: BorrowedFd<'_>) {
    let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

/// Has the process call functions before it forks, and after that in itself and in the child.
pub(crate) fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: functions that live as long as this library, which is not unloaded: it has threads.
    unsafe {
        libc::pthread_atfork(Some(before), Some(parent), Some(child));
    }
}

/// The error of the system call that has just failed.
pub(crate) fn of_system() -> LastError {
    LastError::of_errno(
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}
