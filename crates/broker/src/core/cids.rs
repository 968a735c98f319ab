//! The vsock context ids (CIDs) by which programs that know only `AF_VSOCK` name partitions.
//!
//! A VM has the CID that its VMM uses. Every other partition gets one that is derived from its id, so that it
//! has the same in another run of the broker, unless another partition has that one.

pub(super) mod snapshot;

use std::collections::{BTreeMap, HashMap};

use hvsock_address::VmId;
use hvsock_fabric::PartitionKey;
use hvsock_virtio::GuestCid;

use crate::stores::CidSpace;

/// The first derived CID: VMMs and operators choose low ones.
const FIRST_DERIVED: u32 = 0x8000_0000;

/// How strong the claim of a partition to its CID is, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// The broker has given it to a VM.
    Broker,
    /// The kernel has, in the broker's network namespace.
    Kernel,
    /// The kernel has, in another namespace.
    OtherNamespace,
    /// The VMM has, which alone uses it.
    Vmm,
    Derived,
}

/// The CIDs of partitions, each of another number.
#[derive(Debug, Default)]
pub(super) struct Cids {
    by_partition: HashMap<PartitionKey, (GuestCid, VmId)>,
    by_cid: BTreeMap<GuestCid, (PartitionKey, Claim)>,
}

impl Cids {
    /// Adds a VM, whose VMM uses `cid`, and among which VMs that is unique. It gets that one, and a partition
    /// with a weaker claim to it another.
    pub(super) fn insert_vm(
        &mut self,
        key: PartitionKey,
        id: VmId,
        cid: Option<GuestCid>,
        space: Option<&CidSpace>,
    ) {
        let claim = match space {
            Some(CidSpace::Broker) => Claim::Broker,
            Some(CidSpace::Kernel(None)) => Claim::Kernel,
            Some(CidSpace::Kernel(Some(_))) => Claim::OtherNamespace,
            None => Claim::Vmm,
        };
        let Some(cid) = cid else {
            return self.insert(key, id);
        };
        match self.by_cid.get(&cid).copied() {
            Some((_, held)) if held <= claim => self.insert(key, id),
            holder => {
                self.set(key, id, cid, claim);
                if let Some((other, _)) = holder
                    && let Some((_, id)) = self.by_partition.remove(&other)
                {
                    self.insert(other, id);
                }
            }
        }
    }

    /// Adds a partition without a CID of its own.
    pub(super) fn insert(&mut self, key: PartitionKey, id: VmId) {
        let mut cid = derived(id);
        // There are fewer partitions than CIDs.
        while self.by_cid.contains_key(&cid) {
            cid = next(cid);
        }
        self.set(key, id, cid, Claim::Derived);
    }

    fn set(&mut self, key: PartitionKey, id: VmId, cid: GuestCid, claim: Claim) {
        self.by_partition.insert(key, (cid, id));
        self.by_cid.insert(cid, (key, claim));
    }

    /// Removes a partition and frees its CID.
    pub(super) fn remove(&mut self, key: PartitionKey) {
        if let Some((cid, _)) = self.by_partition.remove(&key) {
            self.by_cid.remove(&cid);
        }
    }

    /// The CID of a partition.
    pub(super) fn of(&self, key: PartitionKey) -> Option<u32> {
        self.by_partition.get(&key).map(|(cid, _)| cid.get())
    }

    /// The partition with this CID.
    pub(super) fn partition(&self, cid: u32) -> Option<PartitionKey> {
        let cid = GuestCid::try_from(u64::from(cid)).ok()?;
        self.by_cid.get(&cid).map(|(key, _)| *key)
    }
}

/// The CID that a partition with this id gets if it is free: a hash of the id (FNV-1a).
fn derived(id: VmId) -> GuestCid {
    let hash = id
        .to_guid_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    GuestCid::try_from(u64::from(hash | FIRST_DERIVED)).unwrap_or(GuestCid::MAX)
}

/// The next derived CID, and after the last one the first.
fn next(cid: GuestCid) -> GuestCid {
    let first = u64::from(FIRST_DERIVED);
    let next = GuestCid::try_from(u64::from(cid.get()) + 1);
    next.or_else(|_| GuestCid::try_from(first))
        .unwrap_or(GuestCid::MIN)
}

#[cfg(test)]
mod tests {
    use hvsock_fabric::{Fabric, Limits, PartitionKind, PartitionSpec, PartitionState, RootSpec};

    use super::*;

    /// Keys of partitions with ids.
    fn partitions(count: usize) -> Vec<(PartitionKey, VmId)> {
        let root = RootSpec {
            kind: PartitionKind::Host,
            name: "testhost".parse().unwrap(),
            vm_id: VmId::of_container("testhost"),
        };
        let mut fabric = Fabric::new(root, Limits::default(), 0);
        let mut add = |number| {
            let name = format!("c{number}");
            let vm_id = VmId::of_container(&name);
            let spec = PartitionSpec {
                kind: PartitionKind::Container,
                name: name.parse().unwrap(),
                vm_id,
                groups: Vec::new(),
                state: PartitionState::Running,
            };
            let key = fabric.add_partition(fabric.root(), spec).unwrap();
            (key, vm_id)
        };
        (0..count).map(&mut add).collect()
    }

    fn cid(number: u32) -> GuestCid {
        GuestCid::try_from(u64::from(number)).unwrap()
    }

    #[test]
    fn a_container_has_the_same_cid_in_every_run_whatever_is_beside_it() {
        let all = partitions(100);
        let (mut forward, mut backward) = (Cids::default(), Cids::default());
        all.iter().for_each(|(key, id)| forward.insert(*key, *id));
        let reversed = all.iter().rev();
        reversed.for_each(|(key, id)| backward.insert(*key, *id));
        for (key, _) in &all {
            let number = forward.of(*key).unwrap();
            assert!((FIRST_DERIVED..u32::MAX).contains(&number), "{number:#x}");
            assert_eq!(backward.of(*key), Some(number));
            assert_eq!(forward.partition(number), Some(*key));
        }
        // A number that others remember: it may not change in a later version.
        assert_eq!(derived(VmId::of_container("web")).get(), 0x8df0_0121);
    }

    #[test]
    fn partitions_whose_ids_give_one_number_get_different_cids() {
        let all = partitions(3);
        let same = VmId::of_container("same");
        let mut cids = Cids::default();
        all.iter().for_each(|(key, _)| cids.insert(*key, same));
        let mut numbers: Vec<u32> = all.iter().filter_map(|(key, _)| cids.of(*key)).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), 3);
        cids.remove(all[0].0);
        assert_eq!(
            (cids.of(all[0].0), cids.partition(numbers[0])),
            (None, None)
        );
        assert_eq!(cids.of(all[2].0), Some(numbers[2]));
        assert_eq!(next(GuestCid::MAX).get(), FIRST_DERIVED);
    }

    #[test]
    fn a_vm_takes_its_cid_from_a_container_and_from_a_vm_with_a_weaker_claim() {
        let all = partitions(4);
        let [
            (web, web_id),
            (vm, vm_id),
            (other, other_id),
            (last, last_id),
        ] = all[..]
        else {
            panic!("four partitions");
        };
        let mut cids = Cids::default();
        cids.insert(web, web_id);
        let taken = cids.of(web).unwrap();
        let broker = CidSpace::Broker;
        cids.insert_vm(vm, vm_id, Some(cid(taken)), Some(&broker));
        assert_eq!(cids.of(vm), Some(taken));
        let moved = cids.of(web).unwrap();
        assert_ne!(moved, taken);
        assert_eq!(cids.partition(moved), Some(web));
        // Two Firecrackers with the same number, and one of the broker's.
        cids.insert_vm(other, other_id, Some(cid(3)), None);
        cids.insert_vm(last, last_id, Some(cid(3)), None);
        assert_eq!(cids.of(other), Some(3));
        assert!(cids.of(last).unwrap() >= FIRST_DERIVED);
        cids.remove(vm);
        cids.insert_vm(vm, vm_id, Some(cid(3)), Some(&broker));
        assert_eq!(cids.of(vm), Some(3));
        assert!(cids.of(other).unwrap() >= FIRST_DERIVED);
    }
}
