//! Connections to the host's ports that are of no VM of the broker: counted, and reported now and then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::guest_link::Stranger;

/// At least this long between two reports about one CID.
const INTERVAL: Duration = Duration::from_secs(5);
/// The most CIDs that are told apart.
const MAX_CIDS: usize = 64;

/// The connections that were closed since the last report, by CID.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    by_cid: BTreeMap<u32, Seen>,
}

#[derive(Debug)]
struct Seen {
    port: u32,
    count: u64,
    /// When it may be reported.
    due: Instant,
}

impl Strangers {
    /// Counts a connection.
    pub(super) fn add(&mut self, cid: u32, port: u32, now: Instant) {
        if self.by_cid.len() >= MAX_CIDS && !self.by_cid.contains_key(&cid) {
            // A machine has not that many VMs without a partition; one of them stands for the rest.
            if let Some(seen) = self.by_cid.values_mut().next_back() {
                seen.count = seen.count.saturating_add(1);
            }
            return;
        }
        let seen = self.by_cid.entry(cid).or_insert(Seen {
            port,
            count: 0,
            due: now,
        });
        (seen.port, seen.count) = (port, seen.count.saturating_add(1));
    }

    /// When [`take_due`](Self::take_due) has something.
    pub(super) fn next_report(&self) -> Option<Instant> {
        let counted = self.by_cid.values().filter(|seen| seen.count > 0);
        counted.map(|seen| seen.due).min()
    }

    /// Takes what may be reported.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Stranger> {
        // One that has been silent for an interval is reported at once the next time.
        self.by_cid
            .retain(|_, seen| seen.count > 0 || seen.due > now);
        let due = self.by_cid.iter_mut();
        let due = due.filter(|(_, seen)| seen.count > 0 && seen.due <= now);
        due.map(|(cid, seen)| {
            seen.due = now + INTERVAL;
            Stranger {
                cid: *cid,
                port: seen.port,
                count: std::mem::take(&mut seen.count),
            }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_connections_is_one_report_in_an_interval() {
        let (mut strangers, start) = (Strangers::default(), Instant::now());
        strangers.add(77, 5000, start);
        let first = strangers.take_due(start);
        assert_eq!((first.len(), first[0].cid, first[0].count), (1, 77, 1));
        for _ in 0..1000 {
            strangers.add(77, 5001, start);
        }
        assert!(strangers.take_due(start).is_empty());
        let later = start + INTERVAL;
        assert_eq!(strangers.next_report(), Some(later));
        let second = strangers.take_due(later);
        assert_eq!((second[0].port, second[0].count), (5001, 1000));
        assert_eq!(strangers.next_report(), None);
    }

    #[test]
    fn the_cids_that_are_told_apart_are_bounded() {
        let (mut strangers, now) = (Strangers::default(), Instant::now());
        for cid in 0..10_000 {
            strangers.add(cid, 1, now);
        }
        let due = strangers.take_due(now);
        assert_eq!(due.len(), MAX_CIDS);
        assert_eq!(due.iter().map(|one| one.count).sum::<u64>(), 10_000);
    }
}
