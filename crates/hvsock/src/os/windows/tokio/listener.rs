//! A listener as the runtime watches it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::Interest;

use super::watch::Watch;
use crate::backend::{Listener, Stream};

/// The watched socket of one listener.
#[derive(Debug)]
pub(crate) struct ListenerWatch(Watch);

impl ListenerWatch {
    pub(crate) fn new(listener: &Arc<Listener>) -> io::Result<Self> {
        Watch::new(listener.descriptor()).map(Self)
    }

    pub(crate) fn poll_accept(
        &self,
        listener: &Listener,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Stream>> {
        self.0
            .poll(cx, Interest::READABLE, || listener.accept_now())
    }
}
