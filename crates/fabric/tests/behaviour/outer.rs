//! A fabric in a virtual machine, whose root's parent is the host.

use hvsock_fabric::{AddPartitionError, OuterSpec, PartitionError, RegisterError};
use hvsock_registry::Registry;

use super::*;

/// The fabric of the broker in the VM `web`, with the containers `box` and `app`.
struct Guest {
    fabric: Fabric,
    vm: PartitionKey,
    inner: PartitionKey,
    outer: PartitionKey,
}

const HOST: &str = "tower";

fn id(name: &str) -> VmId {
    VmId::of_container(name)
}

fn outer_spec(partition_name: &str) -> OuterSpec {
    OuterSpec {
        name: name(partition_name),
        vm_id: id(partition_name),
    }
}

fn alone() -> (Fabric, PartitionKey) {
    let spec = RootSpec {
        kind: PartitionKind::Vm,
        name: name("web"),
        vm_id: id("web"),
    };
    let mut fabric = Fabric::new(spec, Limits::default(), BROKER);
    let vm = fabric.root();
    for child in ["box", "app"] {
        let spec = PartitionSpec {
            kind: PartitionKind::Container,
            name: name(child),
            vm_id: id(child),
            groups: vec![],
            state: PartitionState::Running,
        };
        fabric.add_partition(vm, spec).unwrap();
    }
    (fabric, vm)
}

impl Guest {
    fn new() -> Self {
        let (mut fabric, vm) = alone();
        let outer = fabric.set_outer(outer_spec(HOST)).unwrap();
        let inner = fabric.by_name(&name("box")).unwrap();
        Self {
            fabric,
            vm,
            inner,
            outer,
        }
    }

    /// What the host says about the service.
    fn mirror(&mut self, change: impl FnOnce(&mut Registration)) {
        let mut demo = registration();
        change(&mut demo);
        self.fabric.update(self.outer, demo).unwrap();
        self.fabric.set_outer_mirrored(true);
    }

    /// What the VM's own registry says.
    fn own(&mut self, change: impl FnOnce(&mut Registration)) {
        let mut demo = registration();
        change(&mut demo);
        self.fabric.update(self.vm, demo).unwrap();
    }

    fn listen_as(
        &mut self,
        who: &Principal,
        from: PartitionKey,
        vm: VmId,
    ) -> Result<ListenerId, Refusal> {
        self.fabric.listen(&ListenRequest {
            from,
            principal: who,
            vm,
            service: SERVICE,
            backlog: 16,
        })
    }

    fn listen(&mut self, from: PartitionKey, vm: VmId) -> Result<ListenerId, Refusal> {
        let vm_root = Principal {
            partition_uid: Some(0),
            ..root()
        };
        self.listen_as(&vm_root, from, vm)
    }

    fn connect(&mut self, from: PartitionKey, vm: VmId) -> Result<Route, Refusal> {
        self.fabric.connect(&ConnectRequest {
            from,
            principal: &root(),
            vm,
            service: SERVICE,
        })
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.fabric.poll_effect()).collect()
    }

    fn steps(&self, from: PartitionKey, vm: VmId) -> (Vec<String>, Result<Verdict, Refusal>) {
        let who = root();
        let request = ConnectRequest {
            from,
            principal: &who,
            vm,
            service: SERVICE,
        };
        let why = self.fabric.explain_connect(&request, Audience::Operator);
        let steps = why
            .steps
            .iter()
            .map(|it| format!("{} {}", it.question, it.answer));
        (steps.collect(), why.verdict)
    }
}

#[test]
fn the_vm_reaches_its_host_by_every_address_and_the_host_judges() {
    let mut guest = Guest::new();
    let (vm, outer) = (guest.vm, guest.outer);
    // Neither registry here has the service, and a mirror without it changes nothing.
    for mirrored in [false, true] {
        guest.fabric.set_outer_mirrored(mirrored);
        for address in [VmId::PARENT, VmId::WILDCARD, id(HOST)] {
            let route = guest.connect(vm, address).unwrap();
            assert_eq!(
                (route.destination, route.target),
                (Destination::Guest, outer)
            );
            assert_eq!(
                (route.server.vm, route.client.vm),
                (VmId::PARENT, id("web"))
            );
        }
    }
    let named = guest.fabric.vm_id_by_name(vm, &name("TOWER"));
    assert_eq!(named, Some(VmId::PARENT));
    // Other partitions of the host are not known here.
    assert_eq!(
        guest.connect(vm, VmId::random()),
        Err(Refusal::NotReachable)
    );
    let (steps, verdict) = guest.steps(vm, VmId::PARENT);
    assert_eq!(
        steps,
        [
            "What is PARENT in web? tower, its parent",
            "Is web running? yes",
            "Does tower allow it? asked there: its registry and listeners decide",
            "Is there a free slot? yes",
        ]
    );
    assert_eq!(verdict, Ok(Verdict::HostDecides));
}

#[test]
fn a_container_reaches_the_host_by_its_id_and_the_vms_registry_judges_first() {
    let mut guest = Guest::new();
    let (inner, outer) = (guest.inner, guest.outer);
    assert_eq!(guest.connect(inner, id(HOST)), Err(Refusal::Unregistered));
    guest.own(|_| {});
    let route = guest.connect(inner, id(HOST)).unwrap();
    assert_eq!(
        (route.destination, route.target),
        (Destination::Guest, outer)
    );
    assert_eq!((route.server.vm, route.client.vm), (id(HOST), id("box")));
    let named = guest.fabric.vm_id_by_name(inner, &name(HOST));
    assert_eq!(named, Some(id(HOST)));
    let (steps, verdict) = guest.steps(inner, id(HOST));
    assert_eq!(
        steps[..2],
        [
            format!("What is {} in box? tower, its parent's parent", id(HOST)),
            "Is box running? yes".to_owned(),
        ]
    );
    let last = "Does tower allow it? asked there: its registry and listeners decide";
    assert_eq!(steps[steps.len() - 2], last);
    assert_eq!(verdict, Ok(Verdict::HostDecides));
    // Its parent is the VM, also as the host of the container.
    for address in [VmId::PARENT, VmId::WILDCARD, VmId::SILOHOST] {
        assert_eq!(guest.connect(inner, address), Err(Refusal::NoListener));
    }
    guest.own(|demo| {
        demo.connect.partitions = Some(vec!["app".to_owned()]);
    });
    let rule = "connect.partitions".to_owned();
    assert_eq!(
        guest.connect(inner, id(HOST)),
        Err(Refusal::Denied { rule })
    );
    guest.own(|demo| {
        demo.enabled = false;
    });
    let by = "enabled = false".to_owned();
    assert_eq!(
        guest.connect(inner, id(HOST)),
        Err(Refusal::Disabled { by })
    );
}

#[test]
fn the_vms_registry_allows_or_denies_the_host_by_name_to_reach_a_container() {
    let mut guest = Guest::new();
    let (inner, outer) = (guest.inner, guest.outer);
    guest.own(|_| {});
    assert_eq!(guest.connect(outer, id("box")), Err(Refusal::NoListener));
    let by_wildcard = guest.listen(inner, VmId::WILDCARD).unwrap();
    guest.listen(inner, VmId::PARENT).unwrap();
    // Its parent is the VM, and not the host.
    let route = guest.connect(outer, id("box")).unwrap();
    assert_eq!(route.destination, Destination::Listener(by_wildcard));
    assert_eq!((route.server.vm, route.client.vm), (id("box"), id(HOST)));
    let by_id = guest.listen(inner, id(HOST)).unwrap();
    let route = guest.connect(outer, id("box")).unwrap();
    assert_eq!(route.destination, Destination::Listener(by_id));
    for (list, allowed) in [
        (vec!["tower"], true),
        (vec!["TOWER"], true),
        (vec!["box"], false),
        (vec![], false),
        (vec!["*"], true),
    ] {
        let list: Vec<_> = list.into_iter().map(str::to_owned).collect();
        guest.own(|demo| {
            demo.connect.partitions = Some(list.clone());
        });
        let connected = guest.connect(outer, id("box"));
        assert_eq!(connected.is_ok(), allowed, "{list:?}");
    }
    let disabled = Override {
        enabled: Some(false),
        ..Override::default()
    };
    // Both overrides apply, as between siblings.
    for partition in [HOST, "box"] {
        guest.own(|demo| {
            demo.vm.insert(name(partition), disabled.clone());
        });
        let by = format!("vm.{partition}.enabled = false");
        let refused = guest.connect(outer, id("box")).unwrap_err();
        assert_eq!(refused.label(), "disabled", "{by}");
    }
}

#[test]
fn the_host_finds_a_listener_of_the_vm_by_the_more_specific_address() {
    let mut guest = Guest::new();
    let (vm, outer) = (guest.vm, guest.outer);
    assert_eq!(guest.connect(outer, id("web")), Err(Refusal::NoListener));
    let wildcard = guest.listen(vm, VmId::WILDCARD).unwrap();
    let reached = |guest: &mut Guest| guest.connect(outer, id("web")).unwrap().destination;
    assert_eq!(reached(&mut guest), Destination::Listener(wildcard));
    let parent = guest.listen(vm, VmId::PARENT).unwrap();
    assert_eq!(reached(&mut guest), Destination::Listener(parent));
    // The id of the host is another word for PARENT here.
    assert_eq!(guest.listen(vm, id(HOST)), Err(Refusal::AddressInUse));
    guest.fabric.close_listener(parent);
    let by_id = guest.listen(vm, id(HOST)).unwrap();
    assert_eq!(reached(&mut guest), Destination::Listener(by_id));
    let route = guest.connect(outer, id("web")).unwrap();
    assert_eq!(
        (route.server.vm, route.client.vm),
        (id("web"), VmId::PARENT)
    );
    // Only for partitions of this VM a connect comes from the host.
    for address in [VmId::LOOPBACK, id(HOST)] {
        assert_eq!(guest.connect(outer, address), Err(Refusal::NotReachable));
    }
    assert!(guest.listen(outer, VmId::CHILDREN).is_err());
}

#[test]
fn a_listener_for_the_host_is_closed_when_the_mirror_no_longer_allows_it() {
    let user = user(1000, "alice");
    let of_host = |guest: &mut Guest| guest.listen(guest.vm, VmId::PARENT);
    let mut guest = Guest::new();
    // Without an uplink nothing is known to refuse it.
    let before = of_host(&mut guest).unwrap();
    guest.mirror(|_| {});
    assert_eq!(guest.effects(), []);
    type Change = fn(&mut Registration);
    let refusals: [(Change, Refusal); 3] = [
        (
            |demo| demo.enabled = false,
            Refusal::Disabled {
                by: "enabled = false".to_owned(),
            },
        ),
        (
            |demo| demo.bind.partitions = Some(vec![]),
            Refusal::Denied {
                rule: "bind.partitions".to_owned(),
            },
        ),
        (
            |demo| demo.only_root_binds = Some(true),
            Refusal::Denied {
                rule: "only_root_binds = true".to_owned(),
            },
        ),
    ];
    let mut listener = before;
    for (change, refusal) in refusals {
        guest.mirror(|_| {});
        guest.fabric.close_listener(listener);
        listener = guest.listen_as(&user, guest.vm, VmId::PARENT).unwrap();
        guest.mirror(change);
        let closed = Effect::CloseListener {
            id: listener,
            refusal: refusal.clone(),
        };
        assert_eq!(guest.effects(), [closed]);
        let (vm, parent) = (guest.vm, VmId::PARENT);
        assert_eq!(guest.listen_as(&user, vm, parent), Err(refusal));
    }
    guest.mirror(|_| {});
    let listener = of_host(&mut guest).unwrap();
    guest.fabric.unregister(guest.outer, SERVICE).unwrap();
    let refusal = Refusal::Unregistered;
    assert_eq!(
        guest.effects(),
        [Effect::CloseListener {
            id: listener,
            refusal
        }]
    );
    // After the loss of the uplink nothing is refused again, until the next list arrives.
    guest.fabric.set_outer_mirrored(false);
    let listener = of_host(&mut guest).unwrap();
    assert_eq!(guest.effects(), []);
    guest.fabric.set_outer_mirrored(true);
    let refusal = Refusal::Unregistered;
    assert_eq!(
        guest.effects(),
        [Effect::CloseListener {
            id: listener,
            refusal
        }]
    );
}

#[test]
fn a_listener_at_the_wildcard_stays_while_one_of_the_two_registries_allows_it() {
    let mut guest = Guest::new();
    let vm = guest.vm;
    guest.mirror(|_| {});
    let listener = guest.listen(vm, VmId::WILDCARD).unwrap();
    guest.own(|_| {});
    guest.mirror(|demo| {
        demo.allow_wildcard_binds = Some(false);
    });
    assert_eq!(guest.effects(), []);
    // The host may not use it then, and the containers may.
    let refused = guest.connect(guest.outer, id("web"));
    assert_eq!(refused, Err(Refusal::WildcardNotAllowed));
    let reached = guest.connect(guest.inner, VmId::PARENT).unwrap();
    assert_eq!(reached.destination, Destination::Listener(listener));
    guest.fabric.unregister(vm, SERVICE).unwrap();
    let effects = guest.effects();
    assert_eq!(effects.len(), 2, "{effects:?}");
    let refusal = Refusal::WildcardNotAllowed;
    assert_eq!(
        effects[1],
        Effect::CloseListener {
            id: listener,
            refusal
        }
    );
}

#[test]
fn a_listener_that_is_older_than_the_outer_partition_follows_the_mirror_too() {
    let (mut fabric, vm) = alone();
    fabric.register(vm, registration()).unwrap();
    let who = root();
    let request = ListenRequest {
        from: vm,
        principal: &who,
        vm: VmId::WILDCARD,
        service: SERVICE,
        backlog: 1,
    };
    let listener = fabric.listen(&request).unwrap();
    let parent = VmId::PARENT;
    let of_parent = ListenRequest {
        vm: parent,
        ..request
    };
    assert_eq!(fabric.listen(&of_parent), Err(Refusal::NotSupported));
    let outer = fabric.set_outer(outer_spec(HOST)).unwrap();
    assert_eq!(fabric.poll_effect(), None);
    fabric.unregister(vm, SERVICE).unwrap();
    assert_eq!(fabric.poll_effect(), None, "the host may use it");
    fabric.register(outer, registration()).unwrap();
    fabric.set_outer_mirrored(true);
    assert_eq!(fabric.poll_effect(), None);
    fabric.unregister(outer, SERVICE).unwrap();
    let refusal = Refusal::Unregistered;
    let closed = Effect::CloseListener {
        id: listener,
        refusal,
    };
    assert_eq!(fabric.poll_effect(), Some(closed));
}

#[test]
fn the_mirror_never_refuses_a_connect_to_the_host_and_resets_no_connection() {
    let mut guest = Guest::new();
    let (vm, outer) = (guest.vm, guest.outer);
    guest.mirror(|_| {});
    let up = guest.connect(vm, VmId::PARENT).unwrap().connection;
    let listener = guest.listen(vm, VmId::PARENT).unwrap();
    let down = guest.connect(outer, id("web")).unwrap().connection;
    guest.fabric.accepted(down);
    guest.mirror(|demo| {
        demo.enabled = false;
        demo.connect.partitions = Some(vec![]);
    });
    let by = "enabled = false".to_owned();
    let refusal = Refusal::Disabled { by };
    // The host resets what it no longer allows.
    assert_eq!(
        guest.effects(),
        [Effect::CloseListener {
            id: listener,
            refusal
        }]
    );
    assert!(guest.fabric.connection(up).is_some() && guest.fabric.connection(down).is_some());
    assert!(guest.connect(vm, VmId::PARENT).is_ok());
}

#[test]
fn names_of_the_hosts_services_are_known_while_they_are_mirrored() {
    let mut guest = Guest::new();
    let demo = ElementName::new("hv socket demo").unwrap();
    guest.fabric.register(guest.outer, registration()).unwrap();
    let named = |guest: &Guest, from| guest.fabric.service_id_by_name(from, &demo);
    assert_eq!(named(&guest, guest.vm), None);
    guest.fabric.set_outer_mirrored(true);
    assert_eq!(named(&guest, guest.vm), Some(SERVICE));
    // A container may use only what the VM's registry has.
    assert_eq!(named(&guest, guest.inner), None);
    guest.own(|_| {});
    assert_eq!(named(&guest, guest.inner), Some(SERVICE));
    // The VM's own names win.
    let other = ServiceId::from_port(7);
    guest.fabric.unregister(guest.vm, SERVICE).unwrap();
    let same = Registration::new(other, demo.clone());
    guest.fabric.register(guest.vm, same).unwrap();
    assert_eq!(named(&guest, guest.vm), Some(other));
}

#[test]
fn the_outer_partition_keeps_its_key_and_gets_a_name_that_is_free() {
    let mut guest = Guest::new();
    let name_of = |guest: &Guest| {
        let outer = guest.fabric.partition(guest.outer).unwrap();
        outer.name().to_string()
    };
    for (wanted, got) in [
        ("other", "other"),
        ("box", "box-host"),
        ("WEB", "WEB-host"),
        ("tower", "tower"),
    ] {
        let spec = OuterSpec {
            name: name(wanted),
            vm_id: id(HOST),
        };
        assert_eq!(guest.fabric.set_outer(spec), Ok(guest.outer));
        assert_eq!(name_of(&guest), got);
        assert_eq!(guest.fabric.by_name(&name(got)), Some(guest.outer));
    }
    assert_eq!(guest.fabric.by_name(&name("other")), None);
    assert_eq!(guest.fabric.outer(), Some(guest.outer));
    let long = format!("b{}", "x".repeat(62));
    let spec = PartitionSpec {
        kind: PartitionKind::Container,
        name: name(&long),
        vm_id: VmId::random(),
        groups: vec![],
        state: PartitionState::Running,
    };
    guest.fabric.add_partition(guest.vm, spec).unwrap();
    guest.fabric.set_outer(outer_spec(&long)).unwrap();
    assert_eq!(name_of(&guest), format!("b{}-host", "x".repeat(57)));
    // It cannot have the id of another partition, nor a reserved one.
    let mut refused = |vm_id, partition_name: &str| {
        let name = name(partition_name);
        let spec = OuterSpec { name, vm_id };
        guest.fabric.set_outer(spec).unwrap_err()
    };
    let taken = refused(id("box"), "x");
    assert!(
        matches!(taken, AddPartitionError::IdTaken { .. }),
        "{taken}"
    );
    let taken = refused(id("web"), "x");
    assert!(
        matches!(taken, AddPartitionError::IdTaken { .. }),
        "{taken}"
    );
    let reserved = refused(VmId::PARENT, "x");
    assert!(
        matches!(reserved, AddPartitionError::IdReserved { .. }),
        "{reserved}"
    );
    let nested = refused(id("y"), "x/y");
    assert!(
        matches!(nested, AddPartitionError::Nesting { .. }),
        "{nested}"
    );
    assert_eq!(name_of(&guest), format!("b{}-host", "x".repeat(57)));
    // A host has no host.
    let mut host = Host::new();
    let error = host.fabric.set_outer(outer_spec("x")).unwrap_err();
    assert!(matches!(error, AddPartitionError::Kind { .. }), "{error}");
}

#[test]
fn another_host_takes_nothing_over_from_the_one_before() {
    let mut guest = Guest::new();
    let (vm, inner, outer) = (guest.vm, guest.inner, guest.outer);
    guest.own(|_| {});
    guest.mirror(|_| {});
    let up = guest.connect(vm, VmId::PARENT).unwrap().connection;
    let from_box = guest.connect(inner, id(HOST)).unwrap().connection;
    let local = guest.connect(vm, VmId::LOOPBACK);
    assert_eq!(local, Err(Refusal::NoListener));
    let by_word = guest.listen(vm, VmId::PARENT).unwrap();
    let by_id = guest.listen(inner, id(HOST)).unwrap();
    // A new name alone changes no connection.
    let renamed = OuterSpec {
        name: name("castle"),
        vm_id: id(HOST),
    };
    guest.fabric.set_outer(renamed).unwrap();
    assert_eq!(guest.effects(), []);
    assert!(guest.fabric.outer_is_mirrored());

    guest.fabric.set_outer(outer_spec("castle")).unwrap();
    let closed = Effect::CloseListener {
        id: by_id,
        refusal: Refusal::NotReachable,
    };
    let off = Refusal::PartitionOff;
    assert_eq!(
        guest.effects(),
        [reset(up, off.clone()), reset(from_box, off), closed]
    );
    assert!(!guest.fabric.outer_is_mirrored());
    assert_eq!(guest.fabric.registry(outer).map(Registry::len), Some(0));
    assert!(guest.fabric.listener(by_word).is_some());
    assert_eq!(guest.connect(vm, id(HOST)), Err(Refusal::NotReachable));
    assert!(guest.connect(vm, id("castle")).is_ok());
}

#[test]
fn the_outer_partition_is_changed_by_the_host_alone_and_limits_no_state() {
    let mut guest = Guest::new();
    let outer = guest.outer;
    let refused = Err(PartitionError::Outer);
    assert_eq!(guest.fabric.remove_partition(outer), refused);
    for state in PartitionState::ALL {
        let is_running = state == PartitionState::Running;
        let want = if is_running { Ok(()) } else { refused };
        assert_eq!(guest.fabric.set_state(outer, state), want);
    }
    assert_eq!(
        guest.fabric.set_state(guest.vm, PartitionState::Off),
        Err(PartitionError::Root)
    );
    for key in [guest.vm, guest.inner, outer] {
        assert_eq!(guest.fabric.state(key), PartitionState::Running);
    }
    let spec = PartitionSpec {
        kind: PartitionKind::Vm,
        name: name("beside"),
        vm_id: id("beside"),
        groups: vec![],
        state: PartitionState::Running,
    };
    let error = guest.fabric.add_partition(outer, spec).unwrap_err();
    assert_eq!(error, AddPartitionError::Outer);
    // It is not one of those that the limit counts.
    let limits = Limits {
        partitions: 1,
        ..Limits::default()
    };
    let root = RootSpec {
        kind: PartitionKind::Vm,
        name: name("web"),
        vm_id: id("web"),
    };
    let mut full = Fabric::new(root, limits, BROKER);
    full.set_outer(outer_spec(HOST)).unwrap();
    // A container has no registry, and the outer partition has one.
    let in_box = guest.fabric.register(guest.inner, registration());
    assert_eq!(in_box, Err(RegisterError::NoRegistry));
}

#[test]
fn a_connection_within_the_vm_can_be_direct_and_one_with_the_host_cannot() {
    let mut guest = Guest::new();
    let (vm, inner, outer) = (guest.vm, guest.inner, guest.outer);
    guest.own(|demo| {
        demo.transport = Some(TransportSetting::Direct);
    });
    guest.mirror(|demo| {
        demo.transport = Some(TransportSetting::Direct);
    });
    guest.listen(vm, VmId::WILDCARD).unwrap();
    guest.listen(inner, VmId::WILDCARD).unwrap();
    for (from, address, direct) in [
        (vm, VmId::LOOPBACK, true),
        (vm, id("box"), true),
        (inner, VmId::PARENT, true),
        (vm, VmId::PARENT, false),
        (inner, id(HOST), false),
        (outer, id("web"), false),
        (outer, id("box"), false),
    ] {
        let route = guest.connect(from, address).unwrap();
        assert_eq!(route.direct, direct, "{address}");
    }
}
