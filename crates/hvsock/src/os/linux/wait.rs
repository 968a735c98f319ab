//! Waits for one descriptor.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use hvsock_sys::poll::{self, PollFd, PollFlags};

/// Waits until `fd` is ready for `what` and returns true, or until `deadline` and returns false.
pub(crate) fn ready(fd: impl AsFd, what: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
    let mut fds = [PollFd::new(&fd, what)];
    poll::wait(&mut fds, deadline)
}
