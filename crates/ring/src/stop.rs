//! Why an end reads or writes no byte now.

use std::io;

use thiserror::Error;

use crate::Violation;

/// Why reading or writing came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Stop {
    /// There is nothing to read or no room to write at the moment, or the connection stands still.
    #[error("the ring is not ready")]
    WouldBlock,
    /// Reading: all was read, and the other end has said that no more comes.
    #[error("the other end has ended its data")]
    End,
    /// Writing: this end has said that no more comes.
    #[error("this end has been shut down for writing")]
    Ended,
    /// Writing: the other end reads no more.
    #[error("the other end reads no more")]
    Closed,
    /// Reading: the end has come, and the other end is gone without having read all from here.
    #[error("the other end closed without reading all data")]
    Unread,
    /// The other end is gone without a word.
    #[error("the process at the other end ended without closing")]
    Gone,
    /// The connection was cut.
    #[error("the connection was cut")]
    Cut,
    /// The other end broke the rules; so this end cut the connection.
    #[error("the other end broke the ring: {0}")]
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
