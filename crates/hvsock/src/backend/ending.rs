//! Words that every back-end has for what a socket does not do.

use std::io;
use std::time::Duration;

use crate::error;

/// The error past a socket's time limit.
pub(crate) fn too_late() -> io::Error {
    let text = "the socket's time limit has passed";
    error::plain(io::ErrorKind::TimedOut, text)
}

/// The error for writing after the end of one's own data.
pub(crate) fn write_ended() -> io::Error {
    let text = "this end has been shut down for writing";
    error::plain(io::ErrorKind::BrokenPipe, text)
}

/// The error for writing to an end that has closed.
pub(crate) fn reads_no_more() -> io::Error {
    error::plain(io::ErrorKind::BrokenPipe, "the other end reads no more")
}

/// A time limit of zero would be none, as in `std::net`.
pub(crate) fn not_zero(timeout: Option<Duration>) -> io::Result<Option<Duration>> {
    if timeout == Some(Duration::ZERO) {
        let text = "a time limit of zero would be none; use non-blocking mode";
        return Err(error::invalid(text));
    }
    Ok(timeout)
}

/// The error for bytes in place, where they do not go through shared memory.
pub(crate) fn no_ring() -> io::Error {
    let text = "the bytes of this connection do not go through shared memory";
    error::plain(io::ErrorKind::Unsupported, text)
}
