//! The two back-ends of Linux, chosen at run time.
//!
//! What the rest of the library does with a connection or a listener it does through the enums
//! of this module: [`broker`], and [`vsock`] for a virtual machine that has none. Another one is
//! another folder beside them and another variant of each enum, and another transport of the
//! broker's is another variant of what its `Stream` holds.

mod broker;
mod lease;
mod lookup;
#[cfg(feature = "tokio")]
mod nonblocking;
mod vsock;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{BrokerMessage, ClientMessage};
use hvsock_ring::{Filled, Reserved, RingStats};
use hvsock_sys::poll::PollFlags;

pub(crate) use broker::{EndpointConnection, Ring};
pub(crate) use lease::Lease;
pub(crate) use lookup::{service_id, vm_id};

use super::ready;
use crate::backend::{ConnectionInfo, Outcome, ReadInto, Request, WriteFrom, errors};
use crate::endpoint::UseVsock;
use crate::{Endpoint, Interest, Readiness, Transport};

/// Which back-end is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Broker,
    Vsock,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Broker(broker::Stream),
    Vsock(vsock::Stream),
}

/// A listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Broker(broker::Listener),
    Vsock(vsock::Listener),
}

/// A connect that nobody waits for.
#[derive(Debug)]
pub(crate) enum PendingConnect {
    Broker(broker::PendingConnect),
    Vsock(vsock::PendingConnect),
}

/// What receiving came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes; 0 at the end.
    Bytes(usize),
    /// The data ends, and whether that is the end is not said yet.
    EndPending,
}

impl WriteFrom<'_, '_> {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::One(bytes) => bytes.is_empty(),
            Self::Many(slices) => slices.iter().all(|slice| slice.is_empty()),
        }
    }
}

/// The back-end that `endpoint` means now: a broker wherever there is an endpoint socket.
pub(crate) fn choose(endpoint: &Endpoint) -> Backend {
    let broker = match endpoint.vsock() {
        UseVsock::Never => true,
        UseVsock::Always => false,
        UseVsock::WithoutBroker => {
            endpoint.paths().iter().any(|path| may_be_there(path)) || !vsock::is_available()
        }
    };
    if broker {
        Backend::Broker
    } else {
        Backend::Vsock
    }
}

/// Whether whoever asks at `endpoint` now gets the kernel's `AF_VSOCK`.
pub(crate) fn uses_vsock(endpoint: &Endpoint) -> bool {
    choose(endpoint) == Backend::Vsock
}

/// Whether there is something at `path`, or it cannot be told.
fn may_be_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
    }
}

/// Asks for a connection, a listener or an explanation, and waits up to `bound` for it.
pub(crate) fn execute(
    endpoint: &Endpoint,
    request: &mut Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    match choose(endpoint) {
        Backend::Broker => broker::execute(endpoint, request, timeout).map(Into::into),
        Backend::Vsock => vsock::execute(request, timeout),
    }
}

/// Asks one thing that is no connection or listener.
fn query(
    endpoint: &Endpoint,
    message: &ClientMessage,
) -> io::Result<(EndpointConnection, BrokerMessage)> {
    match choose(endpoint) {
        Backend::Broker => broker::query(endpoint, message),
        Backend::Vsock => Err(vsock::no_registry(message)),
    }
}

impl From<broker::Outcome> for Outcome {
    fn from(outcome: broker::Outcome) -> Self {
        match outcome {
            broker::Outcome::Connected(stream) => Self::Connected(Stream::Broker(stream)),
            broker::Outcome::Listening(listener) => Self::Listening(Listener::Broker(listener)),
            broker::Outcome::Explained(explanation) => Self::Explained(explanation),
        }
    }
}

impl PendingConnect {
    /// Asks for the connection and returns at once.
    pub(crate) fn start(endpoint: &Endpoint, request: Request) -> io::Result<Self> {
        match choose(endpoint) {
            Backend::Broker => broker::PendingConnect::start(endpoint, request).map(Self::Broker),
            Backend::Vsock => vsock::PendingConnect::start(&request).map(Self::Vsock),
        }
    }

    /// The connection, once it stands; `WouldBlock` before.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        match self {
            Self::Broker(pending) => pending.progress().map(Stream::Broker),
            Self::Vsock(pending) => pending.progress().map(Stream::Vsock),
        }
    }

    /// The error for a connect that takes too long.
    pub(crate) fn no_reply_error(&self) -> io::Error {
        match self {
            Self::Broker(pending) => pending.no_reply_error(),
            Self::Vsock(pending) => pending.no_reply_error(),
        }
    }

    /// Waits until there may be progress, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<()> {
        ready(self, PollFlags::IN, Some(deadline)).map(|_| ())
    }

    /// The descriptor that is ready for reading when there is progress.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl AsFd for PendingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(pending) => pending.as_fd(),
            Self::Vsock(pending) => pending.as_fd(),
        }
    }
}

impl Stream {
    pub(crate) fn info(&self) -> &ConnectionInfo {
        match self {
            Self::Broker(stream) => stream.info(),
            Self::Vsock(stream) => stream.info(),
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Broker(stream) => stream.transport(),
            Self::Vsock(_) => Transport::Vsock,
        }
    }

    /// The ring, if that is the transport.
    pub(crate) fn ring(&self) -> Option<&Ring> {
        match self {
            Self::Broker(stream) => stream.ring(),
            Self::Vsock(_) => None,
        }
    }

    /// What this end of a ring has done to wake the other one and to wait.
    pub(crate) fn ring_stats(&self) -> Option<RingStats> {
        Some(self.ring()?.end().stats())
    }

    /// How long a blocking end of a ring may look before it sleeps.
    pub(crate) fn set_spin(&self, longest: Duration) {
        if let Some(ring) = self.ring() {
            ring.end().set_spin(longest);
        }
    }

    /// Reserves room in a ring, waiting as sending does; `Unsupported` without one.
    pub(crate) fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>> {
        match self {
            Self::Broker(stream) => stream.reserve(wanted),
            Self::Vsock(_) => Err(errors::no_shared_memory()),
        }
    }

    /// Lends what has come in a ring, waiting as receiving does; `Unsupported` without one.
    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        match self {
            Self::Broker(stream) => stream.fill(),
            Self::Vsock(_) => Err(errors::no_shared_memory()),
        }
    }

    /// The descriptor to watch. With a ring it is ready for reading when something has happened
    /// since an operation last came to `WouldBlock`; else when reading or writing is possible.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(stream) => stream.data(),
            Self::Vsock(stream) => stream.data(),
        }
    }

    pub(crate) fn recv(&self, into: ReadInto<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Broker(stream) => stream.recv(into),
            Self::Vsock(stream) => stream.recv(into),
        }
    }

    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Broker(stream) => stream.send(from),
            Self::Vsock(stream) => stream.send(from),
        }
    }

    /// ConnectionInfo one or both directions; `may_wait` if the caller can be made to wait a moment.
    pub(crate) fn shutdown(&self, how: Shutdown, may_wait: bool) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.shutdown(how, may_wait),
            Self::Vsock(stream) => stream.shutdown(how),
        }
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_nonblocking(nonblocking),
            Self::Vsock(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_read_timeout(timeout),
            Self::Vsock(stream) => stream.set_read_timeout(timeout),
        }
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_write_timeout(timeout),
            Self::Vsock(stream) => stream.set_write_timeout(timeout),
        }
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        match self {
            Self::Broker(stream) => stream.read_timeout(),
            Self::Vsock(stream) => stream.read_timeout(),
        }
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        match self {
            Self::Broker(stream) => stream.write_timeout(),
            Self::Vsock(stream) => stream.write_timeout(),
        }
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_connected_suspend(on),
            // Whether it lives on is for the host's end to say.
            Self::Vsock(_) => Ok(()),
        }
    }

    pub(crate) fn poll(
        &self,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        match self {
            Self::Broker(stream) => stream.poll(interest, deadline),
            Self::Vsock(stream) => stream.poll(interest, deadline),
        }
    }

    /// Why the connection was cut, if it was.
    pub(crate) fn reset_reason(&self) -> Option<io::Error> {
        match self {
            Self::Broker(stream) => stream.reset_reason(),
            Self::Vsock(stream) => stream.reset_reason(),
        }
    }

    /// The data and control descriptors, if they are for a program that knows nothing of hvsock.
    pub(crate) fn take_fds(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        match self {
            Self::Broker(stream) => stream.take_fds(),
            Self::Vsock(stream) => stream.take_fds(),
        }
    }

    /// ConnectionInfo the connection without a clean end: the other end sees a reset.
    pub(crate) fn reset(&self) {
        match self {
            Self::Broker(stream) => stream.reset(),
            Self::Vsock(stream) => stream.reset(),
        }
    }

    /// A duplicate of the descriptor of the broker's word on the connection.
    pub(crate) fn clone_control(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Broker(stream) => stream.clone_control(),
            Self::Vsock(stream) => stream.clone_control(),
        }
    }
}

impl Listener {
    pub(crate) fn local(&self) -> SockAddrHv {
        match self {
            Self::Broker(listener) => listener.local(),
            Self::Vsock(listener) => listener.local(),
        }
    }

    pub(crate) fn backlog(&self) -> u32 {
        match self {
            Self::Broker(listener) => listener.backlog(),
            Self::Vsock(listener) => listener.backlog(),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        match self {
            Self::Broker(listener) => listener.id(),
            Self::Vsock(listener) => listener.id(),
        }
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        match self {
            Self::Broker(listener) => listener.set_nonblocking(nonblocking),
            Self::Vsock(listener) => listener.set_nonblocking(nonblocking),
        }
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Broker(listener) => listener.set_connected_suspend(on),
            Self::Vsock(_) => Ok(()),
        }
    }

    /// How many connections were closed because they came from elsewhere than is listened for.
    pub(crate) fn rejected(&self) -> u64 {
        match self {
            // It lets through none of them.
            Self::Broker(_) => 0,
            Self::Vsock(listener) => listener.rejected(),
        }
    }

    pub(crate) fn accept(&self, deadline: Option<Instant>) -> io::Result<Stream> {
        match self {
            Self::Broker(listener) => listener.accept(deadline).map(Stream::Broker),
            Self::Vsock(listener) => listener.accept(deadline).map(Stream::Vsock),
        }
    }

    /// Waits until there may be something to accept, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        match self {
            Self::Broker(listener) => listener.wait(deadline),
            Self::Vsock(listener) => listener.wait(deadline),
        }
    }
}

impl Listener {
    /// The descriptor that is readable when there may be something to accept.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(listener) => listener.as_fd(),
            Self::Vsock(listener) => listener.as_fd(),
        }
    }
}
