//! The end that calls.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use hvsock::tokio::HvStream;
use hvsock::{ConnectOptions, Endpoint, HvAddr, PartitionRef, Refusal};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Uri};
use tower::service_fn;

use super::carrier::Carrier;
use crate::catalog::Integration;

/// How long a connect may take, by default. A guest without an agent refuses at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The partition whose services are used, and the way there.
#[derive(Clone, Debug)]
pub struct Target {
    endpoint: Endpoint,
    partition: PartitionRef,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection: the error's source says which rule or state is why.
    #[error("cannot reach the {} service of {partition}: {error}", service.key)]
    Connect {
        /// Which service.
        service: &'static Integration,
        /// Where.
        partition: PartitionRef,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The other end said no, or the connection broke before it said anything.
    #[error("{}", said(.0))]
    Status(#[from] Box<tonic::Status>),
}

/// A status in words: its message, or what its code means where there is none. If it is not the
/// other end's, but the connection broke, the reason is the last of its sources.
fn said(status: &tonic::Status) -> String {
    let mut last = status.source();
    while let Some(source) = last.and_then(|error| error.source()) {
        last = Some(source);
    }
    match (last, status.message()) {
        (Some(error), _) => format!("the connection broke: {error}"),
        (None, "") => status.code().to_string(),
        (None, message) => message.to_owned(),
    }
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl CallError {
    /// The refusal that it comes from, if the broker or the guest's kernel refused the connect.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Connect { error, .. } => hvsock::refusal_of(error),
            Self::Status(_) => None,
        }
    }
}

impl Target {
    /// The services of `partition`, as reached through `endpoint`.
    pub fn new(endpoint: Endpoint, partition: impl Into<PartitionRef>) -> Self {
        Self {
            endpoint,
            partition: partition.into(),
        }
    }

    /// The partition.
    pub fn partition(&self) -> &PartitionRef {
        &self.partition
    }

    /// A bare connection to one of its services.
    pub async fn stream(&self, service: &'static Integration) -> Result<HvStream, CallError> {
        let options = ConnectOptions::new()
            .endpoint(&self.endpoint)
            .timeout(CONNECT_TIMEOUT);
        self.stream_with(&options, service).await
    }

    /// A bare connection, made with other options than the usual ones. Those must name the
    /// endpoint, if it is not the usual one.
    pub async fn stream_with(
        &self,
        options: &ConnectOptions,
        service: &'static Integration,
    ) -> Result<HvStream, CallError> {
        let address = HvAddr::new(self.partition.clone(), service.id());
        let connected = HvStream::connect_with(options, address).await;
        connected.map_err(|error| CallError::Connect {
            service,
            partition: self.partition.clone(),
            error,
        })
    }

    /// Options for [`Target::stream_with`] that name the endpoint already.
    pub fn options(&self) -> ConnectOptions {
        ConnectOptions::new()
            .endpoint(&self.endpoint)
            .timeout(CONNECT_TIMEOUT)
    }

    /// A connection that carries gRPC calls to one of its services. It is one connection: once it
    /// is broken, so is every call.
    pub async fn channel(&self, service: &'static Integration) -> Result<Channel, CallError> {
        self.channel_over(service, calling()).await
    }

    /// The same, for a connection that must not outlive what is at its other end: that is asked
    /// for a sign of life once in a while, and the connection broken if none comes within `deaf`.
    pub async fn channel_with_pulse(
        &self,
        service: &'static Integration,
        deaf: Duration,
    ) -> Result<Channel, CallError> {
        let calling = calling()
            .http2_keep_alive_interval(deaf)
            .keep_alive_timeout(deaf);
        self.channel_over(service, calling).await
    }

    async fn channel_over(
        &self,
        service: &'static Integration,
        calling: tonic::transport::Endpoint,
    ) -> Result<Channel, CallError> {
        let stream = self.stream(service).await?;
        over(stream, calling)
            .await
            .map_err(|error| CallError::Connect {
                service,
                partition: self.partition.clone(),
                error,
            })
    }
}

/// How gRPC is called. Nothing is looked up by this name: the connector has the stream.
fn calling() -> tonic::transport::Endpoint {
    tonic::transport::Endpoint::from_static("http://hvsock")
}

/// gRPC over a connection that stands.
async fn over(stream: HvStream, calling: tonic::transport::Endpoint) -> io::Result<Channel> {
    let mut once = Some(stream);
    let connector = service_fn(move |_: Uri| {
        let stream = once.take();
        async move {
            let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
            Ok::<_, io::Error>(TokioIo::new(Carrier::connected(stream)))
        }
    });
    calling
        .connect_with_connector(connector)
        .await
        .map_err(io::Error::other)
}
