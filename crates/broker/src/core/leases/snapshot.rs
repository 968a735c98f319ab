//! The snapshot of the leases. [`crate::handover::snapshot`] describes its format.

use hvsock_address::ServiceId;
use serde::{Deserialize, Serialize};

use super::Leases;
use crate::handover::snapshot::{SnapshotError, check_limit, check_version, ensure, read_version};

/// The version of [`LeasesSnapshot`] that this release writes.
pub(in crate::core) const LEASES_SNAPSHOT_VERSION: u32 = 1;

/// All leases. Not in it: their sessions, since each session names its lease; and the registrations
/// that wait for one to end, since they are read from their files and wait again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct LeasesSnapshot {
    #[serde(deserialize_with = "read_version::<_, LEASES_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their services.
    leases: Vec<LeaseSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LeaseSnapshot {
    service: ServiceId,
    /// The serial number of its session.
    session: u64,
}

impl Leases {
    /// The leases as a value.
    pub(in crate::core) fn snapshot(&self) -> LeasesSnapshot {
        let Self { held, blocked: _ } = self;
        let held = held.iter().map(|(service, lease)| LeaseSnapshot {
            service: *service,
            session: lease.serial,
        });
        let mut leases: Vec<_> = held.collect();
        leases.sort_by_key(|lease| lease.service);
        LeasesSnapshot {
            version: LEASES_SNAPSHOT_VERSION,
            leases,
        }
    }

    /// The leases of a snapshot, at most `limit`. They have no sessions until
    /// [`set_session`](Self::set_session).
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::LimitExceeded`] for
    /// more than `limit` leases; [`SnapshotError::Inconsistent`] if a service is leased twice.
    pub(in crate::core) fn restore(
        snapshot: LeasesSnapshot,
        limit: usize,
    ) -> Result<Self, SnapshotError> {
        let LeasesSnapshot { version, leases } = snapshot;
        check_version(version, LEASES_SNAPSHOT_VERSION)?;
        check_limit("leases", leases.len(), limit)?;
        let mut restored = Self::default();
        let mut previous = None;
        for LeaseSnapshot { service, session } in leases {
            ensure(Some(service) > previous, "the leases are not in order")?;
            previous = Some(service);
            restored.grant(service, session);
        }
        Ok(restored)
    }
}
