//! A listener, as in `std::net`.

use std::io;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;

use crate::{HvStream, ListenOptions, ToHvAddr, backend};

/// A service that accepts connections.
///
/// Unlike on Windows, a bind that could never receive anything fails, with the reason; and when
/// that becomes so later (the service is disabled, say), accepting fails with it.
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
/// The descriptor of `AsFd` (on Windows the socket of `AsSocket`) is readable when there is a connection to accept, or an error.
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

    /// Listens for connections to a service. The partition says who may come: `any`, `children`,
    /// `parent`, `loopback`, or one partition by name or id.
    ///
    /// ```no_run
    /// use hvsock::{HvListener, ServiceId, VmId};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let by_id = HvListener::bind((VmId::WILDCARD, ServiceId::from_port(2761)))?;
    /// let by_name = HvListener::bind(("any", "HV Socket Demo"))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn bind(address: impl ToHvAddr) -> io::Result<Self> {
        ListenOptions::new().listen(address)
    }

    /// How to listen, where the defaults are not enough.
    pub fn options() -> ListenOptions {
        ListenOptions::new()
    }

    /// Waits for a connection and takes it.
    pub fn accept(&self) -> io::Result<(HvStream, SockAddrHv)> {
        self.accept_until(None)
    }

    /// Waits for a connection no longer than `timeout`, then fails with `TimedOut`.
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
        let peer = stream.ends().peer;
        Ok((HvStream::new(Arc::new(stream)), peer))
    }

    /// Accepts again and again. After an error that is final, nothing follows.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming {
            listener: self,
            over: false,
        }
    }

    /// The address listened at, with its names looked up.
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.local())
    }

    /// How many connections were closed at once because they came from elsewhere than is listened
    /// for. A broker lets none of them get this far; the kernel's `AF_VSOCK` knows no better.
    pub fn turned_away(&self) -> u64 {
        self.inner.turned_away()
    }

    /// How many connections may wait to be accepted, as the broker granted it; by `AF_VSOCK` as it
    /// was asked for, of which the kernel takes `net.core.somaxconn` at the most.
    pub fn backlog(&self) -> u32 {
        self.inner.backlog()
    }

    /// The listener's number, by which the broker lists it; without one, a number of this process.
    pub fn listener_id(&self) -> u64 {
        self.inner.number()
    }

    /// Another handle on the same listener, for another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(Arc::clone(&self.inner)))
    }

    /// Makes accepting return `WouldBlock` where it would wait, on every handle. Accepted
    /// connections start in blocking mode.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.inner.set_nonblocking(nonblocking);
        Ok(())
    }
}

/// The connections of a listener; see [`HvListener::incoming`].
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a HvListener,
    over: bool,
}

impl Iterator for Incoming<'_> {
    type Item = io::Result<HvStream>;

    fn next(&mut self) -> Option<io::Result<HvStream>> {
        if self.over {
            return None;
        }
        let result = self.listener.accept().map(|(stream, _)| stream);
        if let Err(error) = &result {
            self.over = error.kind() == io::ErrorKind::ConnectionReset;
        }
        Some(result)
    }
}

impl FusedIterator for Incoming<'_> {}
