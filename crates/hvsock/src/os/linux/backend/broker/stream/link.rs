//! The state of one end and its control channel.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::control::{Control, EndStatus};
use crate::backend::errors::{peer_stopped_reading, timed_out, write_shut_down};
use crate::backend::{ConnectionInfo, LocalEnd};
use crate::os::backend::Received;

/// How long a failed write waits for the reason, which the broker sends before the reset.
const REASON_TIMEOUT: Duration = Duration::from_millis(100);

/// One end with its control channel.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) control: Control,
    pub(super) end: LocalEnd,
    /// No `SHUTDOWN` is sent when this end is dropped: its descriptors were handed to another
    /// program, or it was reset.
    suppress_shutdown: AtomicBool,
}

impl Link {
    pub(super) fn new(socket: Arc<OwnedFd>, info: ConnectionInfo) -> Self {
        Self {
            control: Control::new(socket),
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

    /// The reason of a reset, if it has one. A blocking caller waits for it for a moment.
    pub(super) fn reset_reason(&self) -> Option<io::Error> {
        let mut status = self.control.drain();
        if !status.is_final() && !self.end.is_nonblocking() {
            let bound = Instant::now() + REASON_TIMEOUT;
            status = self.control.wait_for_end(Some(bound)).unwrap_or(status);
        }
        status.reset.map(super::ResetReason::into_error)
    }

    /// The error for a write after which no other can succeed.
    pub(super) fn write_error(&self) -> io::Error {
        if self.end.state().write_shut_down {
            return write_shut_down();
        }
        self.reset_reason().unwrap_or_else(peer_stopped_reading)
    }
}
