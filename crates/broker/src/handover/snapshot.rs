//! What the snapshots of the core's tables share: errors, times, descriptors, and identities.
//!
//! A snapshot is a table as a value, from which another process makes it again: the successor of a live
//! upgrade, or a broker that recovers from a crash.
//!
//! - **Format.** Every snapshot starts with its version and is stable across releases: its types are
//!   separate from the live ones, and a change of its meaning is a new version. Unknown fields are
//!   ignored, so a field whose absence is right for older snapshots (`#[serde(default)]`) needs none.
//! - **Times** are nanoseconds relative to the time of the snapshot. Clocks of two processes, or of two
//!   boots, have nothing in common.
//! - **Descriptors** are indexes into a list, which travels beside the snapshots (`SCM_RIGHTS`). All
//!   snapshots of one broker share the list.
//! - **Input.** A snapshot may be damaged, or of another release. `restore` checks what the table relies
//!   on, never panics, and never exceeds the table's limits.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::callers::Caller;

/// Why a snapshot cannot be taken or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
        /// What there is too much of.
        which: &'static str,
        /// How many.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// No sequence of operations leads to the snapshot, or its descriptors are those of another one.
    #[error("the snapshot is inconsistent: {what}")]
    Inconsistent {
        /// The condition that is not met.
        what: &'static str,
    },
    /// Sessions are taken out of their table, so a snapshot would lose them.
    #[error("{sessions} sessions are being served")]
    Outstanding {
        /// How many.
        sessions: usize,
    },
}

/// The descriptors that came with snapshots. Each belongs to one object.
#[derive(Debug)]
pub struct Descriptors<D>(Vec<Option<D>>);

impl<D> Descriptors<D> {
    /// The list in the order in which it was sent.
    pub(crate) fn new(all: impl IntoIterator<Item = D>) -> Self {
        Self(all.into_iter().map(Some).collect())
    }

    /// Number of descriptors, including those that have been taken.
    #[allow(clippy::len_without_is_empty, reason = "an empty list is as any other")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the descriptor with an index.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if there is none, or it has been taken.
    pub fn take(&mut self, index: u32) -> Result<D, SnapshotError> {
        let slot = usize::try_from(index)
            .ok()
            .and_then(|at| self.0.get_mut(at));
        slot.and_then(Option::take)
            .ok_or(SnapshotError::Inconsistent {
                what: "a descriptor is missing or belongs to two objects",
            })
    }
}

/// A process's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallerSnapshot {
    pid: u32,
    uid: u32,
    gid: u32,
}

impl From<Caller> for CallerSnapshot {
    fn from(caller: Caller) -> Self {
        let Caller { pid, uid, gid } = caller;
        Self { pid, uid, gid }
    }
}

impl From<CallerSnapshot> for Caller {
    fn from(snapshot: CallerSnapshot) -> Self {
        let CallerSnapshot { pid, uid, gid } = snapshot;
        Self { pid, uid, gid }
    }
}

/// Checks the version of a snapshot.
pub(crate) fn check_version(found: u32, supported: u32) -> Result<(), SnapshotError> {
    match found == supported {
        true => Ok(()),
        false => Err(SnapshotError::UnsupportedVersion { found, supported }),
    }
}

/// Reads the version of a snapshot. It is the first field, so a snapshot of another format gets this
/// error and not one about its fields.
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

/// The time that many nanoseconds from `now`.
pub(crate) fn time_at(nanoseconds: i64, now: Instant) -> Result<Instant, SnapshotError> {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    let time = match nanoseconds >= 0 {
        true => now.checked_add(distance),
        false => now.checked_sub(distance),
    };
    time.ok_or(SnapshotError::Inconsistent {
        what: "a time is out of range",
    })
}
