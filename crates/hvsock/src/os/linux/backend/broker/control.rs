//! What the broker says of one connection beside its data, and what it is told.
//!
//! The end of the data descriptor alone means nothing: a process that ends well says `SHUTDOWN`
//! first, a reset is announced by `RESET`, and a broker that dies closes everything at once. Every
//! duplicate of a stream, in any thread or task, shares this one reader of the endpoint.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE};
use hvsock_fabric::Refusal;
use hvsock_sys::message as socket_message;
use hvsock_sys::poll::PollFlags;

use super::endpoint_connection::is_gone;
use super::errors;
use crate::os::ready;

/// The endpoint of a connection that stands.
pub(super) struct Control {
    socket: Arc<OwnedFd>,
    state: Mutex<ControlState>,
}

/// What the broker has said so far.
#[derive(Default)]
struct ControlState {
    /// The other end's data ends where the data descriptor does.
    ended: bool,
    reset: Option<ResetReason>,
    /// Tasks that wait for state which another reader of the socket may take first.
    wakers: Vec<Waker>,
}

/// Why a connection was reset.
#[derive(Clone)]
pub(super) enum ResetReason {
    Refused(Refusal),
    BrokerGone,
    Protocol(String),
}

/// What is known of the connection's end.
#[derive(Clone)]
pub(super) struct EndStatus {
    pub(super) ended: bool,
    pub(super) reset: Option<ResetReason>,
    /// It was read only now.
    pub(super) updated: bool,
}

impl EndStatus {
    /// Whether the end of the data descriptor is explained.
    pub(super) fn is_final(&self) -> bool {
        self.ended || self.reset.is_some()
    }
}

impl ResetReason {
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Self::Refused(refusal) => refusal.into_cut_error(),
            Self::BrokerGone => errors::broker_gone(),
            Self::Protocol(what) => errors::protocol_error("of this connection", &what),
        }
    }
}

/// While one thread waits in the kernel another may read the message it waits for; so it looks
/// up at least this often. This is the rare wait between the end of data and its explanation.
const RECHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a blocking caller waits for room in a socket that the broker reads all the time.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

impl Control {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            state: Mutex::default(),
        }
    }

    /// Reads what is there and returns all that is known.
    pub(super) fn drain(&self) -> EndStatus {
        self.drain_with(|_| ())
    }

    #[cfg(feature = "tokio")]
    /// Likewise; where the end is not explained yet, `waker` is woken by whoever reads state.
    pub(super) fn drain_or_register(&self, waker: &Waker) -> EndStatus {
        self.drain_with(|state| {
            let explained = state.ended || state.reset.is_some();
            if !explained && !state.wakers.iter().any(|known| known.will_wake(waker)) {
                state.wakers.push(waker.clone());
            }
        })
    }

    fn drain_with(&self, then: impl FnOnce(&mut ControlState)) -> EndStatus {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut updated = false;
        while state.reset.is_none() && self.read(&mut state) {
            updated = true;
        }
        if updated {
            state.wakers.drain(..).for_each(Waker::wake);
        }
        then(&mut state);
        EndStatus {
            ended: state.ended,
            reset: state.reset.clone(),
            updated,
        }
    }

    /// Reads one message; whether there was any.
    fn read(&self, state: &mut ControlState) -> bool {
        let mut buffer = [0; MAX_MESSAGE];
        let received = match socket_message::recv(&self.socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if is_gone(&error) => {
                state.reset = Some(ResetReason::BrokerGone);
                return true;
            }
            Err(error) => {
                state.reset = Some(ResetReason::Protocol(error.to_string()));
                return true;
            }
        };
        if received.len == 0 {
            state.reset = Some(ResetReason::BrokerGone);
            return true;
        }
        match BrokerMessage::decode(&buffer[..received.len]) {
            Ok(BrokerMessage::Shutdown) => state.ended = true,
            Ok(BrokerMessage::Reset(refused) | BrokerMessage::Refused(refused)) => {
                state.reset = Some(ResetReason::Refused(errors::refusal(&refused)));
            }
            // Only a reason to look at the words of a ring, of which this is none.
            Ok(BrokerMessage::Suspended { .. }) => {}
            Ok(_) => {
                state.reset = Some(ResetReason::Protocol(
                    "a message that has no place here".into(),
                ))
            }
            Err(fault) => state.reset = Some(ResetReason::Protocol(fault.to_string())),
        }
        true
    }

    /// A duplicate of the descriptor.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Waits until the end of the data is explained, or until `deadline`.
    pub(super) fn wait_for_end(&self, deadline: Option<Instant>) -> io::Result<EndStatus> {
        loop {
            let status = self.drain();
            if status.is_final() || deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(status);
            }
            let slice = Instant::now() + RECHECK_INTERVAL;
            let until = deadline.map_or(slice, |at| at.min(slice));
            ready(&self.socket, PollFlags::IN, Some(until))?;
        }
    }

    /// Tells the broker something, and waits for room if `may_wait`.
    pub(super) fn send(&self, message: &ClientMessage, may_wait: bool) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(16);
        message.encode(&mut bytes);
        let deadline = Instant::now() + SEND_TIMEOUT;
        loop {
            match socket_message::send(&self.socket, &bytes, &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && may_wait => {
                    if !ready(&self.socket, PollFlags::OUT, Some(deadline))? {
                        let text = "the broker does not read its endpoint";
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                }
                Err(error) if is_gone(&error) => {
                    let reset = self.drain().reset.unwrap_or(ResetReason::BrokerGone);
                    return Err(reset.into_error());
                }
                result => return result,
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
