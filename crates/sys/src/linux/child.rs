//! Ending a child process while another thread waits for it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::poll;

/// A child process. It keeps its meaning when the process has been reaped and its id is reused.
#[derive(Debug)]
pub struct ChildHandle(OwnedFd);

impl ChildHandle {
    /// A handle of a child that was not waited for.
    ///
    /// # Errors
    ///
    /// Those of `pidfd_open`: a kernel before Linux 5.3, or no free descriptor.
    pub fn new(child: &Child) -> io::Result<Self> {
        let fd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        Ok(Self(fd))
    }

    /// A handle of the child with this id, which was not waited for.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); `NotFound` if there is no such process.
    pub fn of_id(id: u32) -> io::Result<Self> {
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Asks the process to end (`SIGTERM`), and kills it if it exists at `deadline`. Returns when it has
    /// ended. An error means that this process may not signal it, and is ignored.
    pub fn end(&self, deadline: Instant) {
        let _ = pidfd_send_signal(&self.0, Signal::TERM);
        if !self.wait(Some(deadline)) && pidfd_send_signal(&self.0, Signal::KILL).is_ok() {
            self.wait(None);
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut fds = [poll::PollFd::new(&self.0, PollFlags::IN)];
        poll::wait(&mut fds, deadline).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    fn ended(script: &str, time: Duration) -> std::process::ExitStatus {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let handle = ChildHandle::new(&child).unwrap();
        handle.end(Instant::now() + time);
        let status = child.wait().unwrap();
        handle.end(Instant::now());
        status
    }

    #[test]
    fn a_child_is_asked_to_end_and_then_killed() {
        let asked = "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done";
        let long = Duration::from_secs(60);
        assert_eq!(ended(asked, long).code(), Some(7));
        let ignores = "trap '' TERM; echo up; exec sleep 600";
        let status = ended(ignores, Duration::from_millis(20));
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
}
