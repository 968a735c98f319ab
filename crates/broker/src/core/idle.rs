//! Sessions that have not said yet what they want, the oldest first.
//!
//! Each has a deadline, and each partition has places for a number of them. Where all places are
//! taken the newcomer gets that of the oldest: a process that means to ask for something does so
//! at once, so a crowd that only holds places cannot keep others out.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use hvsock_fabric::PartitionKey;

/// The idle sessions by their serial numbers, which grow, as the deadlines do.
#[derive(Debug, Default)]
pub(super) struct Idle {
    all: BTreeMap<u64, Entry>,
    /// The places in the slab of sessions.
    by_partition: HashMap<PartitionKey, BTreeMap<u64, usize>>,
}

#[derive(Debug)]
struct Entry {
    partition: PartitionKey,
    deadline: Instant,
}

impl Idle {
    /// Takes in a session, which must be newer than all others, with its place in the slab.
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
        let of_it = self.by_partition.entry(partition).or_default();
        of_it.insert(serial, index);
    }

    /// Takes a session out that has said what it wants or is gone, and returns its place.
    pub(super) fn remove(&mut self, serial: u64) -> Option<usize> {
        let Entry { partition, .. } = self.all.remove(&serial)?;
        let of_it = self.by_partition.get_mut(&partition)?;
        let index = of_it.remove(&serial);
        if of_it.is_empty() {
            self.by_partition.remove(&partition);
        }
        index
    }

    /// When the oldest must have said something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let (_, oldest) = self.all.first_key_value()?;
        Some(oldest.deadline)
    }

    /// Takes the oldest out if its time is up, and returns its place.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<usize> {
        let (&serial, oldest) = self.all.first_key_value()?;
        if oldest.deadline > now {
            return None;
        }
        self.remove(serial)
    }

    /// Takes the oldest of a partition out if all `places` are taken, and returns its place.
    pub(super) fn pop_crowded(&mut self, partition: PartitionKey, places: usize) -> Option<usize> {
        let of_it = self.by_partition.get(&partition)?;
        if of_it.len() < places {
            return None;
        }
        let (&serial, _) = of_it.first_key_value()?;
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
    fn the_oldest_goes_first_and_only_when_its_time_is_up() {
        let [root, web] = two_partitions();
        let (mut idle, now) = (Idle::default(), Instant::now());
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
    fn a_full_partition_gives_up_its_oldest_and_no_other_partitions() {
        let [root, web] = two_partitions();
        let (mut idle, now) = (Idle::default(), Instant::now());
        idle.insert(web, 1, 10, now);
        idle.insert(root, 2, 20, now);
        idle.insert(root, 3, 30, now);
        assert_eq!(idle.pop_crowded(root, 3), None);
        assert_eq!(idle.pop_crowded(root, 2), Some(20));
        assert_eq!(idle.pop_crowded(root, 2), None);
        assert_eq!(idle.pop_crowded(web, 1), Some(10));
    }
}
