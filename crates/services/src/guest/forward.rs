//! Sockets of the guest for its parent: connected to and listened at on its behalf.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hvsock::tokio::HvStream;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::ssh::{Ssh, Sshd};
use crate::catalog::FORWARD;
use crate::forward::{
    Address, Far, Fault, LONGEST_REASON, Listener, Moved, Socket, message, shortened, splice,
};
use crate::link::Offer;
use crate::wire::forward::request::What;
use crate::wire::forward::{Answer, Arrival, Ready, Refused, Request, answer};

/// How long the parent may take to say what it wants.
const ASKING: Duration = Duration::from_secs(10);
/// How long a connection that arrived waits for the parent to fetch it.
const FETCHING: Duration = Duration::from_secs(10);
/// How many connections wait to be fetched; more wait in their listeners' backlogs.
const WAITING: usize = 128;
/// The longest description of who connected, in bytes.
const LONGEST_FROM: usize = 256;

type Token = [u8; 16];

/// The service.
pub(super) fn offer(sshd: Option<PathBuf>) -> Offer {
    let service = Arc::new(Service {
        waiting: Mutex::default(),
        room: Arc::new(Semaphore::new(WAITING)),
        ssh: Ssh::new(sshd),
    });
    Offer::streams(&FORWARD, move |stream| {
        let service = Arc::clone(&service);
        async move {
            if let Err(error) = service.serve(stream).await {
                tracing::debug!("a forwarded connection ended: {error}");
            }
        }
    })
}

struct Service {
    /// Connections that arrived and were not fetched yet.
    waiting: Mutex<HashMap<Token, Waiting>>,
    room: Arc<Semaphore>,
    ssh: Ssh,
}

struct Waiting {
    socket: Socket,
    address: Address,
    _room: OwnedSemaphorePermit,
}

/// What a request turned into.
pub(super) enum Reached {
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
        let asked = timeout(ASKING, message::receive(&mut stream)).await;
        let request: Option<Request> = asked.map_err(io::Error::from)??;
        let Some(request) = request else {
            return Ok(());
        };
        let reached = match self.reach(request).await {
            Ok(reached) => reached,
            Err(error) => {
                let refused = answer::Result::Refused(Refused {
                    errno: error.raw_os_error().unwrap_or_default(),
                    reason: shortened(error.to_string(), LONGEST_REASON),
                });
                let answer = Answer {
                    result: Some(refused),
                };
                return Ok(message::send(&mut stream, &answer).await?);
            }
        };
        let address = match &reached {
            Reached::Socket(_, address) => address,
            Reached::Sshd(_) => &Address::Ssh,
            Reached::Listener(listener) => listener.address(),
        };
        let ready = Ready {
            address: Some(address.to_wire().map_err(io::Error::other)?),
        };
        let answer = Answer {
            result: Some(answer::Result::Ready(ready)),
        };
        message::send(&mut stream, &answer).await?;
        match reached {
            Reached::Socket(socket, _) => Ok(carry(socket, stream).await?),
            Reached::Sshd(sshd) => Ok(sshd.carry(stream).await?),
            Reached::Listener(listener) => Ok(self.announce(&listener, stream).await?),
        }
    }

    async fn reach(&self, request: Request) -> io::Result<Reached> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        let address = |sent| Address::of_wire(&sent).map_err(|error| invalid(error.to_string()));
        match request.what {
            Some(What::Connect(sent)) => match address(sent)? {
                Address::Ssh => self.ssh.reach().await,
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
                } = waiting.ok_or_else(|| invalid("no such connection is waiting".to_owned()))?;
                Ok(Reached::Socket(socket, address))
            }
            None => Err(invalid(
                "the request is none that this agent knows".to_owned(),
            )),
        }
    }

    fn take(&self, token: &Token) -> Option<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(token)
    }

    /// Tells the parent of each connection, until it closes its own.
    async fn announce(
        self: &Arc<Self>,
        listener: &Listener,
        mut parent: HvStream,
    ) -> io::Result<()> {
        let (mut from, mut to) = parent.split();
        let arrivals = async {
            loop {
                let room = Arc::clone(&self.room).acquire_owned().await;
                let room = room.map_err(io::Error::other)?;
                let (socket, who) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!("cannot accept at {}: {error}", listener.address());
                        Listener::rest().await;
                        continue;
                    }
                };
                let arrival = Arrival {
                    token: self.keep(socket, listener.address(), room)?.to_vec().into(),
                    from: shortened(who, LONGEST_FROM),
                };
                message::send(&mut to, &arrival).await?;
            }
        };
        tokio::select! {
            ended = arrivals => ended,
            // It says nothing more: whatever comes is its end.
            ended = from.read_u8() => match ended {
                Ok(_) => Err(io::ErrorKind::InvalidData.into()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    /// Keeps a connection until it is fetched or its time is over.
    fn keep(
        self: &Arc<Self>,
        socket: Socket,
        address: &Address,
        room: OwnedSemaphorePermit,
    ) -> io::Result<Token> {
        let mut token = Token::default();
        rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
        let arrived = Waiting {
            socket,
            address: address.clone(),
            _room: room,
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(token, arrived);
        let service = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(FETCHING).await;
            if let Some(unfetched) = service.take(&token) {
                tracing::debug!("nobody fetched a connection to {}", unfetched.address);
                unfetched.socket.reset();
            }
        });
        Ok(token)
    }
}

/// Carries a socket's bytes until both directions have ended.
async fn carry(mut socket: Socket, stream: HvStream) -> Result<(), Fault> {
    let moved = Moved::default();
    let (read, write) = tokio::io::split(&mut socket);
    let carried = splice(read, write, Far::Records(stream), &moved).await;
    if carried.is_err() {
        socket.reset();
    }
    carried
}
