//! Waiting for a connection.

use std::io;

use crate::error;

/// Accepts, as often as it takes; `wait` says whether there may be something in time.
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
            let text = "no connection came in time";
            return Err(error::plain(io::ErrorKind::TimedOut, text));
        }
    }
}
