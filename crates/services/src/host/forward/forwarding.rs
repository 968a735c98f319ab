//! Forwardings: a listener on one side, and a connection to the other for each that comes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hvsock::tokio::{HvListener, HvStream};
use hvsock::{Endpoint, HvAddr, ListenOptions, ServiceRef};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Arrived, ForwardError, GuestListener, Tunnel, connect, connect_service, listen};
use crate::forward::{Address, Far, Listener, Moved, Socket};
use crate::link::Target;

/// How many connections one forwarding carries at once; more wait in its listener's backlog.
const CONNECTIONS: usize = 256;
/// The longest pause between attempts to have the guest listen again.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// One side of a forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket.
    Socket(Address),
    /// A service; on the guest's side only.
    Service(ServiceRef),
}

/// Which side is listened at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The host's: connections are made to the guest.
    Host,
    /// The guest's: connections are made to the host.
    Guest,
}

/// A forwarding that is set up, and carries what comes once it [`run`](Forwarding::run)s.
#[derive(Debug)]
pub struct Forwarding {
    target: Target,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Listening in the host, for a place in the guest.
    Host(Listener, Place),
    /// Listening in the guest, for an address of the host; with what was asked for.
    Guest(Box<GuestListener>, Address, Address),
    /// Listening in the host for the guest's use of a service.
    Service(HvListener, HvAddr, Address),
}

/// What becomes of the connections, for logs.
#[derive(Debug)]
pub enum Event<'a> {
    /// One was made.
    Opened {
        /// Who connected.
        from: &'a str,
    },
    /// One ended, both ways.
    Closed {
        /// Who had connected.
        from: &'a str,
        /// How much went each way, seen from the host.
        moved: &'a Moved,
    },
    /// One could not be made on the other side, or broke; whoever connected saw a reset.
    Failed {
        /// Who had connected.
        from: &'a str,
        /// Why.
        why: String,
    },
    /// There is no listener at present; it is tried again.
    Lost {
        /// Why.
        why: String,
    },
    /// There is one again.
    Regained,
}

impl Forwarding {
    /// Sets up a forwarding: `host` is a socket of this machine, `guest` one of the partition that
    /// `target` names, or a service; what connects at the side `from` reaches the other one.
    pub async fn new(
        endpoint: &Endpoint,
        target: &Target,
        from: From,
        host: &Address,
        guest: &Place,
    ) -> Result<Forwarding, ForwardError> {
        let source = match (from, guest) {
            (From::Host, guest) => {
                let listener = Listener::bind(host).await;
                let listener = listener.map_err(|error| of_host(host, error))?;
                Source::Host(listener, guest.clone())
            }
            (From::Guest, Place::Socket(asked)) => {
                let listener = listen(target, asked).await?;
                Source::Guest(Box::new(listener), asked.clone(), host.clone())
            }
            (From::Guest, Place::Service(service)) => {
                let address = HvAddr::new(target.partition().clone(), service.clone());
                let options = ListenOptions::new().endpoint(endpoint);
                let listener = HvListener::bind_with(&options, address.clone()).await;
                let listener = listener.map_err(|error| ForwardError::Service {
                    address: address.clone(),
                    listen: true,
                    error,
                })?;
                Source::Service(listener, address, host.clone())
            }
        };
        let target = target.clone();
        Ok(Self { target, source })
    }
}

fn of_host(address: &Address, error: io::Error) -> ForwardError {
    let address = address.clone();
    ForwardError::Host { address, error }
}

/// The connection of somebody who came, before there is one to the other side.
enum Come {
    Host(Socket),
    Guest(Arrived),
    Service(Box<HvStream>),
}

impl Forwarding {
    /// Where it listens: a socket, with the port that was chosen, or `None` for a service.
    pub fn address(&self) -> Option<&Address> {
        match &self.source {
            Source::Host(listener, _) => Some(listener.address()),
            Source::Guest(listener, _, _) => Some(listener.address()),
            Source::Service(..) => None,
        }
    }

    /// Carries what comes, until dropped, or until there can be no listener any more. A listener in the guest
    /// that is lost (an agent or a broker starts anew) is asked for again.
    pub async fn run<T>(mut self, tell: T) -> ForwardError
    where
        T: Fn(Event<'_>) + Clone + Send + 'static,
    {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        // Dropped with this, they end with it.
        let mut tasks = JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return ForwardError::Broken(io::Error::other("no connection is taken any more"));
            };
            while tasks.try_join_next().is_some() {}
            let (come, from) = match self.next(&tell).await {
                Ok(come) => come,
                Err(error) => return error,
            };
            let (target, to, tell) = (self.target.clone(), self.to(), tell.clone());
            tasks.spawn(async move {
                tell(Event::Opened { from: &from });
                let moved = Moved::default();
                match carry(&target, come, to, &moved).await {
                    Ok(()) => tell(Event::Closed {
                        from: &from,
                        moved: &moved,
                    }),
                    Err(why) => tell(Event::Failed { from: &from, why }),
                }
                drop(permit);
            });
        }
    }

    fn to(&self) -> Place {
        match &self.source {
            Source::Host(_, guest) => guest.clone(),
            Source::Guest(_, _, host) | Source::Service(_, _, host) => Place::Socket(host.clone()),
        }
    }

    /// The next one who connects.
    async fn next(&mut self, tell: &impl Fn(Event<'_>)) -> Result<(Come, String), ForwardError> {
        loop {
            let lost = match &mut self.source {
                Source::Host(listener, _) => match listener.accept().await {
                    Ok((socket, from)) => return Ok((Come::Host(socket), from)),
                    Err(error) => error,
                },
                Source::Service(listener, address, _) => match listener.accept().await {
                    Ok((stream, _)) => {
                        let from = stream.peer().map(|peer| peer.partition().to_owned());
                        return Ok((Come::Service(Box::new(stream)), from.unwrap_or_default()));
                    }
                    // The broker has cut it, and says why.
                    Err(error) if hvsock::refusal_of(&error).is_some() => {
                        let address = address.clone();
                        return Err(ForwardError::Service {
                            address,
                            listen: true,
                            error,
                        });
                    }
                    Err(error) => error,
                },
                Source::Guest(listener, asked, _) => match listener.accept().await {
                    Ok(arrived) => {
                        let from = arrived.from().to_owned();
                        return Ok((Come::Guest(arrived), from));
                    }
                    Err(error) => {
                        tell(Event::Lost {
                            why: error.to_string(),
                        });
                        **listener = again(&self.target, asked, listener.address()).await;
                        tell(Event::Regained);
                        continue;
                    }
                },
            };
            tell(Event::Lost {
                why: lost.to_string(),
            });
            Listener::rest().await;
        }
    }
}

/// Asks the guest to listen until it does: at the port that it chose before, if it chose one.
async fn again(target: &Target, asked: &Address, bound: &Address) -> GuestListener {
    let mut pause = Duration::from_millis(250);
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        let address = match (asked, bound) {
            (Address::Tcp { host, port: 0 }, Address::Tcp { port, .. }) => Address::Tcp {
                host: host.clone(),
                port: *port,
            },
            _ => asked.clone(),
        };
        if let Ok(listener) = listen(target, &address).await {
            return listener;
        }
    }
}

/// Reaches the other side for somebody who came, and carries bytes between the two.
async fn carry(target: &Target, come: Come, to: Place, moved: &Moved) -> Result<(), String> {
    let (tunnel, socket) = match (come, to) {
        (Come::Host(socket), to) => {
            let tunnel = match &to {
                Place::Socket(address) => connect(target, address).await,
                Place::Service(service) => connect_service(target, service).await,
            };
            match tunnel {
                Ok(tunnel) => (tunnel, socket),
                Err(error) => {
                    socket.reset();
                    return Err(error.to_string());
                }
            }
        }
        // Fetched before the host's side is known to be there: it must be told that it is not.
        (Come::Guest(arrived), Place::Socket(host)) => {
            let tunnel = arrived.fetch().await.map_err(|error| error.to_string())?;
            match Socket::connect(&host).await {
                Ok(socket) => (tunnel, socket),
                Err(error) => {
                    let why = of_host(&host, error).to_string();
                    tunnel.refuse(&why).await;
                    return Err(why);
                }
            }
        }
        (Come::Service(stream), Place::Socket(host)) => match Socket::connect(&host).await {
            Ok(socket) => {
                let far = Far::Plain(*stream);
                (Tunnel { far }, socket)
            }
            Err(error) => {
                stream.abandon();
                return Err(of_host(&host, error).to_string());
            }
        },
        (_, Place::Service(service)) => {
            return Err(format!("`{service}` is no socket of the host"));
        }
    };
    let carried = tunnel.carry(socket, moved).await;
    carried.map_err(|fault| fault.to_string())
}
