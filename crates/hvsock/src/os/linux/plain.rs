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
use crate::carry::{Stopped, carry};

/// How often a thread whose program writes no more looks whether the other thread is done.
const LOOK_UP: Duration = Duration::from_millis(100);

/// A connection's descriptors, for a program that knows nothing of hvsock.
#[derive(Debug)]
pub struct Plain {
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
    ///     let plain = stream?.into_plain()?;
    ///     let (input, output) = (plain.data.try_clone()?, plain.data);
    ///     Command::new("cat").stdin(input).stdout(output).spawn()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_plain(self) -> io::Result<Plain> {
        hand_out(self).map(|(plain, _)| plain)
    }
}

/// The descriptors, and the thread that moves what is written to them, where there must be one.
pub(super) fn hand_out(stream: HvStream) -> io::Result<(Plain, Option<JoinHandle<()>>)> {
    if let Some((data, control)) = stream.stream().hand_out()? {
        return Ok((Plain { data, control }, None));
    }
    let control = stream.stream().clone_control()?;
    let (data, outward) = pump(stream)?;
    Ok((Plain { data, control }, Some(outward)))
}

/// Moves the connection's bytes to and from a socket, whose other end this returns, with the
/// thread that moves what is written there.
fn pump(stream: HvStream) -> io::Result<(OwnedFd, JoinHandle<()>)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let (own, theirs) = UnixStream::pair()?;
    let done = Arc::new(AtomicBool::new(false));
    let (to, from) = (stream.try_clone()?, stream);
    let (inward, outward) = (own.try_clone()?, own);
    let inward_done = Arc::clone(&done);
    thread::Builder::new()
        .name("hvsock-plain-in".into())
        .spawn(move || {
            bring(&from, &inward);
            inward_done.store(true, Ordering::Release);
        })?;
    let outward = thread::Builder::new()
        .name("hvsock-plain-out".into())
        .spawn(move || take(&outward, &to, &done))?;
    Ok((theirs.into(), outward))
}

/// From the connection to the program.
fn bring(from: &HvStream, to: &UnixStream) {
    // Nothing can be done about an error: it is over for both by then.
    let _ = match carry(from, to) {
        Stopped::End => to.shutdown(Shutdown::Write),
        // The program cannot be told more than that it is over.
        Stopped::Source => to.shutdown(Shutdown::Both),
        Stopped::Sink => from.shutdown(Shutdown::Read),
    };
}

/// From the program to the connection.
fn take(from: &UnixStream, to: &HvStream, done: &AtomicBool) {
    match carry(from, to) {
        Stopped::End => {
            let _ = to.shutdown(Shutdown::Write);
        }
        // It closed with data unread, which is no clean end for who wrote that.
        Stopped::Source => return to.stream().abandon(),
        // The program's next write fails.
        Stopped::Sink => {
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
    // A program that is gone reads no more, either, which the other end is to know before it
    // has written what nobody will read.
    while !done.load(Ordering::Acquire) {
        let slice = Instant::now() + LOOK_UP;
        match ready(from, PollFlags::empty(), Some(slice)) {
            Ok(false) => {}
            Ok(true) | Err(_) => {
                let _ = to.shutdown(Shutdown::Read);
                return;
            }
        }
    }
}
