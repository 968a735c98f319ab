//! What only the asynchronous side asks of a back-end.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::Waker;

use super::{Listener, ReadInto, Received, Stream, WriteFrom};

impl Stream {
    /// The descriptor that is ready for reading when there is news of the connection's end.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        match self {
            Self::Broker(stream) => stream.control(),
        }
    }

    /// Receives without waiting for the explanation of an end.
    pub(crate) fn recv_once(&self, into: ReadInto<'_, '_>) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.recv_once(into),
        }
    }

    /// Takes in what the broker says, where it is not read with the data's end.
    pub(crate) fn hear(&self) {
        match self {
            Self::Broker(stream) => stream.hear(),
        }
    }

    /// Sends what there is room for; `WouldBlock` if there is none.
    pub(crate) fn send_once(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        match self {
            Self::Broker(stream) => stream.send_once(from),
        }
    }

    /// What is known of an end that is not explained; `waker` is woken when more is.
    pub(crate) fn end_or_wake(&self, waker: &Waker) -> io::Result<Received> {
        match self {
            Self::Broker(stream) => stream.end_or_wake(waker),
        }
    }
}

impl Listener {
    /// Accepts what is there; `WouldBlock` if nothing is.
    pub(crate) fn accept_now(&self) -> io::Result<Stream> {
        match self {
            Self::Broker(listener) => listener.accept_now().map(Stream::Broker),
        }
    }

    /// Whether accepting waits for room to write and not only for something to read.
    pub(crate) fn waits_to_write(&self) -> bool {
        match self {
            Self::Broker(listener) => listener.has_unsaid(),
        }
    }
}
