//! Sockets across the boundary, from the host's side.
//!
//! [`connect`] reaches a socket of the guest, [`listen`] has the guest listen for the host, and a
//! [`Tunnel`] is the connection that comes of either. [`Forwarding`] does all of it between a
//! socket here and a [`Place`] there, connection by connection.

mod forwarding;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hvsock::tokio::HvStream;
use hvsock::{HvAddr, ServiceRef};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::catalog::FORWARD;
use crate::forward::{
    Address, Far, Fault, LONGEST_REASON, Moved, ParseAddressError, Socket, message, shortened,
    splice,
};
use crate::link::{CallError, Target};
use crate::wire::forward::request::What;
use crate::wire::forward::{Answer, Arrival, Request, answer};

pub use forwarding::{Event, Forwarding, From, Place};

/// How long the guest may take to answer: somewhat longer than it may take to connect.
const ANSWERING: Duration = Duration::from_secs(15);
/// How long a connect to a service may take.
const CONNECTING: Duration = Duration::from_secs(5);
/// The length of a token.
const TOKEN: usize = 16;

/// Why a socket of a guest, or of the host, cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The guest's forwarding cannot be reached.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The guest says no.
    #[error("{address} in the guest: {reason}")]
    Refused {
        /// What was asked for.
        address: Address,
        /// Why it cannot be had.
        reason: String,
    },
    /// The connection broke before it could be used.
    #[error("the guest's agent did not answer: {0}")]
    Broken(#[source] io::Error),
    /// A service of the guest, or for the guest, cannot be had.
    #[error("{error}")]
    Service {
        /// Which, and where.
        address: HvAddr,
        /// Whether it was to be listened for.
        listen: bool,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// A socket of the host.
    #[error("{address}: {error}")]
    Host {
        /// Which.
        address: Address,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// An address that cannot be sent.
    #[error(transparent)]
    Address(#[from] ParseAddressError),
}

/// A connection to a socket of the guest, of which no byte was carried yet.
#[derive(Debug)]
pub struct Tunnel {
    far: Far,
}

impl Tunnel {
    /// Carries bytes between it and a socket, until both directions have ended. After a fault the
    /// socket was reset.
    pub async fn carry(self, mut socket: Socket, moved: &Moved) -> Result<(), Fault> {
        let (read, write) = tokio::io::split(&mut socket);
        let carried = splice(read, write, self.far, moved).await;
        if carried.is_err() {
            socket.reset();
        }
        carried
    }

    /// Likewise between it and whatever reads and writes.
    pub async fn carry_halves<R, W>(self, read: R, write: W, moved: &Moved) -> Result<(), Fault>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        splice(read, write, self.far, moved).await
    }
}

/// Connects to a socket of the guest.
pub async fn connect(target: &Target, address: &Address) -> Result<Tunnel, ForwardError> {
    let what = What::Connect(address.to_wire()?);
    let (stream, _) = ask(target, what, address).await?;
    let far = Far::Records(stream);
    Ok(Tunnel { far })
}

/// Connects to a service of the guest as it is, without its agent.
pub async fn connect_service(
    target: &Target,
    service: &ServiceRef,
) -> Result<Tunnel, ForwardError> {
    let options = target.options().timeout(CONNECTING);
    let address = HvAddr::new(target.partition().clone(), service.clone());
    match HvStream::connect_with(&options, address.clone()).await {
        Ok(stream) => Ok(Tunnel {
            far: Far::Plain(stream),
        }),
        Err(error) => Err(ForwardError::Service {
            address,
            listen: false,
            error,
        }),
    }
}

/// Has the guest listen.
pub async fn listen(target: &Target, address: &Address) -> Result<GuestListener, ForwardError> {
    let what = What::Listen(address.to_wire()?);
    let (stream, bound) = ask(target, what, address).await?;
    Ok(GuestListener {
        target: target.clone(),
        stream,
        address: bound,
    })
}

/// Sends a request and takes its answer: what was reached, as the guest says.
async fn ask(
    target: &Target,
    what: What,
    address: &Address,
) -> Result<(HvStream, Address), ForwardError> {
    let mut stream = target.stream(&FORWARD).await?;
    let asking = async {
        let request = Request { what: Some(what) };
        message::send(&mut stream, &request).await?;
        let answer = message::receive::<_, Answer>(&mut stream).await?;
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        answer.result.ok_or_else(|| odd("an empty answer"))
    };
    let answer = timeout(ANSWERING, asking).await;
    let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match answer.map_err(ForwardError::Broken)? {
        answer::Result::Ready(ready) => {
            let reached = ready.address.as_ref().map(Address::of_wire);
            let reached = reached.transpose()?;
            Ok((stream, reached.unwrap_or_else(|| address.clone())))
        }
        answer::Result::Refused(refused) => Err(ForwardError::Refused {
            address: address.clone(),
            reason: shortened(refused.reason, LONGEST_REASON),
        }),
    }
}

fn odd(what: &str) -> io::Error {
    let text = format!("the agent sent {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A listener in the guest, which is there for as long as this is.
#[derive(Debug)]
pub struct GuestListener {
    target: Target,
    stream: HvStream,
    address: Address,
}

impl GuestListener {
    /// Where, with the port that was chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits until somebody in the guest has connected. Cancelling the wait loses the listener.
    pub async fn accept(&mut self) -> io::Result<Arrived> {
        let arrival = message::receive::<_, Arrival>(&mut self.stream).await?;
        let Arrival { token, from } = arrival.ok_or(io::ErrorKind::UnexpectedEof)?;
        if token.len() != TOKEN {
            return Err(odd("a token of another length"));
        }
        Ok(Arrived {
            target: self.target.clone(),
            address: self.address.clone(),
            token: token.to_vec(),
            from,
        })
    }
}

/// A connection that waits in the guest; for ten seconds.
#[derive(Debug)]
pub struct Arrived {
    target: Target,
    address: Address,
    token: Vec<u8>,
    from: String,
}

impl Arrived {
    /// Who connected, as the guest says.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Fetches it.
    pub async fn fetch(self) -> Result<Tunnel, ForwardError> {
        let what = What::Accept(self.token.into());
        let (stream, _) = ask(&self.target, what, &self.address).await?;
        let far = Far::Records(stream);
        Ok(Tunnel { far })
    }
}

/// Whether a forwarding to this place could work now: whether the partition is there and its agent,
/// or the service, can be connected to.
pub async fn probe(target: &Target, guest: &Place) -> Result<(), ForwardError> {
    match guest {
        // A connection that asks for nothing is closed.
        Place::Socket(_) => Ok(target.stream(&FORWARD).await.map(drop)?),
        Place::Service(service) => {
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

impl Tunnel {
    /// Tells the far socket that there is none here, and why.
    pub async fn refuse(self, why: &str) {
        // The very first read fails, which is told to the other half.
        let broken = Broken(why.to_owned());
        let _ = splice(broken, tokio::io::sink(), self.far, &Moved::default()).await;
    }
}

/// A socket that is broken from the start.
struct Broken(String);

impl AsyncRead for Broken {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other(self.0.clone())))
    }
}
