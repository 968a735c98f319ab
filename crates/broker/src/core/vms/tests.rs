//! The run state of VMs, and the allocation of their CIDs.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::model::VmSpec;

use super::*;

fn partition(number: u32) -> PartitionKey {
    PartitionKey::from_u64(number.into())
}

fn cid(number: u32) -> GuestCid {
    GuestCid::try_from(u64::from(number)).unwrap()
}

fn settings(number: u32) -> VmEntry {
    VmEntry::new(VmSpec::default(), Some(cid(number)), None)
}

fn one_vm() -> (Vms<&'static str>, PartitionKey) {
    let (mut vms, key) = (Vms::default(), partition(1));
    vms.insert(key, settings(3));
    (vms, key)
}

#[test]
fn a_vm_runs_unless_its_vmm_or_an_operator_has_paused_it() {
    use PartitionState::{Off, Paused, Running};

    for (vmm, paused, want) in [
        (Off, false, Off),
        (Off, true, Off),
        (Paused, false, Paused),
        (Paused, true, Paused),
        (Running, false, Running),
        (Running, true, Paused),
    ] {
        let (mut vms, key) = one_vm();
        vms.set_link_state(key, vmm);
        assert_eq!(vms.set_paused(key, paused), Some(want));
        assert_eq!(vms.set_link_state(key, vmm), Some(want));
        assert_eq!(vms.get(key).unwrap().is_paused_by_operator(), paused);
    }
}

#[test]
fn a_removed_vm_has_no_state_link_or_cid() {
    let (mut vms, key) = one_vm();
    assert_eq!(vms.link(key), None);
    vms.set_link(key, "link");
    assert_eq!(vms.link(key), Some(&"link"));
    let removed = vms.remove(key).unwrap();
    assert_eq!(removed.link(), Some(&"link"));
    assert_eq!(removed.settings(), &settings(3));
    vms.set_link(key, "late");
    assert!(vms.link(key).is_none() && !vms.contains(key));
    assert_eq!(vms.set_link_state(key, PartitionState::Running), None);
    assert_eq!(vms.set_paused(key, true), None);
    assert_eq!(vms.sibling(cid(3)), None);
    assert!(vms.remove(key).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// `Some` adds a VM with that CID or the free one, `None` removes one.
    #[test]
    fn the_free_cid_is_the_lowest_that_no_vm_has(
        ops in vec(prop_oneof![
            (3..12_u32).prop_map(|cid| Some(Some(cid))),
            Just(Some(None)),
            Just(None),
        ], 1..60),
        nth: usize,
    ) {
        let (mut vms, mut next) = (Vms::<()>::default(), 0);
        let mut taken: Vec<(u32, PartitionKey)> = Vec::new();
        for op in ops {
            let used: BTreeSet<u32> = taken.iter().map(|(cid, _)| *cid).collect();
            let lowest = (3..).find(|cid| !used.contains(cid)).unwrap();
            prop_assert_eq!(vms.free_cid(&BTreeSet::new()), Some(cid(lowest)));
            let next_free = (lowest + 1..).find(|cid| !used.contains(cid)).unwrap();
            let reserved = BTreeSet::from([cid(lowest)]);
            prop_assert_eq!(vms.free_cid(&reserved), Some(cid(next_free)));
            match op {
                Some(wanted) => {
                    let number = wanted.unwrap_or(lowest);
                    let known = taken.iter().find(|(cid, _)| *cid == number);
                    prop_assert_eq!(vms.sibling(cid(number)), known.map(|(_, key)| *key));
                    if known.is_none() {
                        next += 1;
                        vms.insert(partition(next), settings(number));
                        taken.push((number, partition(next)));
                    }
                }
                None if taken.is_empty() => {}
                None => {
                    let (number, key) = taken.swap_remove(nth % taken.len());
                    prop_assert!(vms.remove(key).is_some());
                    prop_assert_eq!(vms.sibling(cid(number)), None);
                }
            }
        }
    }
}
