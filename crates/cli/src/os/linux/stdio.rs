//! Standard input and output for bytes, not for lines, and waiting for the thread that reads the
//! input.

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

/// Standard output, likewise.
pub fn output() -> io::Result<impl Write> {
    output_file()
}

/// Standard input as a file, for who needs one.
pub fn input_file() -> io::Result<File> {
    unbuffered(io::stdin().as_fd())
}

/// Standard output, likewise.
pub fn output_file() -> io::Result<File> {
    unbuffered(io::stdout().as_fd())
}

fn unbuffered(fd: impl AsFd) -> io::Result<File> {
    let fd: OwnedFd = fd.as_fd().try_clone_to_owned()?;
    Ok(fd.into())
}

/// Ends standard output: whoever reads it sees its end now, though the command goes on.
pub fn end_output() -> Result<()> {
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(null).context("cannot close the output")
}

/// What the sending thread drops when done.
pub struct Sending {
    _end: UnixStream,
}

/// What tells that it has.
pub struct Sent(UnixStream);

/// Both.
pub fn sending() -> io::Result<(Sending, Sent)> {
    let (end, told) = UnixStream::pair()?;
    Ok((Sending { _end: end }, Sent(told)))
}

/// How often to look whether the other end still takes input, where that is not told.
const LOOK_UP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

impl Sent {
    /// After the other end's last byte: until all input is sent, or nobody is left to send it to.
    pub fn wait(&self, mut stream: &HvStream) -> io::Result<()> {
        let look_up = (stream.transport() == Transport::Vsock).then_some(&LOOK_UP);
        loop {
            let mut fds = [
                PollFd::new(&self.0, PollFlags::IN),
                // No more than what is always told: that the other end is gone altogether.
                PollFd::new(stream, PollFlags::empty()),
            ];
            match poll(&mut fds, look_up) {
                // But writing nothing fails then.
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
