//! The two back-ends of Linux, chosen at run time.
//!
//! The library uses connections and listeners through the enums of this module: [`broker`], and
//! [`vsock`] for a virtual machine without a broker. A further back-end is a folder beside them and
//! a variant of each enum. A further transport of the broker is a variant inside its `Stream`.

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

/// The back-end for a request.
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

/// A non-blocking connect.
#[derive(Debug)]
pub(crate) enum PendingConnect {
    Broker(broker::PendingConnect),
    Vsock(vsock::PendingConnect),
}

/// The result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// The number of bytes; 0 at the end.
    Bytes(usize),
    /// The data has ended, and it is not known yet whether that is a clean end.
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

/// Chooses the back-end: a broker if an endpoint socket exists.
pub(crate) fn choose(endpoint: &Endpoint) -> Backend {
    let broker = match endpoint.vsock() {
        UseVsock::Never => true,
        UseVsock::Always => false,
        UseVsock::WithoutBroker => {
            endpoint.paths().iter().any(|path| may_exist(path)) || !vsock::is_available()
        }
    };
    if broker {
        Backend::Broker
    } else {
        Backend::Vsock
    }
}

/// Returns true if a request to `endpoint` would use the kernel's `AF_VSOCK` now.
pub(crate) fn uses_vsock(endpoint: &Endpoint) -> bool {
    choose(endpoint) == Backend::Vsock
}

/// Returns true if `path` exists, or if that cannot be determined.
fn may_exist(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
    }
}

/// Executes a request: connects, listens or explains. Waits up to `timeout`.
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

/// Sends a request that creates no socket.
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
    /// Starts a connect and returns at once.
    pub(crate) fn start(endpoint: &Endpoint, request: Request) -> io::Result<Self> {
        match choose(endpoint) {
            Backend::Broker => broker::PendingConnect::start(endpoint, request).map(Self::Broker),
            Backend::Vsock => vsock::PendingConnect::start(&request).map(Self::Vsock),
        }
    }

    /// Returns the connection once it is established, `WouldBlock` before.
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

    /// Waits for progress, until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<()> {
        ready(self, PollFlags::IN, Some(deadline)).map(|_| ())
    }

    /// The descriptor that is readable when there is progress.
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

    /// The counters of this end of a ring.
    pub(crate) fn ring_stats(&self) -> Option<RingStats> {
        Some(self.ring()?.end().stats())
    }

    /// Sets how long a blocking end of a ring may spin before it parks.
    pub(crate) fn set_spin(&self, longest: Duration) {
        if let Some(ring) = self.ring() {
            ring.end().set_spin(longest);
        }
    }

    /// Reserves free space in a ring, waiting as sending does; `Unsupported` without one.
    pub(crate) fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>> {
        match self {
            Self::Broker(stream) => stream.reserve(wanted),
            Self::Vsock(_) => Err(errors::no_shared_memory()),
        }
    }

    /// Borrows the received bytes in a ring, waiting as receiving does; `Unsupported` without one.
    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        match self {
            Self::Broker(stream) => stream.fill(),
            Self::Vsock(_) => Err(errors::no_shared_memory()),
        }
    }

    /// The descriptor to watch. With a ring it is readable if something has happened since an
    /// operation last returned `WouldBlock`. Otherwise it is ready if reading or writing does not
    /// block.
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

    /// Shuts down one or both directions. `may_wait` says whether the caller can wait for a moment.
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
            // The host's end of the connection decides this.
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

    /// Why the connection was reset, if it was.
    pub(crate) fn reset_reason(&self) -> Option<io::Error> {
        match self {
            Self::Broker(stream) => stream.reset_reason(),
            Self::Vsock(stream) => stream.reset_reason(),
        }
    }

    /// The data and control descriptors, if the connection was made for a program that does not use
    /// this library.
    pub(crate) fn take_fds(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        match self {
            Self::Broker(stream) => stream.take_fds(),
            Self::Vsock(stream) => stream.take_fds(),
        }
    }

    /// Resets the connection: the peer gets an error instead of a clean end.
    pub(crate) fn reset(&self) {
        match self {
            Self::Broker(stream) => stream.reset(),
            Self::Vsock(stream) => stream.reset(),
        }
    }

    /// Duplicates the descriptor of the control channel.
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

    /// The number of connections that were closed because this listener does not accept their peer.
    pub(crate) fn rejected(&self) -> u64 {
        match self {
            // The broker filters.
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

    /// Waits until there may be a connection to accept, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        match self {
            Self::Broker(listener) => listener.wait(deadline),
            Self::Vsock(listener) => listener.wait(deadline),
        }
    }
}

impl Listener {
    /// The descriptor that is readable when there may be a connection to accept.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(listener) => listener.as_fd(),
            Self::Vsock(listener) => listener.as_fd(),
        }
    }
}
