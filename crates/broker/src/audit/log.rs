//! The records in memory: a bounded list for each category, and counts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use hvsock_control::{AuditCategory, AuditFilter, AuditMetrics, AuditOutcome, AuditRecord};

use super::limit::{Key, Limits, Source};

/// Most records of one category in memory. A record is at most about 3 KiB.
pub(crate) const CAPACITY: usize = 2048;

/// The newest records of each category. A flood of one displaces none of another.
#[derive(Debug)]
pub(crate) struct AuditLog {
    records: BTreeMap<AuditCategory, VecDeque<Arc<AuditRecord>>>,
    capacity: usize,
    /// The number of the newest record.
    last: u64,
    limits: Limits,
    counts: BTreeMap<(AuditCategory, AuditOutcome), u64>,
    left_out: u64,
}

impl Default for AuditLog {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl AuditLog {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            records: BTreeMap::new(),
            capacity,
            last: 0,
            limits: Limits::default(),
            counts: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Allows a record of `source`, and returns how many were left out before it. `None` leaves it out,
    /// so that the caller need not make it.
    pub(crate) fn admit(
        &mut self,
        source: Source,
        category: AuditCategory,
        outcome: AuditOutcome,
        now: Instant,
    ) -> Option<u64> {
        let refused = outcome == AuditOutcome::Refused;
        let key = Key {
            source: Some(source),
            category,
            refused,
        };
        let admitted = self.limits.allow(key, now);
        if admitted.is_none() {
            self.left_out += 1;
        }
        admitted
    }

    /// Counts records of `source` that nobody made, of what was allowed.
    pub(crate) fn leave_out(
        &mut self,
        source: Source,
        category: AuditCategory,
        records: u64,
        now: Instant,
    ) {
        let key = Key {
            source: Some(source),
            category,
            refused: false,
        };
        self.limits.leave_out(key, records, now);
        self.left_out = self.left_out.saturating_add(records);
    }

    /// Adds a record and numbers it. The oldest of its category is dropped if there are too many.
    pub(crate) fn append(&mut self, mut record: AuditRecord) -> Arc<AuditRecord> {
        self.last += 1;
        record.number = self.last;
        let count = self.counts.entry((record.category, record.outcome));
        *count.or_default() += 1;
        let record = Arc::new(record);
        let records = self.records.entry(record.category).or_default();
        while records.len() >= self.capacity.max(1) {
            records.pop_front();
        }
        records.push_back(Arc::clone(&record));
        record
    }

    /// The records that a filter selects, oldest first.
    pub(crate) fn select(&self, filter: &AuditFilter) -> Vec<Arc<AuditRecord>> {
        let records = self.records.values().flatten();
        let mut selected: Vec<_> = records
            .filter(|record| filter.matches(record))
            .cloned()
            .collect();
        selected.sort_by_key(|record| record.number);
        let limit = filter.limit.unwrap_or(usize::MAX);
        selected.split_off(selected.len().saturating_sub(limit))
    }

    /// The newest record for which `is_it` returns true.
    pub(crate) fn find(&self, is_it: impl Fn(&AuditRecord) -> bool) -> Option<AuditRecord> {
        let mut records = self.records.values().flat_map(|list| list.iter().rev());
        records
            .find(|record| is_it(record))
            .map(|record| AuditRecord::clone(record))
    }

    /// The counts since the start. What was not written is the caller's to know.
    pub(crate) fn metrics(&self) -> AuditMetrics {
        let counts = self.counts.iter();
        AuditMetrics {
            records: counts
                .map(|((category, outcome), count)| (*category, *outcome, *count))
                .collect(),
            left_out: self.left_out,
            not_written: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn record(category: AuditCategory, outcome: AuditOutcome) -> AuditRecord {
        AuditRecord {
            category,
            outcome,
            ..AuditRecord::default()
        }
    }

    #[test]
    fn a_flood_of_connections_displaces_no_change() {
        let mut log = AuditLog::new(4);
        let change = log.append(record(AuditCategory::Change, AuditOutcome::Allowed));
        for _ in 0..100 {
            log.append(record(AuditCategory::Connection, AuditOutcome::Allowed));
        }
        let all = log.select(&AuditFilter::default());
        assert_eq!(all.len(), 5);
        assert_eq!(all[0], change);
        let newest = AuditFilter {
            limit: Some(2),
            ..AuditFilter::default()
        };
        let numbers = log.select(&newest);
        let numbers: Vec<u64> = numbers.iter().map(|record| record.number).collect();
        assert_eq!(numbers, [100, 101]);
    }

    proptest! {
        #[test]
        fn the_log_is_bounded_and_counts_every_record(
            steps in prop::collection::vec((0..3_usize, any::<bool>(), 0..3_u32, 0..50_u64), 1..1500),
            capacity in 1..20_usize,
        ) {
            let (mut log, mut now) = (AuditLog::new(capacity), Instant::now());
            let mut newest: [Vec<u64>; 3] = Default::default();
            for (kind, refused, uid, wait) in &steps {
                now += Duration::from_millis(wait.saturating_sub(48));
                let category = AuditCategory::ALL[*kind];
                let outcome = match refused {
                    true => AuditOutcome::Refused,
                    false => AuditOutcome::Allowed,
                };
                let source = Source { partition: 0, uid: *uid };
                if log.admit(source, category, outcome, now).is_some() {
                    let number = log.append(record(category, outcome)).number;
                    newest[*kind].push(number);
                }
            }
            let all = AuditFilter { limit: Some(usize::MAX), ..AuditFilter::default() };
            let kept: Vec<u64> = log.select(&all).iter().map(|record| record.number).collect();
            let mut expected: Vec<u64> = newest
                .iter()
                .flat_map(|numbers| numbers.iter().rev().take(capacity).copied())
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(kept, expected);
            let metrics = log.metrics();
            let written: u64 = metrics.records.iter().map(|(.., count)| count).sum();
            prop_assert_eq!(written, log.last);
            prop_assert_eq!(written + metrics.left_out, steps.len() as u64);
        }
    }
}
