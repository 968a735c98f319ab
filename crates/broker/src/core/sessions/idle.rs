//! Idle sessions: those that have not sent their request, oldest first.
//!
//! Each has a deadline, and each partition a limited number of slots. When all slots are taken, a new
//! session evicts the oldest. A well-behaved process sends its request at once, so idle connections
//! cannot keep others out.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use hvsock_fabric::PartitionKey;

/// The idle sessions by serial number. Deadlines increase with serial numbers.
#[derive(Debug, Default)]
pub(super) struct IdleSessions {
    all: BTreeMap<u64, Entry>,
    /// The slab indexes of each partition's idle sessions.
    by_partition: HashMap<PartitionKey, BTreeMap<u64, usize>>,
}

#[derive(Debug)]
struct Entry {
    partition: PartitionKey,
    deadline: Instant,
}

impl IdleSessions {
    /// Adds a session with its slab index. Its serial number must be the highest so far.
    pub(super) fn insert(
        &mut self,
        partition: PartitionKey,
        serial: u64,
        index: usize,
        deadline: Instant,
    ) {
        let entry = Entry {
            partition,
            deadline,
        };
        self.all.insert(serial, entry);
        let sessions = self.by_partition.entry(partition).or_default();
        sessions.insert(serial, index);
    }

    /// Removes a session that has sent its request or is closed. Returns its slab index.
    pub(super) fn remove(&mut self, serial: u64) -> Option<usize> {
        let Entry { partition, .. } = self.all.remove(&serial)?;
        let sessions = self.by_partition.get_mut(&partition)?;
        let index = sessions.remove(&serial);
        if sessions.is_empty() {
            self.by_partition.remove(&partition);
        }
        index
    }

    /// The deadline of a session.
    pub(super) fn deadline(&self, serial: u64) -> Option<Instant> {
        Some(self.all.get(&serial)?.deadline)
    }

    /// The deadline of the oldest session.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let (_, oldest) = self.all.first_key_value()?;
        Some(oldest.deadline)
    }

    /// Removes the oldest session if its deadline has passed. Returns its slab index.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<usize> {
        let (&serial, oldest) = self.all.first_key_value()?;
        if oldest.deadline > now {
            return None;
        }
        self.remove(serial)
    }

    /// Removes the oldest session of a partition if it has `slots` or more. Returns its slab index.
    pub(super) fn evict_oldest(&mut self, partition: PartitionKey, slots: usize) -> Option<usize> {
        let sessions = self.by_partition.get(&partition)?;
        if sessions.len() < slots {
            return None;
        }
        let (&serial, _) = sessions.first_key_value()?;
        self.remove(serial)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hvsock_address::{PartitionName, VmId};
    use hvsock_fabric::{Fabric, Limits, PartitionKind, PartitionSpec, PartitionState, RootSpec};

    use super::*;

    fn two_partitions() -> [PartitionKey; 2] {
        let name = |name| PartitionName::new(name).unwrap();
        let root = RootSpec {
            kind: PartitionKind::Host,
            name: name("root"),
            vm_id: VmId::of_container("root"),
        };
        let mut fabric = Fabric::new(root, Limits::default(), 0);
        let web = PartitionSpec {
            kind: PartitionKind::Container,
            name: name("web"),
            vm_id: VmId::of_container("web"),
            groups: Vec::new(),
            state: PartitionState::Running,
        };
        [
            fabric.root(),
            fabric.add_partition(fabric.root(), web).unwrap(),
        ]
    }

    #[test]
    fn sessions_expire_oldest_first_and_only_after_their_deadline() {
        let [root, web] = two_partitions();
        let (mut idle, now) = (IdleSessions::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        idle.insert(root, 1, 10, now);
        idle.insert(web, 2, 20, now);
        idle.insert(root, 3, 30, later);
        assert_eq!(idle.remove(1), Some(10));
        assert_eq!(idle.remove(1), None);
        assert_eq!(idle.next_deadline(), Some(now));
        assert_eq!(idle.pop_expired(now), Some(20));
        assert_eq!(idle.pop_expired(now), None);
        assert_eq!(idle.next_deadline(), Some(later));
        assert_eq!(idle.pop_expired(later), Some(30));
        assert_eq!((idle.next_deadline(), idle.by_partition.len()), (None, 0));
    }

    #[test]
    fn a_full_partition_evicts_its_own_oldest_session_only() {
        let [root, web] = two_partitions();
        let (mut idle, now) = (IdleSessions::default(), Instant::now());
        idle.insert(web, 1, 10, now);
        idle.insert(root, 2, 20, now);
        idle.insert(root, 3, 30, now);
        assert_eq!(idle.evict_oldest(root, 3), None);
        assert_eq!(idle.evict_oldest(root, 2), Some(20));
        assert_eq!(idle.evict_oldest(root, 2), None);
        assert_eq!(idle.evict_oldest(web, 1), Some(10));
    }
}
