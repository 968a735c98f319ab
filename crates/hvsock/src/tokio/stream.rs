//! An async connection.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hvsock_address::SockAddrHv;
use tokio::io::{Interest, ReadBuf, Ready};

use super::io::{async_read, async_write};
use crate::backend::errors::unexpected_reply;
use crate::backend::{self, Outcome, ReadInto, WriteFrom};
use crate::os::tokio::StreamWatch;
use crate::{ConnectOptions, Peer, RingStats, ToHvAddr, Transport, options};

/// A connection, for tokio; see [`crate::HvStream`] for its end and its errors.
///
/// `AsyncWriteExt::shutdown` shuts down the write direction (half-close) and leaves reading open.
/// Dropping the stream closes the connection; the peer still receives everything that was written.
///
/// ```no_run
/// use hvsock::tokio::HvStream;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # async fn run() -> std::io::Result<()> {
/// let mut stream = HvStream::connect(("parent", "HV Socket Demo")).await?;
/// stream.write_all(b"hello").await?;
/// stream.shutdown().await?;
/// let mut answer = Vec::new();
/// stream.read_to_end(&mut answer).await?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "TcpStream")]
#[doc(alias = "half-close")]
#[derive(Debug)]
pub struct HvStream {
    watch: StreamWatch,
    inner: Arc<backend::Stream>,
}

impl HvStream {
    /// Connects to a service within 2 seconds.
    ///
    /// # Errors
    ///
    /// As [`ConnectOptions::connect`].
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the connect.
    pub async fn connect(address: impl ToHvAddr) -> io::Result<Self> {
        Self::connect_with(&ConnectOptions::new(), address).await
    }

    /// Connects to a service within `timeout`, which is more than zero and at most 300 seconds.
    ///
    /// # Errors
    ///
    /// As [`ConnectOptions::connect`].
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the connect.
    pub async fn connect_timeout(address: impl ToHvAddr, timeout: Duration) -> io::Result<Self> {
        Self::connect_with(&ConnectOptions::new().timeout(timeout), address).await
    }

    /// Connects to a service, with options.
    ///
    /// # Errors
    ///
    /// As [`ConnectOptions::connect`].
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the connect.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use hvsock::ConnectOptions;
    /// use hvsock::tokio::HvStream;
    ///
    /// # async fn run() -> std::io::Result<()> {
    /// let options = ConnectOptions::new().endpoint("/tmp/demo/endpoint");
    /// let stream = HvStream::connect_with(&options, ("parent", 2761)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect_with(
        options: &ConnectOptions,
        address: impl ToHvAddr,
    ) -> io::Result<Self> {
        let request = options.request(&address, false)?;
        match options::execute_in_task(
            options.endpoint_or_default(),
            request,
            options.connect_timeout(),
        )
        .await?
        {
            Outcome::Connected(stream) => Self::new(Arc::new(stream)),
            _ => Err(unexpected_reply()),
        }
    }

    /// Returns how the bytes of the connection are transferred.
    pub fn transport(&self) -> Transport {
        self.inner.transport()
    }

    /// Returns the counters of this end's ring: notifications sent, parks and spins. `None`
    /// without shared memory.
    pub fn ring_stats(&self) -> Option<RingStats> {
        self.inner.ring_stats()
    }

    /// Converts a blocking connection. This sets non-blocking mode, on every handle.
    ///
    /// # Errors
    ///
    /// An error of the system if the runtime cannot watch the descriptor.
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime with I/O enabled.
    pub fn from_std(stream: crate::HvStream) -> io::Result<Self> {
        Self::new(stream.into_inner())
    }

    pub(super) fn new(inner: Arc<backend::Stream>) -> io::Result<Self> {
        inner.set_nonblocking(true)?;
        let watch = StreamWatch::new(&inner)?;
        Ok(Self { watch, inner })
    }

    pub(crate) fn stream(&self) -> &backend::Stream {
        &self.inner
    }

    /// Converts it to a blocking connection. That stays in non-blocking mode until
    /// [`set_nonblocking`](crate::HvStream::set_nonblocking) changes it.
    pub fn into_std(self) -> crate::HvStream {
        crate::HvStream::new(self.inner)
    }

    /// Returns the address of this end; see [`crate::HvStream::local_addr`].
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.end().info().local)
    }

    /// Returns the address of the peer; see [`crate::HvStream::peer_addr`].
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn peer_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.end().info().peer)
    }

    /// Returns the process that connected, or `None` on the connecting end.
    pub fn peer(&self) -> Option<&Peer> {
        self.inner.end().info().peer_process.as_deref()
    }

    /// Returns the id of the connection in the broker's list; see
    /// [`crate::HvStream::connection_id`].
    pub fn connection_id(&self) -> u64 {
        self.inner.end().info().id
    }

    /// Sets whether the connection survives while its partition is paused
    /// (`HVSOCKET_CONNECTED_SUSPEND`). Otherwise a pause resets it. May block for a moment if the
    /// broker does not read its endpoint.
    ///
    /// # Errors
    ///
    /// As [`crate::HvStream::set_connected_suspend`].
    pub fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        self.inner.set_connected_suspend(on)
    }

    /// Receives bytes without removing them, so that the next read returns them again.
    ///
    /// # Errors
    ///
    /// As reading a [`crate::HvStream`].
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| {
            let into = ReadInto::Peek(&mut *buffer);
            self.watch.poll_recv(&self.inner, cx, into)
        })
        .await
    }

    /// Waits until [`try_read`](Self::try_read) would return bytes, the end or an error.
    ///
    /// # Errors
    ///
    /// An error of the runtime; none is expected. If the connection was reset it is ready, and the
    /// next read returns the error.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.watch.poll_readable(&self.inner, cx)).await
    }

    /// Waits until [`try_write`](Self::try_write) would write bytes or return an error.
    ///
    /// # Errors
    ///
    /// An error of the runtime; none is expected. If the connection was reset it is ready, and the
    /// next write returns the error.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    #[doc(alias = "backpressure")]
    pub async fn writable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.watch.poll_writable(&self.inner, cx)).await
    }

    /// Reads the available bytes without waiting.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there are none; otherwise as reading a [`crate::HvStream`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn run(stream: hvsock::tokio::HvStream) -> std::io::Result<()> {
    /// let mut buffer = [0; 512];
    /// stream.readable().await?;
    /// match stream.try_read(&mut buffer) {
    ///     Ok(count) => println!("{count} bytes"),
    ///     Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watch.try_recv(&self.inner, &mut ReadInto::One(buffer))
    }

    /// Writes as many bytes as there is free space for, without waiting.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no free space; otherwise as writing to a [`crate::HvStream`].
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.watch.try_send(&self.inner, WriteFrom::One(bytes))
    }

    /// Reads the available bytes into several buffers, in order, without waiting.
    ///
    /// # Errors
    ///
    /// As [`try_read`](Self::try_read).
    pub fn try_read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.watch
            .try_recv(&self.inner, &mut ReadInto::Many(slices))
    }

    /// Writes as many bytes of several buffers, in order, as there is free space for, without
    /// waiting.
    ///
    /// # Errors
    ///
    /// As [`try_write`](Self::try_write).
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.watch.try_send(&self.inner, WriteFrom::Many(slices))
    }

    /// Waits until the connection is ready for one of the operations in `interest`, and returns
    /// which, as [`tokio::net::TcpStream::ready`].
    ///
    /// Readable means that [`try_read`](Self::try_read) would return bytes, the end or an error;
    /// writable likewise. The result may be out of date when it is used, so the attempt may still
    /// return `WouldBlock`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `interest` is neither readable nor writable. An error of the runtime; none
    /// is expected.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tokio::io::Interest;
    ///
    /// # async fn run(stream: hvsock::tokio::HvStream) -> std::io::Result<()> {
    /// let ready = stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
    /// if ready.is_readable() {
    ///     stream.try_read(&mut [0; 512])?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        if !interest.is_readable() && !interest.is_writable() {
            let text = "a connection can become readable and writable only";
            return Err(crate::error::invalid_input(text));
        }
        std::future::poll_fn(|cx| {
            let mut ready = Ready::EMPTY;
            if interest.is_readable()
                && let Poll::Ready(readable) = self.watch.poll_readable(&self.inner, cx)
            {
                readable?;
                ready |= Ready::READABLE;
            }
            if interest.is_writable()
                && let Poll::Ready(writable) = self.watch.poll_writable(&self.inner, cx)
            {
                writable?;
                ready |= Ready::WRITABLE;
            }
            match ready.is_empty() {
                true => Poll::Pending,
                false => Poll::Ready(Ok(ready)),
            }
        })
        .await
    }

    /// Calls `io` once if the connection may be ready for `interest`, as
    /// [`tokio::net::TcpStream::try_io`]. It is for an operation of another library on the
    /// descriptor of `AsFd`.
    ///
    /// If `io` returns `WouldBlock`, the connection counts as not ready until the system reports
    /// that it is, so `io` must not return `WouldBlock` for another reason. With shared memory
    /// ([`HvStream::transport`]) the descriptor carries no data and `io` is always called.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the connection is not ready; otherwise the error of `io`.
    pub fn try_io<T>(
        &self,
        interest: Interest,
        io: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.watch.try_io(interest, io)
    }

    /// Returns why the connection was reset, if it was; see [`crate::HvStream::take_error`].
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "SO_ERROR")]
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.inner.reset_reason())
    }

    /// Shuts down the write direction without waiting for the broker.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        self.inner.shutdown(Shutdown::Write, false)
    }

    pub(super) fn poll_read_ref(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unfilled = buffer.initialize_unfilled();
        let count = ready!(
            self.watch
                .poll_recv(&self.inner, cx, ReadInto::One(unfilled))
        )?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        from: WriteFrom<'_, '_>,
    ) -> Poll<io::Result<usize>> {
        self.watch.poll_send(&self.inner, cx, from)
    }
}

impl AsRef<HvStream> for HvStream {
    fn as_ref(&self) -> &HvStream {
        self
    }
}

async_read!(HvStream);
async_write!(HvStream);
