//! How often a data thread whose VMM or guest makes it panic goes on with them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The most restarts within [`WITHIN`].
const MOST: usize = 3;
const WITHIN: Duration = Duration::from_secs(60);

/// The restarts so far.
#[derive(Debug, Default)]
pub(crate) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Whether to restart what has failed now. It counts as restarted then.
    pub(crate) fn may_restart(&mut self, now: Instant) -> bool {
        while self
            .0
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= WITHIN)
        {
            self.0.pop_front();
        }
        let may = self.0.len() < MOST;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_restarts_in_a_minute_are_the_most() {
        let mut restarts = Restarts::default();
        let start = Instant::now();
        let mut at = |seconds| restarts.may_restart(start + Duration::from_secs(seconds));
        assert_eq!(
            [0, 1, 2, 3, 59].map(&mut at),
            [true, true, true, false, false]
        );
        assert_eq!([60, 60, 61, 62].map(&mut at), [true, false, true, true]);
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_three_restarts(gaps in prop::collection::vec(0_u64..40, 0..100)) {
            let mut restarts = Restarts::default();
            let mut now = Instant::now();
            let mut allowed: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_secs(gap);
                let recent = allowed.iter().filter(|at| now - **at < WITHIN).count();
                let may = restarts.may_restart(now);
                prop_assert_eq!(may, recent < MOST);
                if may {
                    allowed.push(now);
                }
            }
        }
    }
}
