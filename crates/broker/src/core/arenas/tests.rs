//! What scans see of a pair in this process, and which arena an id belongs to.

use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaParts, ArenaServer, Opened, ResetCause, RingSize,
};

use super::*;
use crate::budget::{Budget, Owner, Shares};
use crate::callers::Caller;

/// An arena with both of its processes.
struct Pair {
    arena: Arena,
    client: ArenaClient,
    server: ArenaServer,
    now: Instant,
}

pub(super) fn arena(service: u32, monitor: ArenaMonitor) -> Arena {
    let end = EndRecord {
        partition: PartitionKey::from_u64(0),
        caller: Caller::UNKNOWN,
    };
    let budget = Budget::new(Shares::new(100, 0));
    let charge = || budget.charge(Owner::Operator, 1).unwrap();
    let new = NewArena {
        request: JudgedRequest {
            named: None,
            from: PartitionKey::from_u64(0),
            principal: Principal::default(),
            vm: VmId::LOOPBACK,
            service: ServiceId::from_port(service),
        },
        listener: ListenerId::from_u64(1),
        from: end,
        to: end,
        monitor: Arc::new(monitor),
        place: Place::Core,
        max_slots: 8,
        charge: charge(),
        slots_charge: charge(),
        audited: None,
    };
    Arena::new(new, Instant::now())
}

impl Pair {
    fn new() -> Self {
        let limits = ArenaLimits {
            slots: 8,
            ring: RingSize::MIN,
        };
        let parts = ArenaParts::new(limits, 4, 4).unwrap();
        let quiet: hvsock_ring::TellBroker = Arc::new(|| {});
        let (memory, grant) = (parts.memory, parts.grant);
        let client = ArenaClient::open(&memory, &grant, parts.client, Arc::clone(&quiet));
        let server = ArenaServer::open(&memory, &grant, parts.server, quiet);
        Self {
            arena: arena(1, parts.monitor),
            client: client.unwrap(),
            server: server.unwrap(),
            now: Instant::now(),
        }
    }

    fn scan(&mut self) -> Observation {
        self.now += SCAN_INTERVAL;
        self.arena.observe(self.now)
    }

    fn open(&self) -> Opened {
        self.client.connect().unwrap()
    }
}

#[test]
fn each_connection_is_seen_once_and_those_between_two_scans_are_counted() {
    let mut pair = Pair::new();
    let first = pair.open();
    let found = pair.scan();
    assert_eq!((found.opened, found.unseen), (vec![first.id], 0));
    assert!(found.is_changed && !found.is_impossible);
    assert!(!pair.scan().is_changed);
    assert!(!pair.arena.connections().next().unwrap().accepted);
    let accepted = pair.server.accept().unwrap().unwrap();
    first.end.try_write(b"seven b").unwrap();
    accepted.end.try_write(b"two").unwrap();
    let found = pair.scan();
    assert!(found.opened.is_empty() && found.closed.is_empty());
    assert_eq!(found.bytes, [7, 3]);
    assert!(pair.arena.connection(first.id.seq).unwrap().accepted);
    // A short one beside it, and the end of the first.
    let short = pair.open();
    short.end.try_write(b"hello").unwrap();
    let other = pair.server.accept().unwrap().unwrap();
    drop((short.end, other.end));
    drop((first.end, accepted.end));
    let found = pair.scan();
    assert_eq!((found.unseen, found.bytes), (1, [5, 0]));
    let closed: Vec<_> = found
        .closed
        .iter()
        .map(|seen| (seen.id, seen.written))
        .collect();
    assert_eq!(closed, [(first.id, [7, 3])]);
    assert_eq!(pair.arena.counted(), (2, [12, 3]));
    assert_eq!(pair.arena.len(), 0);
}

#[test]
fn bytes_count_once_while_one_end_of_a_connection_is_closed() {
    let mut pair = Pair::new();
    let opened = pair.open();
    opened.end.try_write(&[1; 100]).unwrap();
    drop(opened.end);
    assert_eq!(pair.scan().bytes, [100, 0]);
    let accepted = pair.server.accept().unwrap().unwrap();
    assert_eq!(pair.scan().bytes, [0; 2]);
    assert_eq!(pair.arena.len(), 1);
    drop(accepted.end);
    let found = pair.scan();
    assert_eq!((found.bytes, found.closed.len()), ([0; 2], 1));
    assert_eq!(pair.arena.counted().1, [100, 0]);
}

#[test]
fn a_slot_that_is_used_again_between_two_scans_is_another_connection() {
    let mut pair = Pair::new();
    let first = pair.open();
    let accepted = pair.server.accept().unwrap().unwrap();
    pair.scan();
    drop((first.end, accepted.end));
    let second = pair.open();
    assert_eq!(second.id.slot, first.id.slot);
    let found = pair.scan();
    assert_eq!(found.opened, [second.id]);
    assert_eq!((found.closed.len(), found.closed[0].id), (1, first.id));
    assert_eq!(found.unseen, 0);
}

#[test]
fn a_connection_that_the_broker_resets_is_over_at_once_and_reported_once() {
    let mut pair = Pair::new();
    let (one, two) = (pair.open(), pair.open());
    pair.scan();
    pair.arena.monitor.reset(one.id, ResetCause::Control);
    assert_eq!(pair.arena.mark_reset(one.id).unwrap().id, one.id);
    assert!(pair.arena.mark_reset(one.id).is_none());
    assert!(pair.arena.connection(one.id.seq).is_none());
    assert_eq!((pair.arena.len(), pair.scan().closed.len()), (1, 0));
    assert_eq!(pair.arena.len(), 1);
    drop(one.end);
    drop(pair.server.accept().unwrap());
    assert_eq!(pair.scan().closed.len(), 0);
    assert_eq!(pair.arena.take_open()[0].id, two.id);
    assert_eq!(pair.arena.len(), 0);
}

#[test]
fn nothing_is_believed_beyond_what_a_pair_can_do() {
    let mut seen = observation::Seen::new(Instant::now());
    let now = Instant::now() + Duration::from_millis(1);
    let totals = |opened, closed_bytes| hvsock_ring::Totals {
        opened,
        closed_bytes,
    };
    let found = seen.update(&[], totals(u64::MAX, [u64::MAX, 1]), false, now);
    assert!(found.unseen > 0 && found.unseen < 1_000_000, "{found:?}");
    assert_eq!(found.bytes, [u64::MAX, 1]);
    // Counts do not decrease.
    let found = seen.update(&[], totals(0, [0; 2]), true, now);
    assert_eq!((found.unseen, found.bytes), (0, [0; 2]));
    assert!(found.is_impossible);
}

#[test]
fn an_id_belongs_to_the_arena_whose_block_it_is_in() {
    let mut arenas = Arenas::default();
    let first = |number: u64| ConnectionId::from_u64(1000 + number * ARENA_IDS);
    for number in [0, 1, 3] {
        arenas.insert(first(number), Pair::new().arena);
    }
    let of = |id: u64| arenas.of_connection(ConnectionId::from_u64(id));
    assert_eq!(of(999), None);
    // The first id is the arena's own.
    assert_eq!(of(1000), None);
    assert_eq!(of(1001), Some((first(0), 1)));
    assert_eq!(of(999 + ARENA_IDS), Some((first(0), ARENA_IDS as u32 - 1)));
    assert_eq!(of(1000 + ARENA_IDS), None);
    assert_eq!(of(1001 + ARENA_IDS), Some((first(1), 1)));
    assert_eq!(of(1001 + 2 * ARENA_IDS), None);
    let slot = SlotId { slot: 9, seq: 7 };
    assert_eq!(connection_id(first(0), slot), ConnectionId::from_u64(1007));
}

#[test]
fn a_scan_is_planned_once_and_only_arenas_of_changed_services_are_concerned() {
    let mut arenas = Arenas::default();
    let (one, two) = (ConnectionId::from_u64(1), ConnectionId::from_u64(2));
    for (id, service) in [(one, 1), (two, 2)] {
        let mut arena = Pair::new().arena;
        arena.request.service = ServiceId::from_port(service);
        arenas.insert(id, arena);
    }
    let now = Instant::now();
    arenas.scan_at(one, now + SCAN_INTERVAL);
    arenas.scan_at(one, now + 2 * SCAN_INTERVAL);
    arenas.scan_at(two, now);
    arenas.scan_at(one, now + SCAN_INTERVAL / 2);
    assert_eq!(arenas.next_scan(), Some(now));
    assert_eq!(arenas.take_due(now), Some(two));
    assert_eq!(arenas.take_due(now), None);
    assert_eq!(arenas.take_due(now + SCAN_INTERVAL), Some(one));
    assert_eq!(
        (arenas.take_due(now + SCAN_INTERVAL), arenas.next_scan()),
        (None, None)
    );
    let services = |port| Changes::Services([ServiceId::from_port(port)].into());
    assert_eq!(arenas.concerned(&services(2)), [two]);
    assert!(arenas.concerned(&services(9)).is_empty());
    assert_eq!(arenas.concerned(&Changes::All), [one, two]);
    assert!(arenas.concerned(&Changes::None).is_empty());
    arenas.scan_at(one, now);
    drop(arenas.remove(one));
    assert!(arenas.concerned(&services(1)).is_empty());
    assert_eq!(arenas.next_scan(), None);
}
