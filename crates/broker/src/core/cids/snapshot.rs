//! The snapshot of the CIDs. [`crate::handover::snapshot`] describes its format.
//!
//! They do not follow from the partitions: which of two with one derived CID has it depends on which came first.

use hvsock_address::VmId;
use hvsock_fabric::PartitionKey;
use hvsock_virtio::GuestCid;
use serde::{Deserialize, Serialize};

use super::{Cids, Claim};
use crate::handover::snapshot::{SnapshotError, check_version, ensure, read_version};

/// The version of [`CidsSnapshot`] that this release writes.
const CIDS_SNAPSHOT_VERSION: u32 = 1;

/// The CIDs of all partitions that have one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct CidsSnapshot {
    #[serde(deserialize_with = "read_version::<_, CIDS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their numbers.
    cids: Vec<CidSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CidSnapshot {
    cid: u32,
    partition: u64,
    /// The partition's id.
    id: VmId,
    claim: ClaimSnapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClaimSnapshot {
    Broker,
    Kernel,
    OtherNamespace,
    Vmm,
    Derived,
}

impl Cids {
    /// The CIDs as a value.
    pub(in crate::core) fn snapshot(&self) -> CidsSnapshot {
        let Self {
            by_partition,
            by_cid,
        } = self;
        let all = by_cid.iter().filter_map(|(cid, (key, claim))| {
            let (_, id) = by_partition.get(key)?;
            Some(CidSnapshot {
                cid: cid.get(),
                partition: key.as_u64(),
                id: *id,
                claim: match claim {
                    Claim::Broker => ClaimSnapshot::Broker,
                    Claim::Kernel => ClaimSnapshot::Kernel,
                    Claim::OtherNamespace => ClaimSnapshot::OtherNamespace,
                    Claim::Vmm => ClaimSnapshot::Vmm,
                    Claim::Derived => ClaimSnapshot::Derived,
                },
            })
        });
        CidsSnapshot {
            version: CIDS_SNAPSHOT_VERSION,
            cids: all.collect(),
        }
    }

    /// The CIDs of a snapshot. `is_known` says which partitions there are.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for another version, for numbers that are no CIDs or repeated, and for partitions that
    /// are unknown or have two.
    pub(in crate::core) fn restore(
        snapshot: CidsSnapshot,
        is_known: impl Fn(PartitionKey, VmId) -> bool,
    ) -> Result<Self, SnapshotError> {
        let CidsSnapshot { version, cids } = snapshot;
        check_version(version, CIDS_SNAPSHOT_VERSION)?;
        let mut restored = Self::default();
        for CidSnapshot {
            cid,
            partition,
            id,
            claim,
        } in cids
        {
            let cid = GuestCid::try_from(u64::from(cid));
            let cid = cid.map_err(|_| SnapshotError::Inconsistent {
                what: "a partition has a CID that no guest can have",
            })?;
            let key = PartitionKey::from_u64(partition);
            ensure(is_known(key, id), "a CID is of no partition")?;
            let is_new =
                !restored.by_cid.contains_key(&cid) && !restored.by_partition.contains_key(&key);
            ensure(is_new, "a CID or a partition occurs twice")?;
            let claim = match claim {
                ClaimSnapshot::Broker => Claim::Broker,
                ClaimSnapshot::Kernel => Claim::Kernel,
                ClaimSnapshot::OtherNamespace => Claim::OtherNamespace,
                ClaimSnapshot::Vmm => Claim::Vmm,
                ClaimSnapshot::Derived => Claim::Derived,
            };
            restored.set(key, id, cid, claim);
        }
        Ok(restored)
    }
}
