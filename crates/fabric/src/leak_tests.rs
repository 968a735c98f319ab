//! Tests that the internal indexes are empty when all listeners and connections are gone.
//!
//! A leaked index entry is invisible through the public interface; it would only leak memory.

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use hvsock_registry::{Principal, Registration};
use proptest::prelude::*;

use crate::{
    ConnectRequest, Fabric, Limits, ListenRequest, OuterSpec, PartitionKey, PartitionKind,
    PartitionSpec, PartitionState, RootSpec,
};

const SERVICE: ServiceId = ServiceId::from_port(1);

fn registration() -> Registration {
    Registration::new(SERVICE, ElementName::new("demo").expect("a name"))
}

/// A host with a VM with two containers, and a container on the host. All are in one sibling group,
/// and the service is registered in every partition that has a registry.
fn full_tree() -> (Fabric, Vec<PartitionKey>) {
    let name = |text| PartitionName::new(text).expect("a name");
    let root = RootSpec {
        kind: PartitionKind::Host,
        name: name("top"),
        vm_id: VmId::of_container("top"),
    };
    let mut fabric = Fabric::new(root, Limits::default(), 0);
    let mut keys = vec![fabric.root()];
    for (parent, kind, called) in [
        (0, PartitionKind::Vm, "vm"),
        (0, PartitionKind::Container, "web"),
        (1, PartitionKind::Container, "vm/k1"),
        (1, PartitionKind::Container, "vm/k2"),
    ] {
        let spec = PartitionSpec {
            kind,
            name: name(called),
            vm_id: VmId::of_container(called),
            groups: vec!["all".to_owned()],
            state: PartitionState::Running,
        };
        let key = fabric.add_partition(keys[parent], spec).expect("free");
        keys.push(key);
    }
    for owner in &keys[..2] {
        fabric.register(*owner, registration()).expect("free");
    }
    (fabric, keys)
}

/// The fabric of a virtual machine with two containers and its host, with the service everywhere.
fn tree_in_guest() -> (Fabric, Vec<PartitionKey>) {
    let name = |text| PartitionName::new(text).expect("a name");
    let root = RootSpec {
        kind: PartitionKind::Vm,
        name: name("vm"),
        vm_id: VmId::of_container("vm"),
    };
    let mut fabric = Fabric::new(root, Limits::default(), 0);
    let mut keys = vec![fabric.root()];
    for called in ["k1", "k2"] {
        let spec = PartitionSpec {
            kind: PartitionKind::Container,
            name: name(called),
            vm_id: VmId::of_container(called),
            groups: vec!["all".to_owned()],
            state: PartitionState::Running,
        };
        keys.push(fabric.add_partition(keys[0], spec).expect("free"));
    }
    // The first listener is older than the outer partition.
    fabric.register(keys[0], registration()).expect("free");
    let who = Principal::default();
    let older = fabric.listen(&ListenRequest {
        from: keys[0],
        principal: &who,
        vm: VmId::WILDCARD,
        service: SERVICE,
        backlog: 9,
    });
    older.expect("allowed");
    let outer = OuterSpec {
        name: name("top"),
        vm_id: VmId::of_container("top"),
    };
    let outer = fabric.set_outer(outer).expect("free");
    fabric.register(outer, registration()).expect("free");
    keys.push(outer);
    (fabric, keys)
}

fn is_empty(fabric: &Fabric) -> bool {
    let clean = |p: &crate::Partition| {
        p.listeners.is_empty()
            && p.connections.is_empty()
            && p.watchers.is_empty()
            && p.dependents.is_empty()
    };
    fabric.addresses.is_empty()
        && fabric.listeners.is_empty()
        && fabric.connections.is_empty()
        && fabric.partitions().all(|(_, partition)| clean(partition))
}

proptest! {
    #[test]
    fn no_index_entry_leaks_when_all_partitions_are_gone(
        order in Just((0..5).collect::<Vec<usize>>()).prop_shuffle(),
        how in proptest::collection::vec(0..4usize, 5),
        in_guest: bool,
        mirrored: bool,
    ) {
        let (mut fabric, keys) = match in_guest {
            true => tree_in_guest(),
            false => full_tree(),
        };
        fabric.set_outer_mirrored(mirrored);
        let who = Principal::default();
        let vms = || {
            let ids = ["top", "vm", "web", "vm/k1", "vm/k2", "k1", "k2"].map(VmId::of_container);
            ids.into_iter().chain(VmId::WELL_KNOWN.map(|(_, id)| id))
        };
        for from in &keys {
            for vm in vms() {
                let (principal, service, backlog) = (&who, SERVICE, 9);
                let request = ListenRequest { from: *from, principal, vm, service, backlog };
                let _ = fabric.listen(&request);
            }
        }
        for from in &keys {
            for vm in vms() {
                let (principal, service) = (&who, SERVICE);
                let _ = fabric.connect(&ConnectRequest { from: *from, principal, vm, service });
            }
        }
        prop_assert!(fabric.listeners.len() > 12 && fabric.connections.len() > 12);
        let renamed = OuterSpec {
            name: PartitionName::new("other").expect("a name"),
            vm_id: VmId::of_container(if mirrored { "top" } else { "other" }),
        };
        prop_assert_eq!(fabric.set_outer(renamed).is_ok(), in_guest);
        // Ends each partition's sockets, in random order and in a random way.
        for (n, how) in order.into_iter().zip(how) {
            let Some(key) = keys.get(n).copied() else {
                continue;
            };
            let Some(partition) = fabric.partition(key) else {
                continue;
            };
            let listeners: Vec<_> = partition.listeners().collect();
            let connections: Vec<_> = partition.connections().collect();
            match how {
                0 if fabric.remove_partition(key).is_ok() => {}
                1 if fabric.set_state(key, PartitionState::Off).is_ok() => {}
                2 => connections.iter().for_each(|id| fabric.close_connection(*id)),
                _ => connections.iter().for_each(|id| fabric.accepted(*id)),
            }
            listeners.into_iter().for_each(|id| fabric.close_listener(id));
            connections.into_iter().for_each(|id| fabric.close_connection(id));
        }
        prop_assert!(is_empty(&fabric), "{fabric:#?}");
    }
}
