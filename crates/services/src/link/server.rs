//! The server end of a service: listens and serves for as long as it runs, through restarts of the
//! broker and while the service is disabled.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use hvsock::tokio::{HvListener, HvStream};
use hvsock::{Endpoint, HvAddr, ListenOptions, VmId};
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use tonic::transport::Server;

use super::backoff::Backoff;
use super::grpc_stream::GrpcStream;
use super::limit::ConnectionLimit;
use crate::catalog::Integration;

/// The most connections that one service serves at once. More wait in the listener's backlog.
const CONNECTIONS: usize = 256;

/// The same limits for a service on the host, which serves many partitions: in total, and for each
/// partition.
const CONNECTIONS_TOTAL: usize = 2048;
const CONNECTIONS_PER_PARTITION: usize = 16;

/// The most concurrent calls on one gRPC connection.
const CALLS: u32 = 64;

/// Where a service listens, and for whom.
#[derive(Clone, Debug)]
pub struct ServiceBinding {
    /// The broker's endpoint, or the kernel's vsock in a guest.
    pub endpoint: Endpoint,
    /// The partitions to accept: [`VmId::PARENT`] in a guest, [`VmId::CHILDREN`] on a host.
    pub from: VmId,
}

type Handler = Arc<dyn Fn(HvStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

#[derive(Clone)]
enum Protocol {
    Grpc(Routes),
    Streams(Handler),
}

/// A service together with its handlers.
#[derive(Clone)]
pub struct ServiceServer {
    service: &'static Integration,
    /// Why the service is not offered now; `None` while it listens.
    problem: watch::Sender<Option<String>>,
    protocol: Protocol,
}

/// The status of a [`ServiceServer`], which other tasks can watch.
#[derive(Clone, Debug)]
pub struct ServiceStatus {
    service: &'static Integration,
    problem: watch::Receiver<Option<String>>,
}

impl ServiceStatus {
    /// The service.
    pub fn service(&self) -> &'static Integration {
        self.service
    }

    /// Why the service is not offered now; `None` if it is.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// Waits until the first attempt to listen has succeeded or failed. Returns at once if the
    /// server is gone.
    pub async fn first_attempt(&mut self) {
        // An error means that the sender is gone: there will be no further attempt.
        let _ = self.problem.changed().await;
    }
}

impl fmt::Debug for ServiceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceServer")
            .field("service", &self.service.key)
            .finish_non_exhaustive()
    }
}

impl ServiceServer {
    /// A service whose connections use gRPC. A handler finds the peer in its request's
    /// extensions, in an [`HvConnectInfo`](hvsock::tokio::HvConnectInfo).
    pub fn calls(service: &'static Integration, routes: Routes) -> Self {
        Self::new(service, Protocol::Grpc(routes))
    }

    /// A service whose connections are raw streams, one handler call for each. The connection
    /// closes when its handler returns.
    pub fn streams<F, Fut>(service: &'static Integration, handler: F) -> Self
    where
        F: Fn(HvStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |stream| Box::pin(handler(stream)));
        Self::new(service, Protocol::Streams(handler))
    }

    fn new(service: &'static Integration, protocol: Protocol) -> Self {
        let problem = watch::Sender::new(Some("no attempt to listen yet".to_owned()));
        Self {
            service,
            problem,
            protocol,
        }
    }

    /// The service.
    pub fn service(&self) -> &'static Integration {
        self.service
    }

    /// Returns a handle that follows the status from now on.
    pub fn status(&self) -> ServiceStatus {
        ServiceStatus {
            service: self.service,
            problem: self.problem.subscribe(),
        }
    }

    /// Listens and serves until dropped. If listening fails it retries with exponential backoff,
    /// and logs each new reason once.
    pub async fn serve(self, binding: ServiceBinding) {
        let mut backoff = Backoff::default();
        let mut logged = None;
        let name = self.service.name;
        loop {
            match self.listen(&binding).await {
                Ok(listener) => {
                    if logged.take().is_some() {
                        tracing::info!("{name} is offered again");
                    }
                    backoff = Backoff::default();
                    self.problem.send_replace(None);
                    let limit = match binding.from {
                        VmId::PARENT => ConnectionLimit::new(CONNECTIONS, CONNECTIONS),
                        _ => ConnectionLimit::new(CONNECTIONS_TOTAL, CONNECTIONS_PER_PARTITION),
                    };
                    let error = self.accept_all(&listener, &limit).await;
                    self.problem.send_replace(Some(error.to_string()));
                    tracing::debug!("{name} has lost its listener: {error}");
                }
                Err(error) => {
                    let reason = error.to_string();
                    self.problem.send_replace(Some(reason.clone()));
                    if logged.as_ref() != Some(&reason) {
                        tracing::warn!("{name} cannot listen: {reason}");
                        logged = Some(reason);
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn listen(&self, binding: &ServiceBinding) -> io::Result<HvListener> {
        let options = ListenOptions::new().endpoint(&binding.endpoint);
        let address = HvAddr::new(binding.from, self.service.id());
        HvListener::bind_with(&options, address).await
    }

    /// Serves connections until the listener fails; returns the listener's error.
    async fn accept_all(&self, listener: &HvListener, limit: &ConnectionLimit) -> io::Error {
        match &self.protocol {
            Protocol::Streams(handler) => loop {
                let (stream, permit) = match limit.accept(listener).await {
                    Ok(accepted) => accepted,
                    Err(error) => return error,
                };
                let handled = handler(stream);
                tokio::spawn(async move {
                    handled.await;
                    drop(permit);
                });
            },
            Protocol::Grpc(routes) => {
                let (ended, end) = oneshot::channel();
                let incoming = grpc_streams(listener, limit, ended);
                let served = Server::builder()
                    .max_concurrent_streams(CALLS)
                    .add_routes(routes.clone())
                    .serve_with_incoming(incoming)
                    .await;
                match (end.await, served) {
                    (Ok(error), _) => error,
                    (Err(_), served) => io::Error::other(format!("{served:?}")),
                }
            }
        }
    }
}

/// Accepted connections as tonic takes them. The stream ends when the listener fails; the reason is
/// sent to `ended`.
fn grpc_streams(
    listener: &HvListener,
    limit: &ConnectionLimit,
    ended: oneshot::Sender<io::Error>,
) -> impl Stream<Item = io::Result<GrpcStream>> {
    stream::unfold(Some(ended), async move |ended| {
        let ended = ended?;
        match limit.accept(listener).await {
            Ok((stream, permit)) => Some((Ok(GrpcStream::new(stream, permit)), Some(ended))),
            Err(error) => {
                let _ = ended.send(error);
                None
            }
        }
    })
}
