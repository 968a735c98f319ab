//! The two directions of a connection, for different tasks.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HvStream;
use crate::backend::WriteFrom;

/// The reading half of a borrowed connection; see [`HvStream::split`].
#[derive(Debug)]
pub struct ReadHalf<'a>(&'a HvStream);

/// The writing half of a borrowed connection; see [`HvStream::split`].
#[derive(Debug)]
pub struct WriteHalf<'a>(&'a HvStream);

/// The reading half of a connection; see [`HvStream::into_split`].
#[derive(Debug)]
pub struct OwnedReadHalf(Arc<HvStream>);

/// The writing half of a connection; see [`HvStream::into_split`]. Dropping it ends writing.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: Arc<HvStream>,
    ends_writing: bool,
}

/// Two halves that were to be one connection again, and are not of the same one.
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

pub(super) fn borrowed(stream: &HvStream) -> (ReadHalf<'_>, WriteHalf<'_>) {
    (ReadHalf(stream), WriteHalf(stream))
}

pub(super) fn owned(stream: HvStream) -> (OwnedReadHalf, OwnedWriteHalf) {
    let stream = Arc::new(stream);
    let write = OwnedWriteHalf {
        stream: Arc::clone(&stream),
        ends_writing: true,
    };
    (OwnedReadHalf(stream), write)
}

impl OwnedReadHalf {
    /// Makes the two halves one connection again.
    ///
    /// ```no_run
    /// # fn run(stream: hvsock::tokio::HvStream) {
    /// let (read, write) = stream.into_split();
    /// let stream = read.reunite(write).expect("the halves are of one connection");
    /// # }
    /// ```
    pub fn reunite(self, mut write: OwnedWriteHalf) -> Result<HvStream, ReuniteError> {
        if !Arc::ptr_eq(&self.0, &write.stream) {
            return Err(ReuniteError(self, write));
        }
        write.ends_writing = false;
        drop(write);
        // Nothing hands out further references, so this is the last one.
        Arc::try_unwrap(self.0).map_err(|stream| {
            let write = OwnedWriteHalf {
                stream: Arc::clone(&stream),
                ends_writing: true,
            };
            ReuniteError(Self(stream), write)
        })
    }
}

impl AsRef<HvStream> for OwnedReadHalf {
    fn as_ref(&self) -> &HvStream {
        &self.0
    }
}

impl AsRef<HvStream> for OwnedWriteHalf {
    fn as_ref(&self) -> &HvStream {
        &self.stream
    }
}

impl AsRef<HvStream> for ReadHalf<'_> {
    fn as_ref(&self) -> &HvStream {
        self.0
    }
}

impl AsRef<HvStream> for WriteHalf<'_> {
    fn as_ref(&self) -> &HvStream {
        self.0
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.ends_writing {
            // An error means that the connection is over already.
            let _ = self.stream.end_writing();
        }
    }
}

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read_ref(cx, buffer)
    }
}

impl AsyncRead for OwnedReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read_ref(cx, buffer)
    }
}

impl AsyncWrite for WriteHalf<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, WriteFrom::One(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, WriteFrom::Many(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.end_writing())
    }
}

impl AsyncWrite for OwnedWriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_send(cx, WriteFrom::One(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_send(cx, WriteFrom::Many(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.end_writing())
    }
}

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the two halves are not of the same connection")
    }
}

impl Error for ReuniteError {}
