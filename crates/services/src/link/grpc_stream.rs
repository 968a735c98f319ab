//! An accepted connection for tonic, with the permit that it holds.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hvsock::tokio::{HvConnectInfo, HvStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::limit::{Permit, RefusalPermit};

/// An accepted connection for gRPC. A handler finds the peer in the request extension
/// [`HvConnectInfo`].
pub(super) struct GrpcStream {
    stream: HvStream,
    /// Held until the connection closes.
    _permit: Held,
}

enum Held {
    Served(#[allow(dead_code, reason = "held for its drop")] Permit),
    Refused(#[allow(dead_code, reason = "held for its drop")] RefusalPermit),
}

impl GrpcStream {
    /// A connection that is served.
    pub(super) fn new(stream: HvStream, permit: Permit) -> Self {
        let _permit = Held::Served(permit);
        Self { stream, _permit }
    }

    /// A connection whose calls are refused.
    pub(super) fn refused(stream: HvStream, permit: RefusalPermit) -> Self {
        let _permit = Held::Refused(permit);
        Self { stream, _permit }
    }
}

impl Connected for GrpcStream {
    type ConnectInfo = HvConnectInfo;

    fn connect_info(&self) -> HvConnectInfo {
        self.stream.connect_info()
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
