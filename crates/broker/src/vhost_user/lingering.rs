//! Connections in arenas that the guest has closed and whose process has not.
//!
//! Such a process closes as a rule at once. A notification for each would cost the data thread a wakeup, so
//! it looks at them all now and then. Those that stay longer notify it.

use std::time::{Duration, Instant};

use hvsock_fabric::ConnectionId;

/// The time between two looks.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long a connection is looked at.
const LONGEST: Duration = Duration::from_millis(50);
/// The most connections that are looked at.
const MOST: usize = 256;
/// With as many the thread looks also when a connection is opened, so that few slots are used in turns.
const MANY: usize = 8;

/// The connections that are looked at, with the indexes of their links.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    all: Vec<Entry>,
    next: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) link: usize,
    pub(super) id: ConnectionId,
    until: Instant,
}

impl Lingering {
    /// Adds a connection. Returns `false` if there are too many.
    pub(super) fn add(&mut self, link: usize, id: ConnectionId) -> bool {
        if self.all.len() >= MOST {
            return false;
        }
        let now = Instant::now();
        self.next.get_or_insert(now + INTERVAL);
        let until = now + LONGEST;
        self.all.push(Entry { link, id, until });
        true
    }

    /// When to look next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether to look before another connection is opened.
    pub(super) fn are_many(&self) -> bool {
        self.all.len() >= MANY
    }

    /// Takes the connections for a look, each with whether it is the last one.
    pub(super) fn take(&mut self, now: Instant) -> Vec<(Entry, bool)> {
        self.next = None;
        let all = std::mem::take(&mut self.all);
        all.into_iter().map(|one| (one, one.until <= now)).collect()
    }

    /// Puts a connection back for the next look.
    pub(super) fn put_back(&mut self, entry: Entry, now: Instant) {
        self.next.get_or_insert(now + INTERVAL);
        self.all.push(entry);
    }
}
