//! A connection as the runtime watches it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::Interest;

use super::watch::Watch;
use crate::backend::{ReadInto, Stream, WriteFrom};

/// The watched socket of one connection. Every method takes that connection.
#[derive(Debug)]
pub(crate) struct StreamWatch(Watch);

impl StreamWatch {
    pub(crate) fn new(stream: &Arc<Stream>) -> io::Result<Self> {
        Watch::new(stream.descriptor()).map(Self)
    }

    pub(crate) fn poll_recv(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
        mut into: ReadInto<'_, '_>,
    ) -> Poll<io::Result<usize>> {
        // A shutdown of this end is not part of the system's readiness.
        if stream.is_read_shut_down() {
            return Poll::Ready(Ok(0));
        }
        self.0
            .poll(cx, Interest::READABLE, || stream.recv_once(&mut into))
    }

    /// Waits until reading returns bytes, the end or an error.
    pub(crate) fn poll_readable(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if stream.is_read_shut_down() {
            return Poll::Ready(Ok(()));
        }
        self.0
            .poll(cx, Interest::READABLE, || stream.check_readable())
    }

    /// Reads the available bytes; `WouldBlock` if there are none.
    pub(crate) fn try_recv(
        &self,
        stream: &Stream,
        into: &mut ReadInto<'_, '_>,
    ) -> io::Result<usize> {
        self.try_io(Interest::READABLE, || stream.recv_once(into))
    }

    /// Writes as many bytes as there is free space for; `WouldBlock` if there is none.
    pub(crate) fn try_send(&self, stream: &Stream, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, || stream.send_once(from))
    }

    /// Calls `attempt` if the socket may be ready, and takes its `WouldBlock` as "not ready".
    pub(crate) fn try_io<T>(
        &self,
        interest: Interest,
        attempt: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.attempt(interest, attempt)
    }

    pub(crate) fn poll_send(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
        from: WriteFrom<'_, '_>,
    ) -> Poll<io::Result<usize>> {
        self.0
            .poll(cx, Interest::WRITABLE, || stream.send_once(from))
    }

    /// Waits until writing writes bytes or returns an error.
    pub(crate) fn poll_writable(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.0
            .poll(cx, Interest::WRITABLE, || stream.check_writable())
    }
}
