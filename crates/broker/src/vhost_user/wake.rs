//! The wakeups of connections with siblings.

use std::sync::{Arc, Mutex};

use hvsock_fabric::ConnectionId;
use hvsock_sys::sync::lock;
use mio::Waker;

use crate::guest_link::WakePeer;

/// The connections with siblings whose state has changed and that a data thread has to update.
/// They are named by connection id, which stays valid until both guests have removed the link.
#[derive(Debug)]
pub(super) struct WakeQueue {
    due: Mutex<Vec<ConnectionId>>,
    waker: Arc<Waker>,
}

impl WakeQueue {
    pub(super) fn new(waker: Arc<Waker>) -> Self {
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
        let mut due = lock(&self.due);
        let first = due.is_empty();
        due.push(connection);
        drop(due);
        // Only the first entry needs a wakeup: the thread drains the whole queue.
        if first {
            let _ = self.waker.wake();
        }
    }
}
