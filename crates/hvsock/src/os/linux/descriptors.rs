//! Sockets as file descriptors, for poll, epoll or a runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::{HvListener, HvSocket, HvStream, Lease};

impl AsFd for HvStream {
    /// Returns the descriptor to watch; see [`HvStream`] on readiness.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream().descriptor()
    }
}

impl HvStream {
    /// Returns true if the connection is in an arena, and has no descriptor until somebody asks for
    /// one. For tests.
    #[doc(hidden)]
    pub fn is_in_arena(&self) -> bool {
        let ring = self.stream().ring();
        ring.is_some_and(|ring| ring.end().slot().is_some())
    }
}

impl AsRawFd for HvStream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for HvListener {
    /// Returns the descriptor to watch; see [`HvListener`] on readiness.
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
    /// Returns the descriptor to watch with poll or epoll. It depends on the state:
    ///
    /// | state | descriptor | ready |
    /// |---|---|---|
    /// | neither listens nor connects | none: `ENOTCONN` | |
    /// | listens | its events, or its `AF_VSOCK` socket | readable: accept |
    /// | connects, non-blocking | its endpoint, or one for the connect | readable: the connect has completed or failed |
    /// | connected, descriptor or vsock | its data | readable: receive; writable: send |
    /// | connected, ring | its events | readable: retry what returned `WouldBlock` |
    ///
    /// Call it again after a connect has completed. [`HvSocket::poll`] does all of this.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the socket neither listens nor connects nor is connected.
    #[doc(alias = "as_raw_fd")]
    #[doc(alias = "epoll")]
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.descriptor()
    }
}

#[cfg(feature = "tokio")]
impl AsFd for crate::tokio::HvStream {
    /// Returns the descriptor to watch; see [`crate::HvStream`] on readiness.
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
