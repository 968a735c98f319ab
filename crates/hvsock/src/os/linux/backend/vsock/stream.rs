//! A connection of the kernel: every operation is one system call.
//!
//! The kernel has one kind of end. A peer that closes, a peer that is killed and a host that closes
//! the connection all look like the end of the data.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_sys::event::Event;
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{errno, poll, stream};

use super::refusal;
use crate::backend::errors::{nonzero_timeout, peer_stopped_reading, timed_out, write_shut_down};
use crate::backend::{ConnectionInfo, ReadInto, WriteFrom, next_local_id};
use crate::{Interest, Peer, Readiness};

/// How often a writer that waits for free space checks whether writing is closed: see
/// [`Stream::is_write_closed`].
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    info: ConnectionInfo,
    nonblocking: AtomicBool,
    local_state: Mutex<LocalState>,
}

/// The settings of this end, and whether it has shut down writing.
#[derive(Debug, Default)]
struct LocalState {
    write_shut_down: bool,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Stream {
    /// Creates a connection in blocking mode.
    pub(super) fn new(
        socket: OwnedFd,
        local: SockAddrHv,
        peer: SockAddrHv,
        peer_process: Option<Peer>,
    ) -> Self {
        Self {
            socket,
            info: ConnectionInfo {
                local,
                peer,
                peer_process,
                id: next_local_id(),
            },
            nonblocking: AtomicBool::new(false),
            local_state: Mutex::default(),
        }
    }

    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    pub(crate) fn data(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn recv(&self, into: ReadInto<'_, '_>) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        match into {
            ReadInto::One(buffer) => stream::recv(&self.socket, buffer),
            ReadInto::Many(slices) => stream::recv_vectored(&self.socket, slices),
            ReadInto::Peek(buffer) => stream::peek(&self.socket, buffer),
        }
        .map_err(|error| self.failed(error))
    }

    /// Sends. An empty send fails if the peer has stopped reading.
    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match from {
            WriteFrom::One(bytes) => stream::send(&self.socket, bytes),
            WriteFrom::Many(slices) => stream::send_vectored(&self.socket, slices),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe if self.state().write_shut_down => write_shut_down(),
            io::ErrorKind::BrokenPipe => peer_stopped_reading(),
            _ => self.failed(error),
        })
    }

    /// Checks whether receiving returns bytes, the end or an error; `WouldBlock` if not. It does
    /// not peek, which the transport of Hyper-V does not support.
    #[cfg(feature = "tokio")]
    pub(crate) fn check_readable(&self) -> io::Result<usize> {
        match crate::os::ready(&self.socket, PollFlags::IN, Some(Instant::now()))? {
            true => Ok(1),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Converts an error of the kernel on a connection.
    fn failed(&self, error: io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(errno::ENOTCONN | errno::ECONNRESET) => refusal::reset(),
            // The kernel returns the same error for a timeout and in non-blocking mode.
            _ if error.kind() == io::ErrorKind::WouldBlock
                && !self.nonblocking.load(Ordering::Relaxed) =>
            {
                timed_out()
            }
            _ => error,
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match stream::shutdown(&self.socket, how) {
            // The connection is closed in both directions already.
            Err(error) if error.raw_os_error() == Some(errno::ENOTCONN) => {}
            result => result?,
        }
        if how != Shutdown::Read {
            self.state().write_shut_down = true;
        }
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        hvsock_sys::set_nonblocking(&self.socket, nonblocking)?;
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = nonzero_timeout(timeout)?;
        stream::set_recv_timeout(&self.socket, timeout)?;
        self.state().read_timeout = timeout;
        Ok(())
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = nonzero_timeout(timeout)?;
        stream::set_send_timeout(&self.socket, timeout)?;
        self.state().write_timeout = timeout;
        Ok(())
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        self.state().read_timeout
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        self.state().write_timeout
    }

    /// Waits until reading or writing does not block, or until `deadline`.
    pub(crate) fn poll(
        &self,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, interest.is_readable());
        flags.set(PollFlags::OUT, interest.is_writable());
        loop {
            let mut fds = [PollFd::new(&self.socket, flags)];
            let until = match interest.is_writable() {
                true => {
                    let slice = Instant::now() + RECHECK_INTERVAL;
                    Some(deadline.map_or(slice, |at| at.min(slice)))
                }
                false => deadline,
            };
            let found = poll::wait(&mut fds, until)?;
            let got = fds[0].revents();
            let broken = got.intersects(PollFlags::HUP | PollFlags::ERR);
            let readable = interest.is_readable() && (broken || got.contains(PollFlags::IN));
            let writable = interest.is_writable()
                && (broken || got.contains(PollFlags::OUT) || !found && self.is_write_closed());
            let over = deadline.is_some_and(|at| at <= Instant::now());
            if readable || writable || over {
                return Ok(Readiness::new(readable, writable));
            }
        }
    }

    /// Returns true if nothing can be sent any more. The kernel's readiness for writing reports
    /// free space only.
    pub(crate) fn is_write_closed(&self) -> bool {
        let error = stream::send(&self.socket, &[]).err();
        error.is_some_and(|error| error.kind() != io::ErrorKind::WouldBlock)
    }

    /// Why the connection was reset, if the kernel reports it.
    pub(crate) fn reset_reason(&self) -> Option<io::Error> {
        let error = hvsock_sys::take_error(&self.socket).ok()??;
        Some(self.failed(error))
    }

    /// The socket itself, and an unused control descriptor.
    pub(crate) fn take_fds(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let data = self.socket.try_clone()?;
        self.set_nonblocking(false)?;
        Ok(Some((data, self.clone_control()?)))
    }

    /// Closes the connection. The kernel has no reset, so the peer sees the end of the data.
    pub(crate) fn reset(&self) {
        // It fails only if the connection is closed already.
        let _ = self.shutdown(Shutdown::Both);
    }

    /// A descriptor on which no message ever arrives.
    pub(crate) fn clone_control(&self) -> io::Result<OwnedFd> {
        Event::new().map(Into::into)
    }

    fn state(&self) -> MutexGuard<'_, LocalState> {
        self.local_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
