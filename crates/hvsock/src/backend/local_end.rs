//! What every back-end keeps of one end of a connection: addresses, mode, timeouts and shutdowns.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hvsock_sys::sync::lock;

use super::ConnectionInfo;

/// One end of a connection, without its bytes.
#[derive(Debug)]
pub(crate) struct LocalEnd {
    info: ConnectionInfo,
    nonblocking: AtomicBool,
    state: Mutex<EndState>,
}

/// The timeouts of an end, and which directions it has shut down.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EndState {
    pub(crate) read_shut_down: bool,
    pub(crate) write_shut_down: bool,
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) write_timeout: Option<Duration>,
}

impl LocalEnd {
    /// An end in blocking mode without timeouts.
    pub(crate) fn new(info: ConnectionInfo) -> Self {
        Self {
            info,
            nonblocking: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, EndState> {
        lock(&self.state)
    }

    pub(crate) fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// The deadline of a read that starts now.
    pub(crate) fn read_deadline(&self) -> Option<Instant> {
        let timeout = self.state().read_timeout?;
        Instant::now().checked_add(timeout)
    }

    /// The deadline of a write that starts now.
    pub(crate) fn write_deadline(&self) -> Option<Instant> {
        let timeout = self.state().write_timeout?;
        Instant::now().checked_add(timeout)
    }
}

impl EndState {
    /// Records a shutdown of one or both directions.
    pub(crate) fn shut_down(&mut self, how: Shutdown) {
        self.read_shut_down |= how != Shutdown::Write;
        self.write_shut_down |= how != Shutdown::Read;
    }
}
