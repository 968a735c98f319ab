//! Winsock sockets, for `WSAPoll`, `select` or a runtime.

use std::io;
use std::os::windows::io::{AsRawSocket, AsSocket, BorrowedSocket, RawSocket};

use crate::{HvListener, HvSocket, HvStream};

impl AsSocket for HvStream {
    /// Returns the socket to watch; see [`HvStream`] on readiness. It is always in non-blocking
    /// mode.
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.stream().descriptor()
    }
}

impl AsRawSocket for HvStream {
    fn as_raw_socket(&self) -> RawSocket {
        self.as_socket().as_raw_socket()
    }
}

impl AsSocket for HvListener {
    /// Returns the socket to watch; see [`HvListener`] on readiness. It is always in non-blocking
    /// mode.
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.listener().descriptor()
    }
}

impl AsRawSocket for HvListener {
    fn as_raw_socket(&self) -> RawSocket {
        self.as_socket().as_raw_socket()
    }
}

impl HvSocket {
    /// Returns the socket to watch. It depends on the state: a listening or connected socket is
    /// readable if there is a connection to accept or data to receive. In a non-blocking connect it
    /// becomes writable when the connect has succeeded, and is in the third set of `select` when it
    /// has failed. [`HvSocket::poll`] does all of this.
    ///
    /// # Errors
    ///
    /// `WSAENOTCONN` if the socket neither listens nor connects nor is connected.
    #[doc(alias = "as_raw_socket")]
    pub fn socket(&self) -> io::Result<BorrowedSocket<'_>> {
        self.descriptor()
    }
}

#[cfg(feature = "tokio")]
impl AsSocket for crate::tokio::HvStream {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.stream().descriptor()
    }
}

#[cfg(feature = "tokio")]
impl AsSocket for crate::tokio::HvListener {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.listener().descriptor()
    }
}
