//! What scans of an arena have seen, in its snapshot.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use hvsock_control::AuditRecord;
use hvsock_endpoint::ARENA_IDS;
use hvsock_ring::{ArenaLimits, SlotId};
use serde::{Deserialize, Serialize};

use super::{Seen, SeenConnection};
use crate::data_path::is_false;
use crate::handover::snapshot::{SnapshotError, ensure, nanoseconds_until, time_at};

/// What scans of an arena have seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core::arenas) struct SeenSnapshot {
    /// In the order of their slots.
    connections: Vec<ConnectionSnapshot>,
    opened: u64,
    unseen: u64,
    bytes: [u64; 2],
    /// Nanoseconds since the last scan.
    age: i64,
}

/// A connection that a scan saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConnectionSnapshot {
    slot: u32,
    seq: u32,
    /// Nanoseconds since it was seen first.
    age: i64,
    accepted: bool,
    keep: [bool; 2],
    ended: [bool; 2],
    written: [u64; 2],
    /// The record of its beginning in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audited: Option<Box<AuditRecord>>,
    #[serde(default, skip_serializing_if = "is_false")]
    reset: bool,
}

fn age(since: Instant, now: Instant) -> i64 {
    nanoseconds_until(since, now).saturating_neg().max(0)
}

fn since(age: i64, now: Instant) -> Result<Instant, SnapshotError> {
    ensure(age >= 0, "a connection in an arena begins in the future")?;
    time_at(age.saturating_neg(), now)
}

impl Seen {
    pub(in crate::core::arenas) fn snapshot(&self, now: Instant) -> SeenSnapshot {
        let Self {
            slots,
            // The number of those that are not reset.
            len: _,
            opened,
            unseen,
            bytes,
            last,
        } = self;
        let connections = slots.iter().flatten().map(|seen| {
            let SeenConnection {
                id: SlotId { slot, seq },
                since,
                accepted,
                keep,
                ended,
                written,
                audited,
                is_reset,
            } = seen;
            ConnectionSnapshot {
                slot: *slot,
                seq: *seq,
                age: age(*since, now),
                accepted: *accepted,
                keep: *keep,
                ended: *ended,
                written: *written,
                audited: audited.as_deref().cloned().map(Box::new),
                reset: *is_reset,
            }
        });
        SeenSnapshot {
            connections: connections.collect(),
            opened: *opened,
            unseen: *unseen,
            bytes: *bytes,
            age: age(*last, now),
        }
    }
}

impl SeenSnapshot {
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] for connections out of order or out of range, and impossible times.
    pub(in crate::core::arenas) fn restore(self, now: Instant) -> Result<Seen, SnapshotError> {
        let Self {
            connections,
            opened,
            unseen,
            bytes,
            age,
        } = self;
        let mut seen = Seen {
            opened,
            unseen,
            bytes,
            ..Seen::new(since(age, now)?)
        };
        let mut numbers = HashSet::with_capacity(connections.len());
        for connection in connections {
            let ConnectionSnapshot {
                slot,
                seq,
                age,
                accepted,
                keep,
                ended,
                written,
                audited,
                reset,
            } = connection;
            let is_next = slot < ArenaLimits::MAX_SLOTS && seen.slots.len() <= slot as usize;
            ensure(is_next, "the connections of an arena are not in order")?;
            let is_number = (1..ARENA_IDS).contains(&seq.into());
            // One that is gone may have had the number of another one.
            let is_number = is_number && (numbers.insert(seq) || reset);
            ensure(is_number, "a connection of an arena has an impossible id")?;
            seen.slots.resize_with(slot as usize, || None);
            seen.slots.push(Some(SeenConnection {
                id: SlotId { slot, seq },
                since: since(age, now)?,
                accepted,
                keep,
                ended,
                written,
                audited: audited.map(|record| Arc::new(*record)),
                is_reset: reset,
            }));
        }
        seen.len = seen.open().count();
        Ok(seen)
    }
}
