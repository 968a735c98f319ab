//! A connection of the kernel's: every operation is one system call.
//!
//! The kernel knows one kind of end. A peer that closes, one that is killed and a host that cuts
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

/// How often who waits for room looks whether there will be none: see
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

/// What this end has done and set.
#[derive(Debug, Default)]
struct LocalState {
    write_shut_down: bool,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Stream {
    /// A connection in blocking mode.
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

    /// Sends; also nothing, which fails where the other end takes no more.
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

    /// Looks whether receiving would give bytes, the end or an error; `WouldBlock` if not. Not by
    /// peeking, which Hyper-V's transport does not have.
    #[cfg(feature = "tokio")]
    pub(crate) fn check_readable(&self) -> io::Result<usize> {
        match crate::os::ready(&self.socket, PollFlags::IN, Some(Instant::now()))? {
            true => Ok(1),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// What an error of the kernel means on a connection.
    fn failed(&self, error: io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(errno::ENOTCONN | errno::ECONNRESET) => refusal::reset(),
            // Past a time limit the kernel says what it says without blocking.
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
            // It is over for both already.
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

    /// Waits until reading or writing would not, or until `deadline`.
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

    /// Whether nothing can be sent any more. The kernel's readiness for writing is about room only.
    pub(crate) fn is_write_closed(&self) -> bool {
        let error = stream::send(&self.socket, &[]).err();
        error.is_some_and(|error| error.kind() != io::ErrorKind::WouldBlock)
    }

    /// Why the connection was cut, if the kernel knows.
    pub(crate) fn reset_reason(&self) -> Option<io::Error> {
        let error = hvsock_sys::take_error(&self.socket).ok()??;
        Some(self.failed(error))
    }

    /// The socket itself, and nobody's word on it.
    pub(crate) fn take_fds(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let data = self.socket.try_clone()?;
        self.set_nonblocking(false)?;
        Ok(Some((data, self.clone_control()?)))
    }

    /// ConnectionInfo the connection, as far as the kernel can: the other end takes it for the end.
    pub(crate) fn reset(&self) {
        // It fails only where there is nothing to end.
        let _ = self.shutdown(Shutdown::Both);
    }

    /// A descriptor on which nothing is ever said.
    pub(crate) fn clone_control(&self) -> io::Result<OwnedFd> {
        Event::new().map(Into::into)
    }

    fn state(&self) -> MutexGuard<'_, LocalState> {
        self.local_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
