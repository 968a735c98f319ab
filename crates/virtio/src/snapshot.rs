//! Snapshots: a [`Muxer`](crate::Muxer) or [`Queue`](crate::queue::Queue) as a value that another
//! process, of this release or another, makes it again from.
//!
//! For a live upgrade the old process sends its snapshots and descriptors to the new one. For crash
//! recovery a process stores them and the next one reads them.
//!
//! # What is in them
//!
//! - [`MuxerSnapshot`](crate::MuxerSnapshot): all connections with their handles, states, credit and
//!   pending packets; the order of the round robin; pending events and replies; counters. Times are
//!   nanoseconds relative to the time of the snapshot, negative if they have passed. Not in it:
//!   payload, which is in the links, and the limits of the [`Config`](crate::Config), which are passed
//!   in again.
//! - [`QueueSnapshot`](crate::queue::QueueSnapshot): the addresses, features, indices and the
//!   notification state. Not in it: anything in guest memory. Chains that were added to the used ring
//!   and not published yet are in it by their indices; chains that the device has taken and not
//!   returned are not, so a snapshot is refused while there are any.
//!
//! All numbers are in the units of their live counterparts: bytes, packets or ring indices.
//!
//! # Reading them
//!
//! A snapshot may come from another release, or be damaged. `restore` checks everything that the live
//! type relies on, never panics, and never exceeds the limits of its arguments. Nobody but the owner of
//! the process may write a snapshot: one that passes all checks still decides who is connected. The
//! memory for reading one is proportional to its length, which the reader limits.
//!
//! # Compatibility
//!
//! - The data types of the snapshots are separate from those of the live state. A change of the live
//!   state does not compile until it is in the snapshot, or left out on purpose.
//! - Every snapshot starts with its version. A version that a release does not know is refused, with
//!   both versions in the error, before any other field is read.
//! - Unknown fields are ignored (no `deny_unknown_fields`). So a release may add a field without a new
//!   version if older releases may ignore it and `#[serde(default)]` is right for snapshots without it.
//!   Such a snapshot is read by older releases as well: a downgrade works.
//! - Any other change makes a new version. The release that makes it reads the version before, too
//!   (`#[serde(default)]`, or a type of its own and a conversion), and can write it, for a downgrade.
//! - `tests/snapshots/` has an example of each version, which a test restores.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, de};

/// Why a snapshot cannot be taken or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// A table of the snapshot is larger than the limit.
    #[error("the snapshot has {found} {which}; the limit is {limit}")]
    LimitExceeded {
        /// The table.
        which: &'static str,
        /// The number of entries in the snapshot.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// No sequence of operations leads to the snapshot, or it belongs to something else.
    #[error("the snapshot is inconsistent: {what}")]
    Inconsistent {
        /// What is wrong, as a clause.
        what: &'static str,
    },
    /// The device has taken descriptor chains and not returned them. They are not in guest memory, so
    /// the snapshot would lose them.
    #[error("{chains} descriptor chains were taken from the queue and not returned")]
    Outstanding {
        /// How many.
        chains: u16,
    },
}

/// Checks the version of a snapshot.
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

/// Checks the size of a table.
pub(crate) fn check_limit(
    which: &'static str,
    found: usize,
    limit: usize,
) -> Result<(), SnapshotError> {
    match found <= limit {
        true => Ok(()),
        false => Err(SnapshotError::LimitExceeded {
            which,
            found,
            limit,
        }),
    }
}

/// Checks a condition; `what` is what is wrong otherwise.
pub(crate) fn ensure(is_met: bool, what: &'static str) -> Result<(), SnapshotError> {
    match is_met {
        true => Ok(()),
        false => Err(SnapshotError::Inconsistent { what }),
    }
}

/// Nanoseconds from `now` to `at`, negative if `at` has passed. Saturates at 292 years.
pub(crate) fn nanoseconds_until(at: Instant, now: Instant) -> i64 {
    let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match at.checked_duration_since(now) {
        Some(ahead) => nanoseconds(ahead),
        None => -nanoseconds(now.duration_since(at)),
    }
}

/// The time that many nanoseconds from `now`; `None` if it is beyond the range of `Instant`.
pub(crate) fn time_at(nanoseconds: i64, now: Instant) -> Option<Instant> {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    match nanoseconds >= 0 {
        true => now.checked_add(distance),
        false => now.checked_sub(distance),
    }
}
