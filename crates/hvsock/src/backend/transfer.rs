//! The buffers of a transfer, and the system call that fills or sends them.

use std::io::{self, IoSlice, IoSliceMut};

use hvsock_sys::stream;

use crate::os::Socket;

/// The destination of received bytes.
pub(crate) enum ReadInto<'a, 'b> {
    One(&'a mut [u8]),
    Many(&'a mut [IoSliceMut<'b>]),
    /// The bytes are not removed from the stream.
    Peek(&'a mut [u8]),
}

/// The source of sent bytes.
#[derive(Clone, Copy)]
pub(crate) enum WriteFrom<'a, 'b> {
    One(&'a [u8]),
    Many(&'a [IoSlice<'b>]),
}

impl ReadInto<'_, '_> {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::One(buffer) | Self::Peek(buffer) => buffer.is_empty(),
            Self::Many(slices) => slices.iter().all(|slice| slice.is_empty()),
        }
    }

    /// Receives from a stream socket, with its errors.
    pub(crate) fn recv(&mut self, socket: &Socket) -> io::Result<usize> {
        match self {
            Self::One(buffer) => stream::recv(socket, buffer),
            Self::Many(slices) => stream::recv_vectored(socket, slices),
            Self::Peek(buffer) => stream::peek(socket, buffer),
        }
    }
}

impl WriteFrom<'_, '_> {
    /// Sends on a stream socket, with its errors.
    pub(crate) fn send(self, socket: &Socket) -> io::Result<usize> {
        match self {
            Self::One(bytes) => stream::send(socket, bytes),
            Self::Many(slices) => stream::send_vectored(socket, slices),
        }
    }
}
