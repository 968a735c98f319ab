//! Counters of notifications and waits.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one end since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingStats {
    /// Notifications sent to the peer. Each is one system call.
    pub notifications: u64,
    /// Times that one of its threads parked.
    pub parks: u64,
    /// Waits that ended while spinning, without a park.
    #[doc(alias = "busy_poll")]
    pub spins: u64,
    /// Wakeup requests made to the peer, including those withdrawn or satisfied before a park.
    ///
    /// The peer sends at most one notification for each, one more for the request that a new
    /// connection starts with, and one when it resets the connection.
    pub wakeup_requests: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) notifications: AtomicU64,
    pub(crate) parks: AtomicU64,
    pub(crate) spins: AtomicU64,
    pub(crate) wakeup_requests: AtomicU64,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> RingStats {
        RingStats {
            notifications: self.notifications.load(Ordering::Relaxed),
            parks: self.parks.load(Ordering::Relaxed),
            spins: self.spins.load(Ordering::Relaxed),
            wakeup_requests: self.wakeup_requests.load(Ordering::Relaxed),
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
