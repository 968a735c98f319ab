//! The descriptor and the direct transport: the bytes go through one end of a Unix stream socket pair,
//! which the broker relays, or whose other end the peer has, or through a socket of the kernel's `AF_VSOCK`
//! to a guest; [`Control`](super::super::control::Control) has the messages about them.
//!
//! A read or write is one system call, until an end or an error needs its meaning from the control
//! channel.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hvsock_endpoint::{ClientMessage, SocketOption};
use hvsock_ring::ResetCause;
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{poll, stream, vsock};

use super::super::endpoint_connection::is_gone;
use super::link::Link;
use crate::backend::{ReadInto, WriteFrom};
use crate::os::backend::Received;
use crate::{Interest, Readiness, Transport};

/// How often a writer that waits for free space checks whether writing is closed, where the descriptor does
/// not signal that.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The data descriptor of one end.
#[derive(Debug)]
pub(super) struct Descriptor {
    data: OwnedFd,
    raw_fd: bool,
    carrier: Carrier,
    /// The broker has been asked for the meaning of the data's end.
    has_asked: AtomicBool,
    /// Nothing is read any more.
    read_shut: AtomicBool,
    /// The kernel has said that the peer closed with bytes unread, which it says once.
    was_reset: AtomicBool,
}

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    /// The broker.
    Relay,
    /// Nobody: the peer has the other end.
    Peer,
    /// The kernel, to a guest. Its errors and its readiness differ from those of a Unix socket.
    Vsock,
}

impl Descriptor {
    pub(super) fn relayed(data: OwnedFd, raw_fd: bool) -> Self {
        Self::new(data, raw_fd, Carrier::Relay)
    }

    /// The end of a direct connection, with a process or with a guest.
    pub(super) fn direct(data: OwnedFd, raw_fd: bool) -> Self {
        let carrier = match vsock::is_vsock(&data) {
            true => Carrier::Vsock,
            false => Carrier::Peer,
        };
        Self::new(data, raw_fd, carrier)
    }

    fn new(data: OwnedFd, raw_fd: bool, carrier: Carrier) -> Self {
        Self {
            data,
            raw_fd,
            carrier,
            has_asked: AtomicBool::new(false),
            read_shut: AtomicBool::new(false),
            was_reset: AtomicBool::new(false),
        }
    }

    pub(super) fn transport(&self) -> Transport {
        match self.carrier {
            Carrier::Relay => Transport::Descriptor,
            Carrier::Peer => Transport::Direct,
            Carrier::Vsock => Transport::Vsock,
        }
    }

    /// Whether the descriptor becomes writable when the peer stops reading. The kernel's `AF_VSOCK` signals
    /// free space only.
    pub(super) fn signals_write_closed(&self) -> bool {
        self.carrier != Carrier::Vsock
    }

    /// Whether nothing can be sent any more, for a descriptor that does not signal it.
    pub(super) fn is_write_closed(&self) -> bool {
        let error = stream::send(&self.data, &[]).err();
        error.is_some_and(|error| error.kind() != io::ErrorKind::WouldBlock)
    }

    /// Whether the connection is over for this operation. `AF_VSOCK` has an error number of its own for it.
    fn is_over(&self, error: &io::Error) -> bool {
        let not_connected = error.kind() == io::ErrorKind::NotConnected;
        is_gone(error) || (self.carrier == Carrier::Vsock && not_connected)
    }

    pub(super) fn is_raw_fd(&self) -> bool {
        self.raw_fd
    }

    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.data.try_clone()
    }

    pub(super) fn set_recv_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        stream::set_recv_timeout(&self.data, timeout)
    }

    pub(super) fn set_send_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        stream::set_send_timeout(&self.data, timeout)
    }

    /// Receives. At the end of the data, waits for its meaning as long as the socket's mode
    /// permits.
    pub(super) fn recv(&self, link: &Link, mut into: ReadInto<'_, '_>) -> io::Result<usize> {
        match self.recv_once(link, &mut into) {
            Ok(Received::Bytes(count)) => Ok(count),
            Ok(Received::EndPending) => link.wait_for_end(),
            Err(error) => Err(link.end.map_timeout(error)),
        }
    }

    /// Receives without waiting for the kind of an end.
    pub(super) fn recv_once(
        &self,
        link: &Link,
        into: &mut ReadInto<'_, '_>,
    ) -> io::Result<Received> {
        self.received(link, into.recv(&self.data))
    }

    /// Receives the available bytes, in any mode.
    pub(super) fn recv_now(
        &self,
        link: &Link,
        slices: &mut [IoSliceMut<'_>],
    ) -> io::Result<Received> {
        self.received(link, stream::try_recv(&self.data, slices))
    }

    fn received(&self, link: &Link, result: io::Result<usize>) -> io::Result<Received> {
        let error = match result {
            // A byte that is left for the kernel.
            Ok(_) if self.read_shut.load(Ordering::Relaxed) => return Ok(Received::Bytes(0)),
            Ok(0) if self.was_reset.load(Ordering::Relaxed) => {
                Some(io::ErrorKind::ConnectionReset.into())
            }
            Ok(0) => None,
            // What the kernel says after this end has shut down and the guest has closed.
            Err(error) if error.kind() == io::ErrorKind::NotConnected && self.is_over(&error) => {
                None
            }
            Err(error) if self.is_over(&error) => {
                let is_reset = error.kind() == io::ErrorKind::ConnectionReset;
                self.was_reset.fetch_or(is_reset, Ordering::Relaxed);
                Some(error)
            }
            result => return result.map(Received::Bytes),
        };
        let end = link.read_end(&link.control.drain())?;
        match (self.carrier, end, error) {
            // The peer closed with bytes unread. The broker gives the reason first if it knows it.
            (Carrier::Peer, Received::EndPending, Some(error)) => Err(error),
            // The broker learns of it at the same time as this process.
            (Carrier::Vsock, Received::EndPending, Some(error)) => {
                Err(link.reset_reason(ResetCause::Control).unwrap_or(error))
            }
            (Carrier::Peer | Carrier::Vsock, Received::EndPending, None) => {
                self.ask_for_end(link);
                Ok(Received::EndPending)
            }
            (_, end, _) => Ok(end),
        }
    }

    /// Asks the broker once for the meaning of the data's end. It does not see the end by itself.
    fn ask_for_end(&self, link: &Link) {
        let message = ClientMessage::SetOption {
            option: SocketOption::ConfirmEnd,
            value: 1,
        };
        if !self.has_asked.swap(true, Ordering::Relaxed)
            && link.control.send(&message, false).is_err()
        {
            self.has_asked.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn send(&self, link: &Link, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match from.send(&self.data) {
            Err(error) if self.is_over(&error) => Err(link.write_error()),
            Err(error) => Err(link.end.map_timeout(error)),
            sent => sent,
        }
    }

    /// Sends as many bytes as there is free space for, in any mode.
    pub(super) fn send_now(&self, link: &Link, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match stream::try_send(&self.data, slices) {
            Err(error) if self.is_over(&error) => Err(link.write_error()),
            result => result,
        }
    }

    /// Announces the end of the data. The message comes before the end itself: an end without the
    /// message means a crash, so a message that cannot be sent now must not be followed by the end.
    pub(super) fn shutdown_write(&self, link: &Link, may_wait: bool) -> io::Result<()> {
        link.control.send(&ClientMessage::Shutdown, may_wait)?;
        self.shutdown(Shutdown::Write)
    }

    /// Stops reading. What has arrived is discarded, for a peer that waits for free space.
    pub(super) fn shutdown_read(&self) -> io::Result<()> {
        self.read_shut.store(true, Ordering::Relaxed);
        self.shutdown(Shutdown::Read)?;
        stream::discard_all_but_one(&self.data);
        Ok(())
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match stream::shutdown(&self.data, how) {
            // The guest has closed both directions already.
            Err(error) if self.carrier == Carrier::Vsock && self.is_over(&error) => Ok(()),
            result => result,
        }
    }

    /// Shuts down both directions without an announcement.
    pub(super) fn close(&self) {
        // It fails only if the peer has closed already.
        let _ = stream::shutdown(&self.data, Shutdown::Both);
    }

    /// Waits until reading or writing does not block, or until `deadline`.
    pub(super) fn poll(
        &self,
        link: &Link,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        let mut end_pending = false;
        let rechecks = interest.is_writable() && !self.signals_write_closed();
        let control = link.control.watched().unwrap_or(self.data.as_fd());
        loop {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.is_readable() && !end_pending);
            flags.set(PollFlags::OUT, interest.is_writable());
            let mut fds = [
                PollFd::new(&self.data, flags),
                PollFd::from_borrowed_fd(control, PollFlags::IN),
            ];
            let (first, count) = match (flags.is_empty(), end_pending) {
                (true, _) => (1, 2),
                (false, true) => (0, 2),
                (false, false) => (0, 1),
            };
            let until = match rechecks {
                true => {
                    let slice = Instant::now() + RECHECK_INTERVAL;
                    Some(deadline.map_or(slice, |at| at.min(slice)))
                }
                false => deadline,
            };
            let found = poll::wait(&mut fds[first..count], until)?;
            let is_over = deadline.is_some_and(|at| at <= Instant::now());
            if !found && (!rechecks || is_over) {
                return Ok(Readiness::default());
            }
            let got = fds[0].revents();
            let broken = got.intersects(PollFlags::HUP | PollFlags::ERR);
            let closed = rechecks && !found && self.is_write_closed();
            let writable =
                interest.is_writable() && (broken || closed || got.contains(PollFlags::OUT));
            let mut readable = false;
            if interest.is_readable() && (broken || end_pending || got.contains(PollFlags::IN)) {
                readable = self.would_read(link)?;
                end_pending = !readable;
            }
            if readable || writable {
                return Ok(Readiness::new(readable, writable));
            }
        }
    }

    /// Returns true if receiving returns bytes, the end or an error without waiting.
    fn would_read(&self, link: &Link) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.data, PollFlags::IN)];
        if !poll::wait(&mut fds, Some(Instant::now()))? {
            return Ok(false);
        }
        let mut byte = [0];
        Ok(!matches!(
            self.recv_once(link, &mut ReadInto::Peek(&mut byte)),
            Ok(Received::EndPending)
        ))
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }
}
