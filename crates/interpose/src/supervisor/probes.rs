//! When to look whether bound sockets are still open whose end is not reported.

use std::time::{Duration, Instant};

/// How often bound sockets are looked at: so long after a close the broker may still report a listener.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// How often, once [`BUSY`] has passed without a change: a server that only serves costs next to nothing then.
const PROBE_IDLE_EVERY: Duration = Duration::from_secs(1);
/// How soon, if those that were looked at are not all; and for how many times as long others are served as that took.
const NEXT_PART: Duration = Duration::from_millis(10);
const REST: u32 = 9;
/// For how long after a bind or a close others are likely.
const BUSY: Duration = Duration::from_secs(10);

/// When to look at the bound sockets.
#[derive(Debug)]
pub(crate) struct Probes {
    last: Instant,
    /// How long until the rest is looked at, if that was not all.
    rest: Option<Duration>,
    changed: Instant,
}

impl Probes {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: now,
            rest: None,
            changed: now,
        }
    }

    /// When to look next.
    pub(crate) fn next(&self) -> Instant {
        if let Some(rest) = self.rest {
            return self.last + rest;
        }
        let every = match self.last.saturating_duration_since(self.changed) < BUSY {
            true => PROBE_EVERY,
            false => PROBE_IDLE_EVERY,
        };
        self.last + every
    }

    /// They were looked at, all or some, until `now`, from `since` on.
    pub(crate) fn done(&mut self, since: Instant, now: Instant, was_all: bool) {
        let took = now.saturating_duration_since(since);
        self.last = now;
        self.rest = (!was_all).then(|| NEXT_PART.max(took * REST));
    }

    /// A socket was bound or has gone.
    pub(crate) fn changed(&mut self, now: Instant) {
        self.changed = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_sockets_are_looked_at_seldom_when_nothing_changes() {
        let mut now = Instant::now();
        let mut probes = Probes::new(now);
        let mut in_a_minute = |probes: &mut Probes| {
            let end = now + Duration::from_secs(60);
            let mut count = 0;
            while probes.next() <= end {
                now = probes.next();
                probes.done(now, now, true);
                count += 1;
            }
            probes.changed(now);
            count
        };
        // 100 in the first 10 s, and one in each of the other 50.
        for _ in 0..2 {
            let count = in_a_minute(&mut probes);
            assert!((149..=151).contains(&count), "{count}");
        }
    }
    #[test]
    fn parts_of_the_bound_sockets_are_looked_at_soon_after_each_other() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        probes.done(now, now, false);
        assert_eq!(probes.next(), now + NEXT_PART);
        // Others are served for the most of the time.
        let slow = now + Duration::from_millis(20);
        probes.done(now, slow, false);
        assert_eq!(probes.next(), slow + Duration::from_millis(180));
        probes.done(now, now, true);
        assert_eq!(probes.next(), now + PROBE_EVERY);
    }
}
