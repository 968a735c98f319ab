//! The Windows half of these tests: waiting by `hvsock_sys::poll`.

use std::io;
use std::time::{Duration, Instant};

use hvsock_sys::errno;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::conformance::{PairWithProcess, Ready, Reset, Trial, trials};
use socket2::Socket;

use super::{Kernel, Tcp};

/// The cases of all transports.
pub fn all() -> Vec<Trial> {
    trials(Tcp)
}

/// The stream of a peer process. Windows has none.
pub fn stream_of_this_process() -> io::Result<Kernel> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Waits for the readiness of a socket.
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

/// Maps the error of a write after a local shutdown, which the standard library does not map.
pub fn os_error(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::EPIPE) => io::Error::new(io::ErrorKind::BrokenPipe, error),
        _ => error,
    }
}

/// Under Wine 8 a peer reads end of file after a close with a linger time of zero.
pub const TCP_RESET: Option<Reset<Tcp>> = None;

/// A socket cannot be a stdin on Windows.
pub const TCP_WITH_PROCESS: Option<PairWithProcess<Tcp>> = None;
