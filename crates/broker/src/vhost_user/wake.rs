//! The wakeups of connections with siblings.

use std::sync::{Arc, Mutex};

use hvsock_fabric::ConnectionId;
use hvsock_sys::sync::lock;

use crate::guest_link::WakePeer;
use crate::loop_waker::LoopWaker;

/// The connections with siblings whose state has changed and that a data thread has to update.
/// They are named by connection id, which stays valid until both guests have removed the link.
#[derive(Debug)]
pub(super) struct WakeQueue {
    due: Mutex<Vec<ConnectionId>>,
    waker: Arc<LoopWaker>,
}

impl WakeQueue {
    pub(super) fn new(waker: Arc<LoopWaker>) -> Self {
        Self {
            due: Mutex::default(),
            waker,
        }
    }

    /// Drains the queue.
    pub(super) fn take(&self) -> Vec<ConnectionId> {
        std::mem::take(&mut *lock(&self.due))
    }
}

impl WakePeer for WakeQueue {
    fn wake(&self, connection: ConnectionId) {
        lock(&self.due).push(connection);
        self.waker.wake();
    }
}
