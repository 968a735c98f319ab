//! Why a snapshot is refused, and the checks that all parts of it share.

use serde::{Deserialize, Deserializer, de};

/// Why a snapshot cannot be restored.
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
        /// The table: as in [`Refusal::LimitReached`](crate::Refusal::LimitReached), where it is one of
        /// the [`Limits`](crate::Limits).
        which: &'static str,
        /// The number of entries in the snapshot.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// No sequence of operations leads to the snapshot.
    #[error("the snapshot is inconsistent: {what}")]
    Inconsistent {
        /// What is wrong, as a clause.
        what: &'static str,
    },
}

/// Checks the version of a snapshot.
pub(super) fn check_version(found: u32, supported: u32) -> Result<(), SnapshotError> {
    match (1..=supported).contains(&found) {
        true => Ok(()),
        false => Err(SnapshotError::UnsupportedVersion { found, supported }),
    }
}

/// Reads the version of a snapshot. It is the first field, so one of another format gets this error
/// and not one about its fields.
pub(super) fn read_version<'de, D: Deserializer<'de>, const SUPPORTED: u32>(
    deserializer: D,
) -> Result<u32, D::Error> {
    let found = u32::deserialize(deserializer)?;
    check_version(found, SUPPORTED).map_err(de::Error::custom)?;
    Ok(found)
}

/// Checks the size of a table.
pub(super) fn check_size(
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
pub(super) fn ensure(is_met: bool, what: &'static str) -> Result<(), SnapshotError> {
    match is_met {
        true => Ok(()),
        false => Err(inconsistent(what)),
    }
}

pub(super) fn inconsistent(what: &'static str) -> SnapshotError {
    SnapshotError::Inconsistent { what }
}
