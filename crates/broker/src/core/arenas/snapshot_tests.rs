//! Snapshots of arenas: what is seen afterwards, damaged ones, and the committed examples.

use hvsock_control::{AuditActor, AuditCategory};
use hvsock_endpoint::IdOrName;
use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaParts, ArenaServer, ResetCause, RingEnd, RingSize,
};
use hvsock_testkit::json_edits::Edit;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::snapshot::{ARENAS_SNAPSHOT_VERSION, ArenasSnapshot, Monitors};
use super::tests::arena;
use super::*;
use crate::budget::{Budget, Owner, Shares};
use crate::callers::Caller;
use crate::handover::snapshot::SnapshotError;

const ID: ConnectionId = ConnectionId::from_u64(1 << 20);
const SLOTS: u32 = 4;

/// The processes of one arena.
struct Processes {
    client: ArenaClient,
    server: ArenaServer,
    open: Vec<(SlotId, RingEnd)>,
    accepted: Vec<RingEnd>,
}

/// A broker that has this arena, and its budgets.
struct Observer {
    arenas: Arenas,
    budgets: [Budget; 2],
}

fn budgets() -> [Budget; 2] {
    [100, 100].map(|capacity| Budget::new(Shares::new(capacity, 0)))
}

fn start() -> (Processes, Observer) {
    let limits = ArenaLimits {
        slots: SLOTS,
        ring: RingSize::MIN,
    };
    let parts = ArenaParts::new(limits, SLOTS, SLOTS).unwrap();
    let quiet: hvsock_ring::TellBroker = Arc::new(|| {});
    let (memory, grant) = (&parts.memory, &parts.grant);
    let client = ArenaClient::open(memory, grant, parts.client, Arc::clone(&quiet));
    let server = ArenaServer::open(memory, grant, parts.server, quiet);
    let processes = Processes {
        client: client.unwrap(),
        server: server.unwrap(),
        open: Vec::new(),
        accepted: Vec::new(),
    };
    let budgets = budgets();
    let mut arenas = Arenas::default();
    let mut arena = arena(1, parts.monitor);
    let charge = |at: usize, amount| budgets[at].charge(Owner::User(7), amount).unwrap();
    (arena._charge, arena.slots_charge) = (charge(0, 6), charge(1, SLOTS.into()));
    arenas.insert(ID, arena);
    (processes, Observer { arenas, budgets })
}

/// The monitors of a broker that takes the arenas over.
fn inherited(arenas: &Arenas) -> Monitors {
    let inherit = |(id, arena): (ConnectionId, &Arena)| {
        let monitor = &arena.monitor;
        let [memory, grant] = [monitor.memory(), monitor.grant_memory()];
        let [memory, grant] = [memory, grant].map(|fd| fd.try_clone_to_owned().unwrap());
        let monitor = ArenaMonitor::restore(monitor.snapshot(), memory, grant);
        (id, Arc::new(monitor.unwrap()))
    };
    arenas.iter().map(inherit).collect()
}

fn restore(value: Value, monitors: Monitors, now: Instant) -> Result<Observer, String> {
    let snapshot: ArenasSnapshot =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    let budgets = budgets();
    let arenas = Arenas::restore(snapshot, monitors, budgets.each_ref(), |id| id == ID, now);
    let arenas = arenas.map_err(|error: SnapshotError| error.to_string())?;
    Ok(Observer { arenas, budgets })
}

impl Observer {
    fn arena(&mut self) -> &mut Arena {
        self.arenas.get_mut(ID).unwrap()
    }

    fn value(&self, now: Instant) -> Value {
        serde_json::to_value(self.arenas.snapshot(now)).unwrap()
    }

    fn travel(&mut self, now: Instant) {
        let monitors = inherited(&self.arenas);
        let next = restore(self.value(now), monitors, now).unwrap();
        let used = |one: &Self| {
            one.budgets
                .each_ref()
                .map(|budget| budget.usage(Owner::User(7)).0)
        };
        assert_eq!(used(&next), used(self));
        *self = next;
    }

    /// Everything that a scan says and leaves.
    fn scan(&mut self, now: Instant) -> String {
        let found = self.arena().observe(now);
        let seen: Vec<_> = self.arena().connections().collect();
        let seen = format!("{seen:?}");
        format!("{found:?} {seen} {:?}", self.arena().counted())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Open,
    Accept,
    Write(usize, usize, bool),
    Close(usize, bool),
    Reset(usize),
    Scan,
    Travel,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Open),
        3 => Just(Op::Accept),
        3 => (any::<usize>(), 1..100_usize, any::<bool>())
            .prop_map(|(nth, count, is_client)| Op::Write(nth, count, is_client)),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(nth, is_client)| Op::Close(nth, is_client)),
        1 => any::<usize>().prop_map(Op::Reset),
        4 => Just(Op::Scan),
        2 => Just(Op::Travel),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two brokers look at one pair: one that stays, and one that is replaced now and then.
    #[test]
    fn after_a_snapshot_every_scan_sees_the_same(ops in vec(op(), 1..60)) {
        let (mut processes, mut stays) = start();
        let mut now = Instant::now();
        let mut moves = restore(stays.value(now), inherited(&stays.arenas), now).unwrap();
        for op in ops {
            match op {
                Op::Open => {
                    if let Ok(opened) = processes.client.connect() {
                        processes.open.push((opened.id, opened.end));
                    }
                }
                Op::Accept => {
                    if let Ok(Some(accepted)) = processes.server.accept() {
                        processes.accepted.push(accepted.end);
                    }
                }
                Op::Write(nth, count, is_client) => {
                    let end = match is_client {
                        true => processes.open.get(nth % processes.open.len().max(1)).map(|(_, end)| end),
                        false => processes.accepted.get(nth % processes.accepted.len().max(1)),
                    };
                    let _ = end.map(|end| end.try_write(&vec![1; count]));
                }
                Op::Close(nth, true) if !processes.open.is_empty() => {
                    processes.open.remove(nth % processes.open.len());
                }
                Op::Close(nth, false) if !processes.accepted.is_empty() => {
                    processes.accepted.remove(nth % processes.accepted.len());
                }
                Op::Close(..) => {}
                Op::Reset(nth) => {
                    let Some((id, _)) = processes.open.get(nth % processes.open.len().max(1)) else { continue };
                    moves.arena().monitor.reset(*id, ResetCause::Control);
                    let found = [&mut stays, &mut moves].map(|one| format!("{:?}", one.arena().mark_reset(*id)));
                    prop_assert_eq!(&found[0], &found[1]);
                }
                Op::Scan => {
                    now += SCAN_INTERVAL;
                    prop_assert_eq!(stays.scan(now), moves.scan(now));
                }
                Op::Travel => moves.travel(now),
            }
        }
        moves.travel(now);
        now += SCAN_INTERVAL;
        prop_assert_eq!(stays.scan(now), moves.scan(now));
        let open = [stays, moves].map(|mut one| format!("{:?}", one.arena().take_open()));
        prop_assert_eq!(&open[0], &open[1]);
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_harmless(
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let (_processes, observer, now) = example();
        let mut value = observer.value(now);
        for (node, kind, number) in edits {
            Edit { node, kind, value: number }.apply(&mut value);
        }
        let Ok(mut damaged) = restore(value, inherited(&observer.arenas), now) else {
            return Ok(());
        };
        let arena = damaged.arena();
        prop_assert!(arena.max_slots <= ArenaLimits::MAX_SLOTS);
        damaged.scan(now + SCAN_INTERVAL);
        // What is restored can be taken out and restored again.
        let again = damaged.value(now);
        let same = restore(again.clone(), inherited(&damaged.arenas), now);
        prop_assert_eq!(same.map(|same| same.value(now)), Ok(again));
        damaged.arena().take_open();
        drop(damaged.arenas.remove(ID));
        let used = damaged.budgets.map(|budget| budget.usage(Owner::User(7)).0);
        prop_assert_eq!(used, [0; 2]);
    }
}

/// An arena in which all fields have a value.
fn example() -> (Processes, Observer, Instant) {
    let (mut processes, mut observer) = start();
    for _ in 0..3 {
        let opened = processes.client.connect().unwrap();
        processes.open.push((opened.id, opened.end));
    }
    let accepted = processes.server.accept().unwrap().unwrap();
    processes.open[0].1.try_write(&[1; 300]).unwrap();
    accepted.end.try_write(&[2; 20]).unwrap();
    accepted.end.shutdown_write();
    processes.accepted.push(accepted.end);
    let start = Instant::now();
    let arena = observer.arena();
    arena.started = start;
    arena.seen = observation::Seen::new(start);
    let caller = Caller {
        pid: 4321,
        uid: 7,
        gid: 8,
    };
    arena.from.caller = caller;
    arena.from.partition = PartitionKey::from_u64(3);
    arena.request.from = arena.from.partition;
    arena.request.principal = Principal {
        uid: 7,
        user: Some("web".into()),
        groups: vec![(8, Some("web".into())), (9, None)],
        partition_uid: Some(0),
    };
    arena.request.named = Some(Arc::new(NamedAddress {
        partition: IdOrName::Id(VmId::LOOPBACK),
        service: IdOrName::Name("Echo".into()),
    }));
    (arena.gone, arena.is_orphaned) = ([false, true], true);
    let record = |number| {
        let mut record: AuditRecord = serde_json::from_value(json!({
            "number": number,
            "time_ms": 1_700_000_000_000_u64,
            "category": AuditCategory::Connection,
            "action": "connect",
            "outcome": "allowed",
        }))
        .unwrap();
        record.actor = Some(AuditActor {
            partition: "box".into(),
            pid: Some(4321),
            ..AuditActor::default()
        });
        Arc::new(record)
    };
    arena.audited = Some(record(1));
    arena.observe(start + SCAN_INTERVAL);
    arena.set_audited(processes.open[0].0, record(2));
    arena.mark_reset(processes.open[2].0);
    let peers = &mut observer.arenas.peers;
    for (listener, partition) in [(1, 3), (1, 4), (2, 3)] {
        let partition = PartitionKey::from_u64(partition);
        peers.accepted(ListenerId::from_u64(listener), partition, caller);
    }
    (processes, observer, start + 3 * SCAN_INTERVAL)
}

/// Each version of the format has an example, which every later release reads.
///
/// A new version: make `restore` read the version before as well, and write the new example with
/// `UPDATE_SNAPSHOTS=1 cargo test -p hvsock-broker --lib core::arenas`. The earlier examples stay.
#[test]
fn snapshots_of_all_versions_can_be_restored() {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/core/arenas/snapshot_tests"
    );
    let (_processes, observer, now) = example();
    let written = serde_json::to_string_pretty(&observer.value(now)).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{folder}/example-{ARENAS_SNAPSHOT_VERSION}.json");
        std::fs::write(path, &written).unwrap();
    }
    let mut last = String::new();
    for version in 1..=ARENAS_SNAPSHOT_VERSION {
        last = std::fs::read_to_string(format!("{folder}/example-{version}.json")).unwrap();
        let value = serde_json::from_str(&last).unwrap();
        let mut next = restore(value, inherited(&observer.arenas), now).unwrap();
        assert_eq!(
            (next.arena().len(), next.arena().counted()),
            (2, (3, [300, 20]))
        );
        assert_eq!(next.arena().grant, Grant::Revoked);
    }
    // The format of the newest version does not change any more.
    assert_eq!(written, last);
}

#[test]
fn an_inconsistent_snapshot_is_refused() {
    let (_processes, observer, now) = example();
    let good = observer.value(now);
    let refused = |value: Value, monitors| restore(value, monitors, now).err();
    assert_eq!(refused(good.clone(), inherited(&observer.arenas)), None);
    let missing = refused(good.clone(), Monitors::new()).unwrap();
    assert!(missing.contains("an arena has no memory"), "{missing}");
    for (pointer, value) in [
        ("/version", json!(2)),
        ("/arenas", json!([])),
        ("/arenas/0/id", json!(5)),
        ("/arenas/0/age", json!(-1)),
        ("/arenas/0/request/named/service", json!({ "name": "" })),
        ("/arenas/0/seen/age", json!(-1)),
        ("/arenas/0/seen/connections/0/age", json!(-1)),
        ("/arenas/0/seen/connections/0/seq", json!(0)),
        ("/arenas/0/seen/connections/1/slot", json!(0)),
        ("/arenas/0/seen/connections/1/seq", json!(1)),
        ("/arenas/0/seen/connections/1/slot", json!(u32::MAX)),
        ("/peers/1/listener", json!(1)),
        ("/peers/0/processes", json!(vec![[3, 4]; 65])),
    ] {
        let mut damaged = good.clone();
        *damaged.pointer_mut(pointer).unwrap() = value;
        let error = refused(damaged, inherited(&observer.arenas));
        assert!(error.is_some(), "{pointer}");
    }
    let mut twice = good;
    let arenas = twice["arenas"].as_array_mut().unwrap();
    arenas.push(arenas[0].clone());
    let error = refused(twice, inherited(&observer.arenas)).unwrap();
    assert!(error.contains("two arenas have the same ids"), "{error}");
}
