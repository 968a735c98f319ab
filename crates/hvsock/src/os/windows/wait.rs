//! Waiting for one socket, in slices: Winsock does not wake whoever waits for a socket of which
//! another thread has ended a direction.

use std::io;
use std::os::windows::io::AsSocket;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};

/// How often whoever waits looks whether this end has ended what it waits for.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Waits until `socket` is ready for `what`, or until `deadline`, but no longer than a moment.
/// What it is ready for is nothing then.
pub(crate) fn poll_slice(
    socket: &impl AsSocket,
    what: PollFlags,
    deadline: Option<Instant>,
) -> io::Result<PollFlags> {
    let slice = Instant::now() + RECHECK_INTERVAL;
    let until = deadline.map_or(slice, |at| at.min(slice));
    let mut fds = [PollFd::new(socket, what)];
    poll::wait(&mut fds, Some(until))?;
    Ok(fds[0].revents())
}

/// Whether `deadline` has come.
pub(crate) fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|at| at <= Instant::now())
}
