//! An async listener.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hvsock_address::SockAddrHv;
use tokio::sync::watch;

use super::HvStream;
use crate::backend::errors::unexpected_reply;
use crate::backend::{self, Outcome, REPLY_TIMEOUT};
use crate::os::tokio::ListenerWatch;
use crate::{Endpoint, ListenOptions, ToHvAddr, options};

/// A listener that accepts connections to a service, for tokio; see [`crate::HvListener`].
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
#[doc(alias = "TcpListener")]
#[derive(Debug)]
pub struct HvListener {
    watch: ListenerWatch,
    inner: Arc<backend::Listener>,
    /// True after an accept has returned the final error.
    ended: watch::Sender<bool>,
}

impl HvListener {
    /// Listens for connections to a service; see [`crate::HvListener::bind`].
    ///
    /// # Errors
    ///
    /// As [`ListenOptions::listen`].
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listener, if it exists already.
    pub async fn bind(address: impl ToHvAddr) -> io::Result<Self> {
        Self::bind_with(&ListenOptions::new(), address).await
    }

    /// Listens for connections to a service, with options.
    ///
    /// # Errors
    ///
    /// As [`ListenOptions::listen`].
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listener, if it exists already.
    ///
    /// # Examples
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
        match options::execute_in_task(options.endpoint_or_default(), request, REPLY_TIMEOUT)
            .await?
        {
            Outcome::Listening(listener) => Self::new(Arc::new(listener)),
            _ => Err(unexpected_reply()),
        }
    }

    /// Converts a blocking listener.
    ///
    /// # Errors
    ///
    /// An error of the system if the runtime cannot watch the descriptor.
    ///
    /// # Panics
    ///
    /// If it is not called in a tokio runtime with I/O enabled.
    pub fn from_std(listener: crate::HvListener) -> io::Result<Self> {
        Self::new(listener.into_inner())
    }

    fn new(inner: Arc<backend::Listener>) -> io::Result<Self> {
        Ok(Self {
            watch: ListenerWatch::new(&inner)?,
            inner,
            ended: watch::Sender::new(false),
        })
    }

    pub(crate) fn listener(&self) -> &backend::Listener {
        &self.inner
    }

    /// Converts it to a blocking listener.
    pub fn into_std(self) -> crate::HvListener {
        crate::HvListener::new(self.inner)
    }

    /// Accepts a connection and returns it with the address of the peer.
    ///
    /// # Errors
    ///
    /// As [`crate::HvListener::accept`].
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe: dropping the future loses no connection.
    pub async fn accept(&self) -> io::Result<(HvStream, SockAddrHv)> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Polls for a connection to accept; see [`HvListener::accept`]. Only the task of the last call
    /// is woken.
    ///
    /// # Errors
    ///
    /// As [`crate::HvListener::accept`].
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(HvStream, SockAddrHv)>> {
        let accepted = ready!(self.watch.poll_accept(&self.inner, cx));
        let stream = accepted.inspect_err(|error| {
            if error.kind() == io::ErrorKind::ConnectionReset {
                self.ended.send_replace(true);
            }
        })?;
        let peer = stream.end().info().peer;
        Poll::Ready(Ok((HvStream::new(Arc::new(stream))?, peer)))
    }

    /// Waits until accepting has failed for good, and returns that error: the listener has ended,
    /// with the [`Refusal`](crate::Refusal) that says why. Returns `None` if the listener is dropped
    /// before.
    ///
    /// This is for code that has given the listener away, for example to `axum::serve`. It does not
    /// accept connections itself.
    pub fn ended(&self) -> impl Future<Output = Option<io::Error>> + Send + use<> {
        let mut ended = self.ended.subscribe();
        // This future must not keep a listener open that was dropped.
        let inner = Arc::downgrade(&self.inner);
        async move {
            ended.wait_for(|ended| *ended).await.ok()?;
            // Every accept returns the same error from then on.
            inner.upgrade()?.accept_now().err()
        }
    }

    /// Returns the address that it listens at, with names resolved to ids.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.inner.local())
    }

    /// Returns the endpoint that it listens at; see [`crate::HvListener::endpoint`].
    pub fn endpoint(&self) -> Endpoint {
        self.inner.endpoint()
    }

    /// Returns the backlog; see [`crate::HvListener::backlog`].
    pub fn backlog(&self) -> u32 {
        self.inner.backlog()
    }

    /// Returns the id of the listener in the broker's list; see [`crate::HvListener::listener_id`].
    pub fn listener_id(&self) -> u64 {
        self.inner.id()
    }
}
