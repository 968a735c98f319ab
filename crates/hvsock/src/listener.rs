//! A blocking listener, as in `std::net`.

use std::io;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;

use crate::{Endpoint, HvStream, backend};

/// A listener that accepts connections to a service.
///
/// Unlike with WinSock itself, a bind that could never receive a connection fails, with the reason.
/// If that happens later (for example, the service is disabled), accepting fails with the reason.
///
/// ```no_run
/// use std::io;
/// use hvsock::HvListener;
///
/// # fn main() -> io::Result<()> {
/// let listener = HvListener::bind(("children", "HV Socket Demo"))?;
/// for stream in listener.incoming() {
///     let stream = stream?;
///     std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Readiness
///
/// The descriptor of `AsFd` (on Windows the socket of `AsSocket`) is readable when there is a
/// connection to accept, or an error. On Linux it may be watched level- or edge-triggered, and stays the
/// same for the listener's life: it stands for the broker's messages and for the
/// [arenas](HvStream#readiness) in which clients connect without the broker. Level-triggered it needs no
/// accept that finds nothing before a wait; edge-triggered accept until `WouldBlock`. It may be readable
/// when there is no connection, so set the non-blocking mode.
///
/// Connections of one client are accepted in the order in which it made them, as long as all are in
/// one arena or none is.
#[doc(alias = "TcpListener")]
#[doc(alias = "vsock")]
#[doc(alias = "hvsocket")]
#[derive(Debug)]
pub struct HvListener {
    inner: Arc<backend::Listener>,
}

impl HvListener {
    pub(crate) fn new(inner: Arc<backend::Listener>) -> Self {
        Self { inner }
    }

    pub(crate) fn listener(&self) -> &backend::Listener {
        &self.inner
    }

    pub(crate) fn into_inner(self) -> Arc<backend::Listener> {
        self.inner
    }

    /// Accepts a connection and returns it with the address of the peer. Blocks until there is one.
    ///
    /// # Errors
    ///
    /// - `ConnectionReset`: the listener has ended, with the [`Refusal`](crate::Refusal) that says
    ///   why. Every later call returns the same error.
    /// - `WouldBlock`: there is no connection, in non-blocking mode.
    /// - `QuotaExceeded`: the process has no free descriptor. The connection is lost; the listener
    ///   continues.
    /// - `InvalidData`: the broker violated the endpoint protocol. The listener continues.
    pub fn accept(&self) -> io::Result<(HvStream, SockAddrHv)> {
        self.accept_until(None)
    }

    /// Accepts a connection and returns it with the address of the peer. Blocks up to `timeout`.
    ///
    /// # Errors
    ///
    /// `TimedOut` if no connection arrives within `timeout`; otherwise as [`HvListener::accept`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn main() -> std::io::Result<()> {
    /// let listener = hvsock::HvListener::bind(("any", 2761))?;
    /// let (stream, peer) = listener.accept_timeout(Duration::from_secs(60))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_timeout(&self, timeout: Duration) -> io::Result<(HvStream, SockAddrHv)> {
        self.accept_until(Instant::now().checked_add(timeout))
    }

    fn accept_until(&self, deadline: Option<Instant>) -> io::Result<(HvStream, SockAddrHv)> {
        let stream = self.inner.accept(deadline)?;
        let peer = stream.end().info().peer;
        Ok((HvStream::new(Arc::new(stream)), peer))
    }

    /// Returns an iterator that accepts connections without end.
    ///
    /// It ends after a `ConnectionReset`, which is final; other errors do not end it.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming {
            listener: self,
            finished: false,
        }
    }

    /// Returns the address that it listens at, with names resolved to ids.
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "getsockname")]
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.local())
    }

    /// Returns the endpoint that it listens at: of those that were given to it, the one with the broker.
    ///
    /// A listener ends with its broker, and when its service is disabled. A program that is to offer
    /// its service for as long as it runs listens again at this endpoint:
    ///
    /// ```no_run
    /// # use std::{io, thread, time::Duration};
    /// # use hvsock::HvListener;
    /// # fn serve(stream: hvsock::HvStream) {}
    /// # fn main() -> io::Result<()> {
    /// let address = ("children", "HV Socket Demo");
    /// let mut listener = HvListener::bind(address)?;
    /// let options = HvListener::options().endpoint(listener.endpoint());
    /// loop {
    ///     for stream in listener.incoming().flatten() {
    ///         serve(stream);
    ///     }
    ///     let mut delay = Duration::ZERO;
    ///     listener = loop {
    ///         match options.listen(address) {
    ///             Ok(listener) => break listener,
    ///             Err(error) => eprintln!("cannot listen now: {error}"),
    ///         }
    ///         delay = (delay * 2).clamp(Duration::from_millis(250), Duration::from_secs(4));
    ///         thread::sleep(delay);
    ///     };
    /// }
    /// # }
    /// ```
    pub fn endpoint(&self) -> Endpoint {
        self.inner.endpoint()
    }

    /// Returns how many connections were closed because their peer is not one that this listener
    /// accepts.
    ///
    /// It is always 0 with a broker and on Windows, which filter before. With `AF_VSOCK` the
    /// library has to filter.
    pub fn rejected(&self) -> u64 {
        self.inner.rejected()
    }

    /// Returns the backlog: how many connections may wait to be accepted.
    ///
    /// It is the number that the broker granted. With `AF_VSOCK` it is the number requested, of
    /// which the kernel grants at most `net.core.somaxconn`.
    #[doc(alias = "somaxconn")]
    pub fn backlog(&self) -> u32 {
        self.inner.backlog()
    }

    /// Returns the id of the listener in the broker's list. Without a broker it is an id of this
    /// process.
    pub fn listener_id(&self) -> u64 {
        self.inner.id()
    }

    /// Returns another handle on the same listener, for another thread.
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "dup")]
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(Arc::clone(&self.inner)))
    }

    /// Sets non-blocking mode, on every handle: accepting fails with `WouldBlock` instead of
    /// blocking. Accepted connections start in blocking mode.
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "O_NONBLOCK")]
    #[doc(alias = "FIONBIO")]
    #[doc(alias = "nonblocking")]
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.inner.set_nonblocking(nonblocking);
        Ok(())
    }
}

/// An iterator over the connections of a listener; see [`HvListener::incoming`].
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a HvListener,
    finished: bool,
}

impl Iterator for Incoming<'_> {
    type Item = io::Result<HvStream>;

    fn next(&mut self) -> Option<io::Result<HvStream>> {
        if self.finished {
            return None;
        }
        let result = self.listener.accept().map(|(stream, _)| stream);
        if let Err(error) = &result {
            self.finished = error.kind() == io::ErrorKind::ConnectionReset;
        }
        Some(result)
    }
}

impl FusedIterator for Incoming<'_> {}
