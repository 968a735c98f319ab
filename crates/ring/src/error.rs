//! Why a read or write moved no byte.

use std::io;

use thiserror::Error;

use crate::Violation;

/// Why a read or write moved no byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// Read: no bytes, or the connection is suspended. Write: no free space (backpressure).
    #[error("the ring is not ready")]
    WouldBlock,
    /// Read: the end of the stream. All bytes were read and the peer shut down writing.
    #[doc(alias = "eof")]
    #[error("the other end has ended its data")]
    EndOfStream,
    /// Write: this end shut down writing.
    #[error("this end has been shut down for writing")]
    WriteShutdown,
    /// Write: the peer reads no more.
    #[doc(alias = "EPIPE")]
    #[error("the other end reads no more")]
    PeerClosed,
    /// Read: the peer shut down writing, then closed without reading all bytes from here.
    #[error("the other end closed without reading all data")]
    UnreadData,
    /// The peer's process ended without closing.
    #[error("the process at the other end ended without closing")]
    PeerGone,
    /// The connection was reset.
    #[doc(alias = "ECONNRESET")]
    #[error("the connection was reset")]
    Reset,
    /// The peer violated the ring protocol, so this end reset the connection.
    #[error("the other end violated the ring protocol: {0}")]
    ProtocolViolation(Violation),
}

impl From<Violation> for RingError {
    fn from(violation: Violation) -> Self {
        Self::ProtocolViolation(violation)
    }
}

impl From<RingError> for io::Error {
    fn from(error: RingError) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match error {
            RingError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            RingError::EndOfStream => Self::new(UnexpectedEof, error),
            RingError::WriteShutdown | RingError::PeerClosed => Self::new(BrokenPipe, error),
            RingError::UnreadData
            | RingError::PeerGone
            | RingError::Reset
            | RingError::ProtocolViolation(_) => Self::new(ConnectionReset, error),
        }
    }
}
