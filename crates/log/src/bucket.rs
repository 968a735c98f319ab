//! Token buckets by key, with a count of what they refused. Time comes in as an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The most lines of one key at once, and the time after which one more is allowed.
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(5);

/// The same for all keys of one group.
const GROUP_BURST: u32 = 100;
const GROUP_INTERVAL: Duration = Duration::from_millis(200);

/// How long refusals are counted before they are reported.
pub(crate) const REPORT: Duration = Duration::from_secs(10);

/// The most keys. Further ones share a bucket for each group.
const MAX_KEYS: usize = 1024;

/// Buckets for keys, which belong to groups. A group is a log statement, so their number is bounded by the
/// program; a key is what the untrusted choose.
#[derive(Debug)]
pub(crate) struct Buckets<G, K, S> {
    groups: HashMap<G, Bucket>,
    keys: HashMap<(G, Option<K>), Counted<S>>,
}

/// A token bucket, as the time at which it is full again.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    full_at: Instant,
}

#[derive(Debug)]
struct Counted<S> {
    bucket: Bucket,
    refused: Option<Refused<S>>,
}

/// What a bucket refused since the last report.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused<S> {
    /// The number of lines.
    pub(crate) count: u64,
    /// When the first of them was refused.
    pub(crate) since: Instant,
    /// An example.
    pub(crate) sample: S,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    fn has_token(&self, now: Instant, burst: u32, interval: Duration) -> bool {
        self.full_at.max(now) + interval <= now + interval * burst
    }

    fn take(&mut self, now: Instant, interval: Duration) {
        self.full_at = self.full_at.max(now) + interval;
    }
}

impl<G, K, S> Default for Buckets<G, K, S> {
    fn default() -> Self {
        Self {
            groups: HashMap::new(),
            keys: HashMap::new(),
        }
    }
}

impl<G: Clone + Eq + Hash, K: Eq + Hash, S> Buckets<G, K, S> {
    /// Whether one more line is allowed. A refused one is counted, with `sample` for the first.
    pub(crate) fn allow(
        &mut self,
        (group, key): (G, K),
        now: Instant,
        sample: impl FnOnce() -> S,
    ) -> bool {
        let mut place = (group.clone(), Some(key));
        if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(&place) {
            self.keys
                .retain(|_, counted| counted.refused.is_some() || counted.bucket.full_at > now);
            if self.keys.len() >= MAX_KEYS {
                place = (group.clone(), None);
            }
        }
        let of_group = self.groups.entry(group).or_insert(Bucket::full(now));
        let counted = self.keys.entry(place).or_insert_with(|| Counted {
            bucket: Bucket::full(now),
            refused: None,
        });
        if counted.bucket.has_token(now, BURST, INTERVAL)
            && of_group.has_token(now, GROUP_BURST, GROUP_INTERVAL)
        {
            counted.bucket.take(now, INTERVAL);
            of_group.take(now, GROUP_INTERVAL);
            return true;
        }
        let refused = counted.refused.get_or_insert_with(|| Refused {
            count: 0,
            since: now,
            sample: sample(),
        });
        refused.count += 1;
        false
    }

    /// When the next report is due.
    pub(crate) fn next_report(&self) -> Option<Instant> {
        let refused = self.keys.values().filter_map(|one| one.refused.as_ref());
        refused.map(|refused| refused.since + REPORT).min()
    }

    /// Takes the counts that are due, or all.
    pub(crate) fn take_reports(&mut self, now: Option<Instant>) -> Vec<Refused<S>> {
        let is_due = |refused: &mut Refused<S>| now.is_none_or(|now| now >= refused.since + REPORT);
        let all = self.keys.values_mut();
        all.filter_map(|counted| counted.refused.take_if(is_due))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flood_is_limited_to_a_burst_and_a_rate_and_counted() {
        let (mut buckets, start) = (Buckets::<u8, u32, &str>::default(), Instant::now());
        let allowed = (0..127_000_u32).filter(|n| {
            let now = start + Duration::from_secs(12) * *n / 127_000;
            buckets.allow((0, 7), now, || "sample")
        });
        assert_eq!(allowed.count(), 12);
        assert_eq!(buckets.next_report().map(|at| at > start), Some(true));
        assert_eq!(buckets.take_reports(Some(start + REPORT)).len(), 0);
        let reports = buckets.take_reports(Some(start + REPORT * 2));
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].count, 127_000 - 12);
        assert_eq!(reports[0].sample, "sample");
        assert_eq!(buckets.next_report(), None);
        let later = start + Duration::from_secs(3600);
        assert!(buckets.allow((0, 7), later, || "sample"));
    }

    #[test]
    fn one_key_takes_no_lines_of_another() {
        let (mut buckets, now) = (Buckets::<u8, u32, ()>::default(), Instant::now());
        while buckets.allow((0, 1), now, || ()) {}
        assert!(buckets.allow((0, 2), now, || ()));
        assert!(buckets.allow((1, 1), now, || ()));
    }

    #[test]
    fn any_number_of_keys_is_bounded_in_memory_and_lines() {
        let (mut buckets, now) = (Buckets::<u8, u32, ()>::default(), Instant::now());
        let allowed = (0..100_000).filter(|key| buckets.allow((0, *key), now, || ()));
        assert_eq!(allowed.count(), GROUP_BURST as usize);
        assert!(buckets.keys.len() <= MAX_KEYS + 1, "{}", buckets.keys.len());
        let refused: u64 = buckets.take_reports(None).iter().map(|one| one.count).sum();
        assert_eq!(refused, 100_000 - u64::from(GROUP_BURST));
        // Idle keys make room.
        let later = now + Duration::from_secs(3600);
        assert!(buckets.allow((1, 200_000), later, || ()));
        assert_eq!(buckets.keys.len(), 1);
    }

    proptest! {
        #[test]
        fn every_line_is_allowed_or_counted(
            lines in proptest::collection::vec((0..3_u8, 0..2000_u32, 0..2000_u64), 0..3000),
        ) {
            let (mut buckets, mut now) = (Buckets::<u8, u32, ()>::default(), Instant::now());
            let (mut allowed, mut counted) = (0, 0);
            for (group, key, step) in &lines {
                now += Duration::from_millis(*step / 10);
                allowed += u64::from(buckets.allow((*group, *key), now, || ()));
                if *step == 0 {
                    counted += buckets.take_reports(Some(now)).iter().map(|r| r.count).sum::<u64>();
                }
                prop_assert!(buckets.keys.len() <= MAX_KEYS + 3);
            }
            counted += buckets.take_reports(None).iter().map(|r| r.count).sum::<u64>();
            prop_assert_eq!(allowed + counted, lines.len() as u64);
        }
    }
}
