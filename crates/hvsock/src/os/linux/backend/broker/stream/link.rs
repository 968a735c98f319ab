//! The state of one end and its control channel.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hvsock_endpoint::ClientMessage;
use hvsock_ring::ResetCause;

use super::super::arena::SlotControl;
use super::super::control::{Control, EndStatus};
use crate::backend::errors::{peer_stopped_reading, timed_out, write_shut_down};
use crate::backend::{ConnectionInfo, LocalEnd};
use crate::os::backend::Received;

/// How long a failed operation waits for the reason. The broker sends it before the reset; if the broker ends,
/// the peer may learn of it first, and reset the connection.
const REASON_TIMEOUT: Duration = Duration::from_millis(100);

/// One end with its control channel.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) control: Channel,
    pub(super) end: LocalEnd,
    /// No `SHUTDOWN` is sent when this end is dropped: its descriptors were handed to another
    /// program, or it was reset.
    suppress_shutdown: AtomicBool,
}

/// Where the broker's messages about the connection arrive.
#[derive(Debug)]
pub(super) enum Channel {
    /// At a socket of its own.
    Own(Control),
    /// At the socket of its arena.
    Arena(SlotControl),
}

impl Link {
    pub(super) fn new(socket: Arc<OwnedFd>, info: ConnectionInfo) -> Self {
        Self::with(Channel::Own(Control::new(socket)), info)
    }

    pub(super) fn in_arena(control: SlotControl, info: ConnectionInfo) -> Self {
        Self::with(Channel::Arena(control), info)
    }

    fn with(control: Channel, info: ConnectionInfo) -> Self {
        Self {
            control,
            end: LocalEnd::new(info),
            suppress_shutdown: AtomicBool::new(false),
        }
    }

    pub(super) fn suppress_shutdown(&self) {
        self.suppress_shutdown.store(true, Ordering::Relaxed);
    }

    pub(super) fn suppresses_shutdown(&self) -> bool {
        self.suppress_shutdown.load(Ordering::Relaxed)
    }

    /// The meaning of the data's end: a clean end, a reset, or still unknown.
    pub(super) fn read_end(&self, status: &EndStatus) -> io::Result<Received> {
        if status.ended || self.end.state().read_shut_down {
            return Ok(Received::Bytes(0));
        }
        match &status.reset {
            Some(reason) => Err(reason.clone().into_error()),
            None => Ok(Received::EndPending),
        }
    }

    /// Waits until the meaning of the data's end is known. Returns 0 for a clean end.
    pub(super) fn wait_for_end(&self) -> io::Result<usize> {
        if self.end.is_nonblocking() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let status = self.control.wait_for_end(self.end.read_deadline())?;
        match self.read_end(&status)? {
            Received::Bytes(count) => Ok(count),
            Received::EndPending => Err(timed_out()),
        }
    }

    /// The reason of a reset, if it has one. `cause` is what the memory says. A blocking caller waits for the
    /// reason for a moment.
    pub(super) fn reset_reason(&self, cause: ResetCause) -> Option<io::Error> {
        let control = match &self.control {
            Channel::Own(control) => control,
            Channel::Arena(control) => {
                let may_wait = cause == ResetCause::Control && !self.end.is_nonblocking();
                let bound = may_wait.then(|| Instant::now() + REASON_TIMEOUT);
                let reason = control.wait_for_reason(bound);
                return reason.map(super::ResetReason::into_error);
            }
        };
        let mut status = control.drain();
        if !status.is_final() && !self.end.is_nonblocking() {
            let bound = Instant::now() + REASON_TIMEOUT;
            status = control.wait_for_end(Some(bound)).unwrap_or(status);
        }
        status.reset_reason().map(super::ResetReason::into_error)
    }

    /// The error for a write after which no other can succeed.
    pub(super) fn write_error(&self) -> io::Error {
        if self.end.state().write_shut_down {
            return write_shut_down();
        }
        self.reset_reason(ResetCause::Control)
            .unwrap_or_else(peer_stopped_reading)
    }
}

impl Channel {
    /// What is known of the connection's end. Receives pending messages, except in an arena, where the
    /// watcher does.
    pub(super) fn drain(&self) -> EndStatus {
        match self {
            Self::Own(control) => control.drain(),
            Self::Arena(control) => EndStatus {
                ended: false,
                reset: control.reason(),
                updated: false,
            },
        }
    }

    /// As [`drain`](Self::drain). If the kind of the end is unknown, `waker` is woken when it is.
    #[cfg(feature = "tokio")]
    pub(super) fn drain_or_register(&self, waker: &std::task::Waker) -> EndStatus {
        match self {
            Self::Own(control) => control.drain_or_register(waker),
            // The words in the memory say how it ends.
            Self::Arena(_) => self.drain(),
        }
    }

    /// Waits until the meaning of the data's end is known, or until `deadline`.
    pub(super) fn wait_for_end(&self, deadline: Option<Instant>) -> io::Result<EndStatus> {
        match self {
            Self::Own(control) => control.wait_for_end(deadline),
            Self::Arena(_) => Ok(self.drain()),
        }
    }

    /// The descriptor that a waiting thread watches for messages. `None` in an arena, whose watcher wakes
    /// the thread.
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Own(control) => Some(std::os::fd::AsFd::as_fd(control)),
            Self::Arena(_) => None,
        }
    }

    /// Sends a message about the connection. In an arena there is none: its words say it.
    pub(super) fn send(&self, message: &ClientMessage, may_wait: bool) -> io::Result<()> {
        match self {
            Self::Own(control) => control.send(message, may_wait),
            Self::Arena(_) => Ok(()),
        }
    }

    /// A descriptor for a program that does not use this library.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Own(control) => control.try_clone(),
            Self::Arena(control) => control.stand_in(),
        }
    }
}
