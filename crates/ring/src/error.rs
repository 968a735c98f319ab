//! Why a read or write moved no byte.

use std::io;

use thiserror::Error;

use crate::Violation;

/// Why a read or write moved no byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Stop {
    /// No bytes to read, no free space to write (backpressure), or the connection is suspended.
    #[error("the ring is not ready")]
    WouldBlock,
    /// Read: the end of the stream. All bytes were read and the peer shut down writing.
    #[doc(alias = "eof")]
    #[error("the other end has ended its data")]
    End,
    /// Write: this end shut down writing.
    #[error("this end has been shut down for writing")]
    Ended,
    /// Write: the peer reads no more.
    #[doc(alias = "EPIPE")]
    #[error("the other end reads no more")]
    Closed,
    /// Read: the peer shut down writing, then closed without reading all bytes from here.
    #[error("the other end closed without reading all data")]
    Unread,
    /// The peer's process ended without closing.
    #[error("the process at the other end ended without closing")]
    Gone,
    /// The connection was reset.
    #[doc(alias = "ECONNRESET")]
    #[error("the connection was reset")]
    Cut,
    /// The peer violated the ring protocol, so this end reset the connection.
    #[error("the other end violated the ring protocol: {0}")]
    Violated(#[from] Violation),
}

impl From<Stop> for io::Error {
    fn from(stop: Stop) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match stop {
            Stop::WouldBlock => io::ErrorKind::WouldBlock.into(),
            Stop::End => Self::new(UnexpectedEof, stop),
            Stop::Ended | Stop::Closed => Self::new(BrokenPipe, stop),
            Stop::Unread | Stop::Gone | Stop::Cut | Stop::Violated(_) => {
                Self::new(ConnectionReset, stop)
            }
        }
    }
}
