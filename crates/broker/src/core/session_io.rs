//! I/O on the descriptors of sessions.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use hvsock_endpoint::BrokerMessage;
use hvsock_sys::{message, stream};
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::sessions::Session;
use super::tokens::session_token;
use crate::data_path::ProcessSocket;

/// Watches sessions, and sends messages to their processes.
#[derive(Debug)]
pub(super) struct SessionIo {
    registry: Arc<Registry>,
    buffer: Vec<u8>,
}

impl SessionIo {
    /// Sessions are watched with `registry`.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            buffer: Vec::with_capacity(hvsock_endpoint::MAX_MESSAGE),
        }
    }

    /// Watches a session. Unread messages cause an event.
    pub(super) fn watch(&self, socket: impl AsFd, index: usize) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        let token = session_token(index);
        self.registry
            .register(&mut SourceFd(&fd), token, Interest::READABLE)
    }

    /// Watches for the process reading what was sent to it, too, or no longer. It causes an event at
    /// once.
    pub(super) fn watch_reading(
        &self,
        socket: impl AsFd,
        index: usize,
        reading: bool,
    ) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        // A Unix socket becomes writable, and reports that, whenever its peer reads a message.
        let interest = match reading {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        self.registry
            .reregister(&mut SourceFd(&fd), session_token(index), interest)
    }

    /// Watches a session no longer, so that a connection set can register its descriptor.
    pub(super) fn unwatch(&self, socket: impl AsFd) {
        // An error means that it is not registered, which is fine.
        let fd = socket.as_fd().as_raw_fd();
        let _ = self.registry.deregister(&mut SourceFd(&fd));
    }

    /// Sends a message. Never blocks, so a process with a full receive queue misses it.
    pub(super) fn send(&mut self, socket: impl AsFd, message: &BrokerMessage) {
        let _ = self.send_with(socket, message, &[]);
    }

    /// Sends a message with descriptors.
    pub(super) fn send_with(
        &mut self,
        socket: impl AsFd,
        message: &BrokerMessage,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        message.encode(&mut self.buffer);
        message::send(socket, &self.buffer, descriptors)
    }
}

/// Whether a session's process is gone, as far as its socket shows. The end of what a plain socket's process
/// sends is not its end.
pub(super) fn is_gone(session: &Session<ProcessSocket>) -> bool {
    match session.is_plain() {
        true => stream::is_hung_up(&session.socket),
        false => message::is_peer_closed(&session.socket),
    }
}

/// Whether the error means that the process has closed its socket.
pub(super) fn is_disconnected(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
