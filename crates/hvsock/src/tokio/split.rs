//! The read and write halves of a connection, for different tasks.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HvStream;
use crate::backend::WriteFrom;

/// The read half of a borrowed connection; see [`HvStream::split`].
#[derive(Debug)]
pub struct ReadHalf<'a>(&'a HvStream);

/// The write half of a borrowed connection; see [`HvStream::split`].
#[derive(Debug)]
pub struct WriteHalf<'a>(&'a HvStream);

/// The owned read half of a connection; see [`HvStream::into_split`].
#[derive(Debug)]
pub struct OwnedReadHalf(Arc<HvStream>);

/// The owned write half of a connection; see [`HvStream::into_split`]. Dropping it shuts down the
/// write direction (half-close).
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: Arc<HvStream>,
    shutdown_on_drop: bool,
}

/// The error of [`OwnedReadHalf::reunite`]: the halves belong to different connections. It returns
/// both.
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

pub(super) fn borrowed(stream: &HvStream) -> (ReadHalf<'_>, WriteHalf<'_>) {
    (ReadHalf(stream), WriteHalf(stream))
}

pub(super) fn owned(stream: HvStream) -> (OwnedReadHalf, OwnedWriteHalf) {
    let stream = Arc::new(stream);
    let write = OwnedWriteHalf {
        stream: Arc::clone(&stream),
        shutdown_on_drop: true,
    };
    (OwnedReadHalf(stream), write)
}

impl OwnedReadHalf {
    /// Joins the two halves of a connection.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] if the halves belong to different connections.
    ///
    /// # Examples
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
        write.shutdown_on_drop = false;
        drop(write);
        // No other reference exists, so this is the last one.
        Arc::try_unwrap(self.0).map_err(|stream| {
            let write = OwnedWriteHalf {
                stream: Arc::clone(&stream),
                shutdown_on_drop: true,
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
        if self.shutdown_on_drop {
            // It fails only if the connection is closed already.
            let _ = self.stream.shutdown_write();
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
        Poll::Ready(self.0.shutdown_write())
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
        Poll::Ready(self.stream.shutdown_write())
    }
}

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves belong to different connections")
    }
}

impl Error for ReuniteError {}
