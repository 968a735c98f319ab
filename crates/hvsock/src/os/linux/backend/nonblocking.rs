//! What only the asynchronous side asks of a back-end.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::Waker;

use super::{Listener, Received, Stream};
use crate::backend::{ReadInto, WriteFrom};

impl Stream {
    /// The descriptor that is ready for reading when there is news of the connection's end.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(stream) => stream.control(),
            Self::Vsock(stream) => stream.data(),
        }
    }

    /// Receives without waiting for the explanation of an end.
    pub(crate) fn recv_once(&self, into: ReadInto<'_, '_>) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.recv_once(into),
            Self::Vsock(stream) => stream.recv(into).map(Received::Bytes),
        }
    }

    /// Whether receiving would give bytes, the end or an error: `WouldBlock` if not.
    pub(crate) fn check_readable(&self) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.recv_once(ReadInto::Peek(&mut [0])),
            Self::Vsock(stream) => stream.check_readable().map(Received::Bytes),
        }
    }

    /// Takes in what the broker says, where it is not read with the data's end.
    pub(crate) fn poll_control(&self) {
        match self {
            Self::Broker(stream) => stream.poll_control(),
            Self::Vsock(_) => {}
        }
    }

    /// Sends what there is room for; `WouldBlock` if there is none.
    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Broker(stream) => stream.send_once(from),
            Self::Vsock(stream) => stream.send(from),
        }
    }

    /// Whether the data's descriptor is ready for writing also when nothing can be sent any more.
    pub(crate) fn signals_write_closed(&self) -> bool {
        match self {
            Self::Broker(_) => true,
            Self::Vsock(_) => false,
        }
    }

    /// Whether nothing can be sent any more, where the descriptor does not tell.
    pub(crate) fn is_write_closed(&self) -> bool {
        match self {
            Self::Broker(_) => false,
            Self::Vsock(stream) => stream.is_write_closed(),
        }
    }

    /// What is known of an end that is not explained; `waker` is woken when more is.
    pub(crate) fn read_end_or_register(&self, waker: &Waker) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.read_end_or_register(waker),
            // Its one kind of end needs no explanation.
            Self::Vsock(_) => Ok(Received::Bytes(0)),
        }
    }
}

impl Listener {
    /// Accepts what is there; `WouldBlock` if nothing is.
    pub(crate) fn accept_now(&self) -> io::Result<Stream> {
        match self {
            Self::Broker(listener) => listener.accept_now().map(Stream::Broker),
            Self::Vsock(listener) => listener.accept_now().map(Stream::Vsock),
        }
    }

    /// Whether accepting waits for room to write and not only for something to read.
    pub(crate) fn has_pending_acks(&self) -> bool {
        match self {
            Self::Broker(listener) => listener.has_pending_acks(),
            Self::Vsock(_) => false,
        }
    }
}
