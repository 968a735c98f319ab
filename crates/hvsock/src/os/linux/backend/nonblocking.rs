//! The operations that only the async types use.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::Waker;

use super::{Listener, Received, Stream};
use crate::backend::{ReadInto, WriteFrom};

impl Stream {
    /// The descriptor that is readable when there is a message about the connection's end.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(stream) => stream.control(),
            Self::Vsock(stream) => stream.data(),
        }
    }

    /// Receives without waiting for the kind of an end.
    pub(crate) fn recv_once(&self, into: ReadInto<'_, '_>) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.recv_once(into),
            Self::Vsock(stream) => stream.recv(into).map(Received::Bytes),
        }
    }

    /// Checks whether receiving returns bytes, the end or an error; `WouldBlock` if not.
    pub(crate) fn check_readable(&self) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.recv_once(ReadInto::Peek(&mut [0])),
            Self::Vsock(stream) => stream.check_readable().map(Received::Bytes),
        }
    }

    /// Handles pending messages of the broker that do not accompany the end of the data.
    pub(crate) fn poll_control(&self) {
        match self {
            Self::Broker(stream) => stream.poll_control(),
            Self::Vsock(_) => {}
        }
    }

    /// Sends as many bytes as there is free space for; `WouldBlock` if there is none.
    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Broker(stream) => stream.send_once(from),
            Self::Vsock(stream) => stream.send(from),
        }
    }

    /// Returns true if the data descriptor becomes writable when nothing can be sent any more.
    pub(crate) fn signals_write_closed(&self) -> bool {
        match self {
            Self::Broker(_) => true,
            Self::Vsock(_) => false,
        }
    }

    /// Returns true if nothing can be sent any more and the descriptor does not report it.
    pub(crate) fn is_write_closed(&self) -> bool {
        match self {
            Self::Broker(_) => false,
            Self::Vsock(stream) => stream.is_write_closed(),
        }
    }

    /// The kind of the data's end, if it is known. Otherwise `waker` is woken when it is.
    pub(crate) fn read_end_or_register(&self, waker: &Waker) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.read_end_or_register(waker),
            // There is one kind of end.
            Self::Vsock(_) => Ok(Received::Bytes(0)),
        }
    }
}

impl Listener {
    /// Accepts a connection; `WouldBlock` if there is none.
    pub(crate) fn accept_now(&self) -> io::Result<Stream> {
        match self {
            Self::Broker(listener) => listener.accept_now().map(Stream::Broker),
            Self::Vsock(listener) => listener.accept_now().map(Stream::Vsock),
        }
    }

    /// Returns true if accepting waits for free space to send in, and not only for a connection.
    pub(crate) fn has_pending_acks(&self) -> bool {
        match self {
            Self::Broker(listener) => listener.has_pending_acks(),
            Self::Vsock(_) => false,
        }
    }
}
