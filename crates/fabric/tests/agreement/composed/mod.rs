//! Two fabrics, of a host and of a virtual machine with a broker, against one reading of the address
//! table for all partitions of both.
//!
//! The two are joined as the brokers join them: the host's registry is mirrored in the virtual machine, a
//! connect that the one leads to the other's side is repeated there, and containers are announced. Then
//! every partition connects to every address. A connect that crosses two hops must be allowed by both
//! registries, and reaches the listener that the table names.

mod reading;

use std::cell::RefCell;
use std::collections::BTreeMap;

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use hvsock_fabric::{
    ConnectRequest, Destination, Effect, Fabric, Limits, ListenRequest, ListenerId, OuterSpec,
    PartitionKey, PartitionKind, PartitionSpec, PartitionState, Refusal, RootSpec,
};
use hvsock_registry::{AccessRule, Action, Override, Principal, Registration, Registry};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};

use crate::ops::{BROKER_UID, partition_name, vm_id};
use reading::{Address, Entry, Listener, Outcome, Place, Reading};

const SERVICES: [ServiceId; 2] = [ServiceId::from_port(1), ServiceId::from_port(5000)];
/// Containers on the host and the virtual machine share a group, and so do those in it.
const GROUP: &str = "blue";

#[derive(Clone, Debug)]
enum Op {
    /// Replaces or removes a registration in the registry of the host or of the virtual machine.
    Set(Place, usize, Option<Entry>),
    /// A container starts or is removed in the virtual machine; it is announced at once, or not.
    Container(Place, bool, bool),
    Listen(Place, Address, usize),
    Close(usize),
    /// The uplink is lost, or is there again.
    Uplink(bool),
}

/// The two fabrics and what they were told, in plain lists.
struct Machine {
    host: Fabric,
    guest: Fabric,
    reading: Reading,
    ids: Vec<ListenerId>,
}

fn owner() -> impl Strategy<Value = Place> {
    select(vec![Place::Host, Place::Vm])
}

fn partitions() -> impl Strategy<Value = Option<Vec<String>>> {
    let names = ["*", "web", "web/box", "c", "box", "app", "tower"].map(str::to_owned);
    option::weighted(0.25, subsequence(names.to_vec(), 0..=4))
}

fn entry() -> impl Strategy<Value = Entry> {
    let names = vec!["web", "web/box", "web/app", "c", "box", "app", "tower"];
    let over = (option::weighted(0.5, any::<bool>()), partitions());
    let users = option::weighted(0.3, subsequence(vec!["bob".to_owned()], 0..=1));
    (
        prop::bool::weighted(0.9),
        partitions(),
        partitions(),
        users,
        prop::bool::weighted(0.85),
        prop::collection::btree_map(select(names).prop_map(str::to_owned), over, 0..3),
    )
        .prop_map(|(enabled, bind, connect, users, wildcard, over)| Entry {
            enabled,
            bind,
            connect,
            users,
            wildcard,
            over,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let child = select(vec![Place::Box, Place::App]);
    let place = select(Place::ALL.to_vec());
    let service = 0..SERVICES.len();
    prop_oneof![
        6 => (owner(), service.clone(), option::weighted(0.85, entry()))
            .prop_map(|(owner, service, entry)| Op::Set(owner, service, entry)),
        2 => (child, prop::bool::weighted(0.7), prop::bool::weighted(0.8))
            .prop_map(|(child, exists, announced)| Op::Container(child, exists, announced)),
        14 => (place, select(Address::all()), service)
            .prop_map(|(at, address, service)| Op::Listen(at, address, service)),
        1 => (0..32usize).prop_map(Op::Close),
        1 => prop::bool::weighted(0.7).prop_map(Op::Uplink),
    ]
}

fn principal(is_operator: bool) -> Principal {
    Principal {
        uid: if is_operator { 0 } else { 1001 },
        user: (!is_operator).then(|| "bob".to_owned()),
        groups: vec![],
        partition_uid: Some(0),
    }
}

fn spec(name: PartitionName, kind: PartitionKind, vm_id: VmId) -> PartitionSpec {
    PartitionSpec {
        kind,
        name,
        vm_id,
        groups: vec![GROUP.to_owned()],
        state: PartitionState::Running,
    }
}

impl Place {
    /// The id that the place has in the fabric of its broker.
    fn own_id(self) -> VmId {
        vm_id(100 + self as u128)
    }

    fn own_name(self) -> PartitionName {
        partition_name(match self {
            Place::Host => "tower",
            Place::Vm => "web",
            Place::Box => "box",
            Place::App => "app",
            Place::C => "c",
        })
    }

    /// The id that the place has on the host.
    fn id_on_host(self) -> VmId {
        match self.is_in_vm() {
            true => VmId::of_nested(Place::Vm.own_id(), self.own_id()),
            false => self.own_id(),
        }
    }
}

impl Machine {
    fn new() -> Self {
        let root = |kind, place: Place| RootSpec {
            kind,
            name: place.own_name(),
            vm_id: place.own_id(),
        };
        let limits = Limits::default();
        let mut host = Fabric::new(root(PartitionKind::Host, Place::Host), limits, BROKER_UID);
        let top = host.root();
        for (place, kind) in [
            (Place::Vm, PartitionKind::Vm),
            (Place::C, PartitionKind::Container),
        ] {
            let spec = spec(place.own_name(), kind, place.own_id());
            host.add_partition(top, spec).expect("free");
        }
        let mut guest = Fabric::new(root(PartitionKind::Vm, Place::Vm), limits, BROKER_UID);
        let outer = OuterSpec {
            name: Place::Host.own_name(),
            vm_id: Place::Host.own_id(),
        };
        guest.set_outer(outer).expect("free");
        let mut machine = Self {
            host,
            guest,
            reading: Reading::default(),
            ids: vec![],
        };
        machine.mirror();
        machine
    }

    /// The fabric that a partition's own broker has, and the partition's key there.
    fn own(&mut self, place: Place) -> (&mut Fabric, Option<PartitionKey>) {
        let fabric = match place.is_in_vm() || place == Place::Vm {
            true => &mut self.guest,
            false => &mut self.host,
        };
        let key = fabric.by_vm_id(place.own_id());
        (fabric, key)
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Set(owner, service, entry) => {
                let (fabric, key) = self.own(owner);
                let key = key.expect("a root");
                match &entry {
                    Some(entry) => {
                        let registration = registration(service, entry);
                        fabric.update(key, registration).expect("no clash");
                    }
                    None => _ = fabric.unregister(key, SERVICES[service]),
                }
                self.reading.set(owner, service, entry);
            }
            Op::Container(child, exists, announced) => self.set_container(child, exists, announced),
            Op::Listen(at, address, service) => self.listen(at, address, service),
            Op::Close(n) => {
                let open = self.reading.open();
                if let Some(n) = n.checked_rem(open.len()).map(|n| open[n]) {
                    let (id, at) = (self.ids[n], self.reading.listeners[n].at);
                    self.own(at).0.close_listener(id);
                    self.reading.listeners[n].is_open = false;
                }
            }
            Op::Uplink(is_there) => {
                self.reading.has_uplink = is_there;
                self.guest.set_outer_mirrored(is_there);
            }
        }
        self.mirror();
        self.close_what_was_closed();
    }

    fn set_container(&mut self, child: Place, exists: bool, announced: bool) {
        let root = self.guest.root();
        let known = self.guest.by_vm_id(child.own_id());
        match (exists, known) {
            (true, None) => {
                let kind = PartitionKind::Container;
                let spec = spec(child.own_name(), kind, child.own_id());
                self.guest.add_partition(root, spec).expect("free");
            }
            (false, Some(key)) => self.guest.remove_partition(key).expect("a child"),
            _ => {}
        }
        let announced = exists && announced;
        let known = self.host.by_vm_id(child.id_on_host());
        match (announced, known) {
            (true, None) => {
                let vm = self.host.by_vm_id(Place::Vm.own_id()).expect("the VM");
                let name = PartitionName::nested(&Place::Vm.own_name(), &child.own_name());
                let kind = PartitionKind::Container;
                let spec = spec(name.expect("a name"), kind, child.id_on_host());
                self.host.add_partition(vm, spec).expect("free");
            }
            (false, Some(key)) => self.host.remove_partition(key).expect("a child"),
            _ => {}
        }
        self.reading.set_container(child, exists, announced);
    }

    /// Brings the mirror in the virtual machine up to date, if there is an uplink.
    fn mirror(&mut self) {
        if !self.reading.has_uplink {
            return;
        }
        let registry = self.host.registry(self.host.root()).expect("of a host");
        let vm = self.host.by_vm_id(Place::Vm.own_id());
        let vm = vm.and_then(|key| self.host.partition(key)).expect("the VM");
        let mut mirror = Registry::new();
        for known in registry.iter() {
            let policy = registry.policy(known.id).expect("it is registered");
            let policy = policy.for_child(vm.name());
            let may = |action| {
                let decision = policy.access(action, &self.host.as_requester(vm, true));
                let list = if decision.allowed {
                    vec!["*".to_owned()]
                } else {
                    vec![]
                };
                AccessRule {
                    partitions: Some(list),
                    ..AccessRule::default()
                }
            };
            let seen = Registration {
                enabled: policy.enabled().allowed,
                bind: may(Action::Bind),
                connect: may(Action::Connect),
                allow_wildcard_binds: Some(policy.wildcard().allowed),
                ..Registration::new(known.id, known.name.clone())
            };
            mirror.insert(seen).expect("no clash");
        }
        let outer = self.guest.outer().expect("an outer partition");
        self.guest.set_registry(outer, mirror).expect("it fits");
        self.guest.set_outer_mirrored(true);
    }

    /// The listeners that a change has closed. The test of one fabric checks which those are.
    fn close_what_was_closed(&mut self) {
        for is_guest in [false, true] {
            let fabric = if is_guest {
                &mut self.guest
            } else {
                &mut self.host
            };
            while let Some(effect) = fabric.poll_effect() {
                let Effect::CloseListener { id, .. } = effect else {
                    continue;
                };
                let of_side = |at: Place| (at == Place::Vm || at.is_in_vm()) == is_guest;
                for (known, listener) in self.ids.iter().zip(&mut self.reading.listeners) {
                    if *known == id && of_side(listener.at) {
                        listener.is_open = false;
                    }
                }
            }
        }
        let no_lost = self.reading.parent_listener_without_permission();
        assert!(no_lost.is_none(), "stays without permission: {no_lost:?}");
    }

    fn listen(&mut self, at: Place, address: Address, service: usize) {
        let vm = self.reading.id(at, address);
        let (fabric, key) = self.own(at);
        let Some(from) = key else {
            return;
        };
        let listened = fabric.listen(&ListenRequest {
            from,
            principal: &principal(true),
            vm,
            service: SERVICES[service],
            backlog: 8,
        });
        if let Some(want) = self.reading.listen(at, address, service) {
            let got = listened.as_ref().map(drop).map_err(Refusal::label);
            assert_eq!(got, want, "listen in {at:?} for {address:?}");
        }
        if let Ok(id) = listened {
            self.ids.push(id);
            self.reading.listeners.push(Listener {
                at,
                address,
                service,
                is_open: true,
            });
        }
    }

    /// A connect through both fabrics: the place and number of the listener that it reaches.
    fn connect(
        &mut self,
        from: Place,
        address: Address,
        service: usize,
        who: &Principal,
    ) -> Outcome {
        let vm = self.reading.id(from, address);
        let (fabric, key) = self.own(from);
        let Some(source) = key else {
            return Err("gone");
        };
        let first = connect(fabric, source, vm, service, who);
        let (destination, target) = first.map_err(|refusal| refusal.label())?;
        if let Destination::Listener(id) = destination {
            return Ok(self.number(from, id));
        }
        // The other broker has the next word.
        let from_guest = from == Place::Vm || from.is_in_vm();
        if !from_guest {
            let target = self.host.partition(target).expect("the target").vm_id();
            let inside = [Place::Vm, Place::Box, Place::App];
            let place = inside
                .into_iter()
                .find(|place| place.id_on_host() == target);
            let place = place.expect("a partition of the VM");
            let outer = self.guest.outer().expect("an outer partition");
            let second = connect(
                &mut self.guest,
                outer,
                place.own_id(),
                service,
                &principal(true),
            );
            return match second.map_err(|refusal| refusal.label())? {
                (Destination::Listener(id), _) => Ok(self.number(place, id)),
                (Destination::Guest, _) => panic!("a partition of the VM is no guest of it"),
            };
        }
        assert_eq!(Some(target), self.guest.outer());
        let vm = match from {
            Place::Vm => VmId::PARENT,
            _ => Place::Host.own_id(),
        };
        let Some(source) = self.host.by_vm_id(from.id_on_host()) else {
            return Err("not announced");
        };
        match connect(&mut self.host, source, vm, service, who)
            .map_err(|refusal| refusal.label())?
        {
            (Destination::Listener(id), _) => Ok(self.number(Place::Host, id)),
            (Destination::Guest, _) => panic!("the host is no guest"),
        }
    }

    /// The number of a listener of the fabric that has this place.
    fn number(&self, place: Place, id: ListenerId) -> usize {
        let side = |at: Place| at == Place::Vm || at.is_in_vm();
        let mut all = self.ids.iter().zip(&self.reading.listeners);
        let found =
            all.position(|(known, it)| it.is_open && *known == id && side(it.at) == side(place));
        found.expect("a listener that was made")
    }
}

/// A connect in one fabric, which is closed at once.
fn connect(
    fabric: &mut Fabric,
    from: PartitionKey,
    vm: VmId,
    service: usize,
    principal: &Principal,
) -> Result<(Destination, PartitionKey), Refusal> {
    let route = fabric.connect(&ConnectRequest {
        from,
        principal,
        vm,
        service: SERVICES[service],
    })?;
    fabric.close_connection(route.connection);
    Ok((route.destination, route.target))
}

fn registration(service: usize, entry: &Entry) -> Registration {
    let name = ElementName::new(["Alpha", "Beta"][service]).expect("a name");
    let rule = |partitions: &Option<Vec<String>>, users: &Option<Vec<String>>| AccessRule {
        users: users.clone(),
        partitions: partitions.clone(),
        ..AccessRule::default()
    };
    let overrides = entry.over.iter().map(|(name, (enabled, connect))| {
        let over = Override {
            enabled: *enabled,
            connect: rule(connect, &None),
            ..Override::default()
        };
        (partition_name(name), over)
    });
    Registration {
        enabled: entry.enabled,
        bind: rule(&entry.bind, &None),
        connect: rule(&entry.connect, &entry.users),
        allow_wildcard_binds: Some(entry.wildcard),
        vm: overrides.collect(),
        ..Registration::new(SERVICES[service], name)
    }
}

#[test]
fn every_connect_across_two_brokers_is_as_the_address_table_and_both_registries_say() {
    const CASES: u32 = 250;
    let cases = hvsock_testkit::cases(CASES);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 5_000,
        ..Config::default()
    });
    // How often each pair of partitions was connected, and each refusal given.
    let seen: RefCell<BTreeMap<String, u64>> = RefCell::default();
    use Place::{App, Box, C, Host, Vm};
    let start = [Box, App].map(|child| Op::Container(child, true, true));
    let case = (vec((owner(), 0..2usize, entry()), 1..6), vec(op(), 0..40));
    let outcome = runner.run(&case, |(entries, ops)| {
        let mut machine = Machine::new();
        let entries = entries.into_iter();
        let entries = entries.map(|(owner, service, entry)| Op::Set(owner, service, Some(entry)));
        for op in start.clone().into_iter().chain(entries).chain(ops) {
            machine.step(op);
        }
        for from in Place::ALL {
            for address in Address::all() {
                for (service, is_operator) in [(0, true), (0, false), (1, true), (1, false)] {
                    let got = machine.connect(from, address, service, &principal(is_operator));
                    let want = machine.reading.connect(from, address, service, is_operator);
                    assert_eq!(
                        got, want,
                        "{from:?} to {address:?}, operator: {is_operator}"
                    );
                    let what = match got {
                        Ok(n) => {
                            let at = machine.reading.listeners[n].at;
                            format!("{from:?} to {at:?}")
                        }
                        Err(label) => format!("{from:?}: {label}"),
                    };
                    *seen.borrow_mut().entry(what).or_default() += 1;
                }
            }
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let seen = seen.into_inner();
    if cases < CASES {
        return;
    }
    let pairs = [
        (Host, Host),
        (Host, Vm),
        (Host, Box),
        (Host, App),
        (Host, C),
        (Vm, Host),
        (Vm, Vm),
        (Vm, Box),
        (Box, Host),
        (Box, Vm),
        (Box, Box),
        (Box, App),
        (C, Host),
        (C, Vm),
        (C, C),
    ];
    let pairs = pairs.map(|(from, to)| format!("{from:?} to {to:?}"));
    let refusals = [
        "Host: unregistered",
        "Host: disabled",
        "Host: denied",
        "Host: no_listener",
        "Host: partition_unknown",
        "Vm: denied",
        "Vm: not_reachable",
        "Box: unregistered",
        "Box: disabled",
        "Box: denied",
        "Box: not_reachable",
        "Box: not announced",
        "C: denied",
    ];
    let wanted = pairs.into_iter().chain(refusals.map(str::to_owned));
    let missing: Vec<_> = wanted.filter(|what| !seen.contains_key(what)).collect();
    assert!(missing.is_empty(), "never seen: {missing:?}");
}
