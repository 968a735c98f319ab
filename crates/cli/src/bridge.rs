//! Standard input to a connection and the connection to standard output, each direction until its
//! own end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result};
use hvsock::{HvStream, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::context::Context;
use crate::failure::{Failure, OutputGone};

/// Bytes moved at once.
const PIECE: usize = 64 * 1024;

/// Copies both ways until the other end has ended and either took all input or reads no more.
///
/// The end of standard input ends the sending half only, and the end of the connection closes
/// standard output only, so that what runs on either side may go on with its other half. A cut
/// is a failure that says why.
pub fn run(stream: &HvStream, context: &Context) -> Result<()> {
    // The sending thread holds the one end and drops it when done: the other then reads its end.
    let (sending, sent) = UnixStream::pair().context("cannot make a socket pair")?;
    let upward = stream.try_clone()?;
    let quiet = context.clone();
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            if let Err(error) = send(&upward) {
                quiet.note(&format!("not all input was sent: {error}"));
            }
            drop(sending);
        })
        .context("cannot start a thread")?;
    receive(stream)?;
    wait_for_sender(stream, &sent)
}

/// The connection's bytes to standard output, until their end.
fn receive(mut stream: &HvStream) -> Result<()> {
    let mut stdout = unbuffered(io::stdout().as_fd())?;
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(cut(&error)),
        };
        stdout
            .write_all(&buffer[..count])
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => OutputGone.into(),
                _ => anyhow::Error::new(error).context("cannot write the output"),
            })?;
    }
    drop(stdout);
    // Whoever reads our output sees its end now, though we may still send.
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(null).context("cannot close the output")?;
    Ok(())
}

/// Standard input to the connection, until the end of either.
fn send(mut stream: &HvStream) -> io::Result<()> {
    let mut stdin = unbuffered(io::stdin().as_fd())?;
    let mut buffer = vec![0; PIECE];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return stream.shutdown(Shutdown::Write),
            Ok(count) => stream.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// How often to look whether the other end still takes input, where that is not told.
const LOOK_UP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// After the other end's last byte: until all input is sent, or nobody is left to send it to.
fn wait_for_sender(mut stream: &HvStream, sent: &UnixStream) -> Result<()> {
    let look_up = (stream.transport() == Transport::Vsock).then_some(&LOOK_UP);
    loop {
        let mut fds = [
            PollFd::new(sent, PollFlags::IN),
            // No more than what is always told: that the other end is gone altogether.
            PollFd::new(stream, PollFlags::empty()),
        ];
        match poll(&mut fds, look_up) {
            // But writing nothing fails then.
            Ok(0) if stream.write(&[]).is_err() => return Ok(()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        if fds.iter().any(|fd| !fd.revents().is_empty()) {
            return Ok(());
        }
    }
}

/// Standard streams without the buffers of the standard library.
fn unbuffered(fd: impl AsFd) -> io::Result<File> {
    let fd: OwnedFd = fd.as_fd().try_clone_to_owned()?;
    Ok(fd.into())
}

/// A connection that ended other than by its end.
fn cut(error: &io::Error) -> anyhow::Error {
    match hvsock::refusal_of(error) {
        Some(refusal) => Failure::new(format!("the connection was cut: {refusal}")).into(),
        None => Failure::new(format!("the connection broke: {error}")).into(),
    }
}
