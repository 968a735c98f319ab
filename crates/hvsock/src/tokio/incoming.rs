//! The connections of a listener as a `Stream`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::{FusedStream, Stream};

use super::{HvListener, HvStream};

/// The connections of a borrowed listener; see [`HvListener::incoming`].
#[derive(Debug)]
#[must_use = "a stream does nothing unless it is polled"]
pub struct Incoming<'a> {
    listener: &'a HvListener,
    finished: bool,
}

/// The connections of a listener that it owns; see [`HvListener::into_incoming`].
#[derive(Debug)]
#[must_use = "a stream does nothing unless it is polled"]
pub struct IntoIncoming {
    listener: HvListener,
    finished: bool,
}

impl HvListener {
    /// Returns a stream of accepted connections.
    ///
    /// It ends after a `ConnectionReset`, which is final; other errors do not end it.
    ///
    /// ```no_run
    /// use futures_util::StreamExt;
    /// use hvsock::tokio::HvListener;
    ///
    /// # async fn run() -> std::io::Result<()> {
    /// let listener = HvListener::bind(("any", "HV Socket Demo")).await?;
    /// let mut incoming = listener.incoming();
    /// while let Some(stream) = incoming.next().await {
    ///     println!("from {:?}", stream?.peer());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming {
            listener: self,
            finished: false,
        }
    }

    /// Converts the listener to a stream of accepted connections, as [`HvListener::incoming`]. Dropping
    /// the stream closes the listener.
    pub fn into_incoming(self) -> IntoIncoming {
        IntoIncoming {
            listener: self,
            finished: false,
        }
    }
}

impl IntoIncoming {
    /// Returns the listener.
    pub fn into_inner(self) -> HvListener {
        self.listener
    }
}

impl AsRef<HvListener> for IntoIncoming {
    fn as_ref(&self) -> &HvListener {
        &self.listener
    }
}

fn poll_next(
    listener: &HvListener,
    finished: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Option<io::Result<HvStream>>> {
    if *finished {
        return Poll::Ready(None);
    }
    let accepted = ready!(listener.poll_accept(cx)).map(|(stream, _)| stream);
    if let Err(error) = &accepted {
        *finished = error.kind() == io::ErrorKind::ConnectionReset;
    }
    Poll::Ready(Some(accepted))
}

impl Stream for Incoming<'_> {
    type Item = io::Result<HvStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        poll_next(this.listener, &mut this.finished, cx)
    }
}

impl FusedStream for Incoming<'_> {
    fn is_terminated(&self) -> bool {
        self.finished
    }
}

impl Stream for IntoIncoming {
    type Item = io::Result<HvStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        poll_next(&this.listener, &mut this.finished, cx)
    }
}

impl FusedStream for IntoIncoming {
    fn is_terminated(&self) -> bool {
        self.finished
    }
}
