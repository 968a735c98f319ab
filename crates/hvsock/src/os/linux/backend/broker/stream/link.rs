//! The state of one end and its control channel.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::control::{Control, EndStatus};
use crate::backend::errors::{peer_stopped_reading, timed_out, write_shut_down};
use crate::os::backend::Received;

/// How long a failed write waits for the reason, which the broker sends before the reset.
const REASON_TIMEOUT: Duration = Duration::from_millis(100);

/// The control channel of one end, with its settings.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) control: Control,
    nonblocking: AtomicBool,
    local_state: Mutex<LocalState>,
}

/// The settings of this end, and which directions it has shut down.
#[derive(Debug, Default)]
pub(super) struct LocalState {
    pub(super) read_shut_down: bool,
    pub(super) write_shut_down: bool,
    /// No `SHUTDOWN` is sent when this end is dropped: its descriptors were handed to another
    /// program, or it was reset.
    pub(super) suppress_shutdown: bool,
    pub(super) read_timeout: Option<Duration>,
    pub(super) write_timeout: Option<Duration>,
}

impl Link {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            control: Control::new(socket),
            nonblocking: AtomicBool::new(false),
            local_state: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, LocalState> {
        self.local_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
    }

    pub(super) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// The deadline of a read that starts now.
    pub(super) fn read_deadline(&self) -> Option<Instant> {
        let timeout = self.state().read_timeout?;
        Instant::now().checked_add(timeout)
    }

    /// The deadline of a write that starts now.
    pub(super) fn write_deadline(&self) -> Option<Instant> {
        let timeout = self.state().write_timeout?;
        Instant::now().checked_add(timeout)
    }

    /// The meaning of the data's end: a clean end, a reset, or still unknown.
    pub(super) fn read_end(&self, status: &EndStatus) -> io::Result<Received> {
        if status.ended || self.state().read_shut_down {
            return Ok(Received::Bytes(0));
        }
        match &status.reset {
            Some(reason) => Err(reason.clone().into_error()),
            None => Ok(Received::EndPending),
        }
    }

    /// Waits until the meaning of the data's end is known. Returns 0 for a clean end.
    pub(super) fn wait_for_end(&self) -> io::Result<usize> {
        if self.is_nonblocking() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let status = self.control.wait_for_end(self.read_deadline())?;
        match self.read_end(&status)? {
            Received::Bytes(count) => Ok(count),
            Received::EndPending => Err(timed_out()),
        }
    }

    /// The reason of a reset, if it has one. A blocking caller waits for it for a moment.
    pub(super) fn reset_reason(&self) -> Option<io::Error> {
        let mut status = self.control.drain();
        if !status.is_final() && !self.is_nonblocking() {
            let bound = Instant::now() + REASON_TIMEOUT;
            status = self.control.wait_for_end(Some(bound)).unwrap_or(status);
        }
        status.reset.map(super::ResetReason::into_error)
    }

    /// The error for a write after which no other can succeed.
    pub(super) fn write_error(&self) -> io::Error {
        if self.state().write_shut_down {
            return write_shut_down();
        }
        self.reset_reason().unwrap_or_else(peer_stopped_reading)
    }

    /// Converts `WouldBlock` to a timeout. The kernel returns it for both.
    pub(super) fn map_timeout(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::WouldBlock && !self.is_nonblocking() {
            return timed_out();
        }
        error
    }
}
