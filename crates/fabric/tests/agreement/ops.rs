//! Random operations on a fabric. They use few names, ids, users and services to provoke collisions.

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use hvsock_fabric::{Block, ConnectionEnd, Limits, PartitionKind, PartitionState};
use hvsock_registry::{AccessRule, Defaults, Override, Principal, Registration};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// An initial fabric and a sequence of operations.
#[derive(Clone, Debug)]
pub struct Case {
    pub root: PartitionKind,
    pub limits: Limits,
    pub ops: Vec<Op>,
}

/// An operation. Partitions, listeners and connections are indexes modulo the number of suitable ones.
#[derive(Clone, Debug)]
pub enum Op {
    AddPartition(AddPartition),
    SetOuter(PartitionName, VmId),
    SetMirrored(bool),
    RemovePartition(Pick),
    SetState(Pick, PartitionState),
    SetGroups(Pick, Vec<String>),
    Register(Pick, Registration),
    Update(Pick, Registration),
    Unregister(Pick, ServiceId),
    /// Enables or disables a registration, for all or for the child with this name.
    Enable(Pick, ServiceId, Option<PartitionName>, bool),
    SetDefaults(Pick, Defaults),
    /// Replaces the registrations, and the built-in ones from which they inherit.
    SetRegistry(Pick, Vec<Registration>, Vec<Registration>),
    Listen(Request, u32),
    /// A listen for the service of this listener in its partition.
    ListenBeside(usize, Principal, Vm, u32),
    Connect(Request),
    /// A connect to this listener's service by one of the partitions that can reach its own, with the
    /// HVSOCKET_CONNECTED_SUSPEND of that end.
    ConnectTo(usize, usize, Principal, bool),
    /// The same for one that stands for many.
    ConnectBlock(usize, usize, Principal, Block),
    SetWeight(usize, u32),
    /// The same for a VM and a service in it, with or without a listener.
    ConnectInto(usize, usize, Principal, ServiceId, bool),
    /// Sets the state of the partition at this end of a connection.
    SetStateAt(usize, ConnectionEnd, PartitionState),
    Accept(usize),
    CloseListener(usize),
    CloseConnection(usize),
    SetConnectedSuspend(usize, ConnectionEnd, bool),
}

#[derive(Clone, Debug)]
pub struct AddPartition {
    pub parent: Pick,
    pub kind: PartitionKind,
    pub name: PartitionName,
    pub id: VmId,
    pub groups: Vec<String>,
    pub state: PartitionState,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub from: Pick,
    pub who: Principal,
    pub vm: Vm,
    pub service: ServiceId,
}

/// A VmId, either absolute or relative to the requesting partition.
#[derive(Clone, Copy, Debug)]
pub enum Vm {
    Is(VmId),
    OwnId,
    ParentsId,
    GrandparentsId,
    AGrandchilds(usize),
    AChilds(usize),
    ASiblings(usize),
    OfPartition(usize),
}

/// A partition: the nth of the suitable ones, or the nth of all, including removed ones.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    Fitting(usize),
    Any(usize),
}

pub const BROKER_UID: u32 = 900;

/// Few names, to provoke collisions. Some differ only in case.
const PARTITIONS: [&str; 10] = [
    "web", "Web", "db", "DB", "app", "k1", "k.2", "k3", "ci", "box",
];

/// Names in lists and overrides: also those of containers in virtual machines.
const NAMED: [&str; 16] = [
    "web", "Web", "db", "DB", "app", "k1", "k.2", "k3", "ci", "box", "web/box", "WEB/k1", "db/k.2",
    "app/web", "k.2/box", "web/db",
];
const SERVICES: [&str; 5] = ["Alpha", "ALPHA", "Beta", "Gamma", "Delta"];
const GROUPS: [&str; 3] = ["blue", "red", "green"];

pub fn vm_id(number: u128) -> VmId {
    VmId::from_uuid(uuid::Uuid::from_u128(
        0x0b2f_1f0e_0000_4000_8000_0000_0000_0000 + number,
    ))
}

pub fn partition_name(text: &str) -> PartitionName {
    PartitionName::new(text).expect("a name of this test")
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        12 => (0..8usize).prop_map(Pick::Fitting),
        1 => (0..16usize).prop_map(Pick::Any),
    ]
}

fn who() -> impl Strategy<Value = Principal> {
    let someone = |uid, user: Option<&str>, groups: &[(u32, Option<&str>)]| Principal {
        uid,
        user: user.map(str::to_owned),
        groups: groups
            .iter()
            .map(|(id, name)| (*id, name.map(str::to_owned)))
            .collect(),
        // In half of the cases the process is root in its own partition.
        partition_uid: if uid % 2 == 0 { Some(0) } else { Some(uid) },
    };
    select(vec![
        someone(0, Some("root"), &[]),
        someone(0, Some("root"), &[]),
        someone(0, Some("root"), &[]),
        someone(BROKER_UID, Some("hvsock"), &[]),
        someone(1000, Some("alice"), &[(50, Some("staff"))]),
        someone(1000, Some("alice"), &[(50, Some("staff"))]),
        someone(1001, Some("bob"), &[(50, Some("staff")), (60, None)]),
        someone(1002, None, &[(61, Some("guests"))]),
    ])
}

fn service() -> impl Strategy<Value = ServiceId> {
    let guid = "5ca1ab1e-0000-4000-8000-000000000001".parse();
    prop_oneof![
        60 => select(vec![
            ServiceId::from_port(1),
            ServiceId::from_port(2),
            guid.expect("a GUID of this test"),
        ]),
        1 => Just(ServiceId::ZERO),
    ]
}

fn groups() -> impl Strategy<Value = Vec<String>> {
    subsequence(strings(&GROUPS), 0..=2)
}

fn state() -> impl Strategy<Value = PartitionState> {
    prop_oneof![
        5 => Just(PartitionState::Running),
        4 => Just(PartitionState::Paused),
        1 => Just(PartitionState::Off),
        1 => Just(PartitionState::Defined),
        1 => Just(PartitionState::Connected),
        1 => Just(PartitionState::Unknown),
        1 => Just(PartitionState::Exited),
    ]
}

fn end() -> impl Strategy<Value = ConnectionEnd> {
    select(vec![ConnectionEnd::Client, ConnectionEnd::Server])
}

/// A list of an access rule, present with the probability `given`.
fn list(given: f64, entries: Vec<String>) -> impl Strategy<Value = Option<Vec<String>>> {
    let len = 0..=entries.len().min(3);
    option::weighted(given, subsequence(entries, len))
}

/// An access rule. Each list is present with the probability `given`, which must be small: otherwise
/// few rules allow anything.
fn rule(given: f64) -> impl Strategy<Value = AccessRule> {
    let mut partitions = strings(&["*", "web", "DB", "k.2", "@blue", "@red", "web/box", "db/K1"]);
    partitions.push(vm_id(1).to_string());
    partitions.push(vm_id(2).to_string().to_uppercase());
    (
        list(given, strings(&["*", "alice", "bob", "1002", "0"])),
        list(given, strings(&["*", "staff", "60"])),
        list(given, partitions),
    )
        .prop_map(|(users, groups, partitions)| AccessRule {
            users,
            groups,
            partitions,
        })
}

/// A setting that is present with probability 0.5, and then allows with probability 0.6.
fn setting() -> impl Strategy<Value = Option<bool>> {
    option::of(prop::bool::weighted(0.6))
}

/// Whether only root of a child may listen, which is said seldom.
fn only_root() -> impl Strategy<Value = Option<bool>> {
    option::weighted(0.15, any::<bool>())
}

fn over() -> impl Strategy<Value = Override> {
    (setting(), rule(0.3), rule(0.2), setting(), only_root()).prop_map(
        |(enabled, bind, connect, allow_wildcard_binds, only_root_binds)| Override {
            enabled,
            bind,
            connect,
            allow_wildcard_binds,
            only_root_binds,
            transport: None,
        },
    )
}

fn registration() -> impl Strategy<Value = Registration> {
    let vm = prop::collection::btree_map(select(&NAMED[..]), over(), 0..=4);
    (
        service(),
        select(&SERVICES[..]),
        prop::bool::weighted(0.85),
        rule(0.15),
        rule(0.15),
        setting(),
        vm,
        select(vec![Some("alice"), Some("1001"), None]),
        only_root(),
    )
        .prop_map(
            |(id, name, enabled, bind, connect, wildcard, vm, owner, only_root)| {
                let name = ElementName::new(name).expect("a name of this test");
                Registration {
                    enabled,
                    bind,
                    connect,
                    allow_wildcard_binds: wildcard,
                    only_root_binds: only_root,
                    vm: vm
                        .into_iter()
                        .map(|(name, over)| (partition_name(name), over))
                        .collect(),
                    owner: owner.map(str::to_owned),
                    ..Registration::new(id, name)
                }
            },
        )
}

fn defaults() -> impl Strategy<Value = Defaults> {
    let flags = (prop::bool::weighted(0.7), prop::bool::weighted(0.1));
    (rule(0.15), rule(0.15), flags).prop_map(|(bind, connect, (wildcard, only_root))| Defaults {
        bind,
        connect,
        allow_wildcard_binds: wildcard,
        only_root_binds: only_root,
        ..Defaults::default()
    })
}

fn add_partition(state: impl Strategy<Value = PartitionState>) -> impl Strategy<Value = Op> {
    let id = prop_oneof![
        30 => (0..20u128).prop_map(vm_id),
        1 => Just(VmId::LOOPBACK),
    ];
    let kind = prop_oneof![
        8 => Just(PartitionKind::Vm),
        16 => Just(PartitionKind::Container),
        1 => Just(PartitionKind::Host),
    ];
    (pick(), kind, select(&PARTITIONS[..]), id, groups(), state).prop_map(
        |(parent, kind, name, id, groups, state)| {
            Op::AddPartition(AddPartition {
                parent,
                kind,
                name: partition_name(name),
                id,
                groups,
                state,
            })
        },
    )
}

fn set_outer() -> impl Strategy<Value = Op> {
    let id = prop_oneof![
        30 => (0..20u128).prop_map(vm_id),
        1 => Just(VmId::LOOPBACK),
    ];
    let name = prop_oneof![
        30 => select(&PARTITIONS[..]),
        1 => Just("web/box"),
    ];
    (name, id).prop_map(|(name, id)| Op::SetOuter(partition_name(name), id))
}

fn vm() -> impl Strategy<Value = Vm> {
    prop_oneof![
        3 => Just(Vm::GrandparentsId),
        3 => (0..8usize).prop_map(Vm::AGrandchilds),
        3 => Just(Vm::Is(VmId::WILDCARD)),
        3 => Just(Vm::Is(VmId::PARENT)),
        2 => Just(Vm::Is(VmId::CHILDREN)),
        2 => Just(Vm::Is(VmId::LOOPBACK)),
        1 => Just(Vm::Is(VmId::BROADCAST)),
        1 => Just(Vm::Is(VmId::SILOHOST)),
        1 => Just(Vm::OwnId),
        1 => Just(Vm::ParentsId),
        5 => (0..8usize).prop_map(Vm::AChilds),
        4 => (0..8usize).prop_map(Vm::ASiblings),
        2 => (0..16usize).prop_map(Vm::OfPartition),
        1 => Just(Vm::Is(vm_id(99))),
    ]
}

/// Addresses that several partitions connect to, so that listeners compete.
fn several() -> impl Strategy<Value = Vm> {
    select(vec![Vm::Is(VmId::WILDCARD), Vm::Is(VmId::CHILDREN)])
}

fn request() -> impl Strategy<Value = Request> {
    (pick(), who(), vm(), service()).prop_map(|(from, who, vm, service)| Request {
        from,
        who,
        vm,
        service,
    })
}

fn block() -> impl Strategy<Value = Block> {
    let ids = select(vec![0, 1, 5, 1 << 20]);
    (0..5u32, ids).prop_map(|(weight, ids)| Block { weight, ids })
}

/// One operation.
pub fn op() -> impl Strategy<Value = Op> {
    let number = || 0..64usize;
    let child = option::of(select(&NAMED[..]).prop_map(partition_name));
    prop_oneof![
        3 => add_partition(state()),
        2 => set_outer(),
        2 => any::<bool>().prop_map(Op::SetMirrored),
        1 => pick().prop_map(Op::RemovePartition),
        5 => (pick(), state()).prop_map(|(p, state)| Op::SetState(p, state)),
        2 => (pick(), groups()).prop_map(|(p, groups)| Op::SetGroups(p, groups)),
        4 => (pick(), registration()).prop_map(|(p, new)| Op::Register(p, new)),
        3 => (pick(), registration()).prop_map(|(p, new)| Op::Update(p, new)),
        1 => (pick(), service()).prop_map(|(p, service)| Op::Unregister(p, service)),
        3 => (pick(), service(), child, any::<bool>())
            .prop_map(|(p, service, child, on)| Op::Enable(p, service, child, on)),
        1 => (pick(), defaults()).prop_map(|(p, defaults)| Op::SetDefaults(p, defaults)),
        1 => (pick(), vec(registration(), 0..3), vec(registration(), 0..3))
            .prop_map(|(p, all, built_in)| Op::SetRegistry(p, all, built_in)),
        25 => (request(), 0..4u32).prop_map(|(request, backlog)| Op::Listen(request, backlog)),
        12 => (number(), who(), prop_oneof![vm(), several()], 0..4u32)
            .prop_map(|(n, who, vm, backlog)| Op::ListenBeside(n, who, vm, backlog)),
        15 => request().prop_map(Op::Connect),
        40 => (number(), number(), who(), any::<bool>())
            .prop_map(|(n, from, who, keep)| Op::ConnectTo(n, from, who, keep)),
        10 => (number(), number(), who(), block())
            .prop_map(|(n, from, who, block)| Op::ConnectBlock(n, from, who, block)),
        4 => (number(), 0..6u32).prop_map(|(n, weight)| Op::SetWeight(n, weight)),
        10 => (number(), number(), who(), service(), any::<bool>())
            .prop_map(|(n, from, who, id, keep)| Op::ConnectInto(n, from, who, id, keep)),
        10 => (number(), end(), state()).prop_map(|(n, end, state)| Op::SetStateAt(n, end, state)),
        6 => number().prop_map(Op::Accept),
        3 => number().prop_map(Op::CloseListener),
        3 => number().prop_map(Op::CloseConnection),
        4 => (number(), end(), any::<bool>())
            .prop_map(|(n, end, keep)| Op::SetConnectedSuspend(n, end, keep)),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let tight = (
        3..9usize,
        0..3usize,
        0..4usize,
        1..6usize,
        1..4usize,
        1..8usize,
        1..6usize,
    );
    let tight = (tight, 0..4u32).prop_map(|(t, backlog_max)| Limits {
        partitions: t.0,
        groups_per_partition: t.1,
        registrations: t.2,
        listeners: t.3,
        listeners_per_partition: t.4,
        connections: t.5,
        connections_per_partition: t.6,
        backlog_max,
    });
    prop_oneof![4 => Just(Limits::default()), 1 => tight]
}

/// A tree with some services first, then random operations.
pub fn case() -> impl Strategy<Value = Case> {
    let root = prop_oneof![
        16 => Just(PartitionKind::Host),
        8 => Just(PartitionKind::Vm),
        1 => Just(PartitionKind::Container),
    ];
    let outer = vec(set_outer(), 0..2);
    let tree = vec(add_partition(Just(PartitionState::Running)), 0..12);
    let services = vec(
        (pick(), registration()).prop_map(|(p, new)| Op::Register(p, new)),
        0..8,
    );
    (root, limits(), outer, tree, services, vec(op(), 0..60)).prop_map(
        |(root, limits, outer, tree, services, ops)| Case {
            root,
            limits,
            ops: [outer, tree, services, ops].concat(),
        },
    )
}
