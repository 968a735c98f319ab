//! Unbuffered standard input and output, and the wait for the thread that sends the input.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use hvsock::{HvStream, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Standard input without the buffer of the standard library.
pub fn input() -> io::Result<impl Read> {
    input_file()
}

/// Standard output without the buffer of the standard library.
pub fn output() -> io::Result<impl Write> {
    output_file()
}

/// Standard input as a file.
pub fn input_file() -> io::Result<File> {
    unbuffered(io::stdin().as_fd())
}

/// Standard output as a file.
pub fn output_file() -> io::Result<File> {
    unbuffered(io::stdout().as_fd())
}

fn unbuffered(fd: impl AsFd) -> io::Result<File> {
    let fd: OwnedFd = fd.as_fd().try_clone_to_owned()?;
    Ok(fd.into())
}

/// Closes standard output, so that its reader sees the end while this command continues.
pub fn end_output() -> Result<()> {
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(null).context("cannot close the output")
}

/// The sending thread drops this when it is done.
pub struct Sending {
    _end: UnixStream,
}

/// Becomes readable when the [`Sending`] is dropped.
pub struct Sent(UnixStream);

/// A connected pair of both.
pub fn sending() -> io::Result<(Sending, Sent)> {
    let (end, dropped) = UnixStream::pair()?;
    Ok((Sending { _end: end }, Sent(dropped)))
}

/// The poll interval for AF_VSOCK, which does not report that the peer reads no more.
const POLL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

impl Sent {
    /// Waits after the peer's half-close until all input is sent or the peer reads no more.
    pub fn wait(&self, mut stream: &HvStream) -> io::Result<()> {
        let interval = (stream.transport() == Transport::Vsock).then_some(&POLL_INTERVAL);
        loop {
            let mut fds = [
                PollFd::new(&self.0, PollFlags::IN),
                // No events: POLLERR and POLLHUP are always reported.
                PollFd::new(stream, PollFlags::empty()),
            ];
            match poll(&mut fds, interval) {
                // An empty write fails when the peer reads no more.
                Ok(0) if stream.write(&[]).is_err() => return Ok(()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            if fds.iter().any(|fd| !fd.revents().is_empty()) {
                return Ok(());
            }
        }
    }
}
