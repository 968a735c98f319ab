//! How fast the broker of a guest may change its containers.

use std::time::{Duration, Instant};

/// Changes that may come at once: all containers of a machine, announced and started.
const BURST: u32 = 768;
/// The time of each further one.
const EACH: Duration = Duration::from_millis(16);

/// Counts changes against a rate. One that comes too early is not lost: the next one is read later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// When all changes so far would be over, at the rate.
    busy_until: Instant,
}

impl Pace {
    /// No changes yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { busy_until: now }
    }

    /// When all changes so far would be over.
    pub(crate) fn busy_until(self) -> Instant {
        self.busy_until
    }

    /// The changes so far would be over at this time.
    pub(crate) fn resume(busy_until: Instant) -> Self {
        Self { busy_until }
    }

    /// When a further change is due.
    pub(crate) fn due_at(&self) -> Instant {
        self.busy_until
            .checked_sub(EACH * BURST)
            .unwrap_or(self.busy_until)
    }

    /// Whether a further change is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.due_at()
    }

    /// Counts a change.
    pub(crate) fn take(&mut self, now: Instant) {
        self.busy_until = self.busy_until.max(now) + EACH;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_containers_may_change_at_once_and_each_further_change_has_its_time() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..BURST {
            assert!(pace.is_due(start));
            pace.take(start);
        }
        assert!(pace.is_due(start));
        pace.take(start);
        assert!(!pace.is_due(start));
        assert_eq!(pace.due_at(), start + EACH);
        assert!(pace.is_due(start + EACH));
        // After a rest a burst is possible again.
        let later = start + EACH * BURST * 2;
        for _ in 0..=BURST {
            assert!(pace.is_due(later));
            pace.take(later);
        }
        assert!(!pace.is_due(later));
    }
}
