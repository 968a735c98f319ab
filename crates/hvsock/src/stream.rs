//! A connection, as in `std::net`.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;

use crate::backend::{self, ReadInto, WriteFrom};
use crate::{ConnectOptions, Interest, Peer, Readiness, RingStats, ToHvAddr, Transport};

/// A connection to a service or from one of its users: a stream of bytes each way.
///
/// It reads, writes and shuts down like `std::net::TcpStream`, with these differences:
///
/// - The end is never taken for granted. Reading gives 0 only where the other end finished its
///   data; one that was killed, cut or paused away is an error of kind `ConnectionReset`, with
///   the reason ([`refusal_of`](crate::refusal_of)) as its source. Only `AF_VSOCK`
///   ([in a virtual machine](crate#in-a-virtual-machine)) cannot tell the two apart.
/// - A time limit that passes is an error of kind `TimedOut` on every system.
/// - [`HvStream::try_clone`] shares the descriptor, and with it mode and time limits; dropping the
///   last one closes the connection, after all that was written.
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
/// [`HvStream::poll`] waits until reading or writing is possible. On Linux the descriptor of `AsFd` can
/// be watched with poll or epoll, level- or edge-triggered, for **reading**: in non-blocking
/// mode, read or write until that is `WouldBlock`, then wait until the descriptor is readable,
/// and try again. This holds on every transport for reading, and with shared memory for writing
/// as well; on the other transports ([`HvStream::transport`]) watch it for writing as one
/// does a socket's. (By `AF_VSOCK` that tells of room only: a writer that finds none, and whose
/// peer then reads no more, is told by [`HvStream::poll`] and not by the descriptor.) A moment may pass between the end and the broker's word on what kind of end
/// it is; reading in non-blocking mode is `WouldBlock` meanwhile. On Windows it is the socket of `AsSocket`, to watch as any other.
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

    /// Connects to a service, within two seconds.
    ///
    /// ```no_run
    /// use hvsock::{HvStream, ServiceId, VmId};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let by_id = HvStream::connect((VmId::PARENT, ServiceId::from_port(2761)))?;
    /// let by_name = HvStream::connect(("web", "HV Socket Demo"))?;
    /// let by_url = HvStream::connect("hvsock://parent/HV%20Socket%20Demo")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect(address: impl ToHvAddr) -> io::Result<Self> {
        ConnectOptions::new().connect(address)
    }

    /// Connects within `timeout`, which is more than nothing and at most 300 seconds.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn main() -> std::io::Result<()> {
    /// let stream = hvsock::HvStream::connect_timeout(("web", 2761), Duration::from_secs(30))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect_timeout(address: impl ToHvAddr, timeout: Duration) -> io::Result<Self> {
        ConnectOptions::new().timeout(timeout).connect(address)
    }

    /// How to connect, where the defaults are not enough.
    pub fn options() -> ConnectOptions {
        ConnectOptions::new()
    }

    /// This end's address. In a virtual machine without a broker, whose own id only the host knows,
    /// a connecting end's partition is [`VmId::ZERO`](crate::VmId::ZERO).
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.ends().local)
    }

    /// The other end's address, as it can be reached from here; on an accepted connection the
    /// service is [`ServiceId::ZERO`](crate::ServiceId::ZERO), or by `AF_VSOCK` that of the port
    /// from which it comes.
    pub fn peer_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.ends().peer)
    }

    /// Who connected; `None` on the connecting end.
    pub fn peer(&self) -> Option<&Peer> {
        self.inner.ends().caller.as_ref()
    }

    /// The connection's number, by which the broker lists it; without one, a number of this process.
    pub fn connection_id(&self) -> u64 {
        self.inner.ends().number
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

    /// How long a blocking read or write may look for the other end's answer before it sleeps:
    /// 20 µs unless this says otherwise, nothing for zero. It looks for less time where that is
    /// in vain, and never in a process that may use one processor only. Without shared memory
    /// this has no effect.
    pub fn set_spin(&self, longest: Duration) {
        self.inner.set_spin(longest);
    }

    /// Another handle on the same connection, for another thread.
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
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(Arc::clone(&self.inner)))
    }

    /// Ends one or both directions, on every handle.
    ///
    /// After `Write` the other end reads all that was written and then the end; writing here is
    /// an error of kind `BrokenPipe`. After `Read` reading here gives 0, and the other end's
    /// writes fail in time.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.inner.shutdown(how, true)
    }

    /// Receives bytes and leaves them to be received again.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.recv(ReadInto::Peek(buffer))
    }

    /// Makes reading and writing return `WouldBlock` where they would wait, on every handle.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.inner.set_nonblocking(nonblocking)
    }

    /// How long a read may wait before it is an error of kind `TimedOut`; not zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.set_read_timeout(timeout)
    }

    /// How long a write may wait before it is an error of kind `TimedOut`; not zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.set_write_timeout(timeout)
    }

    /// What [`HvStream::set_read_timeout`] set.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.inner.read_timeout())
    }

    /// What [`HvStream::set_write_timeout`] set.
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(self.inner.write_timeout())
    }

    /// Whether the connection lives on while its partition is paused
    /// (`HVSOCKET_CONNECTED_SUSPEND`); without it a pause is a reset. By `AF_VSOCK` this has no
    /// effect: that end of the connection which the host has can ask for it.
    pub fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        self.inner.set_connected_suspend(on)
    }

    /// Waits until reading or writing would not wait; `None` waits for ever.
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
