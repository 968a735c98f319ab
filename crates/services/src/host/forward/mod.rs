//! Socket forwarding from the host's side.
//!
//! [`connect`] reaches a socket in the guest. [`listen`] makes the guest listen for the host. Both
//! yield a [`Tunnel`], which is one connection. [`Forwarding`] combines them: it listens on one
//! side and relays each connection to the other, a socket or a [`ForwardEnd`].

mod forwarding;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hvsock::tokio::HvStream;
use hvsock::{HvAddr, ServiceRef};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::requester::Requester;
use crate::catalog::FORWARD;
use crate::forward::{
    Address, Fault, MAX_REASON, ParseAddressError, Remote, Socket, Transferred, message, relay,
};
use crate::link::{CallError, Target};
use crate::text::shortened;
use crate::wire::forward::request::What;
use crate::wire::forward::{Answer, Arrival, Request, answer};

pub use forwarding::{Event, ForwardEnd, Forwarding, Source, probe};

/// How long the guest may take to answer: slightly longer than its own connect timeout.
const ANSWERING: Duration = Duration::from_secs(15);
/// The timeout of a connect to a service.
const CONNECTING: Duration = Duration::from_secs(5);
/// The length of a token, in bytes.
const TOKEN: usize = 16;

/// Why a socket in the guest or on the host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The guest's forwarding service cannot be reached.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The guest refused the request.
    #[error("{address} in the guest: {reason}")]
    Refused {
        /// The requested address.
        address: Address,
        /// The guest's reason.
        reason: String,
    },
    /// The connection broke before the guest answered.
    #[error("the guest's agent did not answer: {0}")]
    Broken(io::Error),
    /// The guest did not answer in time.
    #[error("timed out: the guest's agent did not answer within {} s", ANSWERING.as_secs())]
    TimedOut,
    /// A service cannot be connected to or listened for.
    #[error("{error}")]
    Service {
        /// The service's address.
        address: HvAddr,
        /// Whether this was a listen; otherwise it was a connect.
        listen: bool,
        /// The reason.
        error: io::Error,
    },
    /// A socket of the host failed.
    #[error("{address}: {error}")]
    Host {
        /// Its address.
        address: Address,
        /// The system's error.
        error: io::Error,
    },
    /// An address that does not fit the wire format.
    #[error(transparent)]
    Address(#[from] ParseAddressError),
}

/// A connection to a socket in the guest, before any byte is relayed.
#[derive(Debug)]
pub struct Tunnel {
    remote: Remote,
}

impl Tunnel {
    /// Relays bytes between the tunnel and a socket until both directions have ended, with
    /// half-close. After a fault the socket is reset.
    ///
    /// # Errors
    ///
    /// [`Fault`] if either side breaks.
    #[doc(alias = "splice")]
    pub async fn relay(self, mut socket: Socket, transferred: &Transferred) -> Result<(), Fault> {
        let (read, write) = tokio::io::split(&mut socket);
        let relayed = relay(read, write, self.remote, transferred).await;
        if relayed.is_err() {
            socket.reset();
        }
        relayed
    }

    /// Like [`Tunnel::relay`], for any reader and writer.
    ///
    /// # Errors
    ///
    /// [`Fault`] if either side breaks.
    pub async fn relay_halves<R, W>(
        self,
        read: R,
        write: W,
        transferred: &Transferred,
    ) -> Result<(), Fault>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        relay(read, write, self.remote, transferred).await
    }
}

/// Connects to a socket in the guest.
///
/// # Errors
///
/// [`ForwardError`] if the agent cannot be reached or the guest refuses the address.
pub async fn connect(target: &Target, address: &Address) -> Result<Tunnel, ForwardError> {
    let what = What::Connect(address.to_wire()?);
    let (stream, _) = request(target, what, address).await?;
    let remote = Remote::Records(stream);
    Ok(Tunnel { remote })
}

/// Connects directly to a service of the guest, without its agent.
///
/// # Errors
///
/// [`ForwardError::Service`] if the connect fails or takes more than 5 seconds.
pub async fn connect_service(
    target: &Target,
    service: &ServiceRef,
) -> Result<Tunnel, ForwardError> {
    let options = target.options().timeout(CONNECTING);
    let address = HvAddr::new(target.partition().clone(), service.clone());
    match HvStream::connect_with(&options, address.clone()).await {
        Ok(stream) => Ok(Tunnel {
            remote: Remote::Raw(stream),
        }),
        Err(error) => Err(ForwardError::Service {
            address,
            listen: false,
            error,
        }),
    }
}

/// Makes the guest listen on an address.
///
/// # Errors
///
/// [`ForwardError`] if the agent cannot be reached or the guest cannot listen there.
pub async fn listen(target: &Target, address: &Address) -> Result<GuestListener, ForwardError> {
    let what = What::Listen(address.to_wire()?);
    let (stream, bound) = request(target, what, address).await?;
    Ok(GuestListener {
        target: target.clone(),
        stream,
        address: bound,
    })
}

/// Sends a request and receives its answer: the stream and the address that the guest reports.
async fn request(
    target: &Target,
    what: What,
    address: &Address,
) -> Result<(HvStream, Address), ForwardError> {
    let mut stream = target.stream(&FORWARD).await?;
    let exchange = async {
        let request = Request {
            what: Some(what),
            requester: Some(Requester::of(stream.connection_id()).into()),
        };
        message::send(&mut stream, &request).await?;
        let answer = message::receive::<_, Answer>(&mut stream).await?;
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        answer
            .result
            .ok_or_else(|| protocol_violation("an empty answer"))
    };
    let answer = timeout(ANSWERING, exchange).await;
    match answer
        .map_err(|_| ForwardError::TimedOut)?
        .map_err(ForwardError::Broken)?
    {
        answer::Result::Ready(ready) => {
            let reached = ready.address.as_ref().map(Address::from_wire);
            let reached = reached.transpose()?;
            Ok((stream, reached.unwrap_or_else(|| address.clone())))
        }
        answer::Result::Refused(refused) => Err(ForwardError::Refused {
            address: address.clone(),
            reason: shortened(refused.reason, MAX_REASON),
        }),
    }
}

fn protocol_violation(what: &str) -> io::Error {
    let text = format!("protocol violation: the agent sent {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A listener in the guest. It closes when this is dropped.
#[derive(Debug)]
pub struct GuestListener {
    target: Target,
    stream: HvStream,
    address: Address,
}

impl GuestListener {
    /// The address, with the chosen port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for the next connection in the guest. Not cancel safe: cancelling the wait can lose a
    /// part of a message and so the listener.
    ///
    /// # Errors
    ///
    /// The connection's error if it breaks, or `InvalidData` if the agent violates the protocol.
    pub async fn accept(&mut self) -> io::Result<PendingConnection> {
        let arrival = message::receive::<_, Arrival>(&mut self.stream).await?;
        let Arrival { token, from } = arrival.ok_or(io::ErrorKind::UnexpectedEof)?;
        if token.len() != TOKEN {
            return Err(protocol_violation("a token of the wrong length"));
        }
        Ok(PendingConnection {
            target: self.target.clone(),
            address: self.address.clone(),
            token: token.to_vec(),
            from,
        })
    }
}

/// A connection that waits in the guest. The guest resets it after ten seconds.
#[derive(Debug)]
pub struct PendingConnection {
    target: Target,
    address: Address,
    token: Vec<u8>,
    from: String,
}

impl PendingConnection {
    /// The peer, as the guest reports it.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Fetches the connection.
    ///
    /// # Errors
    ///
    /// [`ForwardError`] if the agent cannot be reached, or the connection is no longer waiting.
    pub async fn fetch(self) -> Result<Tunnel, ForwardError> {
        let what = What::Accept(self.token.into());
        let (stream, _) = request(&self.target, what, &self.address).await?;
        let remote = Remote::Records(stream);
        Ok(Tunnel { remote })
    }
}

impl Tunnel {
    /// Reports to the remote end that this side has no socket, and why.
    pub async fn refuse(self, why: &str) {
        // The first read fails; the relay reports that to the other end.
        let broken = Broken(why.to_owned());
        let _ = relay(
            broken,
            tokio::io::sink(),
            self.remote,
            &Transferred::default(),
        )
        .await;
    }
}

/// A reader that always fails.
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
