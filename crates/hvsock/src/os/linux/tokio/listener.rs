//! A listener as the runtime watches it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::watch::{Watched, watch};
use crate::backend::{Listener, Stream};

/// The watched descriptor of one listener.
#[derive(Debug)]
pub(crate) struct ListenerWatch(AsyncFd<Watched>);

impl ListenerWatch {
    pub(crate) fn new(listener: &Arc<Listener>) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        watch(Watched::Listener(Arc::clone(listener)), interest).map(Self)
    }

    pub(crate) fn poll_accept(
        &self,
        listener: &Listener,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Stream>> {
        loop {
            let to_write = listener.has_pending_acks();
            let mut guard = ready!(if to_write {
                self.0.poll_write_ready(cx)
            } else {
                self.0.poll_read_ready(cx)
            })?;
            match listener.accept_now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Clear the readiness only if this call would block on what was waited for.
                    if to_write == listener.has_pending_acks() {
                        guard.clear_ready();
                    }
                }
                result => return Poll::Ready(result),
            }
        }
    }
}
