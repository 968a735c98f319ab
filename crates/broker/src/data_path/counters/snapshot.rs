//! The snapshot of [`ByteCounters`]. [`crate::handover::snapshot`] describes its format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hvsock_ring::Monitor;
use serde::{Deserialize, Serialize};

use super::ByteCounters;
use crate::data_path::is_false;

/// The byte counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CountersSnapshot {
    /// From the client and from the server: as far as they were read, of a ring.
    counted: [u64; 2],
    #[serde(default, skip_serializing_if = "is_false")]
    uncounted: bool,
}

impl ByteCounters {
    /// The counters as a value.
    pub(crate) fn snapshot(&self) -> CountersSnapshot {
        let Self {
            counted,
            // The monitor is a part of the connection.
            ring: _,
            is_uncounted,
        } = self;
        CountersSnapshot {
            counted: [0, 1].map(|at: usize| counted[at].load(Ordering::Relaxed)),
            uncounted: *is_uncounted,
        }
    }

    /// The counters of a snapshot, which go on. `ring` is the monitor of a ring connection.
    pub(crate) fn restore(snapshot: CountersSnapshot, ring: Option<Arc<Monitor>>) -> Self {
        let CountersSnapshot { counted, uncounted } = snapshot;
        Self {
            counted: counted.map(AtomicU64::new),
            ring,
            is_uncounted: uncounted,
        }
    }
}
