//! What scans of one arena have seen.

pub(super) mod snapshot;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_control::AuditRecord;
use hvsock_ring::{SlotId, SlotView, Totals};

/// Nobody opens connections faster: the least time of one. A larger claim is cut to this.
const LEAST_CONNECT: Duration = Duration::from_nanos(200);

/// The connections of an arena at its last scan, and its counts so far.
#[derive(Debug)]
pub(super) struct Seen {
    /// By slot.
    slots: Vec<Option<SeenConnection>>,
    len: usize,
    /// Connections that scans have seen, and those that the pair claims beside them, as far as that is
    /// believed.
    opened: u64,
    unseen: u64,
    /// Bytes that each side has written to all connections so far.
    bytes: [u64; 2],
    last: Instant,
}

/// A connection that a scan saw.
#[derive(Clone, Debug)]
pub(in crate::core) struct SeenConnection {
    pub(in crate::core) id: SlotId,
    pub(in crate::core) since: Instant,
    pub(in crate::core) accepted: bool,
    /// The `HVSOCKET_CONNECTED_SUSPEND` of each end.
    pub(in crate::core) keep: [bool; 2],
    /// Whether each side claims to have ended its data.
    pub(in crate::core) ended: [bool; 2],
    /// Bytes that each side claims to have written.
    pub(in crate::core) written: [u64; 2],
    /// The record of its beginning, if the audit has one.
    pub(in crate::core) audited: Option<Arc<AuditRecord>>,
    /// The broker has reset it. Its ends have yet to be closed.
    is_reset: bool,
}

/// What is new at a scan.
#[derive(Debug, Default)]
pub(in crate::core) struct Observation {
    /// Connections that are seen for the first time.
    pub(in crate::core) opened: Vec<SlotId>,
    /// Connections that are gone, and were not reset by the broker.
    pub(in crate::core) closed: Vec<SeenConnection>,
    /// Connections that were opened and closed since the last scan.
    pub(in crate::core) unseen: u64,
    /// More bytes that each side has written.
    pub(in crate::core) bytes: [u64; 2],
    /// Something has changed in the table since the last scan.
    pub(in crate::core) is_changed: bool,
    /// No honest pair has such a table.
    pub(in crate::core) is_impossible: bool,
}

impl Seen {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slots: Vec::new(),
            len: 0,
            opened: 0,
            unseen: 0,
            bytes: [0; 2],
            last: now,
        }
    }

    /// Compares a scan with the last one. `is_impossible`: the client uses what is not granted.
    pub(super) fn update(
        &mut self,
        views: &[SlotView],
        totals: Totals,
        is_impossible: bool,
        now: Instant,
    ) -> Observation {
        let mut found = Observation {
            is_impossible,
            ..Observation::default()
        };
        let mut known = HashSet::with_capacity(views.len());
        let mut views = views.iter().peekable();
        let mut bytes = totals.closed_bytes;
        let last_slot = views
            .clone()
            .last()
            .map_or(0, |view| view.id.slot as usize + 1);
        if self.slots.len() < last_slot {
            self.slots.resize_with(last_slot, || None);
        }
        for (at, seen) in self.slots.iter_mut().enumerate() {
            let view = views.next_if(|view| view.id.slot as usize == at);
            if let Some(gone) = seen.take_if(|seen| view.is_none_or(|view| view.id != seen.id)) {
                found.is_changed = true;
                if !gone.is_reset {
                    found.closed.push(gone);
                }
            }
            let Some(view) = view else { continue };
            // Two connections with one number would be one to an operator.
            found.is_impossible |= !known.insert(view.id.seq);
            for (sum, side) in bytes.iter_mut().zip([0, 1]) {
                if !view.closed[side] {
                    *sum = sum.saturating_add(view.written[side]);
                }
            }
            let seen = seen.get_or_insert_with(|| {
                found.is_changed = true;
                found.opened.push(view.id);
                SeenConnection {
                    id: view.id,
                    since: now,
                    accepted: false,
                    keep: [false; 2],
                    ended: [false; 2],
                    written: [0; 2],
                    audited: None,
                    is_reset: false,
                }
            });
            seen.accepted = view.accepted;
            seen.keep = view.keep;
            seen.ended = view.ended;
            seen.written = view.written;
        }
        self.len = self.open().count();
        found.unseen = self.count_opened(totals.opened, found.opened.len() as u64, now);
        found.is_changed |= found.unseen > 0;
        for side in [0, 1] {
            found.bytes[side] = bytes[side].saturating_sub(self.bytes[side]);
            self.bytes[side] = self.bytes[side].max(bytes[side]);
        }
        found
    }

    /// Counts what the pair claims to have opened, and returns how many of those were never seen.
    fn count_opened(&mut self, claimed: u64, seen: u64, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.last);
        self.last = now;
        let most = elapsed.as_nanos() / LEAST_CONNECT.as_nanos();
        self.opened = self.opened.saturating_add(seen);
        let unseen = claimed.saturating_sub(self.opened);
        let more = unseen.saturating_sub(self.unseen);
        let more = more.min(u64::try_from(most).unwrap_or(u64::MAX));
        self.unseen += more;
        more
    }

    pub(super) fn open(&self) -> impl Iterator<Item = &SeenConnection> {
        self.slots.iter().flatten().filter(|seen| !seen.is_reset)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn counted(&self) -> (u64, [u64; 2]) {
        (self.opened.saturating_add(self.unseen), self.bytes)
    }

    pub(super) fn mark_reset(&mut self, id: SlotId) -> Option<SeenConnection> {
        let seen = self.slots.get_mut(id.slot as usize)?.as_mut()?;
        if seen.id != id || seen.is_reset {
            return None;
        }
        seen.is_reset = true;
        self.len -= 1;
        Some(seen.clone())
    }

    pub(super) fn take_open(&mut self) -> Vec<SeenConnection> {
        self.len = 0;
        let all = std::mem::take(&mut self.slots);
        let open = all.into_iter().flatten();
        open.filter(|seen| !seen.is_reset).collect()
    }

    pub(super) fn set_audited(&mut self, id: SlotId, record: Arc<AuditRecord>) {
        if let Some(Some(seen)) = self.slots.get_mut(id.slot as usize)
            && seen.id == id
        {
            seen.audited = Some(record);
        }
    }
}
