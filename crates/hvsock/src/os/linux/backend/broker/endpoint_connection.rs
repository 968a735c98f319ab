//! A connection to the endpoint of a broker, with requests and replies.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, Refused};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::{message, seqpacket};

use super::{errors, spin::Spin};
use crate::Endpoint;
use crate::NoBroker;
use crate::os::ready;

/// An endpoint connection that has not become a socket yet.
#[derive(Clone, Debug)]
pub(crate) struct EndpointConnection {
    socket: Arc<OwnedFd>,
    path: Arc<Path>,
}

/// A reply of the broker.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A message with its descriptors.
    Message {
        message: BrokerMessage,
        descriptors: Vec<OwnedFd>,
    },
    /// The request is refused.
    Refused(Refused),
}

impl Reply {
    /// The message. A refusal is an error.
    pub(super) fn into_message(self) -> io::Result<BrokerMessage> {
        match self {
            Self::Message { message, .. } => Ok(message),
            Self::Refused(refused) => Err(errors::refusal(&refused).into()),
        }
    }
}

impl EndpointConnection {
    /// Connects to the first of the endpoint's sockets where a broker listens.
    ///
    /// Waits up to `timeout` if the broker's queue of clients is full, then returns `WouldBlock`.
    pub(crate) fn open(endpoint: &Endpoint, timeout: Duration) -> io::Result<Self> {
        for path in endpoint.paths() {
            match seqpacket::connect(path, timeout) {
                Ok(socket) => {
                    let (socket, path) = (Arc::new(socket), path.as_path().into());
                    return Ok(Self { socket, path });
                }
                Err(error) if is_absent(&error) => {}
                Err(error) => {
                    let text = match error.kind() {
                        io::ErrorKind::WouldBlock => {
                            "the broker's queue of clients is full".to_owned()
                        }
                        _ => error.to_string(),
                    };
                    let text = format!("the endpoint {}: {text}", path.display());
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        Err(NoBroker {
            tried: endpoint.paths().to_vec(),
        }
        .into())
    }

    /// Sends a request. If the broker has closed the connection, this succeeds, and receiving the reply
    /// returns the reason.
    pub(crate) fn send_request(&self, request: &ClientMessage) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(64);
        request.encode(&mut bytes);
        match message::send(&self.socket, &bytes, &[]) {
            // A broker that rejects a client, or a message before this one, sends the reason and closes.
            // The reason is in the queue.
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(self.no_reply_error()),
            result => result,
        }
    }

    /// Receives the next reply; `WouldBlock` if there is none yet.
    pub(crate) fn try_recv_reply(&self) -> io::Result<Reply> {
        let mut buffer = [0; MAX_MESSAGE];
        let mut receive = || message::recv_with_descriptors(&self.socket, &mut buffer);
        // A broker that closes with a message unread makes this fail once, before the messages that it
        // sent are received.
        let received = match receive() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive(),
            received => received,
        };
        let received = match received {
            Ok(received) if received.len == 0 => return Err(errors::broker_gone()),
            Ok(received) => received,
            Err(error) if is_gone(&error) => return Err(errors::broker_gone()),
            Err(error) => return Err(error),
        };
        match BrokerMessage::decode(&buffer[..received.len]) {
            Ok(BrokerMessage::Refused(refused) | BrokerMessage::Reset(refused)) => {
                Ok(Reply::Refused(refused))
            }
            Ok(_) if received.dropped_descriptors => Err(errors::descriptor_limit()),
            Ok(message) => {
                let descriptors = received.descriptors;
                Ok(Reply::Message {
                    message,
                    descriptors,
                })
            }
            Err(fault) => Err(self.protocol_error(&fault)),
        }
    }

    /// Waits for the next reply until `deadline`, then returns `TimedOut`.
    pub(crate) fn recv_reply(&self, deadline: Instant) -> io::Result<Reply> {
        if let Some(reply) = self.spin_for_reply() {
            return reply;
        }
        while ready(self, PollFlags::IN, Some(deadline))? {
            match self.try_recv_reply() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
        Err(self.no_reply_error())
    }

    /// Spins for the next reply for a moment. It takes the broker less time than a wait and a wakeup take,
    /// unless the broker has to wait itself: for a processor, or for a guest.
    fn spin_for_reply(&self) -> Option<io::Result<Reply>> {
        static TAKEN: Spin = Spin::up_to(Duration::from_micros(40));
        static REPLY: Spin = Spin::up_to(Duration::from_micros(80));

        let reply = Cell::new(None);
        let has_arrived = || match self.try_recv_reply() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            received => {
                reply.set(Some(received));
                true
            }
        };
        // The first time hardly ever finds one. It has the system load the code and the stack that
        // receiving needs, while the broker works. The broker has a processor once it has received the
        // request.
        if !has_arrived() && TAKEN.until(|| !message::has_unread(&self.socket)) {
            REPLY.until(has_arrived);
        }
        reply.into_inner()
    }

    /// The error for a message that violates the endpoint protocol.
    pub(crate) fn protocol_error(&self, what: &dyn fmt::Display) -> io::Error {
        errors::protocol_error(&format!("at {}", self.path.display()), what)
    }

    /// The error for a broker that does not reply in time.
    pub(crate) fn no_reply_error(&self) -> io::Error {
        let text = format!(
            "timed out: the broker at {} does not reply",
            self.path.display()
        );
        io::Error::new(io::ErrorKind::TimedOut, text)
    }

    /// The path of the endpoint.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket, for the messages after the replies.
    pub(super) fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }
}

impl AsFd for EndpointConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for EndpointConnection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Returns true if no broker listens at a path, so that the next path is tried.
fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | ConnectionRefused)
}

/// Returns true if the peer of a socket has closed it.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}
