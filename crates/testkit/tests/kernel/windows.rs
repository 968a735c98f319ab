//! How these tests wait on Windows.

use std::io;
use std::time::{Duration, Instant};

use hvsock_sys::errno;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::conformance::{PairWithProcess, Ready, Reset, Trial, trials};
use socket2::Socket;

use super::{Kernel, Tcp};

/// Every kind of transport.
pub fn all() -> Vec<Trial> {
    trials(Tcp)
}

/// The stream that a process was given which plays a role: none is.
pub fn stream_of_this_process() -> io::Result<Kernel> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Waits for a socket.
pub fn wait(socket: &Socket, interest: Ready, timeout: Duration) -> io::Result<Ready> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.read);
    flags.set(PollFlags::OUT, interest.write);
    let mut sockets = [PollFd::new(socket, flags)];
    poll::wait(&mut sockets, Some(Instant::now() + timeout))?;
    let found = sockets[0].revents();
    Ok(Ready {
        read: found.contains(PollFlags::IN),
        write: found.contains(PollFlags::OUT),
    })
}

/// What the standard library does not know: a write after one's own shutdown.
pub fn os_error(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::EPIPE) => io::Error::new(io::ErrorKind::BrokenPipe, error),
        _ => error,
    }
}

/// Under Wine 8 a peer sees a clean end after a close without lingering, too.
pub const TCP_RESET: Option<Reset<Tcp>> = None;

/// A socket is no stdin here.
pub const TCP_WITH_PROCESS: Option<PairWithProcess<Tcp>> = None;
