//! What is known about the notifications in the doorbell.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// The state of the doorbell, as far as it is known without a system call.
#[derive(Debug, Default)]
pub(crate) struct PendingNotifications {
    /// The doorbell holds a notification whose cause has been handled.
    pub(crate) is_stale: AtomicBool,
    /// Notifications were drained whose cause may not have been handled yet.
    pub(crate) is_drained: AtomicBool,
    /// The last operation was a wakeup request. If the next one is a request as well, a
    /// notification may have been spurious.
    pub(crate) requested_last: AtomicBool,
    /// Held while notifications are drained: two threads that count and then drain could drain too
    /// many.
    pub(crate) draining: Mutex<()>,
}

impl PendingNotifications {
    /// Notes that a wakeup request was made.
    pub(crate) fn requested(&self) {
        self.requested_last.store(true, Ordering::Relaxed);
    }
}
