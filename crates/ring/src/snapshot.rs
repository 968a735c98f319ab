//! Snapshots: a [`Monitor`] or an [`ArenaMonitor`](crate::ArenaMonitor) as a value that another process, of this
//! release or another, makes it again from.
//!
//! For a live upgrade the old broker sends its snapshots and the memory's descriptors to the new one. For
//! crash recovery a broker stores them and the next one reads them. The ends need no snapshot: they run
//! on.
//!
//! # What is in it
//!
//! What the monitor has read of the ends' claims (bytes written, modulo 2^64; the end of the stream), so
//! that counters do not decrease and an end stays one; and what was ordered (closed sides, reset,
//! suspended), which restoring orders again. Not in it: the mapping, which is made again from the
//! memory's descriptor, and anything else in the shared memory.
//!
//! # Reading it
//!
//! Every combination of values is a state that a monitor may have, and its size is fixed: there are no
//! limits to exceed. An arena's has at most one entry per slot.
//!
//! # Compatibility
//!
//! - [`MonitorSnapshot`] is separate from the monitor. A change of the monitor's state does not compile
//!   until it is in the snapshot, or left out on purpose.
//! - The version is the first field. One that a release does not know is refused, with both versions in
//!   the error, before any other field is read.
//! - Unknown fields are ignored (no `deny_unknown_fields`). So a release may add a field without a new
//!   version if older releases may ignore it and `#[serde(default)]` is right for snapshots without it.
//!   Such a snapshot is read by older releases as well: a downgrade works.
//! - Any other change makes a new version. The release that makes it reads the version before, too, and
//!   can write it, for a downgrade.
//! - `tests/snapshots/` has an example of each version, which a test restores.

use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::Monitor;
use crate::monitor::MonitorState;

/// The version of [`MonitorSnapshot`] that this release writes.
pub const MONITOR_SNAPSHOT_VERSION: u32 = 1;

/// A [`Monitor`] without its mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorSnapshot {
    #[serde(deserialize_with = "read_version::<_, MONITOR_SNAPSHOT_VERSION>")]
    version: u32,
    first: EndState,
    second: EndState,
    /// The connection was reset here.
    reset: bool,
    /// The connection is suspended.
    suspended: bool,
}

/// What the monitor knows of one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EndState {
    /// Bytes that it claims to have written, modulo 2^64.
    written: u64,
    /// It claims to have shut down its writing direction.
    ended: bool,
    /// Its reading direction was closed on its behalf.
    closed: bool,
}

/// Why a snapshot cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The snapshot is from a release with another format.
    #[error("the snapshot has version {found}; this release reads version {supported}")]
    UnsupportedVersion {
        /// The snapshot's version.
        found: u32,
        /// The newest version that this release reads.
        supported: u32,
    },
    /// The memory cannot be mapped, or is not that of a connection.
    #[error("cannot map the connection's memory: {0}")]
    Memory(io::Error),
    /// No sequence of operations leads to the snapshot.
    #[error("the snapshot is inconsistent: {what}")]
    Inconsistent {
        /// The condition that is not met.
        what: &'static str,
    },
}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> Self {
        Self::Memory(error)
    }
}

impl Monitor {
    /// The monitor as a value.
    pub fn snapshot(&self) -> MonitorSnapshot {
        let MonitorState {
            written,
            has_ended,
            closed,
            is_reset,
            is_suspended,
        } = self.state();
        let end = |at: usize| EndState {
            written: written[at],
            ended: has_ended[at],
            closed: closed[at],
        };
        MonitorSnapshot {
            version: MONITOR_SNAPSHOT_VERSION,
            first: end(0),
            second: end(1),
            reset: is_reset,
            suspended: is_suspended,
        }
    }

    /// The monitor of a snapshot, for the memory of the same connection. Orders again what the snapshot's
    /// monitor had ordered. Keeps no descriptor.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::Memory`] as
    /// [`Monitor::new`].
    pub fn restore(snapshot: MonitorSnapshot, memory: impl AsFd) -> Result<Self, SnapshotError> {
        let MonitorSnapshot {
            version,
            first,
            second,
            reset,
            suspended,
        } = snapshot;
        check_version(version, MONITOR_SNAPSHOT_VERSION)?;
        let ends = [&first, &second];
        let state = MonitorState {
            written: ends.map(|end| end.written),
            has_ended: ends.map(|end| end.ended),
            closed: ends.map(|end| end.closed),
            is_reset: reset,
            is_suspended: suspended,
        };
        Ok(Self::resume(memory, state)?)
    }
}

pub(crate) fn check_version(found: u32, supported: u32) -> Result<(), SnapshotError> {
    match found == supported {
        true => Ok(()),
        false => Err(SnapshotError::UnsupportedVersion { found, supported }),
    }
}

/// Reads the version of a snapshot. It is the first field, so one of another format gets this error
/// and not one about its fields.
pub(crate) fn read_version<'de, D: Deserializer<'de>, const SUPPORTED: u32>(
    deserializer: D,
) -> Result<u32, D::Error> {
    let found = u32::deserialize(deserializer)?;
    check_version(found, SUPPORTED).map_err(de::Error::custom)?;
    Ok(found)
}
