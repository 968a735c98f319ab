//! A connection for tokio.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use hvsock_address::SockAddrHv;

use super::split::{self, OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use crate::backend::{self, Outcome, WriteFrom};
use crate::os::tokio::StreamWatch;
use crate::{ConnectOptions, Peer, RingStats, ToHvAddr, Transport, options, os};

/// A connection, for tokio: see [`crate::HvStream`] for how it ends and fails.
///
/// Shutting down (`AsyncWriteExt::shutdown`) ends writing
/// and leaves reading open.
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
#[derive(Debug)]
pub struct HvStream {
    watch: StreamWatch,
    inner: Arc<backend::Stream>,
}

impl HvStream {
    /// Connects to a service, within two seconds.
    pub async fn connect(address: impl ToHvAddr) -> io::Result<Self> {
        Self::connect_with(&ConnectOptions::new(), address).await
    }

    /// Connects within `timeout`, which is more than nothing and at most 300 seconds.
    pub async fn connect_timeout(address: impl ToHvAddr, timeout: Duration) -> io::Result<Self> {
        Self::connect_with(&ConnectOptions::new().timeout(timeout), address).await
    }

    /// Connects where the defaults are not enough.
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
        match os::tokio::obtain(options.asked(), request, options.bound()).await? {
            Outcome::Connected(stream) => Self::new(Arc::new(stream)),
            _ => Err(options::odd()),
        }
    }

    /// How its bytes move.
    pub fn transport(&self) -> Transport {
        self.inner.transport()
    }

    /// What this end has done to wake the other one and to wait for it; `None` where bytes do not
    /// go through shared memory.
    pub fn ring_stats(&self) -> Option<RingStats> {
        self.inner.ring_stats()
    }

    /// Takes a connection over. It is in non-blocking mode from then on, on every handle.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
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

    /// Gives the connection back. It stays in non-blocking mode until
    /// [`set_nonblocking`](crate::HvStream::set_nonblocking) says otherwise.
    pub fn into_std(self) -> crate::HvStream {
        crate::HvStream::new(self.inner)
    }

    /// Splits it into borrowed halves.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        split::borrowed(self)
    }

    /// Splits it into halves for different tasks. Dropping the writing one ends writing.
    ///
    /// ```no_run
    /// # async fn run(stream: hvsock::tokio::HvStream) {
    /// let (mut read, mut write) = stream.into_split();
    /// tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::stdout()).await });
    /// tokio::spawn(async move { tokio::io::copy(&mut tokio::io::stdin(), &mut write).await });
    /// # }
    /// ```
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        split::owned(self)
    }

    /// This end's address.
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.ends().local)
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.ends().peer)
    }

    /// Who connected; `None` on the connecting end.
    pub fn peer(&self) -> Option<&Peer> {
        self.inner.ends().caller.as_ref()
    }

    /// The connection's number, by which the broker lists it.
    pub fn connection_id(&self) -> u64 {
        self.inner.ends().number
    }

    /// Whether the connection lives on while its partition is paused
    /// (`HVSOCKET_CONNECTED_SUSPEND`).
    pub fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        self.inner.set_connected_suspend(on)
    }

    /// Receives bytes and leaves them to be received again.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.watch.poll_peek(&self.inner, cx, buffer)).await
    }

    /// Waits until [`try_read`](Self::try_read) would give bytes, the end or an error.
    pub async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.watch.poll_readable(&self.inner, cx)).await
    }

    /// Waits until [`try_write`](Self::try_write) would take bytes or give an error.
    pub async fn writable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.watch.poll_writable(&self.inner, cx)).await
    }

    /// Reads what is there; `WouldBlock` if nothing is.
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
        self.watch.try_read(&self.inner, buffer)
    }

    /// Writes what there is room for; `WouldBlock` if there is none.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.watch.try_write(&self.inner, bytes)
    }

    /// Ends writing, at once.
    pub(super) fn end_writing(&self) -> io::Result<()> {
        self.inner.shutdown(Shutdown::Write, false)
    }

    pub(super) fn poll_read_ref(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unfilled = buffer.initialize_unfilled();
        let count = ready!(self.watch.poll_read(&self.inner, cx, unfilled))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        from: WriteFrom<'_, '_>,
    ) -> Poll<io::Result<usize>> {
        self.watch.poll_write(&self.inner, cx, from)
    }
}

impl AsyncRead for HvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_read_ref(cx, buffer)
    }
}

impl AsyncWrite for HvStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, WriteFrom::One(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, WriteFrom::Many(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end_writing())
    }
}
