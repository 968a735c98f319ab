//! When to look for the sockets that programs have closed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The sockets that a supervisor knows at most: as many as the broker has connections for one partition. Their memory is
/// this process's, and not that of the program's control group.
pub(crate) const MAX_SOCKETS: usize = 1 << 17;
/// From how many sockets on all of them are looked at.
pub(crate) const FIRST: usize = 4096;
/// How often, if fewer come and go.
const EVERY: Duration = Duration::from_secs(30);
/// How often at most, if there is no space for another socket.
const WHEN_FULL: Duration = Duration::from_secs(1);
/// When to look for closed sockets, and at which.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// From how many sockets on to look.
    from: usize,
    last: Instant,
    /// Bound sockets that are looked at next.
    pub(crate) bound: VecDeque<u64>,
}

impl Sweep {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            from: FIRST,
            last: now,
            bound: VecDeque::new(),
        }
    }

    /// When to look although `sockets` are not enough. `None` if they are few.
    pub(crate) fn next(&self, sockets: usize) -> Option<Instant> {
        (sockets >= FIRST).then(|| self.last + EVERY)
    }

    /// Whether to look now.
    pub(crate) fn is_due(&self, now: Instant, sockets: usize) -> bool {
        let every = match sockets >= MAX_SOCKETS {
            true => WHEN_FULL,
            false => EVERY,
        };
        let is_time = now.saturating_duration_since(self.last) >= every;
        sockets >= FIRST && (is_time || sockets >= self.from && sockets < MAX_SOCKETS)
    }

    /// All were looked at, and so many are left.
    pub(crate) fn done(&mut self, now: Instant, left: usize) {
        self.last = now;
        // When twice as many have come; and before there is no space.
        self.from = (2 * left).min(left.midpoint(MAX_SOCKETS)).max(FIRST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_sockets_are_looked_for_whatever_number_is_open() {
        let mut now = Instant::now();
        for open in [0, FIRST, MAX_SOCKETS / 2, MAX_SOCKETS - 1, MAX_SOCKETS] {
            let mut sweep = Sweep::new(now);
            sweep.done(now, open);
            // Others come and are closed.
            let found = (open..=MAX_SOCKETS).any(|sockets| sweep.is_due(now, sockets));
            assert_eq!(found, open < MAX_SOCKETS, "{open}");
            // A full table is looked at again soon, and any large one after a while.
            now += WHEN_FULL;
            assert!(sweep.is_due(now, MAX_SOCKETS), "{open}");
            now += EVERY;
            assert!(sweep.is_due(now, open.max(FIRST)), "{open}");
            assert!(!sweep.is_due(now, FIRST - 1));
        }
    }
}
