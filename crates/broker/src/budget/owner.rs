//! Who a use of a shared resource is charged to.

use hvsock_fabric::PartitionKey;
use serde::{Deserialize, Serialize};

/// Who a use is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    /// Root and the broker's user in the broker's own partition. Members of an operator group have a share
    /// as other users do.
    Operator,
    /// Another user of the broker's own partition.
    User(u32),
    /// A child. Its processes choose their user ids, so they count together.
    Partition(PartitionKey),
}

impl Owner {
    /// The owner of what a process with this user id in `partition` uses. `root` is the broker's own
    /// partition.
    pub(crate) fn of(
        broker_uid: u32,
        root: PartitionKey,
        partition: PartitionKey,
        uid: u32,
    ) -> Self {
        match partition == root {
            false => Self::Partition(partition),
            true if uid == 0 || uid == broker_uid => Self::Operator,
            true => Self::User(uid),
        }
    }
}

/// An owner in a [snapshot](crate::handover::snapshot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OwnerSnapshot {
    Operator,
    User(u32),
    /// The partition's number.
    Partition(u64),
}

impl From<Owner> for OwnerSnapshot {
    fn from(owner: Owner) -> Self {
        match owner {
            Owner::Operator => Self::Operator,
            Owner::User(uid) => Self::User(uid),
            Owner::Partition(key) => Self::Partition(key.as_u64()),
        }
    }
}

impl From<OwnerSnapshot> for Owner {
    fn from(snapshot: OwnerSnapshot) -> Self {
        match snapshot {
            OwnerSnapshot::Operator => Self::Operator,
            OwnerSnapshot::User(uid) => Self::User(uid),
            OwnerSnapshot::Partition(key) => Self::Partition(PartitionKey::from_u64(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processes_of_a_child_count_together_whatever_user_ids_they_choose() {
        let [root, web] = [1, 2].map(PartitionKey::from_u64);
        let of = |partition, uid| Owner::of(900, root, partition, uid);
        assert_eq!(of(root, 0), Owner::Operator);
        assert_eq!(of(root, 900), Owner::Operator);
        assert_eq!(of(root, 1000), Owner::User(1000));
        for uid in [0, 900, 1000, u32::MAX] {
            assert_eq!(of(web, uid), Owner::Partition(web));
        }
    }
}
