//! The client end of a service: connects to it and makes gRPC calls.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hvsock::tokio::HvStream;
use hvsock::{ConnectOptions, Endpoint, HvAddr, PartitionRef, Refusal};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Uri};
use tower::service_fn;

use crate::catalog::Integration;

/// Default connect timeout. A guest without an agent refuses at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A partition whose services are used, and the endpoint through which it is reached.
#[derive(Clone, Debug)]
pub struct Target {
    endpoint: Endpoint,
    partition: PartitionRef,
    /// What connections are for, for the broker's audit.
    description: Option<(&'static str, Arc<str>)>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connect failed. The error has the refusal, if there is one: see [`CallError::refusal`].
    #[error("cannot reach the {} service of {partition}: {error}", service.key)]
    Connect {
        /// The service.
        service: &'static Integration,
        /// The partition.
        partition: PartitionRef,
        /// The reason.
        error: io::Error,
    },
    /// The peer answered with an error status, or the connection broke before it answered.
    #[error("{}", status_text(.0))]
    Status(Box<tonic::Status>),
}

/// The text of a status: its message, or the meaning of its code if the message is empty. If the
/// connection broke, the last source in the error chain is the reason.
fn status_text(status: &tonic::Status) -> String {
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

impl From<Box<tonic::Status>> for CallError {
    fn from(status: Box<tonic::Status>) -> Self {
        Self::Status(status)
    }
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl CallError {
    /// The refusal behind this error, if the broker or the guest's kernel refused the connect.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Connect { error, .. } => hvsock::refusal_of(error),
            Self::Status(_) => None,
        }
    }
}

impl Target {
    /// Refers to the services of `partition`, reached through `endpoint`.
    pub fn new(endpoint: Endpoint, partition: impl Into<PartitionRef>) -> Self {
        Self {
            endpoint,
            partition: partition.into(),
            description: None,
        }
    }

    /// The partition.
    pub fn partition(&self) -> &PartitionRef {
        &self.partition
    }

    /// The same target, whose connections the broker's audit records with `action`, such as `cp`, and
    /// `detail`, such as the paths: see [`ConnectOptions::describe`].
    pub fn describe(&self, action: &'static str, detail: impl Into<Arc<str>>) -> Self {
        Self {
            description: Some((action, detail.into())),
            ..self.clone()
        }
    }

    /// Opens a raw stream to one of the partition's services.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] if the connect fails or takes more than 5 seconds.
    pub async fn stream(&self, service: &'static Integration) -> Result<HvStream, CallError> {
        self.stream_with(&self.options(), service).await
    }

    /// Opens a raw stream with other options than the default ones. The options must name the
    /// endpoint if it is not the default endpoint; [`Target::options`] does.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] if the connect fails or times out.
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

    /// The default options for [`Target::stream_with`]: this target's endpoint and description, and a
    /// 5-second timeout.
    pub fn options(&self) -> ConnectOptions {
        let options = ConnectOptions::new()
            .endpoint(&self.endpoint)
            .timeout(CONNECT_TIMEOUT);
        match &self.description {
            Some((action, detail)) => options.describe(*action, detail),
            None => options,
        }
    }

    /// Opens a connection for gRPC calls to one of the partition's services. The channel is a
    /// single connection and does not reconnect: when it breaks, every call on it fails.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] if the connect or the HTTP/2 handshake fails.
    pub async fn channel(&self, service: &'static Integration) -> Result<Channel, CallError> {
        self.channel_over(service, grpc_endpoint()).await
    }

    /// Like [`Target::channel`], with HTTP/2 keepalive: a ping is sent every `idle_timeout`, and
    /// the connection is closed if no answer arrives within `idle_timeout`.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`] if the connect or the HTTP/2 handshake fails.
    #[doc(alias = "ping")]
    pub async fn channel_with_keepalive(
        &self,
        service: &'static Integration,
        idle_timeout: Duration,
    ) -> Result<Channel, CallError> {
        let endpoint = grpc_endpoint()
            .http2_keep_alive_interval(idle_timeout)
            .keep_alive_timeout(idle_timeout);
        self.channel_over(service, endpoint).await
    }

    async fn channel_over(
        &self,
        service: &'static Integration,
        grpc_endpoint: tonic::transport::Endpoint,
    ) -> Result<Channel, CallError> {
        let stream = self.stream(service).await?;
        self.channel_on(stream, service, grpc_endpoint).await
    }

    /// Opens a connection for gRPC calls, and returns its id in the broker's list, too.
    #[cfg(feature = "host")]
    pub(crate) async fn channel_with_id(
        &self,
        service: &'static Integration,
    ) -> Result<(Channel, u64), CallError> {
        let stream = self.stream(service).await?;
        let id = stream.connection_id();
        let channel = self.channel_on(stream, service, grpc_endpoint()).await?;
        Ok((channel, id))
    }

    async fn channel_on(
        &self,
        stream: HvStream,
        service: &'static Integration,
        grpc_endpoint: tonic::transport::Endpoint,
    ) -> Result<Channel, CallError> {
        channel_over_stream(stream, grpc_endpoint)
            .await
            .map_err(|error| CallError::Connect {
                service,
                partition: self.partition.clone(),
                error,
            })
    }
}

/// The gRPC endpoint. The name in the URI is never resolved: the connector already has the stream.
fn grpc_endpoint() -> tonic::transport::Endpoint {
    tonic::transport::Endpoint::from_static("http://hvsock")
}

/// Runs gRPC over an established connection.
async fn channel_over_stream(
    stream: HvStream,
    grpc_endpoint: tonic::transport::Endpoint,
) -> io::Result<Channel> {
    let mut once = Some(stream);
    let connector = service_fn(move |_: Uri| {
        let stream = once.take();
        async move {
            let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    grpc_endpoint
        .connect_with_connector(connector)
        .await
        .map_err(io::Error::other)
}
