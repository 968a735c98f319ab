//! The end that offers: it listens for as long as it runs, through restarts of the broker and
//! while its service is switched off.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use hvsock::tokio::{HvListener, HvStream};
use hvsock::{Endpoint, HvAddr, ListenOptions, VmId};
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use tonic::transport::Server;

use super::carrier::Carrier;
use super::room::Room;
use crate::catalog::Integration;

/// The most connections that one service serves at once; more wait in the listener's backlog.
const CONNECTIONS: usize = 256;

/// The same where it is offered to many partitions, and for each of those.
const CONNECTIONS_OF_ALL: usize = 2048;
const CONNECTIONS_OF_EACH: usize = 16;

/// The most calls at once on one connection that carries gRPC.
const CALLS: u32 = 64;

/// Where an offer is made.
#[derive(Clone, Debug)]
pub struct Place {
    /// The way to the broker, or the kernel's sockets in a guest.
    pub endpoint: Endpoint,
    /// Whom to accept: [`VmId::PARENT`] in a guest, [`VmId::CHILDREN`] on a host.
    pub from: VmId,
}

type Handler = Arc<dyn Fn(HvStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

#[derive(Clone)]
enum How {
    Calls(Routes),
    Streams(Handler),
}

/// A service together with what serves it.
#[derive(Clone)]
pub struct Offer {
    service: &'static Integration,
    /// Why it is not offered now.
    problem: watch::Sender<Option<String>>,
    how: How,
}

/// How an offer stands, for those who tell of it.
#[derive(Clone, Debug)]
pub struct Standing {
    service: &'static Integration,
    problem: watch::Receiver<Option<String>>,
}

impl Standing {
    /// Which service.
    pub fn service(&self) -> &'static Integration {
        self.service
    }

    /// Why it is not offered now; `None` if it is.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// Waits until it was tried to offer it, with success or without.
    pub async fn tried(&mut self) {
        // An offer that is gone will not be tried any more.
        let _ = self.problem.changed().await;
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer")
            .field("service", &self.service.key)
            .finish_non_exhaustive()
    }
}

impl Offer {
    /// A service whose connections carry gRPC. A call finds who is at the other end in its
    /// request's extensions, as `Option<hvsock::Peer>`.
    pub fn calls(service: &'static Integration, routes: Routes) -> Self {
        Self::new(service, How::Calls(routes))
    }

    /// A service whose connections are handled one by one. A connection ends when its handler
    /// does.
    pub fn streams<F, Fut>(service: &'static Integration, handler: F) -> Self
    where
        F: Fn(HvStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |stream| Box::pin(handler(stream)));
        Self::new(service, How::Streams(handler))
    }

    fn new(service: &'static Integration, how: How) -> Self {
        let problem = watch::Sender::new(Some("it was not tried yet".to_owned()));
        Self {
            service,
            problem,
            how,
        }
    }

    /// Which service.
    pub fn service(&self) -> &'static Integration {
        self.service
    }

    /// How it stands, from now on.
    pub fn standing(&self) -> Standing {
        Standing {
            service: self.service,
            problem: self.problem.subscribe(),
        }
    }

    /// Listens and serves until dropped. Where it cannot listen it tries again, quickly at first,
    /// and says so once for each reason.
    pub async fn serve(self, place: Place) {
        let mut pause = Pause::default();
        let mut told = None;
        let name = self.service.name;
        loop {
            match self.listen(&place).await {
                Ok(listener) => {
                    if told.take().is_some() {
                        tracing::info!("{name} is offered again");
                    }
                    pause = Pause::default();
                    self.problem.send_replace(None);
                    let room = match place.from {
                        VmId::PARENT => Room::new(CONNECTIONS, CONNECTIONS),
                        _ => Room::new(CONNECTIONS_OF_ALL, CONNECTIONS_OF_EACH),
                    };
                    let error = self.accept_all(&listener, &room).await;
                    self.problem.send_replace(Some(error.to_string()));
                    tracing::debug!("{name} is cut off: {error}");
                }
                Err(error) => {
                    let reason = error.to_string();
                    self.problem.send_replace(Some(reason.clone()));
                    if told.as_ref() != Some(&reason) {
                        tracing::warn!("{name} cannot be offered: {reason}");
                        told = Some(reason);
                    }
                }
            }
            tokio::time::sleep(pause.next()).await;
        }
    }

    async fn listen(&self, place: &Place) -> io::Result<HvListener> {
        let options = ListenOptions::new().endpoint(&place.endpoint);
        let address = HvAddr::new(place.from, self.service.id());
        HvListener::bind_with(&options, address).await
    }

    /// Serves what comes until the listener fails.
    async fn accept_all(&self, listener: &HvListener, room: &Room) -> io::Error {
        match &self.how {
            How::Streams(handler) => loop {
                let (stream, held) = match room.accept(listener).await {
                    Ok(accepted) => accepted,
                    Err(error) => return error,
                };
                let handled = handler(stream);
                tokio::spawn(async move {
                    handled.await;
                    drop(held);
                });
            },
            How::Calls(routes) => {
                let (ended, end) = oneshot::channel();
                let incoming = carriers(listener, room, ended);
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

/// What is accepted, as tonic takes it. It ends when the listener fails, and `ended` hears why.
fn carriers(
    listener: &HvListener,
    room: &Room,
    ended: oneshot::Sender<io::Error>,
) -> impl Stream<Item = io::Result<Carrier>> {
    stream::unfold(Some(ended), async move |ended| {
        let ended = ended?;
        match room.accept(listener).await {
            Ok((stream, held)) => Some((Ok(Carrier::new(stream, held)), Some(ended))),
            Err(error) => {
                let _ = ended.send(error);
                None
            }
        }
    })
}

/// How long to wait before the next attempt: not at all at first, and then ever longer.
#[derive(Debug, Default)]
pub(crate) struct Pause(Duration);

impl Pause {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(4);

    pub(crate) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).clamp(Self::FIRST, Self::LONGEST);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_at_once_and_then_ever_more_slowly() {
        let mut pause = Pause::default();
        let waits: Vec<u128> = (0..8).map(|_| pause.next().as_millis()).collect();
        assert_eq!(waits, [0, 250, 500, 1000, 2000, 4000, 4000, 4000]);
    }
}
