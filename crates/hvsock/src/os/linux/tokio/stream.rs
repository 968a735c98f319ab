//! A connection as the runtime watches it.

use std::io;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::recheck::RecheckTimer;
use super::ring::{Direction, RingWatch};
use super::watch::{Watched, watch};
use crate::backend::{ReadInto, Stream, WriteFrom};
use crate::os::backend::Received;

/// The watched descriptors of one connection. Every method takes that connection.
#[derive(Debug)]
pub(crate) struct StreamWatch {
    /// The data descriptor; `None` with shared memory.
    data: Option<AsyncFd<Watched>>,
    /// Watched after the first end of data whose kind is unknown, which is rare.
    control: OnceLock<AsyncFd<Watched>>,
    ring: RingWatch,
    recheck: RecheckTimer,
}

impl StreamWatch {
    pub(crate) fn new(stream: &Arc<Stream>) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let data = match stream.ring() {
            Some(_) => None,
            None => Some(watch(Watched::Data(Arc::clone(stream)), interest)?),
        };
        Ok(Self {
            data,
            control: OnceLock::new(),
            ring: RingWatch::default(),
            recheck: RecheckTimer::default(),
        })
    }

    pub(crate) fn poll_recv(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
        mut into: ReadInto<'_, '_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_received(stream, cx, |stream| stream.recv_once(&mut into))
    }

    /// Waits until reading returns bytes, the end or an error.
    pub(crate) fn poll_readable(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        // An error makes the stream readable, too.
        let _ = ready!(self.poll_received(stream, cx, Stream::check_readable));
        Poll::Ready(Ok(()))
    }

    /// Reads the available bytes; `WouldBlock` if there are none.
    pub(crate) fn try_recv(
        &self,
        stream: &Stream,
        into: &mut ReadInto<'_, '_>,
    ) -> io::Result<usize> {
        match self.try_io(Interest::READABLE, || stream.recv_once(into))? {
            Received::Bytes(count) => Ok(count),
            Received::EndPending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes as many bytes as there is free space for; `WouldBlock` if there is none.
    pub(crate) fn try_send(&self, stream: &Stream, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, || stream.send_once(from))
    }

    /// Calls `attempt` if the descriptor may be ready, and takes its `WouldBlock` as "not ready".
    /// With a ring every attempt is made, since the next wait checks the ring and not a readiness.
    pub(crate) fn try_io<T>(
        &self,
        interest: Interest,
        attempt: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match &self.data {
            Some(data) => data.try_io(interest, |_| attempt()),
            None => attempt(),
        }
    }

    fn poll_received(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
        mut recv: impl FnMut(&Stream) -> io::Result<Received>,
    ) -> Poll<io::Result<usize>> {
        let received = match &self.data {
            Some(data) => loop {
                let mut guard = ready!(data.poll_read_ready(cx))?;
                if let Ok(received) = guard.try_io(|_| recv(stream)) {
                    break received;
                }
            },
            None => {
                let recv = || recv(stream);
                ready!(self.ring.poll(stream, cx, Direction::Read, recv))
            }
        };
        match received {
            Ok(Received::Bytes(count)) => Poll::Ready(Ok(count)),
            Ok(Received::EndPending) => self.poll_end(stream, cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Waits for the kind of the data's end.
    fn poll_end(&self, stream: &Arc<Stream>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let control = match self.control.get() {
            Some(control) => control,
            None => {
                let watched = Watched::Control(Arc::clone(stream));
                let fd = watch(watched, Interest::READABLE)?;
                self.control.get_or_init(|| fd)
            }
        };
        loop {
            if let Received::Bytes(count) = stream.read_end_or_register(cx.waker())? {
                return Poll::Ready(Ok(count));
            }
            ready!(control.poll_read_ready(cx))?.clear_ready();
        }
    }

    pub(crate) fn poll_send(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
        from: WriteFrom<'_, '_>,
    ) -> Poll<io::Result<usize>> {
        let send = || stream.send_once(from);
        let Some(data) = &self.data else {
            return self.ring.poll(stream, cx, Direction::Write, send);
        };
        loop {
            let Poll::Ready(guard) = data.poll_write_ready(cx) else {
                return self.poll_write_closed(stream, cx, send);
            };
            if let Ok(result) = guard?.try_io(|_| send()) {
                return Poll::Ready(result);
            }
        }
    }

    /// Waits for the close of writing, which the descriptor does not signal.
    fn poll_write_closed<T>(
        &self,
        stream: &Stream,
        cx: &mut Context<'_>,
        attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        if stream.signals_write_closed() {
            return Poll::Pending;
        }
        self.recheck.poll(cx, attempt)
    }

    /// Waits until writing writes bytes or returns an error.
    pub(crate) fn poll_writable(
        &self,
        stream: &Arc<Stream>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(data) = &self.data else {
            return self.ring.poll_writable(stream, cx);
        };
        match data.poll_write_ready(cx) {
            Poll::Ready(ready) => Poll::Ready(ready.map(drop)),
            Poll::Pending => {
                self.poll_write_closed(stream, cx, || match stream.is_write_closed() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::WouldBlock.into()),
                })
            }
        }
    }
}
