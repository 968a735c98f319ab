//! The snapshot of the VMs. [`crate::handover::snapshot`] describes its format. Their links have documents of
//! their own.

use hvsock_control::{LinkSpec, VmSpec};
use hvsock_fabric::{PartitionKey, PartitionState};
use hvsock_virtio::GuestCid;
use serde::{Deserialize, Serialize};

use super::{VmRecord, Vms};
use crate::handover::snapshot::{SnapshotError, check_version, ensure, read_version};
use crate::stores::{VmEntry, VmmUser, hybrid_path};

/// The version of [`VmsSnapshot`] that this release writes.
const VMS_SNAPSHOT_VERSION: u32 = 1;

/// All VMs.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct VmsSnapshot {
    #[serde(deserialize_with = "read_version::<_, VMS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their partitions.
    vms: Vec<VmSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct VmSnapshot {
    partition: u64,
    /// As an operator gave it.
    link: LinkSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cid: Option<u32>,
    /// The user that the VMM runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<UserSnapshot>,
    #[serde(default)]
    unsealed_memory: bool,
    /// The state that its link has reported.
    guest: StateSnapshot,
    /// An operator has paused it.
    paused: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct UserSnapshot {
    name: String,
    uid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateSnapshot {
    Defined,
    Connected,
    Running,
    Paused,
    Off,
    Unknown,
    Exited,
}

impl<T> Vms<T> {
    /// The VMs as a value.
    pub(in crate::core) fn snapshot(&self) -> VmsSnapshot {
        let Self { records, by_cid: _ } = self;
        let mut all: Vec<_> = records.iter().collect();
        all.sort_by_key(|(key, _)| **key);
        let vms = all.into_iter().map(|(key, record)| {
            let VmRecord {
                settings:
                    VmEntry {
                        spec:
                            VmSpec {
                                link,
                                cid,
                                // The name of the one below.
                                user: _,
                                unsealed_memory,
                            },
                        // The same number.
                        cid: _,
                        user,
                    },
                guest,
                paused,
                link: _,
                // Judged again: the link is told all of it.
                offered: _,
            } = record;
            let user = user.as_ref().map(|VmmUser { name, uid }| UserSnapshot {
                name: name.clone(),
                uid: *uid,
            });
            VmSnapshot {
                partition: key.as_u64(),
                link: link.clone(),
                cid: *cid,
                user,
                unsealed_memory: *unsealed_memory,
                guest: match guest {
                    PartitionState::Defined => StateSnapshot::Defined,
                    PartitionState::Connected => StateSnapshot::Connected,
                    PartitionState::Running => StateSnapshot::Running,
                    PartitionState::Paused => StateSnapshot::Paused,
                    PartitionState::Off => StateSnapshot::Off,
                    PartitionState::Unknown => StateSnapshot::Unknown,
                    PartitionState::Exited => StateSnapshot::Exited,
                },
                paused: *paused,
            }
        });
        VmsSnapshot {
            version: VMS_SNAPSHOT_VERSION,
            vms: vms.collect(),
        }
    }

    /// The VMs of a snapshot, without links. `is_known` says which partitions are VMs of this broker.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for another version, for repeated or unknown partitions, and for CIDs and paths that no
    /// VM can have or two have.
    pub(in crate::core) fn restore(
        snapshot: VmsSnapshot,
        is_known: impl Fn(PartitionKey) -> bool,
    ) -> Result<Self, SnapshotError> {
        let VmsSnapshot { version, vms } = snapshot;
        check_version(version, VMS_SNAPSHOT_VERSION)?;
        let mut restored = Self::default();
        for vm in vms {
            let VmSnapshot {
                partition,
                link,
                cid,
                user,
                unsealed_memory,
                guest,
                paused,
            } = vm;
            let key = PartitionKey::from_u64(partition);
            ensure(is_known(key), "a VM is of no partition")?;
            ensure(!restored.contains(key), "a VM occurs twice")?;
            let spec = VmSpec {
                link,
                cid,
                user: user.as_ref().map(|user| user.name.clone()),
                unsealed_memory,
            };
            let cid = cid.map(|cid| GuestCid::try_from(u64::from(cid)));
            let cid = cid.transpose().map_err(|_| SnapshotError::Inconsistent {
                what: "a VM has a CID that no guest can have",
            })?;
            let user = user.map(|UserSnapshot { name, uid }| VmmUser { name, uid });
            let settings = VmEntry::new(spec, cid, user);
            let taken = settings.cid_key().and_then(|cid| restored.by_cid(&cid));
            ensure(taken.is_none(), "two VMs have one CID")?;
            let path = hybrid_path(&settings.spec.link);
            let taken = path.and_then(|path| restored.by_hybrid_path(&path));
            ensure(taken.is_none(), "two VMs have one hybrid socket")?;
            restored.insert(key, settings);
            if let Some(record) = restored.records.get_mut(&key) {
                record.paused = paused;
                record.guest = match guest {
                    StateSnapshot::Defined => PartitionState::Defined,
                    StateSnapshot::Connected => PartitionState::Connected,
                    StateSnapshot::Running => PartitionState::Running,
                    StateSnapshot::Paused => PartitionState::Paused,
                    StateSnapshot::Off => PartitionState::Off,
                    StateSnapshot::Unknown => PartitionState::Unknown,
                    StateSnapshot::Exited => PartitionState::Exited,
                };
            }
        }
        Ok(restored)
    }
}
