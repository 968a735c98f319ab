//! A connection as tonic takes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hvsock::Peer;
use hvsock::tokio::HvStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::room::Held;

/// A connection that carries gRPC. A call's handler finds who is at the other end as the
/// extension `Option<Peer>`.
pub(super) struct Carrier {
    stream: HvStream,
    /// The room that it takes up among its service's connections.
    _room: Option<Held>,
}

impl Carrier {
    /// One that was accepted.
    pub(super) fn new(stream: HvStream, room: Held) -> Self {
        let _room = Some(room);
        Self { stream, _room }
    }

    /// One that was connected.
    pub(super) fn connected(stream: HvStream) -> Self {
        let _room = None;
        Self { stream, _room }
    }
}

impl Connected for Carrier {
    type ConnectInfo = Option<Peer>;

    fn connect_info(&self) -> Option<Peer> {
        self.stream.peer().cloned()
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
