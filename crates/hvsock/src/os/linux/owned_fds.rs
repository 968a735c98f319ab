//! A connection for a program that does not use this library. If the bytes do not go through a
//! descriptor, threads of this process copy them.

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

/// How often the thread that copies from the program checks whether the other thread has finished,
/// after the program has stopped writing.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The descriptors of a connection, for a program that does not use this library; see
/// [`HvStream::into_owned_fds`].
#[derive(Debug)]
pub struct OwnedFds {
    /// The bytes of both directions: a Unix stream socket, or an `AF_VSOCK` socket.
    pub data: OwnedFd,
    /// The broker's messages about the connection; without a broker there are none. Closing it does
    /// not close the connection.
    pub control: OwnedFd,
}

impl HvStream {
    /// Converts the connection to descriptors, for a program that does not use this library, such
    /// as a child process. The end of file of the data descriptor is a clean end then.
    ///
    /// A Unix socket cannot report a reset: the program sees the end of file when the connection
    /// breaks, too. [`spawn`](Self::spawn) ends the program first.
    ///
    /// Use a connection that was made with `raw_fd(true)` in
    /// [`ConnectOptions`](crate::ConnectOptions) or [`ListenOptions`](crate::ListenOptions), or
    /// with `AF_VSOCK`: its descriptor is the connection itself, and is set to blocking mode. For
    /// any other connection, two threads of this process copy the bytes, so the process **must live
    /// until the connection ends**.
    ///
    /// # Errors
    ///
    /// The error of the system if no descriptor or thread can be created.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let listener = hvsock::HvListener::options().raw_fd(true).listen(("any", "HV Socket Demo"))?;
    /// for stream in listener.incoming() {
    ///     let fds = stream?.into_owned_fds()?;
    ///     let (input, output) = (fds.data.try_clone()?, fds.data);
    ///     Command::new("cat").stdin(input).stdout(output).spawn()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "into_raw_fd")]
    #[doc(alias = "IntoRawFd")]
    #[doc(alias = "dup")]
    pub fn into_owned_fds(self) -> io::Result<OwnedFds> {
        take_fds(self).map(|(fds, _)| fds)
    }
}

/// Returns the descriptors, and the thread that copies from the program, if there is one.
fn take_fds(stream: HvStream) -> io::Result<(OwnedFds, Option<JoinHandle<()>>)> {
    if let Some((data, control)) = stream.stream().take_fds()? {
        return Ok((OwnedFds { data, control }, None));
    }
    let (fds, outbound) = copy_fds(stream, |_| ())?;
    Ok((fds, Some(outbound)))
}

/// Copies bytes between the connection and a socket. Returns the other end of the socket, and the
/// thread that copies from the program. `broken` is called before the program sees an end of file
/// that is none.
pub(super) fn copy_fds(
    stream: HvStream,
    broken: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<(OwnedFds, JoinHandle<()>)> {
    let control = stream.stream().clone_control()?;
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
            copy_to_program(&from, &inbound, broken);
            inbound_done.store(true, Ordering::Release);
        })?;
    let outbound = thread::Builder::new()
        .name("hvsock-copy-out".into())
        .spawn(move || copy_from_program(&outbound, &to, &done))?;
    let data = theirs.into();
    Ok((OwnedFds { data, control }, outbound))
}

/// Copies from the connection to the program.
fn copy_to_program(from: &HvStream, to: &UnixStream, broken: impl FnOnce(io::Error)) {
    // An error needs no handling: both have ended then.
    let _ = match copy(from, to) {
        CopyEnd::Finished => to.shutdown(Shutdown::Write),
        // A Unix socket cannot pass on a reset.
        CopyEnd::ReadError(error) => {
            broken(error);
            to.shutdown(Shutdown::Both)
        }
        CopyEnd::WriteError => from.shutdown(Shutdown::Read),
    };
}

/// Copies from the program to the connection.
fn copy_from_program(from: &UnixStream, to: &HvStream, done: &AtomicBool) {
    match copy(from, to) {
        CopyEnd::Finished => {
            let _ = to.shutdown(Shutdown::Write);
        }
        // The program closed with unread data. For the writer of that data this is no clean end.
        CopyEnd::ReadError(_) => return to.stream().reset(),
        // The next write of the program fails.
        CopyEnd::WriteError => {
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
    // A program that has exited does not read either. The peer must learn that before it writes
    // data that is never read.
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
