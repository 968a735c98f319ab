//! Counts how often the ends of a ring parked, and how often they notified each other.
//!
//! An end must notify its peer only if the peer has requested a wakeup. The two counts together show whether
//! that holds. How often an end parks also depends on the scheduler, so notifications alone show nothing.

use serde::Serialize;

/// Counts of one end since it connected, or of both ends over an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WakeupCounts {
    /// Notifications: system calls made to wake the peer.
    pub notifications: u64,
    /// How often a thread parked. `None` for async tasks, whose waits are not counted.
    pub parks: Option<u64>,
}

/// An end may withdraw its wakeup request in the last check before it parks, when the peer has notified it
/// already. So the goal allows some surplus notifications per 100 parks, and a few where ends hardly park.
const WITHDRAWN_PER_100: u64 = 2;
const WITHDRAWN: u64 = 8;

impl WakeupCounts {
    /// The sum of two counts.
    pub fn and(self, other: Self) -> Self {
        Self {
            notifications: self.notifications + other.notifications,
            parks: self.parks.zip(other.parks).map(|(a, b)| a + b),
        }
    }

    /// The counts of both ends over an interval. `None` unless both ends report them.
    pub(super) fn between(before: [Option<Self>; 2], after: [Option<Self>; 2]) -> Option<Self> {
        let sum = |[local, peer]: [Option<Self>; 2]| Some(local?.and(peer?));
        let (before, after) = (sum(before)?, sum(after)?);
        let parks = after.parks.zip(before.parks);
        Some(Self {
            notifications: after.notifications.checked_sub(before.notifications)?,
            parks: parks.and_then(|(after, before)| after.checked_sub(before)),
        })
    }

    /// Whether every notification had a parked peer, within the tolerance. `None` if parks are unknown.
    pub fn match_parks(self) -> Option<bool> {
        let parks = self.parks?;
        Some(self.notifications <= parks + parks * WITHDRAWN_PER_100 / 100 + WITHDRAWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(notifications: u64, parks: u64) -> WakeupCounts {
        let parks = Some(parks);
        WakeupCounts {
            notifications,
            parks,
        }
    }

    #[test]
    fn counts_are_known_only_if_both_ends_report_them() {
        let before = [Some(counts(1, 2)), Some(counts(2, 3))];
        let after = [Some(counts(4, 2)), Some(counts(4, 13))];
        assert_eq!(WakeupCounts::between(before, after), Some(counts(5, 10)));
        assert_eq!(WakeupCounts::between([before[0], None], after), None);
        let tasks = WakeupCounts {
            notifications: 9,
            parks: None,
        };
        let between = WakeupCounts::between(before, [after[0], Some(tasks)]).unwrap();
        assert_eq!((between.notifications, between.parks), (10, None));
        assert_eq!(between.match_parks(), None);
    }

    #[test]
    fn notifications_match_parks_or_withdrawn_requests() {
        assert_eq!(counts(8, 0).match_parks(), Some(true));
        assert_eq!(counts(9, 0).match_parks(), Some(false));
        assert_eq!(counts(10_208, 10_000).match_parks(), Some(true));
        assert_eq!(counts(10_209, 10_000).match_parks(), Some(false));
    }
}
