//! A listener for tokio.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hvsock_address::SockAddrHv;

use super::HvStream;
use crate::backend::{self, ANSWER_BOUND, Outcome};
use crate::os::tokio::ListenerWatch;
use crate::{ListenOptions, ToHvAddr, options, os};

/// A service that accepts connections, for tokio: see [`crate::HvListener`].
///
/// ```no_run
/// use hvsock::tokio::HvListener;
///
/// # async fn run() -> std::io::Result<()> {
/// let listener = HvListener::bind(("any", "HV Socket Demo")).await?;
/// let (stream, _) = listener.accept().await?;
/// println!("from {:?}", stream.peer());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct HvListener {
    watch: ListenerWatch,
    inner: Arc<backend::Listener>,
}

impl HvListener {
    /// Listens for connections to a service; see [`crate::HvListener::bind`].
    pub async fn bind(address: impl ToHvAddr) -> io::Result<Self> {
        Self::bind_with(&ListenOptions::new(), address).await
    }

    /// Listens where the defaults are not enough.
    ///
    /// ```no_run
    /// use hvsock::ListenOptions;
    /// use hvsock::tokio::HvListener;
    ///
    /// # async fn run() -> std::io::Result<()> {
    /// let options = ListenOptions::new().backlog(16);
    /// let listener = HvListener::bind_with(&options, ("any", 2761)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn bind_with(options: &ListenOptions, address: impl ToHvAddr) -> io::Result<Self> {
        let request = options.request(&address, false)?;
        match os::tokio::obtain(options.asked(), request, ANSWER_BOUND).await? {
            Outcome::Listening(listener) => Self::new(Arc::new(listener)),
            _ => Err(options::odd()),
        }
    }

    /// Takes a listener over.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
    pub fn from_std(listener: crate::HvListener) -> io::Result<Self> {
        Self::new(listener.into_inner())
    }

    fn new(inner: Arc<backend::Listener>) -> io::Result<Self> {
        let watch = ListenerWatch::new(&inner)?;
        Ok(Self { watch, inner })
    }

    pub(crate) fn listener(&self) -> &backend::Listener {
        &self.inner
    }

    /// Gives the listener back.
    pub fn into_std(self) -> crate::HvListener {
        crate::HvListener::new(self.inner)
    }

    /// Waits for a connection and takes it. Cancelling the wait loses none.
    pub async fn accept(&self) -> io::Result<(HvStream, SockAddrHv)> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`HvListener::accept`]; the last task that called is woken.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(HvStream, SockAddrHv)>> {
        let stream = ready!(self.watch.poll_accept(&self.inner, cx))?;
        let peer = stream.ends().peer;
        Poll::Ready(Ok((HvStream::new(Arc::new(stream))?, peer)))
    }

    /// The address listened at, with its names looked up.
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.local())
    }

    /// How many connections may wait to be accepted, as the broker granted it.
    pub fn backlog(&self) -> u32 {
        self.inner.backlog()
    }

    /// The listener's number, by which the broker lists it.
    pub fn listener_id(&self) -> u64 {
        self.inner.number()
    }
}
