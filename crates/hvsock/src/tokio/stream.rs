//! A connection for tokio.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use hvsock_address::SockAddrHv;

use super::dial;
use super::look_up::LookUp;
use super::ring::{RingWatch, Way};
use super::split::{self, OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use super::watch::{Watched, watch};
use crate::backend::{self, Outcome, ReadInto, Received, WriteFrom};
use crate::{ConnectOptions, Peer, RingStats, ToHvAddr, Transport, options};

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
    /// The data descriptor; none where bytes go through shared memory.
    data: Option<AsyncFd<Watched>>,
    /// Watched from the first end of data on that nothing was said of yet; that is rare.
    control: OnceLock<AsyncFd<Watched>>,
    ring: RingWatch,
    look_up: LookUp,
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
        match dial::obtain(options.asked(), request, options.bound()).await? {
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
        Some(self.inner.ring()?.end().stats())
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
        let interest = Interest::READABLE | Interest::WRITABLE;
        let data = match inner.ring() {
            Some(_) => None,
            None => Some(watch(Watched::Data(Arc::clone(&inner)), interest)?),
        };
        Ok(Self {
            data,
            control: OnceLock::new(),
            ring: RingWatch::default(),
            look_up: LookUp::default(),
            inner,
        })
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
        Ok(self.inner.local())
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.peer())
    }

    /// Who connected; `None` on the connecting end.
    pub fn peer(&self) -> Option<&Peer> {
        self.inner.caller()
    }

    /// The connection's number, by which the broker lists it.
    pub fn connection_id(&self) -> u64 {
        self.inner.connection()
    }

    /// Whether the connection lives on while its partition is paused
    /// (`HVSOCKET_CONNECTED_SUSPEND`).
    pub fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        self.inner.set_connected_suspend(on)
    }

    /// Receives bytes and leaves them to be received again.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| {
            self.poll_recv(cx, |inner| inner.recv_once(ReadInto::Peek(buffer)))
        })
        .await
    }

    /// Waits until [`try_read`](Self::try_read) would give bytes, the end or an error.
    pub async fn readable(&self) -> io::Result<()> {
        let looked = std::future::poll_fn(|cx| self.poll_recv(cx, backend::Stream::look));
        // An error is there to be read, too.
        let _ = looked.await;
        Ok(())
    }

    /// Waits until [`try_write`](Self::try_write) would take bytes or give an error.
    pub async fn writable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_writable(cx)).await
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
        let mut recv = || self.inner.recv_once(ReadInto::One(buffer));
        let received = match &self.data {
            Some(data) => data.try_io(Interest::READABLE, |_| recv()),
            None => recv(),
        };
        match received? {
            Received::Bytes(count) => Ok(count),
            Received::Unexplained => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes what there is room for; `WouldBlock` if there is none.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let send = || self.inner.send_once(WriteFrom::One(bytes));
        match &self.data {
            Some(data) => data.try_io(Interest::WRITABLE, |_| send()),
            None => send(),
        }
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
        let recv = |inner: &backend::Stream| inner.recv_once(ReadInto::One(unfilled));
        let count = ready!(self.poll_recv(cx, recv))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        mut recv: impl FnMut(&backend::Stream) -> io::Result<Received>,
    ) -> Poll<io::Result<usize>> {
        let received = match &self.data {
            Some(data) => loop {
                let mut guard = ready!(data.poll_read_ready(cx))?;
                if let Ok(received) = guard.try_io(|_| recv(&self.inner)) {
                    break received;
                }
            },
            None => {
                let recv = || recv(&self.inner);
                ready!(self.ring.poll(&self.inner, cx, Way::Read, recv))
            }
        };
        match received {
            Ok(Received::Bytes(count)) => Poll::Ready(Ok(count)),
            Ok(Received::Unexplained) => self.poll_end(cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// What the end of the data means, once that is known.
    fn poll_end(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let control = match self.control.get() {
            Some(control) => control,
            None => {
                let fd = watch(
                    Watched::Control(Arc::clone(&self.inner)),
                    Interest::READABLE,
                )?;
                self.control.get_or_init(|| fd)
            }
        };
        loop {
            if let Received::Bytes(count) = self.inner.end_or_wake(cx.waker())? {
                return Poll::Ready(Ok(count));
            }
            ready!(control.poll_read_ready(cx))?.clear_ready();
        }
    }

    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        from: WriteFrom<'_, '_>,
    ) -> Poll<io::Result<usize>> {
        let send = || self.inner.send_once(from);
        let Some(data) = &self.data else {
            return self.ring.poll(&self.inner, cx, Way::Write, send);
        };
        loop {
            let Poll::Ready(guard) = data.poll_write_ready(cx) else {
                return self.poll_hidden_end(cx, send);
            };
            if let Ok(result) = guard?.try_io(|_| send()) {
                return Poll::Ready(result);
            }
        }
    }

    /// Waits for what the descriptor does not tell of its writing end.
    fn poll_hidden_end<T>(
        &self,
        cx: &mut Context<'_>,
        attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        if self.inner.tells_every_end() {
            return Poll::Pending;
        }
        self.look_up.poll(cx, attempt)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(data) = &self.data else {
            return self.ring.poll_writable(&self.inner, cx);
        };
        match data.poll_write_ready(cx) {
            Poll::Ready(ready) => Poll::Ready(ready.map(drop)),
            Poll::Pending => self.poll_hidden_end(cx, || match self.inner.has_ended_writing() {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            }),
        }
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

impl AsFd for HvStream {
    /// The descriptor to watch; see [`crate::HvStream`] on readiness.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.data()
    }
}

impl AsRawFd for HvStream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
