//! Sockets of Winsock, to watch with `WSAPoll`, `select` or a runtime.

use std::io;
use std::os::windows::io::{AsRawSocket, AsSocket, BorrowedSocket, RawSocket};

use crate::{HvListener, HvSocket, HvStream};

impl AsSocket for HvStream {
    /// The socket to watch; see [`HvStream`] on readiness. It is in non-blocking mode always.
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
    /// The socket to watch; see [`HvListener`] on readiness. It is in non-blocking mode always.
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
    /// The socket to watch. Which one it is goes with the state: none (`WSAENOTCONN`) before it
    /// listens or connects; readable when there is something to accept or to receive; while it
    /// connects in non-blocking mode writable when that has succeeded, and in `select`'s third set
    /// when it has failed. [`HvSocket::poll`] does all this by itself.
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
