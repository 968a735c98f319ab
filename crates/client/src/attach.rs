//! A stream that sends a descriptor with its first byte.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hvsock_sys::stream;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// A stream, and the descriptor that it has not sent yet.
#[derive(Debug)]
pub(crate) struct Attaching {
    stream: UnixStream,
    descriptor: Option<OwnedFd>,
}

impl Attaching {
    pub fn new(stream: UnixStream, descriptor: Option<OwnedFd>) -> Self {
        Self { stream, descriptor }
    }
}

impl AsyncWrite for Attaching {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(descriptor) = this.descriptor.as_ref().filter(|_| !bytes.is_empty()) else {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        };
        loop {
            ready!(this.stream.poll_write_ready(cx))?;
            let send = || stream::send_with_descriptor(&this.stream, bytes, descriptor.as_fd());
            match this.stream.try_io(Interest::WRITABLE, send) {
                Ok(len) => {
                    this.descriptor = None;
                    return Poll::Ready(Ok(len));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Attaching {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}
