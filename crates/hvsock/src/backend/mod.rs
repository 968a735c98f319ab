//! The back-ends: how sockets are made and how their bytes move, chosen at run time.
//!
//! What the rest of the library does with a connection or a listener it does through the enums
//! of this module. There is one back-end so far, [`broker`]; another one is another folder beside
//! it and another variant of each enum, and another transport of the broker's is another variant
//! of what its `Stream` holds.

mod broker;
#[cfg(feature = "tokio")]
mod nonblocking;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{BrokerMessage, ClientMessage, Transport};
use hvsock_ring::{Filled, Reserved};

pub(crate) use broker::{ANSWER_BOUND, Conversation, Request, RequestKind, Ring, Settings};

#[cfg(feature = "tokio")]
pub(crate) use broker::Received;

use crate::{Endpoint, Explanation, Interest, Peer, Readiness};

/// One end of a connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Broker(broker::Stream),
}

/// A listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Broker(broker::Listener),
}

/// A connect that nobody waits for.
#[derive(Debug)]
pub(crate) enum Dial {
    Broker(broker::Dial),
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Connected(Stream),
    Listening(Listener),
    Explained(Explanation),
}

/// Where received bytes go.
pub(crate) enum ReadInto<'a, 'b> {
    One(&'a mut [u8]),
    Many(&'a mut [IoSliceMut<'b>]),
    /// They stay to be received.
    Peek(&'a mut [u8]),
}

/// Where sent bytes come from.
#[derive(Clone, Copy)]
pub(crate) enum WriteFrom<'a, 'b> {
    One(&'a [u8]),
    Many(&'a [IoSlice<'b>]),
}

impl ReadInto<'_, '_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::One(buffer) | Self::Peek(buffer) => buffer.is_empty(),
            Self::Many(slices) => slices.iter().all(|slice| slice.is_empty()),
        }
    }
}

impl WriteFrom<'_, '_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::One(bytes) => bytes.is_empty(),
            Self::Many(slices) => slices.iter().all(|slice| slice.is_empty()),
        }
    }
}

/// Asks for a connection, a listener or an explanation, and waits up to `bound` for it.
pub(crate) fn obtain(
    endpoint: &Endpoint,
    request: &mut Request,
    bound: Duration,
) -> io::Result<Outcome> {
    broker::obtain(endpoint, request, bound).map(Into::into)
}

/// Asks one thing that is no connection or listener.
pub(crate) fn ask(
    endpoint: &Endpoint,
    message: &ClientMessage,
) -> io::Result<(Conversation, BrokerMessage)> {
    broker::ask(endpoint, message)
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

impl Dial {
    /// Asks for the connection and returns at once.
    pub(crate) fn start(endpoint: &Endpoint, request: Request) -> io::Result<Self> {
        broker::Dial::start(endpoint, request).map(Self::Broker)
    }

    /// The connection, once it stands; `WouldBlock` before.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        match self {
            Self::Broker(dial) => dial.progress().map(Stream::Broker),
        }
    }

    /// The error for a connect that takes too long.
    pub(crate) fn silent(&self) -> io::Error {
        match self {
            Self::Broker(dial) => dial.silent(),
        }
    }
}

impl AsFd for Dial {
    /// The descriptor that is ready for reading when there is progress.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(dial) => dial.as_fd(),
        }
    }
}

impl Stream {
    pub(crate) fn local(&self) -> SockAddrHv {
        match self {
            Self::Broker(stream) => stream.local(),
        }
    }

    pub(crate) fn peer(&self) -> SockAddrHv {
        match self {
            Self::Broker(stream) => stream.peer(),
        }
    }

    pub(crate) fn caller(&self) -> Option<&Peer> {
        match self {
            Self::Broker(stream) => stream.caller(),
        }
    }

    pub(crate) fn connection(&self) -> u64 {
        match self {
            Self::Broker(stream) => stream.connection(),
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Broker(stream) => stream.transport(),
        }
    }

    /// The ring, if that is the transport.
    pub(crate) fn ring(&self) -> Option<&Ring> {
        match self {
            Self::Broker(stream) => stream.ring(),
        }
    }

    /// Reserves room in a ring, waiting as sending does; `Unsupported` without one.
    pub(crate) fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>> {
        match self {
            Self::Broker(stream) => stream.reserve(wanted),
        }
    }

    /// Lends what has come in a ring, waiting as receiving does; `Unsupported` without one.
    pub(crate) fn fill(&self) -> io::Result<Option<Filled<'_>>> {
        match self {
            Self::Broker(stream) => stream.fill(),
        }
    }

    /// The descriptor to watch. With a ring it is ready for reading when something has happened
    /// since an operation last came to `WouldBlock`; else when reading or writing is possible.
    pub(crate) fn data(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(stream) => stream.data(),
        }
    }

    pub(crate) fn recv(&self, into: ReadInto<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Broker(stream) => stream.recv(into),
        }
    }

    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Broker(stream) => stream.send(from),
        }
    }

    /// Ends one or both directions; `patient` if the caller can be made to wait a moment.
    pub(crate) fn shutdown(&self, how: Shutdown, patient: bool) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.shutdown(how, patient),
        }
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_read_timeout(timeout),
        }
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_write_timeout(timeout),
        }
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        match self {
            Self::Broker(stream) => stream.read_timeout(),
        }
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        match self {
            Self::Broker(stream) => stream.write_timeout(),
        }
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Broker(stream) => stream.set_connected_suspend(on),
        }
    }

    pub(crate) fn poll(
        &self,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        match self {
            Self::Broker(stream) => stream.poll(interest, deadline),
        }
    }

    /// Why the connection was cut, if it was.
    pub(crate) fn cut(&self) -> Option<io::Error> {
        match self {
            Self::Broker(stream) => stream.cut(),
        }
    }

    /// The data and control descriptors, if they are for a program that knows nothing of hvsock.
    pub(crate) fn hand_out(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        match self {
            Self::Broker(stream) => stream.hand_out(),
        }
    }

    /// Ends the connection without a clean end: the other end sees a reset.
    pub(crate) fn abandon(&self) {
        match self {
            Self::Broker(stream) => stream.abandon(),
        }
    }

    /// A duplicate of the descriptor of the broker's word on the connection.
    pub(crate) fn clone_control(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Broker(stream) => stream.clone_control(),
        }
    }
}

impl Listener {
    pub(crate) fn local(&self) -> SockAddrHv {
        match self {
            Self::Broker(listener) => listener.local(),
        }
    }

    pub(crate) fn backlog(&self) -> u32 {
        match self {
            Self::Broker(listener) => listener.backlog(),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Broker(listener) => listener.number(),
        }
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        match self {
            Self::Broker(listener) => listener.set_nonblocking(nonblocking),
        }
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Broker(listener) => listener.set_connected_suspend(on),
        }
    }

    pub(crate) fn accept(&self, deadline: Option<Instant>) -> io::Result<Stream> {
        match self {
            Self::Broker(listener) => listener.accept(deadline).map(Stream::Broker),
        }
    }

    /// Waits until there may be something to accept, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        match self {
            Self::Broker(listener) => listener.wait(deadline),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(listener) => listener.as_fd(),
        }
    }
}
