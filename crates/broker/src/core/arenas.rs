//! Arenas: the pairs of a connecting and a listener's process that open connections by themselves, and
//! what the broker has seen of those.
//!
//! In the fabric an arena is one connection with the weight of all its slots. It is judged again when
//! something changes ([`Arenas::concerned`]), and its grant withdrawn when the verdict is another one.
//!
//! The pair's table of connections is in memory that both of its processes write. A scan compares it with
//! what was seen before ([`Arena::observe`]). Nothing in it is believed further than that: it has at most as
//! many connections as slots are granted, counts do not decrease, and a table that no honest pair has ends
//! the arena. The pair sends one message at the first change after a scan that saw none. Then scans follow
//! every [`SCAN_INTERVAL`] until one sees no change, so a busy pair costs ten scans a second and an idle
//! one nothing.

mod observation;
mod peers;
pub(super) mod snapshot;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, VmId};
use hvsock_control::AuditRecord;
use hvsock_endpoint::{ARENA_IDS, NamedAddress};
use hvsock_fabric::{Changes, ConnectRequest, ConnectionId, ListenerId, PartitionKey};
use hvsock_registry::Principal;
use hvsock_ring::{ArenaMonitor, Grant, SlotId};

use super::connections::{EndRecord, Place};
use crate::budget::Charge;

pub(super) use observation::{Observation, SeenConnection};
pub(super) use peers::AcceptedPeers;

/// The time between two scans of an arena with changes.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_millis(100);

/// The arenas by their first id.
#[derive(Debug, Default)]
pub(super) struct Arenas {
    arenas: BTreeMap<ConnectionId, Arena>,
    by_service: HashMap<ServiceId, BTreeSet<ConnectionId>>,
    /// The next scans.
    due: BTreeSet<(Instant, ConnectionId)>,
    /// Whose connections each listener has accepted.
    pub(super) peers: AcceptedPeers,
}

/// A request whose verdict lasts.
#[derive(Clone, Debug)]
pub(super) struct JudgedRequest {
    pub(super) from: PartitionKey,
    pub(super) principal: Principal,
    pub(super) vm: VmId,
    pub(super) service: ServiceId,
    /// The address as it was given, if with a name. The process keeps the arena under this address.
    pub(super) named: Option<Arc<NamedAddress>>,
}

/// An arena.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) request: JudgedRequest,
    pub(super) listener: ListenerId,
    pub(super) from: EndRecord,
    pub(super) to: EndRecord,
    pub(super) monitor: Arc<ArenaMonitor>,
    pub(super) place: Place,
    /// The most slots that it may ever be granted.
    pub(super) max_slots: u32,
    pub(super) started: Instant,
    pub(super) grant: Grant,
    /// The sides whose process is gone. Nothing is granted any more.
    pub(super) gone: [bool; 2],
    /// The listener is closed, and what it had not accepted is reset.
    pub(super) is_orphaned: bool,
    /// For the broker's descriptors of it.
    pub(super) _charge: Charge,
    /// For its slots.
    pub(super) slots_charge: Charge,
    /// The record of the grant, if the audit has one.
    pub(super) audited: Option<Arc<AuditRecord>>,
    seen: observation::Seen,
    next_scan: Option<Instant>,
}

/// What an arena is made of.
pub(super) struct NewArena {
    pub(super) request: JudgedRequest,
    pub(super) listener: ListenerId,
    pub(super) from: EndRecord,
    pub(super) to: EndRecord,
    pub(super) monitor: Arc<ArenaMonitor>,
    pub(super) place: Place,
    pub(super) max_slots: u32,
    pub(super) charge: Charge,
    pub(super) slots_charge: Charge,
    pub(super) audited: Option<Arc<AuditRecord>>,
}

impl JudgedRequest {
    /// The request as the fabric judges it.
    pub(super) fn as_request(&self) -> ConnectRequest<'_> {
        ConnectRequest {
            from: self.from,
            principal: &self.principal,
            vm: self.vm,
            service: self.service,
        }
    }
}

impl Arena {
    pub(super) fn new(new: NewArena, now: Instant) -> Self {
        let NewArena {
            request,
            listener,
            from,
            to,
            monitor,
            place,
            max_slots,
            charge,
            slots_charge,
            audited,
        } = new;
        Self {
            request,
            listener,
            from,
            to,
            monitor,
            place,
            max_slots,
            started: now,
            grant: Grant::Granted,
            gone: [false; 2],
            is_orphaned: false,
            _charge: charge,
            slots_charge,
            audited,
            seen: observation::Seen::new(now),
            next_scan: None,
        }
    }

    /// Compares the pair's table with what was seen before.
    pub(super) fn observe(&mut self, now: Instant) -> Observation {
        // Bytes of a connection that is closed in between are missing until the next scan. In the other
        // order they would count twice.
        let totals = self.monitor.totals();
        let views = self.monitor.scan();
        let is_impossible = self.monitor.exceeds_grant();
        self.seen.update(&views, totals, is_impossible, now)
    }

    /// The connections that were seen at the last scan and are not reset, in the order of their slots.
    pub(super) fn connections(&self) -> impl Iterator<Item = &SeenConnection> {
        self.seen.open()
    }

    /// The connection with this open counter, if it was seen.
    pub(super) fn connection(&self, seq: u32) -> Option<&SeenConnection> {
        self.connections().find(|one| one.id.seq == seq)
    }

    /// Records that the broker has reset a connection. Returns it, if it was open.
    pub(super) fn mark_reset(&mut self, id: SlotId) -> Option<SeenConnection> {
        self.seen.mark_reset(id)
    }

    /// Takes all connections that were open, of an arena that has ended.
    pub(super) fn take_open(&mut self) -> Vec<SeenConnection> {
        self.seen.take_open()
    }

    /// Keeps the record of a connection's beginning.
    pub(super) fn set_audited(&mut self, id: SlotId, record: Arc<AuditRecord>) {
        self.seen.set_audited(id, record);
    }

    /// Number of connections that were seen at the last scan.
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// What the pair has reported so far: connections opened, and bytes each way.
    pub(super) fn counted(&self) -> (u64, [u64; 2]) {
        self.seen.counted()
    }
}

impl Arenas {
    pub(super) fn insert(&mut self, id: ConnectionId, arena: Arena) {
        let service = arena.request.service;
        self.by_service.entry(service).or_default().insert(id);
        self.arenas.insert(id, arena);
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Arena> {
        let arena = self.arenas.remove(&id)?;
        if let Some(at) = arena.next_scan {
            self.due.remove(&(at, id));
        }
        let service = arena.request.service;
        if let Some(others) = self.by_service.get_mut(&service) {
            others.remove(&id);
            if others.is_empty() {
                self.by_service.remove(&service);
            }
        }
        Some(arena)
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Arena> {
        self.arenas.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Arena> {
        self.arenas.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &Arena)> {
        self.arenas.iter().map(|(id, arena)| (*id, arena))
    }

    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        self.arenas.keys().copied().collect()
    }

    /// The arena that has this connection id, and the open counter of the id.
    pub(super) fn of_connection(&self, id: ConnectionId) -> Option<(ConnectionId, u32)> {
        let (first, _) = self.arenas.range(..=id).next_back()?;
        let seq = id.as_u64() - first.as_u64();
        let seq = u32::try_from(seq).ok()?;
        (1..ARENA_IDS)
            .contains(&seq.into())
            .then_some((*first, seq))
    }

    /// The arenas whose verdict may have changed.
    pub(super) fn concerned(&self, changes: &Changes) -> Vec<ConnectionId> {
        match changes {
            Changes::None => Vec::new(),
            Changes::All => self.ids(),
            Changes::Services(services) => {
                let of = services.iter().filter_map(|one| self.by_service.get(one));
                // A name belongs to one registration, so it stands for another service only after a change
                // of the one that had it.
                of.flatten().copied().collect()
            }
        }
    }

    /// Plans a scan, unless one is planned earlier.
    pub(super) fn scan_at(&mut self, id: ConnectionId, at: Instant) {
        let Some(arena) = self.arenas.get_mut(&id) else {
            return;
        };
        if let Some(planned) = arena.next_scan {
            if planned <= at {
                return;
            }
            self.due.remove(&(planned, id));
        }
        arena.next_scan = Some(at);
        self.due.insert((at, id));
    }

    /// When the next scan is due.
    pub(super) fn next_scan(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes an arena whose scan is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<ConnectionId> {
        let (at, id) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, id));
        if let Some(arena) = self.arenas.get_mut(&id) {
            arena.next_scan = None;
        }
        Some(id)
    }

    /// Number of connections that were seen in all arenas.
    pub(super) fn connections(&self) -> usize {
        self.arenas.values().map(Arena::len).sum()
    }
}

/// The id of a connection of an arena.
pub(super) fn connection_id(arena: ConnectionId, id: SlotId) -> ConnectionId {
    ConnectionId::from_u64(arena.as_u64().saturating_add(id.seq.into()))
}
