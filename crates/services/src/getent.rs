//! Queries of the system's name service by the program `getent`: the C library's name service loads
//! plugins, which a static program cannot do.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The most bytes of the output that are read.
const MAX_OUTPUT: usize = 64 << 10;
/// The interval between checks whether the program has exited after it closed its output.
const EXIT_POLL: Duration = Duration::from_millis(1);

/// The output of `getent` with these arguments; `None` if it found nothing. Blocks, for at most
/// `limit`: the name service may query the network.
///
/// # Errors
///
/// `TimedOut`, or the system's error if the program cannot be run.
pub(crate) fn getent(arguments: &[&str], limit: Duration) -> io::Result<Option<Vec<u8>>> {
    let mut command = Command::new("getent");
    command.args(arguments);
    run(command, limit)
}

fn run(mut command: Command, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + limit;
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = Running(command.stdout(Stdio::piped()).spawn()?);
    let mut output = Vec::new();
    if let Some(stdout) = child.0.stdout.take() {
        read(OwnedFd::from(stdout).into(), deadline, &mut output)?;
    }
    loop {
        if let Some(status) = child.0.try_wait()? {
            return Ok(status.success().then_some(output));
        }
        remaining(deadline)?;
        thread::sleep(EXIT_POLL);
    }
}

/// Reads until the end of the output, or until it is too long.
fn read(mut pipe: File, deadline: Instant, output: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while output.len() < MAX_OUTPUT {
        let remaining = Timespec::try_from(remaining(deadline)?).map_err(io::Error::other)?;
        let mut waiting = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        match poll(&mut waiting, Some(&remaining)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => output.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.truncate(MAX_OUTPUT);
    Ok(())
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let remaining = deadline.checked_duration_since(Instant::now());
    remaining
        .filter(|remaining| !remaining.is_zero())
        .ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// A child process, which is killed and reaped on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, limit)
    }

    #[test]
    fn what_is_known_has_output_and_what_is_not_has_none() {
        let root = getent(&["passwd", "0"], LIMIT).unwrap().unwrap();
        assert!(root.starts_with(b"root:"), "{root:?}");
        assert_eq!(getent(&["passwd", "no-such-user"], LIMIT).unwrap(), None);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_after_the_limit() {
        for script in ["exec sleep 60", "exec sleep 60 >&-"] {
            let error = shell(script, Duration::from_millis(50)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{script}");
        }
    }

    #[test]
    fn output_without_end_is_read_to_the_limit() {
        // Ends by SIGPIPE, so it failed.
        assert_eq!(shell("exec yes", LIMIT).unwrap(), None);
        let long = shell("head -c 70000 /dev/zero 2>&-; exit 0", LIMIT).unwrap();
        assert_eq!(long.unwrap().len(), MAX_OUTPUT);
    }

    #[test]
    fn a_program_that_cannot_be_run_is_an_error() {
        let error = run(Command::new("/nonexistent"), LIMIT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
