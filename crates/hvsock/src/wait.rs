//! The accept loop of the blocking listeners.

use std::io;

use crate::error;

/// Accepts a connection. Calls `wait` after each `WouldBlock` if `may_wait`; `wait` returns false
/// after the deadline.
pub(crate) fn accept<T>(
    may_wait: bool,
    accept_now: impl Fn() -> io::Result<T>,
    wait: impl Fn() -> io::Result<bool>,
) -> io::Result<T> {
    loop {
        match accept_now() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && may_wait => {}
            result => return result,
        }
        if !wait()? {
            return Err(no_connection());
        }
    }
}

/// The error of an accept whose timeout has elapsed.
pub(crate) fn no_connection() -> io::Error {
    let text = "no connection arrived before the timeout";
    error::new(io::ErrorKind::TimedOut, text)
}
