//! What one end has set and done, and what the broker says of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::control::{Control, Word};
use crate::backend::ending::{reads_no_more, too_late, write_ended};
use crate::os::backend::Received;

/// How long a failed write waits for the reason, which a broker sends before it cuts.
const REASON_BOUND: Duration = Duration::from_millis(100);

/// One end's way to the broker, and its settings.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) control: Control,
    nonblocking: AtomicBool,
    own: Mutex<Own>,
}

/// What this end has done and set.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) read_ended: bool,
    pub(super) write_ended: bool,
    /// Nothing is said when this end goes: its descriptors are somebody else's now, or it has not
    /// ended well.
    pub(super) silent: bool,
    pub(super) read_timeout: Option<Duration>,
    pub(super) write_timeout: Option<Duration>,
}

impl Link {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            control: Control::new(socket),
            nonblocking: AtomicBool::new(false),
            own: Mutex::default(),
        }
    }

    pub(super) fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
    }

    pub(super) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// When a read that begins now must be over.
    pub(super) fn read_deadline(&self) -> Option<Instant> {
        let timeout = self.own().read_timeout?;
        Instant::now().checked_add(timeout)
    }

    /// When a write that begins now must be over.
    pub(super) fn write_deadline(&self) -> Option<Instant> {
        let timeout = self.own().write_timeout?;
        Instant::now().checked_add(timeout)
    }

    /// What the end of the data means.
    pub(super) fn end(&self, word: &Word) -> io::Result<Received> {
        if word.ended || self.own().read_ended {
            return Ok(Received::Bytes(0));
        }
        match &word.cut {
            Some(cut) => Err(cut.clone().into_error()),
            None => Ok(Received::Unexplained),
        }
    }

    /// Waits until the end of the data is explained, and returns 0 if it is the end.
    pub(super) fn wait_for_end(&self) -> io::Result<usize> {
        if self.is_nonblocking() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let word = self.control.wait_for_end(self.read_deadline())?;
        match self.end(&word)? {
            Received::Bytes(count) => Ok(count),
            Received::Unexplained => Err(too_late()),
        }
    }

    /// The reason of a cut that has one, for which a blocking caller waits a moment.
    pub(super) fn reason(&self) -> Option<io::Error> {
        let mut word = self.control.look();
        if !word.explains_end() && !self.is_nonblocking() {
            let bound = Instant::now() + REASON_BOUND;
            word = self.control.wait_for_end(Some(bound)).unwrap_or(word);
        }
        word.cut.map(super::Cut::into_error)
    }

    /// Why writing fails for good where the other end takes nothing any more.
    pub(super) fn broken(&self) -> io::Error {
        if self.own().write_ended {
            return write_ended();
        }
        self.reason().unwrap_or_else(reads_no_more)
    }

    /// Past a time limit the kernel says `WouldBlock`, as it does without blocking.
    pub(super) fn timed_out(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::WouldBlock && !self.is_nonblocking() {
            return too_late();
        }
        error
    }
}
