//! A connection of the system.
//!
//! The socket is always in non-blocking mode, and blocking calls wait in `select`. A receive that
//! ends by Winsock's own timeout leaves the socket in an undefined state (documented with
//! `SO_RCVTIMEO`). A thread that blocks in a receive is not woken when another thread shuts down
//! that direction.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::windows::io::{AsSocket, BorrowedSocket, OwnedSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_sys::hyperv::{self, HvOption};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::stream;

use super::refusal;
use crate::backend::errors::{
    no_shared_memory, nonzero_timeout, peer_stopped_reading, timed_out, write_shut_down,
};
use crate::backend::{ConnectionInfo, LocalEnd, ReadInto, WriteFrom};
use crate::os::exports::{Filled, Reserved, RingStats};
use crate::os::wait;
use crate::{Interest, Peer, Readiness, Transport};

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Arc<OwnedSocket>,
    end: LocalEnd,
}

impl Stream {
    /// Creates a connection from a non-blocking socket.
    pub(super) fn new(
        socket: Arc<OwnedSocket>,
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
        Transport::HyperV
    }

    pub(crate) fn ring_stats(&self) -> Option<RingStats> {
        None
    }

    pub(crate) fn set_spin(&self, _longest: Duration) {}

    pub(crate) fn reserve(&self, _wanted: usize) -> io::Result<Reserved<'_>> {
        Err(no_shared_memory())
    }

    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        Err(no_shared_memory())
    }

    pub(crate) fn descriptor(&self) -> BorrowedSocket<'_> {
        self.socket.as_socket()
    }

    pub(crate) fn recv(&self, mut into: ReadInto<'_, '_>) -> io::Result<usize> {
        let deadline = || self.end.read_deadline();
        self.retry(PollFlags::IN, deadline, || self.recv_once(&mut into))
    }

    /// Receives the available bytes; `WouldBlock` if there are none.
    pub(crate) fn recv_once(&self, into: &mut ReadInto<'_, '_>) -> io::Result<usize> {
        if into.is_empty() || self.end.state().read_shut_down {
            return Ok(0);
        }
        into.recv(&self.socket).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => error,
            _ => refusal::of_connection(error),
        })
    }

    /// Receives the available bytes; `WouldBlock` if there are none, in any mode.
    pub(crate) fn recv_now(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.recv_once(&mut ReadInto::Many(slices))
    }

    /// Sends as many bytes as there is free space for; `WouldBlock` if there is none, in any mode.
    pub(crate) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send_once(WriteFrom::Many(slices))
    }

    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        let deadline = || self.end.write_deadline();
        self.retry(PollFlags::OUT, deadline, || self.send_once(from))
    }

    /// Sends as many bytes as there is free space for; `WouldBlock` if there is none.
    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        if self.end.state().write_shut_down {
            return Err(write_shut_down());
        }
        from.send(&self.socket).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => error,
            io::ErrorKind::BrokenPipe => peer_stopped_reading(),
            _ => refusal::of_connection(error),
        })
    }

    /// Returns true if this end has shut down reading.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_read_shut_down(&self) -> bool {
        self.end.state().read_shut_down
    }

    /// Checks whether receiving returns bytes, the end or an error; `WouldBlock` if not.
    #[cfg(feature = "tokio")]
    pub(crate) fn check_readable(&self) -> io::Result<()> {
        self.check_ready(Interest::READABLE)
    }

    /// Checks whether sending sends bytes or returns an error; `WouldBlock` if not.
    #[cfg(feature = "tokio")]
    pub(crate) fn check_writable(&self) -> io::Result<()> {
        self.check_ready(Interest::WRITABLE)
    }

    #[cfg(feature = "tokio")]
    fn check_ready(&self, interest: Interest) -> io::Result<()> {
        match self.poll(interest, Some(Instant::now()))?.is_empty() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        }
    }

    /// Repeats `attempt` while it returns `WouldBlock`, up to the deadline, unless the mode is
    /// non-blocking. The deadline is determined when the first attempt has to wait.
    fn retry<T>(
        &self,
        what: PollFlags,
        deadline: impl Fn() -> Option<Instant>,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut until = None;
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.end.is_nonblocking() {
                        return Err(error);
                    }
                }
                result => return result,
            }
            let until = *until.get_or_insert_with(&deadline);
            if wait::has_passed(until) {
                return Err(timed_out());
            }
            wait::poll_slice(&self.socket, what, until)?;
        }
    }

    /// Shuts down one or both directions. No message accompanies the data, so this never waits.
    pub(crate) fn shutdown(&self, how: Shutdown, _may_wait: bool) -> io::Result<()> {
        match stream::shutdown(&self.socket, how) {
            // The connection is closed in both directions already.
            Err(error) if refusal::is_over(&error) => {}
            result => result?,
        }
        self.end.state().shut_down(how);
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.end.set_nonblocking(nonblocking);
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.end.state().read_timeout = nonzero_timeout(timeout)?;
        Ok(())
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.end.state().write_timeout = nonzero_timeout(timeout)?;
        Ok(())
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        hyperv::set_option(&self.socket, HvOption::ConnectedSuspend, on.into())
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
            let state = *self.end.state();
            let got = wait::poll_slice(&self.socket, flags, deadline)?;
            let readable =
                interest.is_readable() && (state.read_shut_down || got.contains(PollFlags::IN));
            let writable =
                interest.is_writable() && (state.write_shut_down || got.contains(PollFlags::OUT));
            if readable || writable || wait::has_passed(deadline) {
                return Ok(Readiness::new(readable, writable));
            }
        }
    }

    /// Why the connection was reset, if the system reports it.
    pub(crate) fn reset_reason(&self) -> Option<io::Error> {
        let error = hvsock_sys::take_error(&self.socket).ok()??;
        Some(refusal::of_connection(error))
    }
}
