//! When to try again what has failed.

use std::time::{Duration, Instant};

/// A wait that doubles with each failure. At first it is due at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
    at: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new([shortest, longest]: [Duration; 2]) -> Self {
        Self {
            shortest,
            longest,
            next: shortest,
            at: None,
        }
    }

    /// The next attempt is due at once.
    pub(crate) fn now(&mut self) {
        self.at = None;
    }

    /// An attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        (self.next, self.at) = (self.shortest, None);
    }

    /// An attempt has failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.at = Some(now + self.next);
        self.next = (self.next * 2).min(self.longest);
    }

    /// Delays the next attempt.
    pub(crate) fn no_earlier_than(&mut self, at: Instant) {
        self.at = self.at.max(Some(at));
    }

    /// Whether an attempt is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| at <= now)
    }

    /// When the next attempt is due, if one has failed or was delayed.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_until_an_attempt_succeeds() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new([seconds(1), seconds(5)]);
        let now = Instant::now();
        assert!(backoff.is_due(now));
        for wait in [1, 2, 4, 5, 5] {
            backoff.failed(now);
            assert_eq!(backoff.at(), Some(now + seconds(wait)));
            assert!(!backoff.is_due(now) && backoff.is_due(now + seconds(wait)));
        }
        backoff.now();
        assert!(backoff.is_due(now));
        backoff.reset();
        backoff.failed(now);
        assert_eq!(backoff.at(), Some(now + seconds(1)));
        backoff.no_earlier_than(now + seconds(3));
        backoff.no_earlier_than(now + seconds(2));
        assert_eq!(backoff.at(), Some(now + seconds(3)));
    }
}
