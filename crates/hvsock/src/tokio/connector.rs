//! A connector for the clients of hyper and tonic.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::HvStream;
use crate::{ConnectOptions, HvAddr, ToHvAddr};

/// Connects the clients of hyper and tonic to one service, whatever the URI of a request is.
///
/// ```no_run
/// use hvsock::tokio::HvConnector;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// // With `hyper_util::client::legacy::Client::builder(executor).build(connector)` for HTTP, with
/// // `tonic::transport::Endpoint::connect_with_connector` for gRPC.
/// let connector = HvConnector::new(("parent", "HV Socket Demo"))?;
/// let stream = connector.connect().await?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "HttpConnector")]
#[doc(alias = "UnixConnector")]
#[derive(Clone, Debug)]
pub struct HvConnector {
    options: ConnectOptions,
    address: HvAddr,
}

impl HvConnector {
    /// Creates a connector to a service, with the default options.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the address is invalid.
    pub fn new(address: impl ToHvAddr) -> io::Result<Self> {
        Self::with_options(ConnectOptions::new(), address)
    }

    /// Creates a connector to a service, with options.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the address is invalid.
    pub fn with_options(options: ConnectOptions, address: impl ToHvAddr) -> io::Result<Self> {
        let address = address.to_hv_addr()?;
        Ok(Self { options, address })
    }

    /// Connects to the service.
    ///
    /// # Errors
    ///
    /// As [`ConnectOptions::connect`].
    pub async fn connect(&self) -> io::Result<HvStream> {
        HvStream::connect_with(&self.options, &self.address).await
    }
}

/// The future of a connect of [`HvConnector`].
type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<HvStream>>> + Send>>;

impl<R> Service<R> for HvConnector {
    type Response = TokioIo<HvStream>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Connecting {
        let this = self.clone();
        Box::pin(async move { this.connect().await.map(TokioIo::new) })
    }
}

impl Connection for HvStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
