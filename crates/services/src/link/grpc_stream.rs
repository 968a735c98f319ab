//! Adapts a connection to tonic's traits.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hvsock::Peer;
use hvsock::tokio::HvStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::limit::Permit;

/// A connection for gRPC. A handler finds the peer as the request extension `Option<Peer>`.
pub(super) struct GrpcStream {
    stream: HvStream,
    /// The permit of an accepted connection, held until the connection closes.
    _permit: Option<Permit>,
}

impl GrpcStream {
    /// Wraps an accepted connection.
    pub(super) fn new(stream: HvStream, permit: Permit) -> Self {
        let _permit = Some(permit);
        Self { stream, _permit }
    }

    /// Wraps an outgoing connection.
    pub(super) fn connected(stream: HvStream) -> Self {
        let _permit = None;
        Self { stream, _permit }
    }
}

impl Connected for GrpcStream {
    type ConnectInfo = Option<Peer>;

    fn connect_info(&self) -> Option<Peer> {
        self.stream.peer().cloned()
    }
}

impl AsyncRead for GrpcStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for GrpcStream {
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
