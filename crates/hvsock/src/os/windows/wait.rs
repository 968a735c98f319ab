//! Waits for one socket, in intervals: Winsock does not wake a thread that waits for a socket when
//! another thread shuts down a direction of it.

use std::io;
use std::os::windows::io::AsSocket;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};

/// How often a waiting thread checks whether this end has shut down the direction.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Waits until `socket` is ready for `what`, for at most one interval or until `deadline`. Returns
/// what it is ready for, which may be nothing.
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

/// Returns true if `deadline` has passed.
pub(crate) fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|at| at <= Instant::now())
}
