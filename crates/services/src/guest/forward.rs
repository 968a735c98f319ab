//! Connects to and listens on sockets of the guest for its parent.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvsock::tokio::HvStream;
use hvsock_sys::sync::lock;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::audit::{self, Record, Requester};
use super::ssh::{self, Ssh, Sshd};
use crate::catalog::FORWARD;
use crate::forward::{
    Address, Fault, Listener, MAX_REASON, Remote, Socket, Transferred, message, relay,
};
use crate::link::ServiceServer;
use crate::text::shortened;
use crate::wire::forward::request::What;
use crate::wire::forward::{Answer, Arrival, Ready, Refused, Request, answer};

/// How long the parent may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an accepted connection waits for the parent to fetch it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The most connections that wait to be fetched. More wait in their listeners' backlogs.
const WAITING: usize = 128;
/// The shortest time between two log lines that the limit is reached.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The longest description of a peer, in bytes.
const MAX_PEER: usize = 256;

type Token = [u8; 16];

/// The service.
pub(super) fn server(sshd: Option<PathBuf>) -> ServiceServer {
    let service = Arc::new(Service {
        waiting: Mutex::default(),
        limit: Arc::new(Semaphore::new(WAITING)),
        ssh: Ssh::new(sshd),
    });
    let server = ServiceServer::streams(&FORWARD, move |stream| {
        let service = Arc::clone(&service);
        async move {
            if let Err(error) = service.serve(stream).await {
                tracing::debug!("a forwarded connection ended: {error}");
            }
        }
    });
    server.refusing(async |mut stream, why| {
        let error = io::Error::new(io::ErrorKind::ResourceBusy, why);
        if let Err(error) = message::send(&mut stream, &refusal(&error)).await {
            tracing::debug!("cannot refuse a connection: {error}");
        }
    })
}

/// The answer to a request that fails.
fn refusal(error: &io::Error) -> Answer {
    let refused = Refused {
        errno: error.raw_os_error().unwrap_or_default(),
        reason: shortened(error.to_string(), MAX_REASON),
    };
    Answer {
        result: Some(answer::Result::Refused(refused)),
    }
}

struct Service {
    /// Accepted connections that are not fetched yet.
    waiting: Mutex<HashMap<Token, Waiting>>,
    limit: Arc<Semaphore>,
    ssh: Ssh,
}

struct Waiting {
    socket: Socket,
    address: Address,
    _permit: OwnedSemaphorePermit,
}

/// What the guest's log says of a request: an action and an address. Fetching a connection that was
/// announced is part of its listener.
fn asked(request: &Request) -> Option<(&'static str, String)> {
    let (action, address) = match request.what.as_ref()? {
        What::Connect(address) => ("forward_connect", address),
        What::Listen(address) => ("forward_listen", address),
        What::Accept(_) => return None,
    };
    let address = Address::from_wire(address);
    Some((
        action,
        address.map_or_else(|error| error.to_string(), |one| one.to_string()),
    ))
}

/// The result of a request.
enum Reached {
    Socket(Socket, Address),
    Sshd(Sshd),
    Listener(Listener),
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Service {
    async fn serve(self: Arc<Self>, mut stream: HvStream) -> Result<(), Failed> {
        let received = timeout(REQUEST_TIMEOUT, message::receive(&mut stream)).await;
        let request: Option<Request> = received.map_err(io::Error::from)??;
        let Some(request) = request else {
            return Ok(());
        };
        let by = Requester::from(request.requester.clone());
        let asked = asked(&request);
        let record = |outcome, result: Option<&str>| {
            if let Some((action, detail)) = &asked {
                audit::write(&Record {
                    action,
                    outcome,
                    detail,
                    result,
                    by: Some(&by),
                    ..Record::default()
                });
            }
        };
        let reached = match self.reach(request).await {
            Ok(reached) => reached,
            Err(error) => {
                record("failed", Some(&error.to_string()));
                return Ok(message::send(&mut stream, &refusal(&error)).await?);
            }
        };
        let address = match &reached {
            Reached::Socket(_, address) => address,
            Reached::Sshd(_) => &Address::Ssh,
            Reached::Listener(listener) => listener.address(),
        };
        record("started", None);
        let ready = Ready {
            address: Some(address.to_wire().map_err(io::Error::other)?),
        };
        let answer = Answer {
            result: Some(answer::Result::Ready(ready)),
        };
        message::send(&mut stream, &answer).await?;
        match reached {
            Reached::Socket(socket, _) => Ok(relay_socket(socket, stream).await?),
            Reached::Sshd(sshd) => Ok(sshd.relay(stream).await?),
            Reached::Listener(listener) => Ok(self.announce(&listener, stream).await?),
        }
    }

    async fn reach(&self, request: Request) -> io::Result<Reached> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let address = |sent| Address::from_wire(&sent).map_err(|error| invalid(error.to_string()));
        match request.what {
            Some(What::Connect(sent)) => match address(sent)? {
                Address::Ssh => Ok(match self.ssh.reach().await? {
                    ssh::Server::Listening(socket, address) => Reached::Socket(socket, address),
                    ssh::Server::Started(sshd) => Reached::Sshd(sshd),
                }),
                address => {
                    let socket = Socket::connect(&address).await?;
                    Ok(Reached::Socket(socket, address))
                }
            },
            Some(What::Listen(sent)) => {
                let listener = Listener::bind(&address(sent)?).await?;
                Ok(Reached::Listener(listener))
            }
            Some(What::Accept(token)) => {
                let token = Token::try_from(token.as_ref());
                let waiting = token.ok().and_then(|token| self.take(&token));
                let Waiting {
                    socket, address, ..
                } = waiting.ok_or_else(|| invalid("no such pending connection".to_owned()))?;
                Ok(Reached::Socket(socket, address))
            }
            None => Err(invalid("unknown request".to_owned())),
        }
    }

    fn take(&self, token: &Token) -> Option<Waiting> {
        let mut waiting = lock(&self.waiting);
        waiting.remove(token)
    }

    /// Announces each accepted connection to the parent, until the parent closes its own.
    async fn announce(
        self: &Arc<Self>,
        listener: &Listener,
        mut parent: HvStream,
    ) -> io::Result<()> {
        let (mut from, mut to) = parent.split();
        let arrivals = async {
            let mut logged: Option<Instant> = None;
            loop {
                if self.limit.available_permits() == 0
                    && logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL)
                {
                    logged = Some(Instant::now());
                    tracing::warn!(
                        "{WAITING} connections wait for the host to fetch them; further ones to {} \
                         wait until it does",
                        listener.address()
                    );
                }
                let permit = Arc::clone(&self.limit).acquire_owned().await;
                let permit = permit.map_err(io::Error::other)?;
                let (socket, who) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(
                            "cannot accept a connection on {}: {error}",
                            listener.address()
                        );
                        Listener::back_off().await;
                        continue;
                    }
                };
                let arrival = Arrival {
                    token: self
                        .keep(socket, listener.address(), permit)?
                        .to_vec()
                        .into(),
                    from: shortened(who, MAX_PEER),
                };
                message::send(&mut to, &arrival).await?;
            }
        };
        tokio::select! {
            ended = arrivals => ended,
            // The parent sends nothing more: any input is the end or a violation.
            ended = from.read_u8() => match ended {
                Ok(_) => Err(io::ErrorKind::InvalidData.into()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    /// Keeps a connection until it is fetched or times out.
    fn keep(
        self: &Arc<Self>,
        socket: Socket,
        address: &Address,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<Token> {
        let mut token = Token::default();
        rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
        let arrived = Waiting {
            socket,
            address: address.clone(),
            _permit: permit,
        };
        let mut waiting = lock(&self.waiting);
        waiting.insert(token, arrived);
        let service = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(FETCH_TIMEOUT).await;
            if let Some(unfetched) = service.take(&token) {
                tracing::debug!(
                    "the host did not fetch a connection to {} in time",
                    unfetched.address
                );
                unfetched.socket.reset();
            }
        });
        Ok(token)
    }
}

/// Relays a socket's bytes until both directions have ended.
async fn relay_socket(mut socket: Socket, stream: HvStream) -> Result<(), Fault> {
    let transferred = Transferred::default();
    let (read, write) = tokio::io::split(&mut socket);
    let relayed = relay(read, write, Remote::Records(stream), &transferred).await;
    if relayed.is_err() {
        socket.reset();
    }
    relayed
}
