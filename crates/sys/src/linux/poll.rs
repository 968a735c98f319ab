//! Waiting for descriptors, with a deadline.

use std::io;
use std::time::Instant;

pub use rustix::event::{PollFd, PollFlags};
use rustix::event::{Timespec, poll};
use rustix::io::Errno;

/// Waits until one of `fds` is ready, and returns `true`, or until `deadline` (for ever if `None`), and
/// returns `false`. With a deadline in the past it polls once and does not wait.
///
/// # Errors
///
/// Those of `poll`, except `EINTR`.
pub fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, timeout.as_ref()) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            // Polls once more after the deadline, so that readiness at the deadline is reported.
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_ends_at_its_deadline_or_when_a_descriptor_is_ready() {
        let (a, b) = crate::stream::pair().unwrap();
        let start = Instant::now();
        let deadline = start + Duration::from_millis(20);
        let mut fds = [PollFd::new(&a, PollFlags::IN)];
        assert!(!wait(&mut fds, Some(deadline)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(20));
        crate::stream::send(&b, b"x").unwrap();
        assert!(wait(&mut fds, Some(start)).unwrap());
        assert!(wait(&mut fds, None).unwrap());
        assert!(fds[0].revents().contains(PollFlags::IN));
    }
}
