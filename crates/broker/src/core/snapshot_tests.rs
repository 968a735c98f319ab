//! Snapshots of sessions, listeners and leases: a broker made from them gives the same outputs as the
//! original, and damaged ones are refused or harmless.

use std::time::{Duration, Instant};

use hvsock_address::{ElementName, ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::Transports;
use hvsock_fabric::{ListenerId, PartitionKey};
use hvsock_registry::Registration;
use hvsock_registry::store::{Entry, Origin};
use hvsock_testkit::json_edits::Edit;
use proptest::collection::vec;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::leases::Leases;
use super::leases::snapshot::LeasesSnapshot;
use super::listeners::snapshot::ListenersSnapshot;
use super::listeners::{ListenerRecord, Listeners};
use super::preference::TransportPreference;
use super::sessions::snapshot::SessionsSnapshot;
use super::sessions::{self, Role, Session, SessionLimits, Sessions};
use crate::callers::Caller;
use crate::handover::snapshot::{Descriptors, SnapshotError};

const LIMITS: SessionLimits = SessionLimits {
    idle_slots: 3,
    idle_timeout: Duration::from_secs(10),
};
const PARTITIONS: u64 = 3;
const SERVICES: u32 = 4;
/// Without its newline.
const HYBRID_REQUEST: &[u8] = b"CONNECT 52";
const MAX_LISTENERS: usize = 100;
const MAX_LEASES: usize = 100;

/// What a session's messages do.
#[derive(Clone, Copy, Debug)]
enum Request {
    Nothing,
    Query,
    Options { ring_size: u32, suspend: bool },
    Listen(u32),
    Lease(u32),
    Leave,
}

#[derive(Clone, Debug)]
enum Op {
    /// A client connects and sends its first messages.
    Open {
        partition: u64,
        request: Request,
    },
    /// A client connects to the hybrid vsock socket of a VM and sends a part of its request.
    OpenHybrid {
        vm: u64,
        received: usize,
    },
    /// A session has messages: at once, or when it is its turn.
    Event {
        nth: usize,
        request: Request,
        more: bool,
    },
    Turn {
        request: Request,
        more: bool,
    },
    /// The fabric closes a listener.
    ResetListener {
        nth: usize,
    },
    EndLease(u32),
    Block(u32),
    TakeBlocked,
    ClosePartition(u64),
    Wait {
        milliseconds: u64,
    },
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        2 => Just(Request::Nothing),
        1 => Just(Request::Query),
        1 => (any::<u32>(), any::<bool>())
            .prop_map(|(ring_size, suspend)| Request::Options { ring_size, suspend }),
        2 => (0..SERVICES).prop_map(Request::Listen),
        1 => (0..SERVICES).prop_map(Request::Lease),
        1 => Just(Request::Leave),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..PARTITIONS, request())
            .prop_map(|(partition, request)| Op::Open { partition, request }),
        2 => (0..PARTITIONS, 0..HYBRID_REQUEST.len())
            .prop_map(|(vm, received)| Op::OpenHybrid { vm, received }),
        4 => (any::<usize>(), request(), any::<bool>())
            .prop_map(|(nth, request, more)| Op::Event { nth, request, more }),
        3 => (request(), any::<bool>()).prop_map(|(request, more)| Op::Turn { request, more }),
        1 => any::<usize>().prop_map(|nth| Op::ResetListener { nth }),
        1 => (0..SERVICES).prop_map(Op::EndLease),
        1 => (0..SERVICES).prop_map(Op::Block),
        1 => Just(Op::TakeBlocked),
        1 => (0..PARTITIONS).prop_map(Op::ClosePartition),
        2 => (0..6000_u64).prop_map(|milliseconds| Op::Wait { milliseconds }),
    ]
}

/// A descriptor that nobody is charged for.
fn same(descriptor: u32, _: PartitionKey, _: Caller) -> u32 {
    descriptor
}

fn service(number: u32) -> ServiceId {
    ServiceId::from_port(number)
}

/// The three tables, driven as the core drives them. Numbers are descriptors.
struct World {
    now: Instant,
    sessions: Sessions<u32>,
    listeners: Listeners,
    leases: Leases,
    last_listener: u64,
    last_descriptor: u32,
}

/// The snapshots of one broker, as they are sent.
#[derive(Serialize, Deserialize)]
struct Snapshots {
    sessions: SessionsSnapshot,
    listeners: ListenersSnapshot,
    leases: LeasesSnapshot,
}

impl World {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            sessions: Sessions::new(LIMITS),
            listeners: Listeners::default(),
            leases: Leases::default(),
            last_listener: 0,
            last_descriptor: 0,
        }
    }

    /// Serial numbers of the sessions with their indexes, oldest first.
    fn serials(&self) -> Vec<(u64, usize)> {
        let all = self.sessions.iter();
        let mut serials: Vec<_> = all
            .map(|(index, session)| (session.serial(), index))
            .collect();
        serials.sort_unstable();
        serials
    }

    /// Handles a request. `None` if the session is closed.
    fn serve(&mut self, mut session: Session<u32>, request: Request) -> Option<Session<u32>> {
        let request = match request {
            Request::Listen(_) | Request::Lease(_) if session.is_hybrid() => Request::Nothing,
            other => other,
        };
        match (session.role(), request) {
            (_, Request::Nothing) => {}
            (_, Request::Query) => {
                session.count_query();
                if session.exceeds_queries() {
                    return None;
                }
            }
            (role, Request::Options { ring_size, suspend }) => {
                session.ring_size = ring_size;
                session.connected_suspend = suspend;
                if let Role::Listener(id) = role {
                    self.listeners.set_connected_suspend(id, suspend);
                }
            }
            (Role::Idle, Request::Listen(number)) => {
                self.last_listener += 1;
                let id = ListenerId::from_u64(self.last_listener);
                let record = ListenerRecord {
                    session: None,
                    partition: session.partition,
                    caller: session.caller,
                    address: SockAddrHv::new(VmId::PARENT, service(number)),
                    backlog: number,
                    preference: TransportPreference {
                        transports: Transports::from_bits(number + 1).unwrap(),
                        raw_fd: number == 0,
                        ring_size: session.ring_size,
                    },
                    connected_suspend: session.connected_suspend,
                    started: self.now,
                };
                self.listeners.insert(id, record);
                session.assume(Role::Listener(id));
            }
            (Role::Idle, Request::Lease(number)) => {
                if self.leases.contains(service(number)) {
                    return None;
                }
                self.leases.grant(service(number), session.serial());
                session.assume(Role::Lease(service(number)));
            }
            (role, Request::Leave | Request::Listen(_) | Request::Lease(_)) => {
                self.teardown(role, session.serial());
                return None;
            }
        }
        Some(session)
    }

    fn teardown(&mut self, role: Role, serial: u64) {
        match role {
            Role::Idle => {}
            Role::Listener(id) => drop(self.listeners.remove(id)),
            Role::Lease(service) if self.leases.is_held_by(service, serial) => {
                self.leases.end(service);
            }
            Role::Lease(_) => {}
        }
    }

    fn link(&mut self, role: Role, index: usize) {
        match role {
            Role::Idle => {}
            Role::Listener(id) => self.listeners.set_session(id, index),
            Role::Lease(service) => self.leases.set_session(service, index),
        }
    }

    fn serve_at(&mut self, index: usize, request: Request, more: bool) -> String {
        let Some(session) = self.sessions.take(index) else {
            return "gone".into();
        };
        let before = format!("{session:?}");
        match self.serve(session, request) {
            Some(session) => {
                let role = session.role();
                self.sessions.give_back(index, session, more);
                self.link(role, index);
                format!("{before} {role:?}")
            }
            None => {
                self.sessions.close(index);
                format!("{before} closed")
            }
        }
    }

    /// Removes the session of a listener or lease. Returns it without its index.
    fn reset(&mut self, session: Option<usize>) -> String {
        let withdrawn = session.and_then(|index| self.sessions.withdraw(index));
        format!("{withdrawn:?}")
    }

    /// Applies an operation and returns its outputs.
    fn apply(&mut self, op: &Op) -> String {
        let output = match *op {
            Op::Open { partition, request } => {
                self.last_descriptor += 1;
                let partition = PartitionKey::from_u64(partition);
                let caller = Caller {
                    pid: self.last_descriptor,
                    ..Caller::UNKNOWN
                };
                let entry = sessions::Entry::Endpoint;
                let session = self
                    .sessions
                    .open(self.last_descriptor, partition, caller, entry);
                match self.serve(session, request) {
                    None => "closed".into(),
                    Some(session) => {
                        let evicted = session
                            .is_idle()
                            .then(|| self.sessions.evict_idle(partition));
                        let role = session.role();
                        let index = self.sessions.insert(session, self.now);
                        self.link(role, index);
                        format!("{role:?} {evicted:?}")
                    }
                }
            }
            Op::OpenHybrid { vm, received } => {
                self.last_descriptor += 1;
                let (host, vm) = (PartitionKey::from_u64(0), PartitionKey::from_u64(vm));
                let mut entry = sessions::Entry::hybrid(vm);
                if let sessions::Entry::Hybrid(hybrid) = &mut entry {
                    let read = hybrid.request.read(&HYBRID_REQUEST[..received]);
                    assert_eq!(read, Ok((received, None)));
                }
                let caller = Caller::UNKNOWN;
                let session = self
                    .sessions
                    .open(self.last_descriptor, host, caller, entry);
                let evicted = self.sessions.evict_idle(vm);
                self.sessions.insert(session, self.now);
                format!("{evicted:?}")
            }
            Op::Event { nth, request, more } => {
                let serials = self.serials();
                match serials.get(nth % serials.len().max(1)) {
                    Some((_, index)) if self.sessions.handles_events(*index) => {
                        self.serve_at(*index, request, more)
                    }
                    other => format!("{:?}", other.map(|(serial, _)| serial)),
                }
            }
            Op::Turn { request, more } => match self.sessions.next_turn() {
                Some(index) => self.serve_at(index, request, more),
                None => "no turn".into(),
            },
            Op::ResetListener { nth } => {
                let mut ids: Vec<_> = self.listeners.iter().map(|(id, _)| id).collect();
                ids.sort();
                match ids.get(nth % ids.len().max(1)) {
                    Some(id) => {
                        let record = self.listeners.remove(*id).unwrap();
                        let age = self.now.duration_since(record.started);
                        let reset = self.reset(record.session);
                        format!("{} {age:?} {reset}", self.shown(&record))
                    }
                    None => "no listener".into(),
                }
            }
            Op::EndLease(number) => match self.leases.end(service(number)) {
                Some(ended) => self.reset(ended.session),
                None => "no lease".into(),
            },
            Op::Block(number) => {
                let name = ElementName::new(format!("service {number}")).unwrap();
                let registration = Registration::new(service(number), name);
                let origin = Origin::BuiltIn;
                let entry = Entry {
                    registration,
                    origin,
                };
                self.leases.block(Box::new(entry));
                String::new()
            }
            Op::TakeBlocked => format!("{:?}", self.leases.take_blocked().collect::<Vec<_>>()),
            Op::ClosePartition(number) => {
                let mut closed = Vec::new();
                for index in self.sessions.of_partition(PartitionKey::from_u64(number)) {
                    let session = self.sessions.withdraw(index).unwrap();
                    self.teardown(session.role(), session.serial());
                    closed.push(session.serial());
                }
                closed.sort_unstable();
                format!("{closed:?}")
            }
            Op::Wait { milliseconds } => {
                self.now += Duration::from_millis(milliseconds);
                String::new()
            }
        };
        let mut expired = Vec::new();
        while let Some(session) = self.sessions.pop_expired(self.now) {
            expired.push(session.serial());
        }
        let left = self.sessions.next_deadline();
        let left = left.map(|at| at.duration_since(self.now));
        let waiting = (self.sessions.unfinished(), self.listeners.len());
        format!("{output} {expired:?} {left:?} {waiting:?}")
    }

    /// A listener without what differs between two processes: the index of its session, and times.
    fn shown(&self, record: &ListenerRecord) -> String {
        let record = ListenerRecord {
            session: None,
            started: self.now,
            ..*record
        };
        format!(
            "{:?} {:?} {:?}",
            record.address, record.caller, record.preference
        ) + &format!("{:?} {}", record.partition, record.backlog)
            + &format!("{}", record.connected_suspend)
    }

    fn snapshot(&self) -> (Snapshots, Vec<u32>) {
        let mut descriptors = vec![&u32::MAX];
        let snapshots = Snapshots {
            sessions: self
                .sessions
                .snapshot(self.now, &mut descriptors, &[])
                .unwrap(),
            listeners: self.listeners.snapshot(self.now),
            leases: self.leases.snapshot(),
        };
        (snapshots, descriptors.into_iter().copied().collect())
    }

    /// A world from snapshots, as at another time of another clock.
    fn restore(snapshots: Snapshots, descriptors: Vec<u32>) -> Result<Self, SnapshotError> {
        let now = Instant::now() + Duration::from_secs(1_000_000);
        let mut descriptors = Descriptors::new(descriptors);
        let mut world = Self {
            now,
            sessions: Sessions::restore(snapshots.sessions, LIMITS, &mut descriptors, now, same)?,
            listeners: Listeners::restore(snapshots.listeners, MAX_LISTENERS, now)?,
            leases: Leases::restore(snapshots.leases, MAX_LEASES)?,
            last_listener: 0,
            last_descriptor: 0,
        };
        let sessions = world.sessions.iter();
        let roles: Vec<_> = sessions
            .map(|(index, session)| (session.role(), index))
            .collect();
        for (role, index) in roles {
            world.link(role, index);
        }
        Ok(world)
    }

    /// The same world in another process.
    fn travel(&mut self) {
        let (snapshots, descriptors) = self.snapshot();
        let bytes = serde_json::to_vec(&snapshots).unwrap();
        let snapshots = serde_json::from_slice(&bytes).unwrap();
        let mut next = Self::restore(snapshots, descriptors).unwrap();
        // The successor reads the registrations that wait from their files.
        for entry in self.leases.take_blocked() {
            next.leases.block(entry);
        }
        // The fabric's snapshot has the ids; the test numbers its clients itself.
        next.last_listener = self.last_listener;
        next.last_descriptor = self.last_descriptor;
        *self = next;
    }
}

/// The outputs of a run, and its state at the end. The process changes before operation `travel_at`.
fn run(ops: &[Op], travel_at: Option<usize>) -> (Vec<String>, String) {
    let mut world = World::new();
    let mut outputs = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        if travel_at == Some(at) {
            world.travel();
        }
        outputs.push(world.apply(op));
    }
    let (snapshots, descriptors) = world.snapshot();
    let state = serde_json::to_string(&snapshots).unwrap();
    (outputs, format!("{state} {descriptors:?}"))
}

fn restored(value: serde_json::Value, descriptors: Vec<u32>) -> Option<World> {
    World::restore(serde_json::from_value(value).ok()?, descriptors).ok()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_a_snapshot_every_output_is_the_same(ops in vec(op(), 1..80), at: usize) {
        let original = run(&ops, None);
        let travelled = run(&ops, Some(at % ops.len()));
        prop_assert_eq!(original, travelled);
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_harmless(
        ops in vec(op(), 1..60),
        later in vec(op(), 1..60),
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
        }
        let (snapshots, descriptors) = world.snapshot();
        let mut value = serde_json::to_value(&snapshots).unwrap();
        for (node, kind, value_of_edit) in edits {
            Edit { node, kind, value: value_of_edit }.apply(&mut value);
        }
        let count = descriptors.len();
        let Some(mut world) = restored(value, descriptors) else {
            return Ok(());
        };
        let serials = world.serials();
        prop_assert!(serials.len() < count && world.listeners.len() <= MAX_LISTENERS);
        prop_assert!(serials.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let mut sockets: Vec<_> = world.sessions.iter().map(|(_, session)| session.socket).collect();
        sockets.sort_unstable();
        prop_assert!(sockets.windows(2).all(|pair| pair[0] < pair[1]));
        let keys = world.sessions.iter().map(|(_, session)| session.socket_of());
        for key in keys.collect::<Vec<_>>() {
            let of = world.sessions.iter().filter(|(_, session)| session.socket_of() == key);
            prop_assert!(of.filter(|(_, session)| session.is_idle()).count() <= LIMITS.idle_slots);
        }
        // What is restored can be taken out again, unchanged, and goes on working.
        let (again, descriptors) = world.snapshot();
        let text = serde_json::to_string(&again).unwrap();
        let same = World::restore(serde_json::from_str(&text).unwrap(), descriptors).unwrap();
        prop_assert_eq!(serde_json::to_string(&same.snapshot().0).unwrap(), text);
        world.last_listener = u64::MAX / 2;
        for op in &later {
            world.apply(op);
        }
        while world.sessions.next_turn().is_some() {}
        prop_assert!(!world.sessions.has_unfinished());
        for number in 0..PARTITIONS {
            world.apply(&Op::ClosePartition(number));
        }
    }
}

/// An example of each version, which every later release reads.
const EXAMPLE: &str = include_str!("snapshot_tests/example-1.json");

fn example() -> serde_json::Value {
    serde_json::from_str(EXAMPLE).unwrap()
}

#[test]
fn the_example_of_version_1_is_read_and_written_again() {
    let world = restored(example(), vec![40, 41, 42, 43]).unwrap();
    let (snapshots, descriptors) = world.snapshot();
    assert_eq!(serde_json::to_value(snapshots).unwrap(), example());
    assert_eq!(descriptors, [u32::MAX, 41, 42, 43]);
    let (_, listener) = world.listeners.iter().next().unwrap();
    let session = world.sessions.get(listener.session.unwrap()).unwrap();
    assert_eq!((session.socket, session.serial()), (42, 5));
}

#[test]
fn a_snapshot_of_another_version_is_refused_before_its_fields_are_read() {
    fn error<T: DeserializeOwned>() -> String {
        let text = r#"{ "version": 2, "anything": "else" }"#;
        match serde_json::from_str::<T>(text) {
            Ok(_) => "accepted".into(),
            Err(error) => error.to_string(),
        }
    }
    let want = "the snapshot has version 2; this release reads version 1";
    for error in [
        error::<SessionsSnapshot>(),
        error::<ListenersSnapshot>(),
        error::<LeasesSnapshot>(),
    ] {
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn fields_of_a_later_release_are_ignored() {
    let mut value = example();
    value["sessions"]["sessions"][0]["later"] = "field".into();
    value["leases"]["later"] = 7.into();
    assert!(restored(value, vec![40, 41, 42, 43]).is_some());
}

#[test]
fn inconsistent_snapshots_are_refused() {
    let descriptors = || vec![40, 41, 42, 43];
    for (pointer, value) in [
        ("/sessions/last_serial", 6.into()),
        ("/sessions/last_serial", u64::MAX.into()),
        ("/sessions/sessions/0/descriptor", 2.into()),
        ("/sessions/sessions/0/descriptor", 4.into()),
        ("/sessions/sessions/0/serial", 5.into()),
        ("/sessions/sessions/0/role/idle", i64::MAX.into()),
        ("/sessions/unfinished/0", 4.into()),
        ("/listeners/listeners/0/transports", 0.into()),
        ("/listeners/listeners/0/age", (-1).into()),
    ] {
        let mut damaged = example();
        *damaged.pointer_mut(pointer).unwrap() = value;
        assert!(
            restored(damaged.clone(), descriptors()).is_none(),
            "{damaged:#}"
        );
    }
    for pointer in [
        "/sessions/sessions",
        "/sessions/unfinished",
        "/listeners/listeners",
        "/leases/leases",
    ] {
        let mut damaged = example();
        let table = damaged
            .pointer_mut(pointer)
            .unwrap()
            .as_array_mut()
            .unwrap();
        table.push(table[0].clone());
        assert!(
            restored(damaged.clone(), descriptors()).is_none(),
            "{damaged:#}"
        );
    }
}

#[test]
fn a_hybrid_client_whose_request_is_complete_or_cannot_become_one_is_refused() {
    let mut world = World::new();
    let (vm, received) = (1, 7);
    world.apply(&Op::OpenHybrid { vm, received });
    let (snapshots, descriptors) = world.snapshot();
    let value = serde_json::to_value(&snapshots).unwrap();
    assert!(restored(value.clone(), descriptors.clone()).is_some());
    for received in ["CONNECT 1\n", "GET ", &"CONNECT ".repeat(100)] {
        let mut damaged = value.clone();
        let at = "/sessions/sessions/0/hybrid/received";
        *damaged.pointer_mut(at).unwrap() = received.as_bytes().into();
        assert!(restored(damaged, descriptors.clone()).is_none());
    }
    let mut damaged = value;
    let role = damaged.pointer_mut("/sessions/sessions/0/role").unwrap();
    *role = serde_json::json!({ "listener": 1 });
    assert!(restored(damaged, descriptors).is_none());
}

#[test]
fn tables_that_exceed_their_limits_are_refused() {
    let mut world = World::new();
    for _ in 0..4 {
        world.apply(&Op::Open {
            partition: 0,
            request: Request::Listen(1),
        });
    }
    let (snapshots, _) = world.snapshot();
    let now = Instant::now();
    assert!(Listeners::restore(snapshots.listeners.clone(), 4, now).is_ok());
    let error = Listeners::restore(snapshots.listeners, 3, now).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the snapshot has 4 listeners; the limit is 3"
    );
    world.leases.grant(service(1), 1);
    let error = Leases::restore(world.leases.snapshot(), 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the snapshot has 1 leases; the limit is 0"
    );
    let mut idle = World::new();
    for _ in 0..3 {
        idle.apply(&Op::Open {
            partition: 0,
            request: Request::Nothing,
        });
    }
    let (snapshots, descriptors) = idle.snapshot();
    let fewer = SessionLimits {
        idle_slots: 2,
        ..LIMITS
    };
    let mut descriptors = Descriptors::new(descriptors);
    let error =
        Sessions::restore(snapshots.sessions, fewer, &mut descriptors, now, same).unwrap_err();
    let want = "the snapshot has 3 idle sessions in one partition; the limit is 2";
    assert_eq!(error.to_string(), want);
}

#[test]
fn no_snapshot_is_taken_while_a_session_is_served() {
    let mut world = World::new();
    world.apply(&Op::Open {
        partition: 0,
        request: Request::Nothing,
    });
    let served = world.sessions.take(0).unwrap();
    let error = world.sessions.snapshot(world.now, &mut Vec::new(), &[]);
    assert_eq!(error, Err(SnapshotError::Outstanding { sessions: 1 }));
    world.sessions.give_back(0, served, false);
    assert!(
        world
            .sessions
            .snapshot(world.now, &mut Vec::new(), &[])
            .is_ok()
    );
}
