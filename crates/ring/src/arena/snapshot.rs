//! The snapshot of an [`ArenaMonitor`]. [`snapshot`](crate::snapshot) describes its format.
//!
//! In it is what the monitor has read of the pair's claims, and which processes are gone. Orders are not: they are in
//! the arena's memory, each with the sequence number of its connection. Nor is the grant, which is revoked for a broker
//! that takes an arena over ([`ArenaMonitor::prepare_handover`]).

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::monitor::{ArenaMonitor, Claims, State, Totals};
use super::words::SLOTS;
use crate::snapshot::{SnapshotError, check_version, read_version};

/// The version of [`ArenaMonitorSnapshot`] that this release writes.
pub const ARENA_MONITOR_SNAPSHOT_VERSION: u32 = 1;

/// An [`ArenaMonitor`] without its mappings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaMonitorSnapshot {
    #[serde(deserialize_with = "read_version::<_, ARENA_MONITOR_SNAPSHOT_VERSION>")]
    version: u32,
    /// Connections ever opened.
    opened: u64,
    /// Bytes that each side wrote to connections that it has closed.
    closed_bytes: [u64; 2],
    /// The sides whose process is gone: the client's, and the server's.
    gone: [bool; 2],
    /// The counters of opened, taken and closed connections before the last scan.
    changes: [u64; 4],
    /// The last connection of each slot that has had one, in the order of the slots.
    slots: Vec<SlotState>,
}

/// What the pair has claimed of the last connection in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SlotState {
    slot: u32,
    seq: u32,
    accepted: bool,
    /// Bytes that each side has written.
    written: [u64; 2],
    /// Whether each side shut down its writing direction.
    ended: [bool; 2],
}

impl ArenaMonitor {
    /// The monitor as a value.
    pub fn snapshot(&self) -> ArenaMonitorSnapshot {
        let state = self.state();
        let slots = (0..).zip(&state.claims);
        let slots = slots.filter(|(_, claims)| claims.seq != 0);
        let slots = slots.map(|(slot, claims)| {
            let Claims {
                seq,
                accepted,
                written,
                ended,
            } = *claims;
            SlotState {
                slot,
                seq,
                accepted,
                written,
                ended,
            }
        });
        let Totals {
            opened,
            closed_bytes,
        } = state.totals;
        ArenaMonitorSnapshot {
            version: ARENA_MONITOR_SNAPSHOT_VERSION,
            opened,
            closed_bytes,
            gone: state.gone,
            changes: state.changes,
            slots: slots.collect(),
        }
    }

    /// The monitor of a snapshot, for the memory and the grant page of the same arena, which it keeps. It
    /// [cannot grant](Self::can_grant) anything.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::Inconsistent`] if a slot is out of
    /// range or named twice; [`SnapshotError::Memory`] if the memory is not an arena's or cannot be mapped.
    pub fn restore(
        snapshot: ArenaMonitorSnapshot,
        memory: OwnedFd,
        grant: OwnedFd,
    ) -> Result<Self, SnapshotError> {
        let ArenaMonitorSnapshot {
            version,
            opened,
            closed_bytes,
            gone,
            changes,
            slots,
        } = snapshot;
        check_version(version, ARENA_MONITOR_SNAPSHOT_VERSION)?;
        let mut state = State {
            totals: Totals {
                opened,
                closed_bytes,
            },
            gone,
            changes,
            ..State::default()
        };
        for one in slots {
            let at = one.slot as usize;
            if at >= SLOTS || at < state.claims.len() {
                let what = "a slot is out of range or out of order";
                return Err(SnapshotError::Inconsistent { what });
            }
            state.claims.resize(at, Claims::default());
            state.claims.push(Claims {
                seq: one.seq,
                accepted: one.accepted,
                written: one.written,
                ended: one.ended,
            });
        }
        Ok(Self::inherited(memory, grant, state)?)
    }
}
