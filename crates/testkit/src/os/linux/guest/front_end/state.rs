//! The transfer of a device's state (SET_DEVICE_STATE_FD), with a bound on every wait.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use hvsock_sys::poll::{self, PollFd, PollFlags};

use super::script::Channel;

/// Both ends of a channel: that which is read and that which is written.
pub(super) fn channel(kind: Channel) -> io::Result<(OwnedFd, OwnedFd)> {
    match kind {
        Channel::Pipe => io::pipe().map(|(from, to)| (from.into(), to.into())),
        Channel::Sockets => UnixStream::pair().map(|(from, to)| (from.into(), to.into())),
    }
}

/// Reads until end of file.
pub(super) fn read_to_end(from: OwnedFd, until: Instant) -> io::Result<Vec<u8>> {
    let mut from = File::from(from);
    let mut state = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let fd = from.as_fd();
        if !poll::wait(&mut [PollFd::new(&fd, PollFlags::IN)], Some(until))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match from.read(&mut chunk)? {
            0 => return Ok(state),
            count => state.extend(&chunk[..count]),
        }
    }
}

/// Writes the state, and closes the channel.
pub(super) fn write_all(to: OwnedFd, state: &[u8], until: Instant) -> io::Result<()> {
    let mut to = File::from(to);
    let mut rest = state;
    while !rest.is_empty() {
        let fd = to.as_fd();
        if !poll::wait(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(until))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // At most what a pipe takes at once when it is writable.
        let len = rest.len().min(4096);
        let written = to.write(&rest[..len])?;
        rest = &rest[written..];
    }
    Ok(())
}
