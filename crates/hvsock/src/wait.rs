//! Waiting for one descriptor, and for a connection.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use hvsock_sys::poll::{self, PollFd, PollFlags};

use crate::error;

/// Waits until `fd` is ready for `what` and returns true, or until `deadline` and returns false.
pub(crate) fn ready(fd: impl AsFd, what: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
    let mut fds = [PollFd::new(&fd, what)];
    poll::wait(&mut fds, deadline)
}

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
