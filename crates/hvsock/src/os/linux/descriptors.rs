//! Sockets as file descriptors, to watch with poll, epoll or a runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::{HvListener, HvSocket, HvStream, Lease};

impl AsFd for HvStream {
    /// The descriptor to watch; see [`HvStream`] on readiness.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream().descriptor()
    }
}

impl AsRawFd for HvStream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for HvListener {
    /// The descriptor to watch; see [`HvListener`] on readiness.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener().descriptor()
    }
}

impl AsRawFd for HvListener {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl HvSocket {
    /// The descriptor to watch with poll or epoll. Which one it is goes with the state:
    ///
    /// | state | descriptor | ready |
    /// |---|---|---|
    /// | neither listens nor connects | none: `ENOTCONN` | |
    /// | listens | its endpoint, or its `AF_VSOCK` socket | readable: accept |
    /// | connects, not blocking | its endpoint, or one for this | readable: connecting is over |
    /// | connected, descriptor or vsock | its data | readable: receive; writable: send |
    /// | connected, ring | its news | readable: try again what came to `WouldBlock` |
    ///
    /// So take it anew when connecting is over. [`HvSocket::poll`] does all this by itself.
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.descriptor()
    }
}

#[cfg(feature = "tokio")]
impl AsFd for crate::tokio::HvStream {
    /// The descriptor to watch; see [`crate::HvStream`] on readiness.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream().descriptor()
    }
}

#[cfg(feature = "tokio")]
impl AsRawFd for crate::tokio::HvStream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(feature = "tokio")]
impl AsFd for crate::tokio::HvListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener().descriptor()
    }
}

#[cfg(feature = "tokio")]
impl AsRawFd for crate::tokio::HvListener {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
