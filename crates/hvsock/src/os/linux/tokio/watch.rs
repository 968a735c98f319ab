//! Descriptors of a connection or listener that the runtime watches.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::backend::{self, PendingConnect};
use crate::os::backend::EndpointConnection;

/// A descriptor to watch. It stays open as long as it is watched.
#[derive(Debug)]
pub(super) enum Watched {
    Data(Arc<backend::Stream>),
    Control(Arc<backend::Stream>),
    /// The doorbell of a ring of its own; the descriptor of any other connection.
    Doorbell(Arc<backend::Stream>),
    Listener(Arc<backend::Listener>),
    EndpointConnection(EndpointConnection),
    PendingConnect(Arc<PendingConnect>),
    /// A duplicate, if another handle watches the descriptor itself.
    Duplicate(OwnedFd),
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Data(stream) => stream.descriptor(),
            Self::Control(stream) => stream.control(),
            Self::Doorbell(stream) => match stream.ring() {
                Some(ring) if ring.end().slot().is_none() => ring.end().doorbell(),
                // That of an arena is for all its connections, and the watcher drains it.
                _ => stream.descriptor(),
            },
            Self::Listener(listener) => listener.descriptor(),
            Self::EndpointConnection(connection) => connection.as_fd(),
            Self::PendingConnect(pending) => pending.descriptor(),
            Self::Duplicate(fd) => fd.as_fd(),
        }
    }
}

/// Registers a descriptor with the runtime. Panics outside of a runtime with I/O enabled, as all
/// sockets of tokio do.
#[allow(
    deprecated,
    reason = "the successors are unsafe and new; they require that the descriptor stays open and the \
              same while it is watched, and `Watched` sees to that"
)]
pub(super) fn watch(watched: Watched, interest: Interest) -> io::Result<AsyncFd<Watched>> {
    let (watched, error) = match AsyncFd::try_with_interest(watched, interest) {
        Ok(fd) => return Ok(fd),
        Err(error) => error.into_parts(),
    };
    // epoll takes each descriptor once.
    if error.kind() != io::ErrorKind::AlreadyExists {
        return Err(error);
    }
    let duplicate = watched.as_fd().try_clone_to_owned()?;
    AsyncFd::with_interest(Watched::Duplicate(duplicate), interest)
}
