//! The server end of a service: listens and serves for as long as it runs, through restarts of the
//! broker and while the service is disabled.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use hvsock::tokio::{HvListener, HvStream};
use hvsock::{Endpoint, HvAddr, ListenOptions, VmId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::Status;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::Server;

use super::backoff::Backoff;
use super::grpc_stream::GrpcStream;
use super::limit::{Accepted, ConnectionLimit};
use crate::catalog::Integration;

/// The most connections that one service serves at once. Further ones are refused.
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
    /// The partitions to accept: [`VmId::PARENT`] in a guest, and in a container in one its host's id;
    /// [`VmId::CHILDREN`] on a host.
    pub from: VmId,
}

/// How long a connection that is refused has to take the reason.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;
type Handler = Arc<dyn Fn(HvStream) -> Ended + Send + Sync>;
type RefusalHandler = Arc<dyn Fn(HvStream, String) -> Ended + Send + Sync>;

#[derive(Clone)]
enum Protocol {
    Grpc(Routes),
    Streams(Handler, Option<RefusalHandler>),
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

impl ServiceStatus {
    /// Waits until this holds for the problem; for ever if the server is gone.
    async fn until(&mut self, holds: impl FnMut(&Option<String>) -> bool) {
        if self.problem.wait_for(holds).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The host of the virtual machine that this is a container in.
async fn host_of(endpoint: &Endpoint) -> Option<VmId> {
    let endpoint = endpoint.clone();
    let found = tokio::task::spawn_blocking(move || endpoint.host_id());
    found.await.ok()?.ok()
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
        Self::new(service, Protocol::Streams(handler, None))
    }

    /// Handles the connections of a stream service that are above its limit: `handler` tells the
    /// peer the reason within 2 seconds. Without it they are reset.
    pub fn refusing<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(HvStream, String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if let Protocol::Streams(_, refuse) = &mut self.protocol {
            *refuse = Some(Arc::new(move |stream, why| Box::pin(handler(stream, why))));
        }
        self
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
                        VmId::CHILDREN => {
                            ConnectionLimit::new(CONNECTIONS_TOTAL, CONNECTIONS_PER_PARTITION)
                        }
                        _ => ConnectionLimit::new(CONNECTIONS, CONNECTIONS),
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

    /// In a container in a virtual machine, serves the host of that machine, too, until dropped. `parent`
    /// is the status of the server for the parent, which shows that there is a broker.
    pub async fn serve_host(self, endpoint: Endpoint, mut parent: ServiceStatus) {
        let limit = ConnectionLimit::new(CONNECTIONS, CONNECTIONS);
        let mut backoff = Backoff::default();
        let mut logged = None;
        loop {
            parent.until(Option::is_none).await;
            // The broker of a virtual machine knows its host from its start, and another one never does.
            let Some(from) = host_of(&endpoint).await else {
                parent.until(Option::is_some).await;
                continue;
            };
            let endpoint = endpoint.clone();
            match self.listen(&ServiceBinding { endpoint, from }).await {
                Ok(listener) => {
                    (backoff, logged) = (Backoff::default(), None);
                    self.accept_all(&listener, &limit).await;
                }
                Err(error) => {
                    let reason = Some(error.to_string());
                    if logged != reason {
                        tracing::warn!("{} cannot listen for the host: {error}", self.service.name);
                        logged = reason;
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
            Protocol::Streams(handler, refuse) => loop {
                let (stream, permit) = match limit.accept(listener).await {
                    Ok(Accepted::Granted(stream, permit)) => (stream, permit),
                    Ok(Accepted::Refused(stream, permit)) => {
                        let Some(refuse) = refuse else {
                            stream.reset();
                            continue;
                        };
                        let refused = refuse(stream, limit.reason(self.service.name));
                        tokio::spawn(async move {
                            let _ = timeout(REFUSAL_TIMEOUT, refused).await;
                            drop(permit);
                        });
                        continue;
                    }
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
                let (refused, refusals) = mpsc::channel(1);
                let incoming = grpc_streams(listener, limit, ended, refused);
                let served = Server::builder()
                    .max_concurrent_streams(CALLS)
                    .add_routes(routes.clone())
                    .serve_with_incoming(incoming);
                let refusing = refuse_calls(routes, limit.reason(self.service.name), refusals);
                tokio::pin!(served);
                let served = tokio::select! {
                    served = &mut served => served,
                    _ = refusing => served.await,
                };
                match (end.await, served) {
                    (Ok(error), _) => error,
                    (Err(_), served) => io::Error::other(format!("{served:?}")),
                }
            }
        }
    }
}

/// Answers every call on these connections with the reason why it is refused.
async fn refuse_calls(
    routes: &Routes,
    why: String,
    mut refusals: mpsc::Receiver<GrpcStream>,
) -> Result<(), tonic::transport::Error> {
    let refuse = move |_: tonic::Request<()>| -> Result<tonic::Request<()>, Status> {
        Err(Status::resource_exhausted(why.clone()))
    };
    let incoming = stream::poll_fn(move |context| {
        refusals
            .poll_recv(context)
            .map(|next| next.map(Ok::<_, io::Error>))
    });
    Server::builder()
        .max_connection_age(REFUSAL_TIMEOUT)
        .max_connection_age_grace(REFUSAL_TIMEOUT)
        .layer(InterceptorLayer::new(refuse))
        .add_routes(routes.clone())
        .serve_with_incoming(incoming)
        .await
}

/// Accepted connections as tonic takes them; those to be refused go to `refused`. The stream ends
/// when the listener fails; the reason is sent to `ended`.
fn grpc_streams(
    listener: &HvListener,
    limit: &ConnectionLimit,
    ended: oneshot::Sender<io::Error>,
    refused: mpsc::Sender<GrpcStream>,
) -> impl Stream<Item = io::Result<GrpcStream>> {
    stream::unfold(Some((ended, refused)), async move |state| {
        let (ended, refused) = state?;
        loop {
            match limit.accept(listener).await {
                Ok(Accepted::Granted(stream, permit)) => {
                    let stream = GrpcStream::new(stream, permit);
                    return Some((Ok(stream), Some((ended, refused))));
                }
                Ok(Accepted::Refused(stream, permit)) => {
                    // Never full for long: the other server only spawns a task for each.
                    let _ = refused.send(GrpcStream::refused(stream, permit)).await;
                }
                Err(error) => {
                    let _ = ended.send(error);
                    return None;
                }
            }
        }
    })
}
