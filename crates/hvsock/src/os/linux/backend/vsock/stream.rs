//! A connection of the kernel: every operation is one system call.
//!
//! The kernel has one kind of end. A peer that closes, a peer that is killed and a host that closes
//! the connection all look like the end of the data.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(feature = "tokio")]
use std::task::Waker;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_ring::{Filled, Reserved};
use hvsock_sys::event::Event;
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{errno, poll, stream};

use super::super::broker::Ring;
use super::refusal;
use crate::backend::errors::{
    no_shared_memory, nonzero_timeout, peer_stopped_reading, write_shut_down,
};
use crate::backend::{ConnectionInfo, LocalEnd, ReadInto, WriteFrom};
#[cfg(feature = "tokio")]
use crate::os::backend::Received;
use crate::{Interest, Peer, Readiness, Transport};

/// How often a writer that waits for free space checks whether writing is closed: see
/// [`Stream::is_write_closed`].
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    end: LocalEnd,
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
            end: LocalEnd::new(ConnectionInfo::local(local, peer, peer_process)),
        }
    }

    pub(crate) fn end(&self) -> &LocalEnd {
        &self.end
    }

    pub(crate) fn transport(&self) -> Transport {
        Transport::Vsock
    }

    pub(crate) fn ring(&self) -> Option<&Ring> {
        None
    }

    pub(crate) fn reserve(&self, _wanted: usize) -> io::Result<Reserved<'_>> {
        Err(no_shared_memory())
    }

    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        Err(no_shared_memory())
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn recv(&self, mut into: ReadInto<'_, '_>) -> io::Result<usize> {
        self.recv_into(&mut into)
    }

    fn recv_into(&self, into: &mut ReadInto<'_, '_>) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        into.recv(&self.socket).map_err(|error| self.failed(error))
    }

    /// Sends. An empty send fails if the peer has stopped reading.
    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        from.send(&self.socket)
            .map_err(|error| self.send_error(error))
    }

    /// Converts an error of the kernel for a send.
    fn send_error(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::BrokenPipe if self.end.state().write_shut_down => write_shut_down(),
            io::ErrorKind::BrokenPipe => peer_stopped_reading(),
            _ => self.failed(error),
        }
    }

    /// Receives the available bytes; `WouldBlock` if there are none, in any mode.
    pub(crate) fn recv_now(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Ok(0);
        }
        stream::try_recv(&self.socket, slices).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => error,
            _ => self.failed(error),
        })
    }

    /// Sends as many bytes as there is free space for; `WouldBlock` if there is none, in any mode.
    pub(crate) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        stream::try_send(&self.socket, slices).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => error,
            _ => self.send_error(error),
        })
    }

    /// Checks whether receiving returns bytes, the end or an error; `WouldBlock` if not. It does
    /// not peek, which the transport of Hyper-V does not support.
    #[cfg(feature = "tokio")]
    pub(crate) fn check_readable(&self) -> io::Result<Received> {
        match crate::os::ready(&self.socket, PollFlags::IN, Some(Instant::now()))? {
            true => Ok(Received::Bytes(1)),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Converts an error of the kernel on a connection.
    fn failed(&self, error: io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(errno::ENOTCONN | errno::ECONNRESET) => refusal::reset(),
            // The kernel returns the same error for a timeout and in non-blocking mode.
            _ => self.end.map_timeout(error),
        }
    }

    /// No message accompanies the data, so this never waits.
    pub(crate) fn shutdown(&self, how: Shutdown, _may_wait: bool) -> io::Result<()> {
        match stream::shutdown(&self.socket, how) {
            // The connection is closed in both directions already.
            Err(error) if error.raw_os_error() == Some(errno::ENOTCONN) => {}
            result => result?,
        }
        self.end.state().shut_down(how);
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        hvsock_sys::set_nonblocking(&self.socket, nonblocking)?;
        self.end.set_nonblocking(nonblocking);
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = nonzero_timeout(timeout)?;
        stream::set_recv_timeout(&self.socket, timeout)?;
        self.end.state().read_timeout = timeout;
        Ok(())
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = nonzero_timeout(timeout)?;
        stream::set_send_timeout(&self.socket, timeout)?;
        self.end.state().write_timeout = timeout;
        Ok(())
    }

    /// The host's end of the connection decides this.
    pub(crate) fn set_connected_suspend(&self, _on: bool) -> io::Result<()> {
        Ok(())
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
        let _ = self.shutdown(Shutdown::Both, false);
    }

    /// A descriptor on which no message ever arrives.
    pub(crate) fn clone_control(&self) -> io::Result<OwnedFd> {
        Event::new().map(Into::into)
    }
}

/// For tasks, whose sockets are in non-blocking mode.
#[cfg(feature = "tokio")]
impl Stream {
    /// No message arrives, only the data.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.descriptor()
    }

    pub(crate) fn poll_control(&self) {}

    pub(crate) fn recv_once(&self, into: &mut ReadInto<'_, '_>) -> io::Result<Received> {
        self.recv_into(into).map(Received::Bytes)
    }

    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        self.send(from)
    }

    /// The kernel's readiness for writing reports free space only.
    pub(crate) fn signals_write_closed(&self) -> bool {
        false
    }

    /// There is one kind of end.
    pub(crate) fn read_end_or_register(&self, _waker: &Waker) -> io::Result<Received> {
        Ok(Received::Bytes(0))
    }
}
