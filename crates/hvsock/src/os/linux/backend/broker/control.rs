//! The control channel of a connection: messages between this end and the broker, besides the data.
//!
//! The end of the data descriptor alone is ambiguous. A process that closes cleanly sends
//! `SHUTDOWN` first, the broker announces a reset by `RESET`, and a broker that dies closes
//! everything at once. All duplicates of a stream, in every thread and task, share this one reader
//! of the endpoint.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE};
use hvsock_fabric::Refusal;
use hvsock_sys::message as socket_message;
use hvsock_sys::poll::PollFlags;
use hvsock_sys::sync::lock;

use super::endpoint_connection::is_gone;
use super::errors;
use crate::os::ready;

/// The endpoint of an established connection.
pub(super) struct Control {
    socket: Arc<OwnedFd>,
    state: Mutex<ControlState>,
}

/// The broker's messages so far, and the tasks that wait for the next one.
#[derive(Default)]
struct ControlState {
    /// The peer's data ends where the data descriptor does.
    ended: bool,
    reset: Option<ResetReason>,
    /// Tasks that wait for a message which another reader of the socket may receive first.
    wakers: Vec<Waker>,
}

/// Why a connection was reset.
#[derive(Clone, Debug)]
pub(super) enum ResetReason {
    Refused(Refusal),
    BrokerGone,
    Protocol(String),
}

/// Whether and how the peer's data ends, as far as the broker has reported it.
#[derive(Clone)]
pub(super) struct EndStatus {
    pub(super) ended: bool,
    pub(super) reset: Option<ResetReason>,
    /// This call received a message.
    pub(super) updated: bool,
}

impl EndStatus {
    /// Returns true if the kind of the data's end is known: a clean end or a reset.
    pub(super) fn is_final(&self) -> bool {
        self.ended || self.reset.is_some()
    }

    /// Why the connection was reset. Not when the broker has only closed it after a clean end of the peer's
    /// data, as it does when the peer has closed for good: what the peer does not read fails with an error of
    /// the data descriptor.
    pub(super) fn reset_reason(self) -> Option<ResetReason> {
        self.reset
            .filter(|reason| !(self.ended && matches!(reason, ResetReason::BrokerGone)))
    }
}

impl ResetReason {
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Self::Refused(refusal) => refusal.into_reset_error(),
            Self::BrokerGone => errors::broker_gone(),
            Self::Protocol(what) => errors::protocol_error("of this connection", &what),
        }
    }
}

/// How often a waiting thread checks the shared state. Another thread may receive the message that
/// it waits for in the kernel. This wait, between the end of the data and its kind, is rare.
const RECHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The timeout of a blocking send. The broker reads its sockets all the time.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

impl Control {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            state: Mutex::default(),
        }
    }

    /// Receives all pending messages and returns what is known.
    pub(super) fn drain(&self) -> EndStatus {
        self.drain_with(|_| ())
    }

    #[cfg(feature = "tokio")]
    /// As [`drain`](Self::drain). If the kind of the end is unknown, `waker` is woken by the
    /// next reader that receives a message.
    pub(super) fn drain_or_register(&self, waker: &Waker) -> EndStatus {
        self.drain_with(|state| {
            let explained = state.ended || state.reset.is_some();
            if !explained && !state.wakers.iter().any(|known| known.will_wake(waker)) {
                state.wakers.push(waker.clone());
            }
        })
    }

    fn drain_with(&self, then: impl FnOnce(&mut ControlState)) -> EndStatus {
        let mut state = lock(&self.state);
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

    /// Receives one message. Returns false if there is none.
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
            // This message only asks to check the flags of a ring, and this connection may have
            // none.
            Ok(BrokerMessage::Suspended { .. }) => {}
            Ok(_) => state.reset = Some(ResetReason::Protocol("unexpected message".into())),
            Err(fault) => state.reset = Some(ResetReason::Protocol(fault.to_string())),
        }
        true
    }

    /// Duplicates the descriptor.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Waits until the meaning of the data's end is known, or until `deadline`.
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

    /// Sends a message to the broker. Waits for free space in the socket if `may_wait`. A connection whose peer
    /// has closed for good needs no message: then nothing is sent.
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
                    let status = self.drain();
                    let has_ended = status.ended;
                    return match status.reset_reason() {
                        Some(reset) => Err(reset.into_error()),
                        // The peer has closed for good, and the broker told it of no loss.
                        None if has_ended => Ok(()),
                        None => Err(ResetReason::BrokerGone.into_error()),
                    };
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
