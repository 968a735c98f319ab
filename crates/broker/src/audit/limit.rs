//! The rate limit of records: a token bucket for each source, kind and outcome, in bounded memory.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hvsock_control::AuditCategory;

/// Records that a source may cause at once, and the time in which it gets one more.
pub(crate) const BURST: u32 = 200;
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// Most sources with a bucket of their own. All others share one.
pub(crate) const MAX_SOURCES: usize = 4096;

/// Who causes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    /// The number of its partition.
    pub(crate) partition: u64,
    /// Its user id in the host's numbering.
    pub(crate) uid: u32,
}

/// One bucket. Refusals have their own, so that a flood of them hides nothing that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// `None` for those that share a bucket.
    pub(crate) source: Option<Source>,
    pub(crate) category: AuditCategory,
    pub(crate) refused: bool,
}

/// The buckets of all sources.
#[derive(Debug)]
pub(crate) struct Limits {
    buckets: HashMap<Key, Bucket>,
    max: usize,
}

#[derive(Debug, Default)]
struct Bucket {
    /// When the bucket is full again.
    full_at: Option<Instant>,
    left_out: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(MAX_SOURCES)
    }
}

impl Limits {
    fn new(max: usize) -> Self {
        Self {
            buckets: HashMap::new(),
            max,
        }
    }

    /// Allows one more record, and returns how many were left out before it. `None` leaves it out.
    pub(crate) fn allow(&mut self, key: Key, now: Instant) -> Option<u64> {
        let bucket = self.bucket(key, now);
        let full_at = bucket.full_at.map_or(now, |at| at.max(now)) + INTERVAL;
        if full_at - now > INTERVAL * BURST {
            bucket.left_out = bucket.left_out.saturating_add(1);
            return None;
        }
        bucket.full_at = Some(full_at);
        Some(std::mem::take(&mut bucket.left_out))
    }

    /// Counts records that nobody made. They take nothing from the bucket.
    pub(crate) fn leave_out(&mut self, key: Key, records: u64, now: Instant) {
        let bucket = self.bucket(key, now);
        bucket.left_out = bucket.left_out.saturating_add(records);
    }

    fn bucket(&mut self, mut key: Key, now: Instant) -> &mut Bucket {
        if !self.buckets.contains_key(&key) && self.buckets.len() >= self.max {
            self.forget_idle(now);
            if self.buckets.len() >= self.max {
                key.source = None;
            }
        }
        self.buckets.entry(key).or_default()
    }

    /// Forgets the buckets that are full. What was left out of them is reported with the next record of
    /// the shared bucket.
    fn forget_idle(&mut self, now: Instant) {
        let mut carried: HashMap<Key, u64> = HashMap::new();
        self.buckets.retain(|key, bucket| {
            let idle = key.source.is_some() && bucket.full_at.is_none_or(|at| at <= now);
            if idle && bucket.left_out > 0 {
                let shared = Key {
                    source: None,
                    ..*key
                };
                let left_out = carried.entry(shared).or_default();
                *left_out = left_out.saturating_add(bucket.left_out);
            }
            !idle
        });
        for (key, left_out) in carried {
            let shared = self.buckets.entry(key).or_default();
            shared.left_out = shared.left_out.saturating_add(left_out);
        }
    }

    #[cfg(test)]
    fn waiting(&self) -> u64 {
        self.buckets.values().map(|bucket| bucket.left_out).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(uid: u32, refused: bool) -> Key {
        Key {
            source: Some(Source { partition: 0, uid }),
            category: AuditCategory::Guest,
            refused,
        }
    }

    #[test]
    fn a_flood_of_one_user_is_limited_and_counted_and_leaves_others_alone() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let allowed = (0..10_000).filter(|_| limits.allow(key(7, false), start).is_some());
        assert_eq!(allowed.count(), BURST as usize);
        assert_eq!(limits.allow(key(8, false), start), Some(0));
        assert_eq!(limits.allow(key(7, true), start), Some(0));
        let left_out = 10_000 - u64::from(BURST);
        assert_eq!(
            limits.allow(key(7, false), start + INTERVAL),
            Some(left_out)
        );
        assert_eq!(limits.allow(key(7, false), start + INTERVAL), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(limits.allow(key(7, false), later), Some(1));
    }

    proptest! {
        #[test]
        fn every_record_is_allowed_reported_as_left_out_or_waits_to_be_reported(
            steps in prop::collection::vec((0..40_u32, any::<bool>(), 0..300_u64), 1..2000),
        ) {
            let max = 8;
            let (mut limits, mut now) = (Limits::new(max), Instant::now());
            let (mut allowed, mut reported) = (0, 0);
            for (uid, refused, wait) in &steps {
                // Mostly no time passes, so that buckets run empty.
                now += Duration::from_millis(wait.saturating_sub(290));
                if let Some(left_out) = limits.allow(key(uid % 12, *refused), now) {
                    allowed += 1;
                    reported += left_out;
                }
                // The shared buckets come on top: one for each category and outcome.
                prop_assert!(limits.buckets.len() <= max + 2 * AuditCategory::ALL.len());
            }
            prop_assert_eq!(allowed + reported + limits.waiting(), steps.len() as u64);
        }
    }
}
