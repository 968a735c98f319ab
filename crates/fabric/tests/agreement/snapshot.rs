//! Snapshots: a fabric made from one behaves like the original, damaged ones are refused or harmless, and
//! those of earlier releases can be read.

use hvsock_address::{ElementName, ServiceId, VmId};
use hvsock_fabric::{
    ConnectRequest, ConnectionEnd, ConnectionId, Effect, FABRIC_SNAPSHOT_VERSION, Fabric,
    FabricSnapshot, Limits, ListenRequest, ListenerId, Operators, OuterSpec, Partition,
    PartitionKey, PartitionKeySnapshot, PartitionKind, PartitionSpec, PartitionState, Refusal,
    RootSpec, SnapshotError,
};
use hvsock_registry::{Override, Principal, Registration, Registry};
use hvsock_testkit::json_edits::Edit;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use crate::coverage::Coverage;
use crate::driver::{self, Run};
use crate::ops::{self, BROKER_UID, Case, Op, Pick, partition_name, vm_id};

const OPERATORS: Operators = Operators::of_broker(BROKER_UID);

proptest! {
    #![proptest_config(ProptestConfig {
        cases: hvsock_testkit::cases(200),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_a_snapshot_every_output_is_the_same(case in ops::case(), at: usize) {
        let recorded = |restore_at| {
            let run = Run {
                output: Some(Vec::new()),
                restore_at,
                ..Run::default()
            };
            driver::run_recorded(case.clone(), &mut Coverage::default(), run)
        };
        let original = recorded(None);
        let replaced = recorded(at.checked_rem(original.points));
        let outputs = original.output.iter().flatten().zip(replaced.output.iter().flatten());
        for (one, other) in outputs {
            prop_assert_eq!(one, other);
        }
        prop_assert_eq!(original.output, replaced.output);
        prop_assert_eq!(original.last, replaced.last);
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_harmless(
        case in ops::case(),
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
        later in vec(ops::op(), 1..40),
    ) {
        let limits = case.limits;
        let mut value = serde_json::to_value(reached(case)).unwrap();
        for (node, kind, number) in edits {
            Edit { node, kind, value: number }.apply(&mut value);
        }
        if let Ok(snapshot) = serde_json::from_value(value) {
            survive(snapshot, limits, later);
        }
    }

    #[test]
    fn damaged_text_is_refused_or_harmless(
        places in vec((any::<usize>(), any::<u8>()), 1..4),
        later in vec(ops::op(), 1..40),
    ) {
        let mut text = serde_json::to_vec(&example().snapshot()).unwrap();
        for (at, byte) in places {
            let at = at % text.len();
            text[at] = byte;
        }
        if let Ok(snapshot) = serde_json::from_slice(&text) {
            survive(snapshot, Limits::default(), later);
        }
    }
}

/// The snapshot of the fabric that a case leads to.
fn reached(case: Case) -> FabricSnapshot {
    let run = driver::run_recorded(case, &mut Coverage::default(), Run::default());
    run.last.expect("a run has an end")
}

/// Restores a snapshot and, if it is accepted, uses the fabric in every way. It must not panic, it must
/// stay within its limits, and in states that can be restored.
fn survive(snapshot: FabricSnapshot, limits: Limits, ops: Vec<Op>) {
    let Ok(mut fabric) = Fabric::restore(snapshot, limits, OPERATORS) else {
        return;
    };
    for (number, op) in ops.into_iter().enumerate() {
        apply(&mut fabric, op, number);
        let outer = usize::from(fabric.outer().is_some());
        assert!(fabric.partitions().count() - outer <= limits.partitions);
        assert!(fabric.listeners().len() <= limits.listeners);
        assert!(fabric.connections().len() <= limits.connections);
        for (_, partition) in fabric.partitions() {
            let weights = partition.connections().map(|id| {
                let connection = fabric.connection(id).expect("of the table");
                connection.weight() as usize
            });
            assert!(weights.sum::<usize>() <= limits.connections_per_partition);
            assert!(partition.listeners().len() <= limits.listeners_per_partition);
            let registrations = partition.registry().map_or(0, Registry::len);
            assert!(registrations <= limits.registrations);
        }
        let snapshot = fabric.snapshot();
        match Fabric::restore(snapshot.clone(), limits, OPERATORS) {
            Ok(again) => assert_eq!(again.snapshot(), snapshot),
            // A forged id at its maximum has been given.
            Err(SnapshotError::Inconsistent { what }) if what.starts_with("its ids") => return,
            Err(other) => panic!("a state that was reached: {other}"),
        }
        while number % 3 == 0 && fabric.poll_effect().is_some() {}
    }
}

/// Applies an operation to some partition, listener or connection that exists.
fn apply(fabric: &mut Fabric, op: Op, number: usize) {
    let keys: Vec<PartitionKey> = fabric.partitions().map(|(key, _)| key).collect();
    let key = |pick: Pick| match pick {
        Pick::Fitting(n) | Pick::Any(n) => keys[n % keys.len()],
    };
    let other = keys[number % keys.len()];
    let vm = fabric
        .partition(other)
        .map_or(VmId::PARENT, Partition::vm_id);
    let vm = [
        vm,
        VmId::PARENT,
        VmId::WILDCARD,
        VmId::LOOPBACK,
        VmId::CHILDREN,
    ][number % 5];
    let connection = |fabric: &Fabric, n: usize| {
        let ids: Vec<ConnectionId> = fabric.connections().map(|(id, _)| id).collect();
        ids.get(n % ids.len().max(1)).copied()
    };
    let listener = |fabric: &Fabric, n: usize| {
        let ids: Vec<ListenerId> = fabric.listeners().map(|(id, _)| id).collect();
        ids.get(n % ids.len().max(1)).copied()
    };
    match op {
        Op::AddPartition(new) => {
            let spec = PartitionSpec {
                kind: new.kind,
                name: new.name,
                vm_id: new.id,
                groups: new.groups,
                state: new.state,
            };
            let _ = fabric.add_partition(key(new.parent), spec);
        }
        Op::SetOuter(name, vm_id) => drop(fabric.set_outer(OuterSpec { name, vm_id })),
        Op::SetMirrored(mirrored) => fabric.set_outer_mirrored(mirrored),
        Op::RemovePartition(pick) => drop(fabric.remove_partition(key(pick))),
        Op::SetState(pick, state) => drop(fabric.set_state(key(pick), state)),
        Op::SetStateAt(_, _, state) => drop(fabric.set_state(other, state)),
        Op::SetGroups(pick, groups) => drop(fabric.set_groups(key(pick), groups)),
        Op::Register(pick, new) => drop(fabric.register(key(pick), new)),
        Op::Update(pick, new) => drop(fabric.update(key(pick), new)),
        Op::Unregister(pick, id) | Op::Enable(pick, id, ..) => {
            drop(fabric.unregister(key(pick), id));
        }
        Op::SetDefaults(pick, defaults) => drop(fabric.set_defaults(key(pick), defaults)),
        Op::SetRegistry(pick, ..) => {
            let registry = fabric.registry(other).cloned().unwrap_or_default();
            drop(fabric.set_registry(key(pick), registry));
        }
        Op::Listen(request, backlog) => {
            let _ = fabric.listen(&ListenRequest {
                from: key(request.from),
                principal: &request.who,
                vm,
                service: request.service,
                backlog,
            });
        }
        Op::ListenBeside(n, who, _, backlog) => {
            let service = listener(fabric, n).and_then(|id| Some(fabric.listener(id)?.service()));
            let _ = fabric.listen(&ListenRequest {
                from: other,
                principal: &who,
                vm,
                service: service.unwrap_or(ServiceId::from_port(1)),
                backlog,
            });
        }
        Op::Connect(request) => {
            connect(fabric, key(request.from), &request.who, vm, request.service);
        }
        Op::ConnectTo(n, from, who, _) => {
            let id = listener(fabric, n);
            if let Some(it) = id.and_then(|id| fabric.listener(id)) {
                let (service, target) = (it.service(), it.partition());
                let from = keys[from % keys.len()];
                let target = fabric
                    .partition(target)
                    .map_or(VmId::PARENT, Partition::vm_id);
                for vm in [target, VmId::PARENT, VmId::LOOPBACK] {
                    connect(fabric, from, &who, vm, service);
                }
            }
        }
        Op::ConnectBlock(_, from, who, block) => {
            let service = ServiceId::from_port(1);
            let request = ConnectRequest {
                from: keys[from % keys.len()],
                principal: &who,
                vm,
                service,
            };
            let _ = fabric.connect_block(&request, block);
        }
        Op::SetWeight(n, weight) => {
            let _ = connection(fabric, n).map(|id| fabric.set_weight(id, weight));
        }
        Op::ConnectInto(_, from, who, service, _) => {
            connect(fabric, keys[from % keys.len()], &who, vm, service);
        }
        Op::Accept(n) => _ = connection(fabric, n).map(|id| fabric.accepted(id)),
        Op::CloseListener(n) => _ = listener(fabric, n).map(|id| fabric.close_listener(id)),
        Op::CloseConnection(n) => _ = connection(fabric, n).map(|id| fabric.close_connection(id)),
        Op::SetConnectedSuspend(n, end, keep) => {
            let id = connection(fabric, n);
            id.into_iter()
                .for_each(|id| fabric.set_connected_suspend(id, end, keep));
        }
    }
}

fn connect(
    fabric: &mut Fabric,
    from: PartitionKey,
    principal: &Principal,
    vm: VmId,
    service: ServiceId,
) {
    let _ = fabric.connect(&ConnectRequest {
        from,
        principal,
        vm,
        service,
    });
}

/// A fabric with something in each table: three partitions and a free key, two registrations, two
/// listeners, connections in each state, and pending effects.
fn example() -> Fabric {
    let root = RootSpec {
        kind: PartitionKind::Host,
        name: partition_name("top"),
        vm_id: vm_id(1000),
    };
    let mut it = Fabric::new(root, Limits::default(), BROKER_UID);
    let host = it.root();
    let spec = |name, id, kind| PartitionSpec {
        kind,
        name: partition_name(name),
        vm_id: vm_id(id),
        groups: vec!["blue".to_owned()],
        state: PartitionState::Running,
    };
    let old = it
        .add_partition(host, spec("old", 9, PartitionKind::Vm))
        .unwrap();
    let web = it
        .add_partition(host, spec("web", 1, PartitionKind::Vm))
        .unwrap();
    let app = it
        .add_partition(web, spec("web/app", 2, PartitionKind::Container))
        .unwrap();
    it.remove_partition(old).unwrap();
    let (demo, other) = (ServiceId::from_port(2761), ServiceId::from_port(7));
    let mut registration = Registration::new(demo, ElementName::new("Demo").unwrap());
    registration.owner = Some("alice".to_owned());
    registration.connect.users = Some(vec!["*".to_owned()]);
    registration.vm.insert(
        partition_name("db"),
        Override {
            enabled: Some(false),
            ..Override::default()
        },
    );
    it.register(host, registration.clone()).unwrap();
    it.register(web, registration).unwrap();
    let lease = Registration {
        lease: true,
        ..Registration::new(other, ElementName::new("Other").unwrap())
    };
    it.register(host, lease).unwrap();
    let who = Principal {
        uid: 0,
        user: Some("root".to_owned()),
        groups: vec![(0, Some("root".to_owned())), (50, None)],
        partition_uid: None,
    };
    let listen = |it: &mut Fabric, from, vm, service| {
        let request = ListenRequest {
            from,
            principal: &who,
            vm,
            service,
            backlog: 3,
        };
        it.listen(&request).unwrap()
    };
    listen(&mut it, host, VmId::WILDCARD, demo);
    listen(&mut it, web, VmId::CHILDREN, demo);
    listen(&mut it, host, VmId::CHILDREN, other);
    let connect = |it: &mut Fabric, from, vm, service| {
        let request = ConnectRequest {
            from,
            principal: &who,
            vm,
            service,
        };
        it.connect(&request).unwrap().connection
    };
    let accepted = connect(&mut it, host, VmId::LOOPBACK, demo);
    it.accepted(accepted);
    connect(&mut it, host, VmId::LOOPBACK, demo);
    // To a guest, and from a container to its VM. Both are suspended below.
    let guest = connect(&mut it, host, vm_id(1), other);
    it.set_connected_suspend(guest, ConnectionEnd::Client, true);
    let inside = connect(&mut it, app, VmId::PARENT, demo);
    it.accepted(inside);
    connect(&mut it, web, VmId::PARENT, other);
    it.set_state(web, PartitionState::Paused).unwrap();
    it
}

/// Each version of the format has an example in `tests/snapshots/`, which every later release reads.
///
/// A new version: raise `FABRIC_SNAPSHOT_VERSION`, make `restore` read the version before as well, and
/// write the new example with `UPDATE_SNAPSHOTS=1 cargo test -p hvsock-fabric --test agreement`. The
/// earlier examples stay as they are.
#[test]
fn snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
    let written = serde_json::to_string_pretty(&example().snapshot()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/fabric-{FABRIC_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=FABRIC_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/fabric-{version}.json")).unwrap();
        let snapshot = serde_json::from_str(&last).unwrap();
        let mut it = Fabric::restore(snapshot, Limits::default(), OPERATORS).unwrap();
        let web = it.by_name(&partition_name("web")).unwrap();
        assert_eq!(it.state(web), PartitionState::Paused);
        assert_eq!((it.listeners().len(), it.connections().len()), (3, 4));
        let waiting = it.connections().filter(|(_, it)| it.is_waiting()).count();
        assert_eq!(waiting, 2);
        let effects: Vec<Effect> = std::iter::from_fn(|| it.poll_effect()).collect();
        let [guest, inside, outside] = [3, 4, 5].map(ConnectionId::from_u64);
        assert_eq!(
            effects,
            [
                Effect::Suspend { id: guest },
                Effect::Suspend { id: inside },
                Effect::ResetConnection {
                    id: outside,
                    refusal: Refusal::PartitionPaused,
                },
            ]
        );
        it.set_state(web, PartitionState::Running).unwrap();
        assert_eq!(it.poll_effect(), Some(Effect::Resume { id: guest }));
        let lease = it.registry(it.root()).unwrap().get(ServiceId::from_port(7));
        assert!(lease.unwrap().lease);
        // The key of the partition that was removed is not used again.
        let spec = PartitionSpec {
            kind: PartitionKind::Vm,
            name: partition_name("new"),
            vm_id: vm_id(9),
            groups: vec![],
            state: PartitionState::Running,
        };
        let new = it.add_partition(it.root(), spec).unwrap();
        let new = serde_json::to_string(&PartitionKeySnapshot::from(new)).unwrap();
        assert_eq!(new, r#"{"slot":1,"generation":1}"#);
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

/// A fabric in a virtual machine, with its host as the outer partition, and something between all of them.
fn guest_example() -> Fabric {
    let root = RootSpec {
        kind: PartitionKind::Vm,
        name: partition_name("web"),
        vm_id: vm_id(1000),
    };
    let mut it = Fabric::new(root, Limits::default(), BROKER_UID);
    let (vm, service) = (it.root(), ServiceId::from_port(2761));
    let spec = PartitionSpec {
        kind: PartitionKind::Container,
        name: partition_name("app"),
        vm_id: vm_id(2),
        groups: vec![],
        state: PartitionState::Running,
    };
    let app = it.add_partition(vm, spec).unwrap();
    let outer = OuterSpec {
        name: partition_name("top"),
        vm_id: vm_id(1),
    };
    let outer = it.set_outer(outer).unwrap();
    let registration = Registration::new(service, ElementName::new("Demo").unwrap());
    it.register(vm, registration.clone()).unwrap();
    it.register(outer, registration).unwrap();
    it.set_outer_mirrored(true);
    let who = Principal::default();
    for (from, vm) in [
        (vm, VmId::WILDCARD),
        (vm, vm_id(1)),
        (app, VmId::WILDCARD),
        (app, vm_id(1)),
    ] {
        it.listen(&ListenRequest {
            from,
            principal: &who,
            vm,
            service,
            backlog: 3,
        })
        .unwrap();
    }
    for (from, vm) in [
        (vm, VmId::PARENT),
        (app, vm_id(1)),
        (outer, vm_id(1000)),
        (outer, vm_id(2)),
        (app, VmId::PARENT),
    ] {
        let (principal, before) = (&who, it.connections().len());
        connect(&mut it, from, principal, vm, service);
        assert_eq!(it.connections().len(), before + 1, "{vm}");
    }
    it
}

#[test]
fn a_snapshot_with_an_outer_partition_has_a_version_of_its_own_and_an_example() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/snapshots/fabric-2-guest.json"
    );
    let it = guest_example();
    let written = serde_json::to_string_pretty(&it.snapshot()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &written).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(written, text);
    let snapshot: FabricSnapshot = serde_json::from_str(&text).unwrap();
    let mut again = Fabric::restore(snapshot, Limits::default(), OPERATORS).unwrap();
    assert_eq!(again.poll_effect(), None);
    let outer = again.outer().unwrap();
    assert!(again.outer_is_mirrored());
    assert_eq!(again.partition(again.root()).unwrap().parent(), Some(outer));
    assert_eq!((again.listeners().len(), again.connections().len()), (4, 5));
    // What depends on the mirror still does.
    let service = ServiceId::from_port(2761);
    again.unregister(outer, service).unwrap();
    let closed = again.poll_effect();
    assert!(
        matches!(closed, Some(Effect::ResetConnection { .. })),
        "{closed:?}"
    );
    let closed = again.poll_effect();
    assert!(
        matches!(closed, Some(Effect::CloseListener { .. })),
        "{closed:?}"
    );
    assert_eq!(again.poll_effect(), None);

    // A fabric that has nothing of this is read by older releases.
    let version = |it: &Fabric| serde_json::to_value(it.snapshot()).unwrap()["version"].clone();
    let root = |kind| RootSpec {
        kind,
        name: partition_name("top"),
        vm_id: vm_id(1000),
    };
    let mut plain = Fabric::new(root(PartitionKind::Host), Limits::default(), BROKER_UID);
    let spec = PartitionSpec {
        kind: PartitionKind::Container,
        name: partition_name("app"),
        vm_id: vm_id(2),
        groups: vec![],
        state: PartitionState::Running,
    };
    let app = plain.add_partition(plain.root(), spec).unwrap();
    let mut demo = Registration::new(service, ElementName::new("Demo").unwrap());
    plain.register(plain.root(), demo.clone()).unwrap();
    assert_eq!(version(&plain), 1);
    demo.vm
        .insert(partition_name("web/box"), Override::default());
    plain.update(plain.root(), demo).unwrap();
    assert_eq!(version(&plain), 2);
    plain.unregister(plain.root(), service).unwrap();
    plain.set_state(app, PartitionState::Exited).unwrap();
    assert_eq!(version(&plain), 2);
}

#[test]
fn a_forged_outer_partition_is_refused() {
    let value = serde_json::to_value(guest_example().snapshot()).unwrap();
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 7] = [
        ("it has not one root", |it| {
            it["partitions"][0]["parent"] = Value::Null;
        }),
        ("its outer partition has a parent", |it| {
            it["outer"]["key"]["slot"] = Value::from(0);
        }),
        ("its outer partition has a parent", |it| {
            it["outer"]["key"]["slot"] = Value::from(7);
        }),
        ("its root does not run", |it| {
            it.as_object_mut().unwrap().remove("outer");
        }),
        ("its root does not run", |it| {
            it["partitions"][2]["state"] = Value::from("paused");
        }),
        ("its outer partition has other children", |it| {
            it["partitions"][1]["parent"]["slot"] = Value::from(2);
        }),
        ("an outer partition, which its version has not", |it| {
            it["version"] = Value::from(1);
        }),
    ];
    for (want, change) in changes {
        let mut value = value.clone();
        change(&mut value);
        let snapshot = serde_json::from_value(value).unwrap();
        let error = Fabric::restore(snapshot, Limits::default(), OPERATORS).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn a_snapshot_of_an_unknown_version_is_refused_before_its_fields_are_read() {
    let text = r#"{"version": 3, "tree": []}"#;
    let error = serde_json::from_str::<FabricSnapshot>(text).unwrap_err();
    let want = "the snapshot has version 3; this release reads version 2";
    assert!(error.to_string().starts_with(want), "{error}");
}

#[test]
fn fields_that_a_later_release_adds_are_ignored() {
    let mut value = serde_json::to_value(example().snapshot()).unwrap();
    value["hint"] = Value::from(1);
    value["partitions"][0]["registry"]["registrations"][0]["hint"] = Value::from(1);
    let snapshot = serde_json::from_value(value).unwrap();
    let it = Fabric::restore(snapshot, Limits::default(), OPERATORS).unwrap();
    assert_eq!(it.snapshot(), example().snapshot());
}

#[test]
fn a_snapshot_beyond_the_limits_is_refused() {
    let restore = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        Fabric::restore(example().snapshot(), limits, OPERATORS).map(drop)
    };
    assert_eq!(restore(|_| {}), Ok(()));
    type Change = fn(&mut Limits);
    let changes: [(&str, Change); 8] = [
        ("3 partitions; the limit is 2", |it| {
            it.partitions = 2;
        }),
        ("1 groups_per_partition; the limit is 0", |it| {
            it.groups_per_partition = 0;
        }),
        ("2 registrations; the limit is 1", |it| {
            it.registrations = 1;
        }),
        ("3 listeners; the limit is 2", |it| {
            it.listeners = 2;
        }),
        ("2 listeners_per_partition; the limit is 1", |it| {
            it.listeners_per_partition = 1;
        }),
        ("4 connections; the limit is 3", |it| {
            it.connections = 3;
        }),
        ("3 connections_per_partition; the limit is 2", |it| {
            it.connections_per_partition = 2;
        }),
        ("3 backlog_max; the limit is 2", |it| {
            it.backlog_max = 2;
        }),
    ];
    for (want, change) in changes {
        let error = restore(change).unwrap_err();
        assert_eq!(error.to_string(), format!("the snapshot has {want}"));
    }
}

#[test]
fn a_fabric_that_only_explains_cannot_be_restored() {
    let root = RootSpec {
        kind: PartitionKind::Host,
        name: partition_name("top"),
        vm_id: vm_id(1000),
    };
    let it = Fabric::without_listeners(root, Limits::default());
    let error = Fabric::restore(it.snapshot(), Limits::default(), OPERATORS).unwrap_err();
    let want = "the snapshot is inconsistent: it is of a fabric that only explains";
    assert_eq!(error.to_string(), want);
}

/// The rules of a release decide, not those of the release that took the snapshot.
#[test]
fn what_the_registry_does_not_allow_is_closed() {
    let mut it = example();
    while it.poll_effect().is_some() {}
    let mut value = serde_json::to_value(it.snapshot()).unwrap();
    let registrations = &mut value["partitions"][0]["registry"]["registrations"];
    let other = registrations.as_array_mut().unwrap().pop().unwrap();
    assert_eq!(other["name"], "Other");
    let snapshot = serde_json::from_value(value).unwrap();
    let mut it = Fabric::restore(snapshot, Limits::default(), OPERATORS).unwrap();
    let effects: Vec<Effect> = std::iter::from_fn(|| it.poll_effect()).collect();
    let refusal = Refusal::Unregistered;
    assert_eq!(
        effects,
        [
            Effect::ResetConnection {
                id: ConnectionId::from_u64(3),
                refusal: refusal.clone(),
            },
            Effect::CloseListener {
                id: ListenerId::from_u64(3),
                refusal,
            },
        ]
    );
}
