//! The read and write halves of a connection, for different tasks.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::HvStream;
use super::io::{async_read, async_write};

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

impl HvStream {
    /// Splits it into borrowed halves, for concurrent use in one task.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        let stream: &HvStream = self;
        (ReadHalf(stream), WriteHalf(stream))
    }

    /// Splits it into owned halves, for different tasks. Dropping the write half shuts down the
    /// write direction.
    ///
    /// ```no_run
    /// # async fn run(stream: hvsock::tokio::HvStream) {
    /// let (mut read, mut write) = stream.into_split();
    /// tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::stdout()).await });
    /// tokio::spawn(async move { tokio::io::copy(&mut tokio::io::stdin(), &mut write).await });
    /// # }
    /// ```
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let stream = Arc::new(self);
        let write = OwnedWriteHalf {
            stream: Arc::clone(&stream),
            shutdown_on_drop: true,
        };
        (OwnedReadHalf(stream), write)
    }
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

async_read!(ReadHalf<'_>);
async_read!(OwnedReadHalf);
async_write!(WriteHalf<'_>);
async_write!(OwnedWriteHalf);

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.shutdown_on_drop {
            // It fails only if the connection is closed already.
            let _ = self.stream.shutdown_write();
        }
    }
}

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves belong to different connections")
    }
}

impl Error for ReuniteError {}
