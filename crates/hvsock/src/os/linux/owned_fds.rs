//! A connection for a program that knows nothing of hvsock, where its bytes do not go through a
//! descriptor already: threads of this process move them.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvsock_sys::poll::PollFlags;

use super::ready;
use crate::HvStream;
use crate::copy::{CopyEnd, copy};

/// How often a thread whose program writes no more looks whether the other thread is done.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A connection's descriptors, for a program that knows nothing of hvsock.
#[derive(Debug)]
pub struct OwnedFds {
    /// The bytes, both ways: a Unix stream socket, or an `AF_VSOCK` one.
    pub data: OwnedFd,
    /// The broker's word on the connection; without a broker nothing is ever said there. Closing
    /// it does not end the connection.
    pub control: OwnedFd,
}

impl HvStream {
    /// Gives the connection to a program that knows nothing of hvsock, such as a child process:
    /// the end of file of the data descriptor is then a clean end by itself.
    ///
    /// Best is a connection made with `plain(true)` in [`ConnectOptions`](crate::ConnectOptions) or
    /// [`ListenOptions`](crate::ListenOptions), or by `AF_VSOCK`: its descriptor is the connection
    /// itself, and is in blocking mode afterwards. Any other is pumped by two threads of this process, **which must
    /// live until the connection ends**.
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let listener = hvsock::HvListener::options().plain(true).listen(("any", "HV Socket Demo"))?;
    /// for stream in listener.incoming() {
    ///     let fds = stream?.into_owned_fds()?;
    ///     let (input, output) = (fds.data.try_clone()?, fds.data);
    ///     Command::new("cat").stdin(input).stdout(output).spawn()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_owned_fds(self) -> io::Result<OwnedFds> {
        take_fds(self).map(|(fds, _)| fds)
    }
}

/// The descriptors, and the thread that moves what is written to them, where there must be one.
pub(super) fn take_fds(stream: HvStream) -> io::Result<(OwnedFds, Option<JoinHandle<()>>)> {
    if let Some((data, control)) = stream.stream().take_fds()? {
        return Ok((OwnedFds { data, control }, None));
    }
    let control = stream.stream().clone_control()?;
    let (data, outbound) = pump(stream)?;
    Ok((OwnedFds { data, control }, Some(outbound)))
}

/// Moves the connection's bytes to and from a socket, whose other end this returns, with the
/// thread that moves what is written there.
fn pump(stream: HvStream) -> io::Result<(OwnedFd, JoinHandle<()>)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let (ours, theirs) = UnixStream::pair()?;
    let done = Arc::new(AtomicBool::new(false));
    let (to, from) = (stream.try_clone()?, stream);
    let (inbound, outbound) = (ours.try_clone()?, ours);
    let inbound_done = Arc::clone(&done);
    thread::Builder::new()
        .name("hvsock-copy-in".into())
        .spawn(move || {
            copy_to_program(&from, &inbound);
            inbound_done.store(true, Ordering::Release);
        })?;
    let outbound = thread::Builder::new()
        .name("hvsock-copy-out".into())
        .spawn(move || copy_from_program(&outbound, &to, &done))?;
    Ok((theirs.into(), outbound))
}

/// From the connection to the program.
fn copy_to_program(from: &HvStream, to: &UnixStream) {
    // Nothing can be done about an error: it is over for both by then.
    let _ = match copy(from, to) {
        CopyEnd::Finished => to.shutdown(Shutdown::Write),
        // The program cannot be told more than that it is over.
        CopyEnd::ReadError => to.shutdown(Shutdown::Both),
        CopyEnd::WriteError => from.shutdown(Shutdown::Read),
    };
}

/// From the program to the connection.
fn copy_from_program(from: &UnixStream, to: &HvStream, done: &AtomicBool) {
    match copy(from, to) {
        CopyEnd::Finished => {
            let _ = to.shutdown(Shutdown::Write);
        }
        // It closed with data unread, which is no clean end for who wrote that.
        CopyEnd::ReadError => return to.stream().reset(),
        // The program's next write fails.
        CopyEnd::WriteError => {
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
    // A program that is gone reads no more, either, which the other end is to know before it
    // has written what nobody will read.
    while !done.load(Ordering::Acquire) {
        let slice = Instant::now() + RECHECK_INTERVAL;
        match ready(from, PollFlags::empty(), Some(slice)) {
            Ok(false) => {}
            Ok(true) | Err(_) => {
                let _ = to.shutdown(Shutdown::Read);
                return;
            }
        }
    }
}
