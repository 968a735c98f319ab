//! A connection through a broker: the part that all transports share, and their dispatch.

mod descriptor;
mod link;
mod ring;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::{ClientMessage, Connected, Incoming, SocketOption, Transport};
use hvsock_ring::{Filled, Reserved, RingEnd, RingSide};

use super::arena::{Arena, SlotControl, SlotReadiness};
use super::control::ResetReason;
use crate::backend::errors::{no_shared_memory, nonzero_timeout};
use crate::backend::{ConnectionInfo, LocalEnd, ReadInto, WriteFrom};
use crate::os::backend::Received;
use crate::{Interest, Peer, Readiness};

use descriptor::Descriptor;
use link::Link;
pub(crate) use ring::Ring;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    link: Link,
    path: DataPath,
}

/// The transport of the bytes.
#[derive(Debug)]
enum DataPath {
    Descriptor(Descriptor),
    Ring(Box<Ring>),
}

impl Stream {
    /// Creates the connecting end, with the descriptors of the message.
    pub(super) fn connected(
        connected: &Connected,
        descriptors: Vec<OwnedFd>,
        socket: Arc<OwnedFd>,
        raw_fd: bool,
    ) -> io::Result<Self> {
        let Connected {
            transport,
            connection,
            local,
            peer,
        } = *connected;
        let info = ConnectionInfo {
            local,
            peer,
            peer_process: None,
            id: connection,
        };
        Ok(Self {
            link: Link::new(socket, info),
            path: DataPath::new(transport, RingSide::First, descriptors, raw_fd)?,
        })
    }

    /// Creates the accepting end. The last descriptor is its control channel.
    pub(super) fn accepted(
        incoming: Incoming,
        mut descriptors: Vec<OwnedFd>,
        raw_fd: bool,
    ) -> io::Result<Self> {
        let socket = descriptors.pop().ok_or_else(unexpected_descriptors)?;
        let path = DataPath::new(incoming.transport, RingSide::Second, descriptors, raw_fd)?;
        let info = ConnectionInfo {
            local: incoming.local,
            peer: incoming.peer,
            id: incoming.connection,
            peer_process: Some(Arc::new(Peer::of_wire(incoming))),
        };
        Ok(Self {
            link: Link::new(Arc::new(socket), info),
            path,
        })
    }

    /// Takes either end of a connection in an arena. `None` if `end` is in none.
    pub(super) fn in_arena(arena: &Arc<Arena>, end: RingEnd) -> Option<Self> {
        let id = end.slot()?;
        let control = SlotControl::new(arena, id);
        let readiness = SlotReadiness::new(arena, id.slot);
        Some(Self {
            link: Link::in_arena(control, arena.connection_info(id)),
            path: DataPath::Ring(Box::new(Ring::in_arena(end, readiness))),
        })
    }

    pub(crate) fn end(&self) -> &LocalEnd {
        &self.link.end
    }

    pub(crate) fn transport(&self) -> crate::Transport {
        match &self.path {
            DataPath::Descriptor(data) => data.transport(),
            DataPath::Ring(_) => crate::Transport::Ring,
        }
    }

    /// The ring, if that is the transport.
    pub(crate) fn ring(&self) -> Option<&Ring> {
        match &self.path {
            DataPath::Descriptor(_) => None,
            DataPath::Ring(ring) => Some(ring),
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.path {
            DataPath::Descriptor(data) => data.as_fd(),
            DataPath::Ring(ring) => ring.readiness_fd(&self.link),
        }
    }

    /// In an arena there is none, and the descriptor of the connection signals messages, too.
    #[cfg(feature = "tokio")]
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        match self.link.control.watched() {
            Some(control) => control,
            None => self.descriptor(),
        }
    }

    /// Receives. Waits as long as the mode and the timeout of the socket permit.
    pub(crate) fn recv(&self, into: ReadInto<'_, '_>) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        match &self.path {
            DataPath::Descriptor(data) => data.recv(&self.link, into),
            DataPath::Ring(ring) => ring.recv(&self.link, into),
        }
    }

    /// Receives without waiting for the kind of an end; for sockets in non-blocking mode.
    #[cfg(feature = "tokio")]
    pub(crate) fn recv_once(&self, into: &mut ReadInto<'_, '_>) -> io::Result<Received> {
        if into.is_empty() {
            return Ok(Received::Bytes(0));
        }
        match &self.path {
            DataPath::Descriptor(data) => data.recv_once(&self.link, into),
            DataPath::Ring(ring) => ring.recv_once(&self.link, into),
        }
    }

    /// Receives the available bytes; `WouldBlock` if there are none, in any mode.
    pub(crate) fn recv_now(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Ok(0);
        }
        let received = match &self.path {
            DataPath::Descriptor(data) => data.recv_now(&self.link, slices),
            DataPath::Ring(ring) => ring.recv_once(&self.link, &mut ReadInto::Many(slices)),
        };
        match received? {
            Received::Bytes(count) => Ok(count),
            Received::EndPending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Sends as many bytes as there is free space for; `WouldBlock` if there is none, in any mode.
    pub(crate) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let from = WriteFrom::Many(slices);
        if from.is_empty() {
            return Ok(0);
        }
        match &self.path {
            DataPath::Descriptor(data) => data.send_now(&self.link, slices),
            DataPath::Ring(ring) => ring.send_once(&self.link, from),
        }
    }

    /// Checks whether receiving returns bytes, the end or an error; `WouldBlock` if not.
    #[cfg(feature = "tokio")]
    pub(crate) fn check_readable(&self) -> io::Result<Received> {
        self.recv_once(&mut ReadInto::Peek(&mut [0]))
    }

    /// Whether the descriptor signals that the peer stops reading, as all but the kernel's socket do.
    #[cfg(feature = "tokio")]
    pub(crate) fn signals_write_closed(&self) -> bool {
        match &self.path {
            DataPath::Descriptor(data) => data.signals_write_closed(),
            DataPath::Ring(_) => true,
        }
    }

    /// Whether nothing can be sent any more, where the descriptor does not signal that.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_write_closed(&self) -> bool {
        match &self.path {
            DataPath::Descriptor(data) => !data.signals_write_closed() && data.is_write_closed(),
            DataPath::Ring(_) => false,
        }
    }

    /// The kind of the data's end, if it is known. Otherwise `waker` is woken when it is.
    #[cfg(feature = "tokio")]
    pub(crate) fn read_end_or_register(&self, waker: &std::task::Waker) -> io::Result<Received> {
        self.link
            .read_end(&self.link.control.drain_or_register(waker))
    }

    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match &self.path {
            DataPath::Descriptor(_) if from.is_empty() => Ok(0),
            DataPath::Descriptor(data) => data.send(&self.link, from),
            DataPath::Ring(ring) if from.is_empty() => ring.send_nothing(&self.link),
            DataPath::Ring(ring) => ring.send(&self.link, from),
        }
    }

    /// Sends as many bytes as there is free space for; `WouldBlock` if there is none, in any mode.
    #[cfg(feature = "tokio")]
    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match &self.path {
            DataPath::Ring(ring) if !from.is_empty() => ring.send_once(&self.link, from),
            _ => self.send(from),
        }
    }

    /// Reserves free space, waiting as sending does; `Unsupported` without a ring.
    pub(crate) fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>> {
        match &self.path {
            DataPath::Descriptor(_) => Err(no_shared_memory()),
            DataPath::Ring(ring) => ring.reserve(&self.link, wanted),
        }
    }

    /// Borrows the received bytes, waiting as receiving does; `Unsupported` without a ring.
    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        match &self.path {
            DataPath::Descriptor(_) => Err(no_shared_memory()),
            DataPath::Ring(ring) => ring.fill(&self.link),
        }
    }

    /// Handles pending messages of the broker that do not accompany the end of the data.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll_control(&self) {
        if let DataPath::Ring(ring) = &self.path {
            ring.poll_control(&self.link);
        }
    }

    /// Shuts down one or both directions. `may_wait` says whether the caller can wait for the
    /// broker.
    pub(crate) fn shutdown(&self, how: Shutdown, may_wait: bool) -> io::Result<()> {
        let mut state = self.link.end.state();
        if how != Shutdown::Read && !state.write_shut_down {
            match &self.path {
                DataPath::Descriptor(data) => data.shutdown_write(&self.link, may_wait)?,
                DataPath::Ring(ring) => ring.end().shutdown_write(),
            }
            state.write_shut_down = true;
        }
        if how != Shutdown::Write && !state.read_shut_down {
            state.read_shut_down = true;
            match &self.path {
                DataPath::Descriptor(data) => data.shutdown_read()?,
                DataPath::Ring(ring) => ring.end().shutdown_read(),
            }
        }
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        if let DataPath::Descriptor(data) = &self.path {
            hvsock_sys::set_nonblocking(data, nonblocking)?;
        }
        self.link.end.set_nonblocking(nonblocking);
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = nonzero_timeout(timeout)?;
        if let DataPath::Descriptor(data) = &self.path {
            data.set_recv_timeout(timeout)?;
        }
        self.link.end.state().read_timeout = timeout;
        Ok(())
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = nonzero_timeout(timeout)?;
        if let DataPath::Descriptor(data) = &self.path {
            data.set_send_timeout(timeout)?;
        }
        self.link.end.state().write_timeout = timeout;
        Ok(())
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        if let DataPath::Ring(ring) = &self.path
            && ring.end().slot().is_some()
        {
            // The broker reads it in the memory.
            ring.end().set_connected_suspend(on);
            return match ring.reset_reason(&self.link) {
                Some(reset) => Err(reset),
                None => Ok(()),
            };
        }
        let message = ClientMessage::SetOption {
            option: SocketOption::ConnectedSuspend,
            value: on.into(),
        };
        self.link.control.send(&message, true)
    }

    /// Why the connection was reset, if it was.
    pub(crate) fn reset_reason(&self) -> Option<io::Error> {
        match &self.path {
            DataPath::Descriptor(_) => {
                let reason = self.link.control.drain().reset_reason();
                reason.map(ResetReason::into_error)
            }
            DataPath::Ring(ring) => ring.reset_reason(&self.link),
        }
    }

    /// Waits until reading or writing does not block, or until `deadline`.
    pub(crate) fn poll(
        &self,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        match &self.path {
            DataPath::Descriptor(data) => data.poll(&self.link, interest, deadline),
            DataPath::Ring(ring) => ring.poll(&self.link, interest, deadline),
        }
    }

    /// The descriptors for a program that does not use this library, if the connection was made for
    /// one. That program ends the connection then.
    pub(crate) fn take_fds(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        match &self.path {
            DataPath::Descriptor(data) if data.is_raw_fd() => {
                let fds = (data.try_clone()?, self.link.control.try_clone()?);
                self.set_nonblocking(false)?;
                self.link.suppress_shutdown();
                Ok(Some(fds))
            }
            _ => Ok(None),
        }
    }

    /// Resets the connection.
    pub(crate) fn reset(&self) {
        self.link.suppress_shutdown();
        match &self.path {
            // An end of the data without an announcement means a crash.
            DataPath::Descriptor(data) => data.close(),
            DataPath::Ring(ring) => ring.end().reset(),
        }
    }

    /// Duplicates the descriptor of the control channel.
    pub(crate) fn clone_control(&self) -> io::Result<OwnedFd> {
        self.link.control.try_clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.link.suppresses_shutdown() {
            return;
        }
        match &self.path {
            // First the announcement, then the end, which is the closing of the data descriptor. If
            // the broker cannot receive the announcement now, it must not take this for a clean
            // end.
            DataPath::Descriptor(_) if self.link.end.state().write_shut_down => {}
            DataPath::Descriptor(_) => {
                let _ = self.link.control.send(&ClientMessage::Shutdown, false);
            }
            DataPath::Ring(ring) => ring.end().finish(),
        }
    }
}

impl DataPath {
    fn new(
        transport: Transport,
        side: RingSide,
        descriptors: Vec<OwnedFd>,
        raw_fd: bool,
    ) -> io::Result<Self> {
        match transport {
            Transport::Descriptor | Transport::Direct => {
                let [data] =
                    <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| unexpected_descriptors())?;
                Ok(Self::Descriptor(match transport {
                    Transport::Direct => Descriptor::direct(data, raw_fd),
                    _ => Descriptor::relayed(data, raw_fd),
                }))
            }
            Transport::Ring => {
                let [memory, own, peer] =
                    <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| unexpected_descriptors())?;
                match Ring::new(side, &memory, hvsock_ring::Doorbells { own, peer }) {
                    Ok(ring) => Ok(Self::Ring(Box::new(ring))),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
                    Err(error) => Err(map_error(&error)),
                }
            }
            _ => Err(crate::error::new(
                io::ErrorKind::InvalidData,
                "the broker chose a transport that was not offered",
            )),
        }
    }
}

/// The memory is valid, but the system does not let this process map it.
fn map_error(error: &io::Error) -> io::Error {
    let text = format!(
        "cannot map the shared memory of the connection ({error}); connect and listen with \
         `shared_memory(false)`, or run the broker without shared memory"
    );
    io::Error::new(error.kind(), text)
}

fn unexpected_descriptors() -> io::Error {
    let text = "the broker sent unexpected descriptors for the transport";
    crate::error::new(io::ErrorKind::InvalidData, text)
}
