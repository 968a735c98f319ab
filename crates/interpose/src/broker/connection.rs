//! One connection to the endpoint: messages out, messages in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use hvsock::Endpoint;
use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE};
use hvsock_sys::impersonation::with_credentials;
use hvsock_sys::remote::Credentials;
use hvsock_sys::{message, seqpacket};

/// Why a connection to the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No broker listens at any of the endpoint's paths.
    #[error("no broker runs")]
    NoBroker,
    /// The broker's queue of clients is full: try again later.
    #[error("the broker's queue of clients is full")]
    Busy,
    /// The system does not permit it, or has no descriptors left.
    #[error("cannot connect to the broker's endpoint")]
    System(#[source] io::Error),
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection(OwnedFd);

/// A message with its descriptors.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) message: BrokerMessage,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// The broker has closed the connection, or sent what cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

impl Connection {
    /// Connects to the first path where a broker listens, with the rights of `credentials` if there are any.
    pub(crate) fn open(
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
    ) -> Result<Self, OpenError> {
        match credentials {
            None => Self::open_as_self(endpoint),
            Some(credentials) => with_credentials(credentials, || Self::open_as_self(endpoint))
                .map_err(OpenError::System)?,
        }
    }

    fn open_as_self(endpoint: &Endpoint) -> Result<Self, OpenError> {
        use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound, WouldBlock};
        for path in endpoint.paths() {
            match seqpacket::connect(path, Duration::ZERO) {
                Ok(socket) => return Ok(Self(socket)),
                Err(error) => match error.kind() {
                    NotFound | NotADirectory | ConnectionRefused => {}
                    WouldBlock => return Err(OpenError::Busy),
                    _ => return Err(OpenError::System(error)),
                },
            }
        }
        Err(OpenError::NoBroker)
    }

    /// Sends a message. What the broker has to say about a connection that it closed is received later, so
    /// a failure is no error here.
    pub(crate) fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::with_capacity(64);
        message.encode(&mut bytes);
        let _ = message::send(&self.0, &bytes, &[]);
    }

    /// Takes the next message; `None` if there is none yet.
    pub(crate) fn receive(&self) -> Result<Option<Message>, Closed> {
        let mut buffer = [0; MAX_MESSAGE];
        let received = match message::recv_with_descriptors(&self.0, &mut buffer) {
            Ok(received) if received.len > 0 => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Ok(_) | Err(_) => return Err(Closed),
        };
        let message = BrokerMessage::decode(&buffer[..received.len]).map_err(|_| Closed)?;
        if received.dropped_descriptors {
            return Err(Closed);
        }
        Ok(Some(Message {
            message,
            descriptors: received.descriptors,
        }))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
