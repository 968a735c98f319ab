//! A stream whose peer may attach a descriptor to its request: the pidfd of a process.
//!
//! Only of an operator: other peers' descriptors do not enter this process. It keeps one for each connection,
//! the last, until a handler takes it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use hvsock_sys::stream;
use hvsock_sys::sync::lock;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// The descriptor that came with a request, as an extension of the request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attachment(Arc<Mutex<Option<OwnedFd>>>);

impl Attachment {
    /// Takes the descriptor.
    pub fn take(&self) -> Option<OwnedFd> {
        lock(&self.0).take()
    }
}

/// A stream that receives descriptors, if it may.
#[derive(Debug)]
pub(crate) struct WithAttachment {
    stream: UnixStream,
    attachment: Option<Attachment>,
}

impl WithAttachment {
    /// `attachment` is where descriptors go; without it none is received.
    pub fn new(stream: UnixStream, attachment: Option<Attachment>) -> Self {
        Self { stream, attachment }
    }
}

impl AsyncRead for WithAttachment {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(attachment) = &this.attachment else {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        };
        loop {
            ready!(this.stream.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            let receive = || stream::recv_with_descriptor(&this.stream, space);
            match this.stream.try_io(Interest::READABLE, receive) {
                Ok((len, descriptor)) => {
                    if descriptor.is_some() {
                        *lock(&attachment.0) = descriptor;
                    }
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for WithAttachment {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
