//! A blocking connection, as in `std::net`.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;

use crate::backend::{self, ReadInto, WriteFrom};
use crate::{Interest, Peer, Readiness, RingStats, Transport};

/// A connection between a service and its user: a byte stream in each direction.
///
/// It reads, writes and shuts down like [`std::net::TcpStream`], with these differences:
///
/// - The end of the data is always confirmed. Reading returns 0 only if the peer shut down its side
///   or closed the connection. If the peer was killed, the operator closed the connection, or a
///   partition was paused, reading fails with `ConnectionReset`; [`refusal_of`](crate::refusal_of)
///   returns the reason. Only `AF_VSOCK` ([in a virtual machine](crate#in-a-virtual-machine))
///   cannot distinguish the two.
/// - A read or write timeout is an error of kind `TimedOut` on every system.
/// - [`HvStream::try_clone`] shares the connection, its mode and its timeouts. Dropping the last
///   handle closes the connection; the peer still receives everything that was written.
///
/// The type is `Send` and `Sync`. `Read` and `Write` are implemented for `&HvStream` as well, so
/// that one thread can read while another writes. A writer blocks while the peer does not read
/// (backpressure).
///
/// # Errors of reading and writing
///
/// - `ConnectionReset`: the connection was reset, with a [`Refusal`](crate::Refusal) as the source;
/// - `BrokenPipe`: writing after a shutdown of this end, or after the peer stopped reading;
/// - `TimedOut`: the read or write timeout elapsed;
/// - `WouldBlock`: the call would block, in non-blocking mode;
/// - `InvalidData`: the broker violated the endpoint protocol.
///
/// # Examples
///
/// ```no_run
/// use std::io::{Read, Write};
/// use std::net::Shutdown;
/// use hvsock::HvStream;
///
/// # fn main() -> std::io::Result<()> {
/// let mut stream = HvStream::connect(("parent", "HV Socket Demo"))?;
/// stream.write_all(b"hello")?;
/// stream.shutdown(Shutdown::Write)?;
/// let mut answer = String::new();
/// stream.read_to_string(&mut answer)?;
/// # Ok(())
/// # }
/// ```
///
/// # Readiness
///
/// [`HvStream::poll`] waits until reading or writing does not block.
///
/// On Linux, poll or epoll can watch the descriptor of `AsFd`, level- or edge-triggered, for
/// **reading**. In non-blocking mode, read or write until `WouldBlock`, wait until the descriptor
/// is readable, and try again. This works for reading on every transport, and for writing with
/// shared memory. On the other transports ([`HvStream::transport`]) watch the descriptor for
/// writing, as for any socket. With `AF_VSOCK` that covers free buffer space only: if the peer
/// stops reading while the buffer is full, [`HvStream::poll`] reports it and the descriptor does
/// not.
///
/// From the second connection of two processes on, a connection to the same service shares memory,
/// control connection and doorbells with the others, in an *arena*. Connecting, accepting and dropping
/// then take a few microseconds and no descriptor. The first `AsFd` creates a descriptor for that
/// connection, and a thread of the library signals it; it is the same one until the connection is
/// dropped. If the process has no free descriptor it is one that is always readable, so that nothing is
/// missed.
///
/// After the last byte, the broker may need a moment to report whether this is a clean end or a
/// reset. In the meantime reading in non-blocking mode fails with `WouldBlock`.
///
/// On Windows watch the socket of `AsSocket`, as for any socket.
#[doc(alias = "TcpStream")]
#[doc(alias = "SOCKET")]
#[doc(alias = "vsock")]
#[doc(alias = "hvsocket")]
#[doc(alias = "AF_HYPERV")]
#[doc(alias = "AF_VSOCK")]
#[derive(Debug)]
pub struct HvStream {
    inner: Arc<backend::Stream>,
}

impl HvStream {
    pub(crate) fn new(inner: Arc<backend::Stream>) -> Self {
        Self { inner }
    }

    pub(crate) fn stream(&self) -> &backend::Stream {
        &self.inner
    }

    pub(crate) fn into_inner(self) -> Arc<backend::Stream> {
        self.inner
    }

    /// Returns the address of this end. Does not block.
    ///
    /// In a virtual machine without a broker the id of this partition is not available; on the
    /// connecting end it is [`VmId::ZERO`](crate::VmId::ZERO).
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "getsockname")]
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.end().info().local)
    }

    /// Returns the address of the peer, as this partition reaches it. Does not block.
    ///
    /// On an accepted connection the service is [`ServiceId::ZERO`](crate::ServiceId::ZERO), or
    /// with `AF_VSOCK` the id of the port that the peer connects from.
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "getpeername")]
    pub fn peer_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.end().info().peer)
    }

    /// Returns the process that connected, or `None` on the connecting end.
    #[doc(alias = "SO_PEERCRED")]
    pub fn peer(&self) -> Option<&Peer> {
        self.inner.end().info().peer_process.as_deref()
    }

    /// Returns the id of the connection in the broker's list. Without a broker it is an id of this
    /// process.
    pub fn connection_id(&self) -> u64 {
        self.inner.end().info().id
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

    /// Sets how long a blocking read or write spins (busy-polls) before it parks. The default is
    /// 20 µs; zero disables it.
    ///
    /// The time adapts: it gets shorter while spinning does not help. A process that may use only
    /// one processor never spins. Without shared memory this has no effect.
    #[doc(alias = "busy-poll")]
    #[doc(alias = "SO_BUSY_POLL")]
    pub fn set_spin(&self, longest: Duration) {
        self.inner.set_spin(longest);
    }

    /// Returns another handle on the same connection, for another thread.
    ///
    /// # Errors
    ///
    /// None at present.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::io::{self, Write};
    ///
    /// # fn main() -> io::Result<()> {
    /// let mut reader = hvsock::HvStream::connect(("parent", 2761))?;
    /// let mut writer = reader.try_clone()?;
    /// std::thread::spawn(move || io::copy(&mut reader, &mut io::stdout()));
    /// writer.write_all(b"hello")?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "dup")]
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(Arc::clone(&self.inner)))
    }

    /// Shuts down one or both directions, on every handle.
    ///
    /// After `Write` (half-close) the peer reads everything that was written and then the end;
    /// writing here fails with `BrokenPipe`. After `Read`, reading here returns 0, and the peer's
    /// writes fail soon. `Write` may block up to 5 seconds while the broker does not read its
    /// endpoint.
    ///
    /// # Errors
    ///
    /// `TimedOut` if the broker does not read its endpoint; `ConnectionReset` if it is gone.
    #[doc(alias = "half-close")]
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.inner.shutdown(how, true)
    }

    /// Receives bytes without removing them, so that the next read returns them again. Blocks as
    /// reading does.
    ///
    /// # Errors
    ///
    /// As [reading](Self#errors-of-reading-and-writing). With `AF_VSOCK` on Hyper-V the kernel does
    /// not support this.
    #[doc(alias = "MSG_PEEK")]
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.recv(ReadInto::Peek(buffer))
    }

    /// Reads the available bytes without waiting, in any mode.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there are none; otherwise as
    /// [reading](Self#errors-of-reading-and-writing).
    #[doc(alias = "MSG_DONTWAIT")]
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    /// Reads the available bytes into several buffers, in order, without waiting, in any mode.
    ///
    /// # Errors
    ///
    /// As [`HvStream::try_read`].
    pub fn try_read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.inner.recv_now(slices)
    }

    /// Writes as many bytes as there is free space for, without waiting, in any mode.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no free space; otherwise as
    /// [writing](Self#errors-of-reading-and-writing).
    #[doc(alias = "MSG_DONTWAIT")]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write_vectored(&[IoSlice::new(bytes)])
    }

    /// Writes as many bytes of several buffers, in order, as there is free space for, without
    /// waiting, in any mode.
    ///
    /// # Errors
    ///
    /// As [`HvStream::try_write`].
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.inner.send_now(slices)
    }

    /// Returns why the connection was reset, if it was. Does not block.
    ///
    /// With a broker every call returns the reason. With `AF_VSOCK` and on Windows the system
    /// reports an error once.
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "SO_ERROR")]
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.inner.reset_reason())
    }

    /// Sets non-blocking mode, on every handle: reading and writing fail with `WouldBlock` instead
    /// of blocking.
    ///
    /// # Errors
    ///
    /// The error of the system call; none is expected.
    #[doc(alias = "O_NONBLOCK")]
    #[doc(alias = "FIONBIO")]
    #[doc(alias = "nonblocking")]
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.inner.set_nonblocking(nonblocking)
    }

    /// Sets how long a read may block before it fails with `TimedOut`. `None` removes the limit.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the timeout is zero.
    #[doc(alias = "SO_RCVTIMEO")]
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.set_read_timeout(timeout)
    }

    /// Sets how long a write may block before it fails with `TimedOut`. `None` removes the limit.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the timeout is zero.
    #[doc(alias = "SO_SNDTIMEO")]
    #[doc(alias = "backpressure")]
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.set_write_timeout(timeout)
    }

    /// Returns the timeout of [`HvStream::set_read_timeout`].
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.inner.end().state().read_timeout)
    }

    /// Returns the timeout of [`HvStream::set_write_timeout`].
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.inner.end().state().write_timeout)
    }

    /// Sets whether the connection survives while its partition is paused
    /// (`HVSOCKET_CONNECTED_SUSPEND`). Otherwise a pause resets it.
    ///
    /// With `AF_VSOCK` this has no effect; the peer on the host can set it.
    ///
    /// # Errors
    ///
    /// `ConnectionReset` if the connection is gone; `TimedOut` if the broker does not read its
    /// endpoint for 5 seconds.
    #[doc(alias = "HVSOCKET_CONNECTED_SUSPEND")]
    pub fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        self.inner.set_connected_suspend(on)
    }

    /// Blocks until reading or writing does not block, or until `timeout` has elapsed. `None` waits
    /// without a limit.
    ///
    /// Returns an empty [`Readiness`] after the timeout. If the connection was reset it is ready,
    /// and the next operation returns the error.
    ///
    /// # Errors
    ///
    /// The error of the system call; none is expected.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use hvsock::{HvStream, Interest};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let stream = HvStream::connect(("parent", 2761))?;
    /// if stream.poll(Interest::READABLE, Some(Duration::from_secs(1)))?.is_empty() {
    ///     println!("nothing for a second");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "WSAPoll")]
    #[doc(alias = "select")]
    pub fn poll(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Readiness> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.inner.poll(interest, deadline)
    }
}

impl Read for &HvStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.recv(ReadInto::One(buffer))
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.inner.recv(ReadInto::Many(slices))
    }
}

impl Write for &HvStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.send(WriteFrom::One(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.inner.send(WriteFrom::Many(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for HvStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(slices)
    }
}

impl Write for HvStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
