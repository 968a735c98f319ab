//! Sockets that another program created: from a descriptor, or from a service manager (socket
//! activation).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_sys::activation::{self, PassedFd};

use super::backend;
use crate::{HvListener, HvStream};

/// A socket that a service manager passed to this process; see [`listen_fds`].
#[derive(Debug)]
pub struct ListenFd(PassedFd);

/// Takes the sockets that the service manager opened for this process: the descriptors of
/// `LISTEN_FDS`, if `LISTEN_PID` is this process, with their names of `LISTEN_FDNAMES`.
///
/// They are close-on-exec from then on. Returns none if the process was not started by socket
/// activation, and on every call after the first. Call it at the start of the program, before
/// anything else can use a descriptor with a low number.
///
/// A service manager listens with the kernel's sockets, so this needs `AF_VSOCK`, as in
/// `ListenStream=vsock::2761` of a systemd unit in a [virtual
/// machine](crate#in-a-virtual-machine). With a broker and on Windows only the service itself can
/// listen.
///
/// # Errors
///
/// `InvalidData` if a variable is malformed, or if a descriptor that it announces is not open.
///
/// # Examples
///
/// ```no_run
/// use hvsock::HvListener;
///
/// # fn main() -> std::io::Result<()> {
/// // Activated by systemd, or started by hand.
/// let listener = match hvsock::listen_fds()?.pop() {
///     Some(passed) => HvListener::try_from(passed)?,
///     None => HvListener::bind(("any", 2761))?,
/// };
/// # Ok(())
/// # }
/// ```
#[doc(alias = "sd_listen_fds")]
#[doc(alias = "LISTEN_FDS")]
#[doc(alias = "socket activation")]
pub fn listen_fds() -> io::Result<Vec<ListenFd>> {
    Ok(activation::take()?.into_iter().map(ListenFd).collect())
}

impl ListenFd {
    /// Returns its name in `LISTEN_FDNAMES` (`FileDescriptorName=` of a systemd unit), or
    /// `unknown`.
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl AsFd for ListenFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl From<ListenFd> for OwnedFd {
    fn from(passed: ListenFd) -> Self {
        passed.0.fd
    }
}

impl TryFrom<ListenFd> for HvListener {
    type Error = io::Error;

    /// As from an [`OwnedFd`]. The error names the descriptor.
    fn try_from(passed: ListenFd) -> io::Result<Self> {
        let PassedFd { fd, name } = passed.0;
        Self::try_from(fd).map_err(|error| {
            let text = format!("the socket `{name}` of the service manager: {error}");
            io::Error::new(error.kind(), text)
        })
    }
}

impl TryFrom<OwnedFd> for HvListener {
    type Error = io::Error;

    /// Takes a listening `AF_VSOCK` socket. This sets non-blocking mode of the descriptor; the
    /// listener itself is in blocking mode.
    ///
    /// Its [`backlog`](HvListener::backlog) is unknown and reported as 0. It accepts every peer,
    /// as a listener for `any`, unless the socket is bound to the loopback context id.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the descriptor is no `AF_VSOCK` stream socket: a listener of a broker
    /// cannot be taken from a descriptor. `InvalidInput` if the socket does not listen. The
    /// descriptor is closed then.
    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let listener = backend::Listener::from_fd(fd)?;
        Ok(Self::new(Arc::new(listener)))
    }
}

impl TryFrom<OwnedFd> for HvStream {
    type Error = io::Error;

    /// Takes a connected `AF_VSOCK` socket, and sets blocking mode.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the descriptor is no `AF_VSOCK` stream socket: a connection through a
    /// broker cannot be taken from a descriptor. `InvalidInput` if the socket listens;
    /// `NotConnected` if it is not connected. The descriptor is closed then.
    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let stream = backend::Stream::from_fd(fd)?;
        Ok(Self::new(Arc::new(stream)))
    }
}
