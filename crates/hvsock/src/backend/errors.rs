//! The errors that all back-ends share.

use std::io;
use std::time::Duration;

use crate::error;

/// The error after a socket's read or write timeout.
pub(crate) fn timed_out() -> io::Error {
    let text = "the socket's timeout has elapsed";
    error::new(io::ErrorKind::TimedOut, text)
}

/// The error for writing after a shutdown of this end.
pub(crate) fn write_shut_down() -> io::Error {
    let text = "this end has been shut down for writing";
    error::new(io::ErrorKind::BrokenPipe, text)
}

/// The error for writing to a peer that has stopped reading.
pub(crate) fn peer_stopped_reading() -> io::Error {
    error::new(io::ErrorKind::BrokenPipe, "the peer has stopped reading")
}

/// Validates a timeout. Zero is an error, as in `std::net`.
pub(crate) fn nonzero_timeout(timeout: Option<Duration>) -> io::Result<Option<Duration>> {
    if timeout == Some(Duration::ZERO) {
        let text = "a timeout must be more than zero; for no waiting use non-blocking mode";
        return Err(error::invalid_input(text));
    }
    Ok(timeout)
}

/// The error for zero-copy access without shared memory.
pub(crate) fn no_shared_memory() -> io::Error {
    let text = "the bytes of this connection do not go through shared memory";
    error::new(io::ErrorKind::Unsupported, text)
}

/// The error for a reply that does not match the request. The request validates replies, so this is
/// a second check.
pub(crate) fn unexpected_reply() -> io::Error {
    error::new(
        io::ErrorKind::InvalidData,
        "the broker sent an unexpected reply",
    )
}
