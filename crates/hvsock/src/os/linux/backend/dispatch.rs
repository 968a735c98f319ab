//! Connections, listeners and pending connects of both back-ends.
//!
//! The library uses them through the enums of this module, which call the back-end that a value
//! belongs to.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(feature = "tokio")]
use std::task::Waker;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_ring::{Filled, Reserved, RingStats};
use hvsock_sys::poll::PollFlags;

use super::broker::{self, Ring};
use super::choose::{Backend, choose};
#[cfg(feature = "tokio")]
use super::transfer::Received;
use super::vsock;
use crate::backend::{LocalEnd, ReadInto, Request, WriteFrom};
use crate::os::ready;
use crate::{Endpoint, Interest, Readiness, Transport};

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

/// Calls a method of the back-end that `self` belongs to.
macro_rules! dispatch {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            Self::Broker($inner) => $call,
            Self::Vsock($inner) => $call,
        }
    };
}

/// Defines methods that every back-end has, with the same signature.
macro_rules! forward {
    (
        impl $type:ident {
            $(
                $(#[$attribute:meta])*
                fn $name:ident(&self $(, $argument:ident: $of:ty)* $(,)?) $(-> $result:ty)?;
            )*
        }
    ) => {
        impl $type {
            $(
                $(#[$attribute])*
                pub(crate) fn $name(&self $(, $argument: $of)*) $(-> $result)? {
                    dispatch!(self, inner => inner.$name($($argument),*))
                }
            )*
        }
    };
}

impl From<broker::Stream> for Stream {
    fn from(stream: broker::Stream) -> Self {
        Self::Broker(stream)
    }
}

impl From<vsock::Stream> for Stream {
    fn from(stream: vsock::Stream) -> Self {
        Self::Vsock(stream)
    }
}

impl Stream {
    /// Takes a connected `AF_VSOCK` socket. `Unsupported` for any other descriptor.
    pub(crate) fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        vsock::Stream::from_fd(socket).map(Self::Vsock)
    }
}

impl Listener {
    /// Takes a listening `AF_VSOCK` socket. `Unsupported` for any other descriptor.
    pub(crate) fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        vsock::Listener::from_fd(socket).map(Self::Vsock)
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
        dispatch!(self, pending => pending.progress().map(Into::into))
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

forward! {
    impl PendingConnect {
        /// The error for a connect that takes too long.
        fn no_reply_error(&self) -> io::Error;
    }
}

impl AsFd for PendingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        dispatch!(self, pending => pending.as_fd())
    }
}

forward! {
    impl Stream {
        /// The addresses, mode and timeouts.
        fn end(&self) -> &LocalEnd;

        fn transport(&self) -> Transport;

        /// The ring, if that is the transport.
        fn ring(&self) -> Option<&Ring>;

        /// Reserves free space in a ring, waiting as sending does; `Unsupported` without one.
        fn reserve(&self, wanted: usize) -> io::Result<Reserved<'_>>;

        /// Borrows the received bytes in a ring, waiting as receiving does; `Unsupported` without
        /// one.
        fn fill(&self) -> io::Result<Option<Filled<'_>>>;

        /// The descriptor to watch. With a ring it is readable if something has happened since an
        /// operation last returned `WouldBlock`. Otherwise it is ready if reading or writing does
        /// not block.
        fn descriptor(&self) -> BorrowedFd<'_>;

        fn recv(&self, into: ReadInto<'_, '_>) -> io::Result<usize>;

        fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize>;

        /// Receives the available bytes; `WouldBlock` if there are none, in any mode.
        fn recv_now(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

        /// Sends as many bytes as there is free space for; `WouldBlock` if there is none, in any
        /// mode.
        fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

        /// Shuts down one or both directions. `may_wait` says whether the caller can wait for a
        /// moment.
        fn shutdown(&self, how: Shutdown, may_wait: bool) -> io::Result<()>;

        fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;

        fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

        fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

        fn set_connected_suspend(&self, on: bool) -> io::Result<()>;

        fn poll(&self, interest: Interest, deadline: Option<Instant>) -> io::Result<Readiness>;

        /// Why the connection was reset, if it was.
        fn reset_reason(&self) -> Option<io::Error>;

        /// The data and control descriptors, if the connection was made for a program that does not
        /// use this library.
        fn take_fds(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>>;

        /// Resets the connection: the peer gets an error instead of a clean end.
        fn reset(&self);

        /// Duplicates the descriptor of the control channel.
        fn clone_control(&self) -> io::Result<OwnedFd>;
    }
}

impl Stream {
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
}

// The operations of tasks.
#[cfg(feature = "tokio")]
forward! {
    impl Stream {
        /// The descriptor that is readable when there is a message about the connection's end.
        fn control(&self) -> BorrowedFd<'_>;

        /// Receives without waiting for the kind of an end.
        fn recv_once(&self, into: &mut ReadInto<'_, '_>) -> io::Result<Received>;

        /// Checks whether receiving returns bytes, the end or an error; `WouldBlock` if not.
        fn check_readable(&self) -> io::Result<Received>;

        /// Handles pending messages of the broker that do not accompany the end of the data.
        fn poll_control(&self);

        /// Sends as many bytes as there is free space for; `WouldBlock` if there is none.
        fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize>;

        /// Returns true if the data descriptor becomes writable when nothing can be sent any more.
        fn signals_write_closed(&self) -> bool;

        /// Returns true if nothing can be sent any more and the descriptor does not report it.
        fn is_write_closed(&self) -> bool;

        /// The kind of the data's end, if it is known. Otherwise `waker` is woken when it is.
        fn read_end_or_register(&self, waker: &Waker) -> io::Result<Received>;
    }
}

forward! {
    impl Listener {
        fn local(&self) -> SockAddrHv;

        /// The endpoint at which it listens, with no other to try.
        fn endpoint(&self) -> Endpoint;

        fn backlog(&self) -> u32;

        fn id(&self) -> u64;

        fn set_nonblocking(&self, nonblocking: bool);

        fn set_connected_suspend(&self, on: bool) -> io::Result<()>;

        /// The number of connections that were closed because this listener does not accept their
        /// peer.
        fn rejected(&self) -> u64;

        /// Waits until there may be a connection to accept, or until `deadline`.
        fn wait(&self, deadline: Option<Instant>) -> io::Result<bool>;

        /// The descriptor that is readable when there may be a connection to accept.
        fn descriptor(&self) -> BorrowedFd<'_>;

        /// Returns true if accepting waits for free space to send in, and not only for a
        /// connection.
        #[cfg(feature = "tokio")]
        fn has_pending_acks(&self) -> bool;
    }
}

impl Listener {
    pub(crate) fn accept(&self, deadline: Option<Instant>) -> io::Result<Stream> {
        dispatch!(self, listener => listener.accept(deadline).map(Into::into))
    }

    /// Accepts a connection; `WouldBlock` if there is none.
    #[cfg(feature = "tokio")]
    pub(crate) fn accept_now(&self) -> io::Result<Stream> {
        dispatch!(self, listener => listener.accept_now().map(Into::into))
    }
}
