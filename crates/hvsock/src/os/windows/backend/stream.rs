//! A connection of the system's.
//!
//! The socket is in non-blocking mode always, and whoever may wait does so in `select`: a receive
//! that a time limit of Winsock's own ends leaves the socket in a state that is not defined
//! (documented with `SO_RCVTIMEO`), and a thread that waits in one is not woken when another ends
//! that direction.

use std::io;
use std::net::Shutdown;
use std::os::windows::io::{AsSocket, BorrowedSocket, OwnedSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_sys::hyperv::{self, HvOption};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::stream;

use super::refusal;
use crate::backend::ending::{no_ring, not_zero, reads_no_more, too_late, write_ended};
use crate::backend::{Ends, ReadInto, WriteFrom, own_number};
use crate::os::exports::{Filled, Reserved, RingStats};
use crate::os::wait;
use crate::{Interest, Peer, Readiness, Transport};

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Arc<OwnedSocket>,
    ends: Ends,
    nonblocking: AtomicBool,
    own: Mutex<Own>,
}

/// What this end has done and set.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    read_ended: bool,
    write_ended: bool,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Stream {
    /// A connection, whose socket is non-blocking.
    pub(super) fn new(
        socket: Arc<OwnedSocket>,
        local: SockAddrHv,
        peer: SockAddrHv,
        caller: Option<Peer>,
    ) -> Self {
        Self {
            socket,
            ends: Ends {
                local,
                peer,
                caller,
                number: own_number(),
            },
            nonblocking: AtomicBool::new(false),
            own: Mutex::default(),
        }
    }

    pub(crate) fn ends(&self) -> &Ends {
        &self.ends
    }

    pub(crate) fn transport(&self) -> Transport {
        Transport::HyperV
    }

    pub(crate) fn ring_stats(&self) -> Option<RingStats> {
        None
    }

    pub(crate) fn set_spin(&self, _longest: Duration) {}

    pub(crate) fn reserve(&self, _wanted: usize) -> io::Result<Reserved<'_>> {
        Err(no_ring())
    }

    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        Err(no_ring())
    }

    pub(crate) fn descriptor(&self) -> BorrowedSocket<'_> {
        self.socket.as_socket()
    }

    pub(crate) fn recv(&self, mut into: ReadInto<'_, '_>) -> io::Result<usize> {
        let limit = self.own().read_timeout;
        self.retry(PollFlags::IN, limit, || self.recv_once(&mut into))
    }

    /// Receives what is there; `WouldBlock` if nothing is.
    pub(crate) fn recv_once(&self, into: &mut ReadInto<'_, '_>) -> io::Result<usize> {
        if into.is_empty() || self.own().read_ended {
            return Ok(0);
        }
        match into {
            ReadInto::One(buffer) => stream::recv(&self.socket, buffer),
            ReadInto::Many(slices) => stream::recv_vectored(&self.socket, slices),
            ReadInto::Peek(buffer) => stream::peek(&self.socket, buffer),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => error,
            _ => refusal::of_connection(error),
        })
    }

    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        let limit = self.own().write_timeout;
        self.retry(PollFlags::OUT, limit, || self.send_once(from))
    }

    /// Sends what there is room for; `WouldBlock` if there is none.
    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        if self.own().write_ended {
            return Err(write_ended());
        }
        match from {
            WriteFrom::One(bytes) => stream::send(&self.socket, bytes),
            WriteFrom::Many(slices) => stream::send_vectored(&self.socket, slices),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => error,
            io::ErrorKind::BrokenPipe => reads_no_more(),
            _ => refusal::of_connection(error),
        })
    }

    /// Whether this end reads no more.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_ended_reading(&self) -> bool {
        self.own().read_ended
    }

    /// Whether receiving would give bytes, the end or an error: `WouldBlock` if not.
    #[cfg(feature = "tokio")]
    pub(crate) fn look(&self) -> io::Result<()> {
        self.look_for(Interest::READABLE)
    }

    /// Whether sending would take bytes or give an error: `WouldBlock` if not.
    #[cfg(feature = "tokio")]
    pub(crate) fn look_for_room(&self) -> io::Result<()> {
        self.look_for(Interest::WRITABLE)
    }

    #[cfg(feature = "tokio")]
    fn look_for(&self, interest: Interest) -> io::Result<()> {
        match self.poll(interest, Some(Instant::now()))?.is_empty() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        }
    }

    /// Tries until it is something other than `WouldBlock`, for as long as `limit` says, if the
    /// socket may wait at all.
    fn retry<T>(
        &self,
        what: PollFlags,
        limit: Option<Duration>,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut deadline = None;
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.nonblocking.load(Ordering::Relaxed) {
                        return Err(error);
                    }
                }
                result => return result,
            }
            if let Some(limit) = limit {
                let at = *deadline.get_or_insert_with(|| Instant::now() + limit);
                if wait::is_over(Some(at)) {
                    return Err(too_late());
                }
            }
            wait::for_a_moment(&self.socket, what, deadline)?;
        }
    }

    /// Ends one or both directions. Nobody has to be told beside the data, so nobody waits.
    pub(crate) fn shutdown(&self, how: Shutdown, _patient: bool) -> io::Result<()> {
        match stream::shutdown(&self.socket, how) {
            // It is over for both already.
            Err(error) if refusal::is_over(&error) => {}
            result => result?,
        }
        let mut own = self.own();
        own.read_ended |= how != Shutdown::Write;
        own.write_ended |= how != Shutdown::Read;
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.own().read_timeout = not_zero(timeout)?;
        Ok(())
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.own().write_timeout = not_zero(timeout)?;
        Ok(())
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        self.own().read_timeout
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        self.own().write_timeout
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        hyperv::set_option(&self.socket, HvOption::ConnectedSuspend, on.into())
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
            let own = *self.own();
            let got = wait::for_a_moment(&self.socket, flags, deadline)?;
            let readable =
                interest.is_readable() && (own.read_ended || got.contains(PollFlags::IN));
            let writable =
                interest.is_writable() && (own.write_ended || got.contains(PollFlags::OUT));
            if readable || writable || wait::is_over(deadline) {
                return Ok(Readiness::new(readable, writable));
            }
        }
    }

    /// Why the connection was cut, if the system knows.
    pub(crate) fn cut(&self) -> Option<io::Error> {
        let error = hvsock_sys::take_error(&self.socket).ok()??;
        Some(refusal::of_connection(error))
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
