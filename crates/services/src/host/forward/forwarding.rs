//! Forwardings: a listener on one side, and for each of its connections one to the other side.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock::tokio::{HvListener, HvStream};
use hvsock::{Endpoint, HvAddr, ListenOptions, ServiceRef};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{
    ForwardError, GuestListener, PendingConnection, Tunnel, connect, connect_service, listen,
};
use crate::catalog::FORWARD;
use crate::forward::{Address, Listener, Remote, Socket, Transferred};
use crate::link::Target;
use crate::link::backoff::Backoff;

/// How many connections one forwarding relays at once by default. More wait in the listener's backlog.
const CONNECTIONS: usize = 256;
/// The shortest time between two reports that the limit is reached.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// One end of a forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardEnd {
    /// A socket.
    Socket(Address),
    /// A service; only on the guest's side.
    Service(ServiceRef),
}

/// The side where connections begin: the side that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The host listens; connections are made to the guest.
    Host,
    /// The guest listens; connections are made to the host.
    Guest,
}

/// A forwarding that listens. It relays connections while it [`run`](Forwarding::run)s.
#[derive(Debug)]
pub struct Forwarding {
    target: Target,
    listening: ListeningEnd,
    limit: usize,
}

#[derive(Debug)]
enum ListeningEnd {
    /// Listens on the host, for an end in the guest.
    Host(Listener, ForwardEnd),
    /// Listens in the guest, for an address on the host. The first address is the requested one.
    Guest(Box<GuestListener>, Address, Address),
    /// Listens on the host for connections to a service.
    Service(Box<ServiceListener>, Address),
}

#[derive(Debug)]
struct ServiceListener {
    listener: HvListener,
    /// To listen again.
    options: ListenOptions,
    address: HvAddr,
}

/// An event of a forwarding, for logs.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection was accepted.
    Opened {
        /// The peer.
        from: &'a str,
    },
    /// A connection ended, in both directions.
    Closed {
        /// The peer.
        from: &'a str,
        /// The number of bytes in each direction, seen from the host.
        transferred: &'a Transferred,
    },
    /// The other side could not be reached, or the connection broke. The peer saw a reset.
    Failed {
        /// The peer.
        from: &'a str,
        /// The reason.
        why: String,
    },
    /// As many connections are relayed as may be at once; further ones wait in the listener's
    /// backlog. Reported once a minute at most.
    LimitReached {
        /// How many connections are relayed at once.
        limit: usize,
    },
    /// The listener is lost; listening is retried.
    Lost {
        /// The reason.
        why: String,
    },
    /// Listening works again.
    Regained,
}

impl Forwarding {
    /// Sets up a forwarding between `host`, a socket of this machine, and `guest`, a socket or a
    /// service of the partition that `target` names. It listens on the side `from`.
    ///
    /// # Errors
    ///
    /// [`ForwardError`] if the listener cannot be created.
    pub async fn new(
        endpoint: &Endpoint,
        target: &Target,
        from: Source,
        host: &Address,
        guest: &ForwardEnd,
    ) -> Result<Forwarding, ForwardError> {
        let listening = match (from, guest) {
            (Source::Host, guest) => {
                let listener = Listener::bind(host).await;
                let listener = listener.map_err(|error| of_host(host, error))?;
                ListeningEnd::Host(listener, guest.clone())
            }
            (Source::Guest, ForwardEnd::Socket(requested)) => {
                let listener = listen(target, requested).await?;
                ListeningEnd::Guest(Box::new(listener), requested.clone(), host.clone())
            }
            (Source::Guest, ForwardEnd::Service(service)) => {
                let address = HvAddr::new(target.partition().clone(), service.clone());
                let options = ListenOptions::new().endpoint(endpoint);
                let listener = HvListener::bind_with(&options, address.clone()).await;
                let listener = listener.map_err(|error| ForwardError::Service {
                    address: address.clone(),
                    listen: true,
                    error,
                })?;
                return Ok(Self::of_listener(listener, options, address, host.clone()));
            }
        };
        let target = target.clone();
        Ok(Self {
            target,
            listening,
            limit: CONNECTIONS,
        })
    }

    /// Sets up a forwarding of the connections that a service's listener accepts to `host`, a socket of this
    /// machine. `options` and `address` are those of the listener, to listen again after a restart of the broker.
    pub fn of_listener(
        listener: HvListener,
        options: ListenOptions,
        address: HvAddr,
        host: Address,
    ) -> Forwarding {
        let listener = ServiceListener {
            // Not at another broker that runs meanwhile.
            options: options.endpoint(listener.endpoint()),
            listener,
            address,
        };
        Self {
            target: Target::new(
                listener.listener.endpoint(),
                listener.address.partition().clone(),
            ),
            listening: ListeningEnd::Service(Box::new(listener), host),
            limit: CONNECTIONS,
        }
    }

    /// Sets how many connections are relayed at once; the default is 256. More wait in the listener's backlog.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

fn of_host(address: &Address, error: io::Error) -> ForwardError {
    let address = address.clone();
    ForwardError::Host { address, error }
}

/// An accepted connection, before the other side is connected.
enum Accepted {
    Host(Socket),
    Guest(PendingConnection),
    Service(Box<HvStream>),
}

impl Forwarding {
    /// The address it listens on, with the chosen port; `None` for a service.
    pub fn address(&self) -> Option<&Address> {
        match &self.listening {
            ListeningEnd::Host(listener, _) => Some(listener.address()),
            ListeningEnd::Guest(listener, _, _) => Some(listener.address()),
            ListeningEnd::Service(..) => None,
        }
    }

    /// Relays connections until dropped, or until listening is no longer possible, and then returns
    /// the reason. A listener in the guest or for a service that is lost, because an agent or a broker
    /// restarts or the service is disabled, is requested again with exponential backoff.
    pub async fn run<T>(self, on_event: T) -> ForwardError
    where
        T: Fn(Event<'_>) + Clone + Send + 'static,
    {
        let ended = self.run_until(std::future::pending(), on_event).await;
        ended.unwrap_or_else(|| ForwardError::Broken(io::ErrorKind::Interrupted.into()))
    }

    /// As [`run`](Self::run) until `stop` is ready. Then accepts no more, and returns `None` when the connections
    /// that it relays have ended.
    pub async fn run_until<T>(
        mut self,
        stop: impl Future<Output = ()>,
        on_event: T,
    ) -> Option<ForwardError>
    where
        T: Fn(Event<'_>) + Clone + Send + 'static,
    {
        let mut stop = std::pin::pin!(stop);
        let limit = Arc::new(Semaphore::new(self.limit));
        // Dropping the set ends all relays.
        let mut tasks = JoinSet::new();
        let mut reported: Option<Instant> = None;
        loop {
            if limit.available_permits() == 0
                && reported.is_none_or(|reported| reported.elapsed() > REPORT_INTERVAL)
            {
                reported = Some(Instant::now());
                on_event(Event::LimitReached { limit: self.limit });
            }
            while tasks.try_join_next().is_some() {}
            let next = async {
                let permit = Arc::clone(&limit).acquire_owned().await;
                let permit =
                    permit.map_err(|error| ForwardError::Broken(io::Error::other(error)))?;
                Ok((permit, self.next(&on_event).await?))
            };
            let next = tokio::select! {
                next = next => next,
                () = &mut stop => break,
            };
            let (permit, (accepted, from)) = match next {
                Ok(next) => next,
                Err(error) => return Some(error),
            };
            let (target, to, on_event) = (self.target.clone(), self.to(), on_event.clone());
            tasks.spawn(async move {
                on_event(Event::Opened { from: &from });
                let transferred = Transferred::default();
                match relay(&target, accepted, to, &transferred).await {
                    Ok(()) => on_event(Event::Closed {
                        from: &from,
                        transferred: &transferred,
                    }),
                    Err(why) => on_event(Event::Failed { from: &from, why }),
                }
                drop(permit);
            });
        }
        // Closes the listener.
        drop(self);
        while tasks.join_next().await.is_some() {}
        None
    }

    fn to(&self) -> ForwardEnd {
        match &self.listening {
            ListeningEnd::Host(_, guest) => guest.clone(),
            ListeningEnd::Guest(_, _, host) | ListeningEnd::Service(_, host) => {
                ForwardEnd::Socket(host.clone())
            }
        }
    }

    /// Accepts the next connection.
    async fn next(
        &mut self,
        on_event: &impl Fn(Event<'_>),
    ) -> Result<(Accepted, String), ForwardError> {
        loop {
            let lost = match &mut self.listening {
                ListeningEnd::Host(listener, _) => match listener.accept().await {
                    Ok((socket, from)) => return Ok((Accepted::Host(socket), from)),
                    Err(error) => error,
                },
                ListeningEnd::Service(service, _) => match service.listener.accept().await {
                    Ok((stream, _)) => {
                        let from = stream.peer().map(|peer| peer.partition().to_owned());
                        return Ok((
                            Accepted::Service(Box::new(stream)),
                            from.unwrap_or_default(),
                        ));
                    }
                    // The broker closed the listener, and the error contains the reason: it ends, or
                    // the service is disabled.
                    Err(error) if hvsock::refusal_of(&error).is_some() => {
                        on_event(Event::Lost {
                            why: error.to_string(),
                        });
                        service.listen_again().await;
                        on_event(Event::Regained);
                        continue;
                    }
                    Err(error) => error,
                },
                ListeningEnd::Guest(listener, requested, _) => match listener.accept().await {
                    Ok(pending) => {
                        let from = pending.from().to_owned();
                        return Ok((Accepted::Guest(pending), from));
                    }
                    Err(error) => {
                        on_event(Event::Lost {
                            why: error.to_string(),
                        });
                        **listener =
                            listen_again(&self.target, requested, listener.address()).await;
                        on_event(Event::Regained);
                        continue;
                    }
                },
            };
            on_event(Event::Lost {
                why: lost.to_string(),
            });
            Listener::back_off().await;
        }
    }
}

/// Requests the guest's listener until it works: at the port chosen before, if the guest chose one.
async fn listen_again(target: &Target, requested: &Address, bound: &Address) -> GuestListener {
    let mut backoff = Backoff::default();
    loop {
        tokio::time::sleep(backoff.next()).await;
        let address = match (requested, bound) {
            (Address::Tcp { host, port: 0 }, Address::Tcp { port, .. }) => Address::Tcp {
                host: host.clone(),
                port: *port,
            },
            _ => requested.clone(),
        };
        if let Ok(listener) = listen(target, &address).await {
            return listener;
        }
    }
}

impl ServiceListener {
    /// Listens for the service again until that works, at the same broker.
    async fn listen_again(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            tokio::time::sleep(backoff.next()).await;
            if let Ok(listener) = HvListener::bind_with(&self.options, self.address.clone()).await {
                self.listener = listener;
                return;
            }
        }
    }
}

/// Connects to the other side and relays bytes between the two.
async fn relay(
    target: &Target,
    accepted: Accepted,
    to: ForwardEnd,
    transferred: &Transferred,
) -> Result<(), String> {
    let (tunnel, socket) = match (accepted, to) {
        (Accepted::Host(socket), to) => {
            let tunnel = match &to {
                ForwardEnd::Socket(address) => connect(target, address).await,
                ForwardEnd::Service(service) => connect_service(target, service).await,
            };
            match tunnel {
                Ok(tunnel) => (tunnel, socket),
                Err(error) => {
                    socket.reset();
                    return Err(error.to_string());
                }
            }
        }
        // Fetch the guest's connection before connecting on the host: if the host's socket fails,
        // the guest's peer has to get the reason.
        (Accepted::Guest(pending), ForwardEnd::Socket(host)) => {
            let tunnel = pending.fetch().await.map_err(|error| error.to_string())?;
            match Socket::connect(&host).await {
                Ok(socket) => (tunnel, socket),
                Err(error) => {
                    let why = of_host(&host, error).to_string();
                    tunnel.refuse(&why).await;
                    return Err(why);
                }
            }
        }
        (Accepted::Service(stream), ForwardEnd::Socket(host)) => match Socket::connect(&host).await
        {
            Ok(socket) => {
                let remote = Remote::Raw(*stream);
                (Tunnel { remote }, socket)
            }
            Err(error) => {
                stream.reset();
                return Err(of_host(&host, error).to_string());
            }
        },
        (_, ForwardEnd::Service(service)) => {
            return Err(format!("`{service}` is not a socket of the host"));
        }
    };
    let relayed = tunnel.relay(socket, transferred).await;
    relayed.map_err(|fault| fault.to_string())
}

/// Checks whether a forwarding to this end could work now: whether the partition's agent, or the
/// service, accepts connections.
///
/// # Errors
///
/// [`ForwardError`] with the reason why not.
pub async fn probe(target: &Target, guest: &ForwardEnd) -> Result<(), ForwardError> {
    match guest {
        // A connection without a request has no effect.
        ForwardEnd::Socket(_) => Ok(target.stream(&FORWARD).await.map(drop)?),
        ForwardEnd::Service(service) => {
            let address = HvAddr::new(target.partition().clone(), service.clone());
            let (options, asked) = (target.options(), address.clone());
            let explained = tokio::task::spawn_blocking(move || options.explain(asked)).await;
            let explained = explained.map_err(io::Error::other).flatten();
            match explained.map(|explanation| explanation.refusal().cloned()) {
                Ok(None) => Ok(()),
                Ok(Some(refusal)) => Err(refusal.into()),
                Err(error) => Err(error),
            }
            .map_err(|error| ForwardError::Service {
                address,
                listen: false,
                error,
            })
        }
    }
}
