//! The snapshot of the guests' arenas. [`crate::handover::snapshot`] describes its format.
//!
//! In it are the arenas' memory and the connections that the core has recorded. The client's end, which the link has, is
//! in the link's document, and gets the arena's monitor from here ([`SharedArena`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::ARENA_IDS;
use hvsock_fabric::{ConnectionId, ListenerId, PartitionKey};
use hvsock_ring::{ArenaLimits, ArenaMonitor, ArenaMonitorSnapshot, RingSize, SlotId};
use serde::{Deserialize, Serialize};

use super::{ArenaRecord, GuestArenas};
use crate::budget::{Budget, ChargeSnapshot};
use crate::core::connections::snapshot::EndSnapshot;
use crate::guest_link::{SharedArena, Unrecorded};
use crate::handover::snapshot::{check_version, ensure, read_version};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The version of [`GuestArenasSnapshot`] that this release writes.
pub(super) const GUEST_ARENAS_SNAPSHOT_VERSION: u32 = 1;

/// More descriptors than the broker has for one arena.
const MAX_CHARGE: u64 = 64;

/// All arenas of guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct GuestArenasSnapshot {
    #[serde(deserialize_with = "read_version::<_, GUEST_ARENAS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their ids.
    arenas: Vec<ArenaSnapshot>,
    /// The listeners and the VMs of whose guests they have accepted a connection.
    acquainted: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ArenaSnapshot {
    /// The first id of its connections.
    id: u64,
    vm: u64,
    port: u32,
    /// The address that the port stands for.
    partition: VmId,
    service: ServiceId,
    listener: u64,
    to: EndSnapshot,
    slots: u32,
    /// Bytes of each ring.
    ring: u32,
    memory: FdIndex,
    grant: FdIndex,
    monitor: ArenaMonitorSnapshot,
    /// In the order of their ids.
    connections: Vec<ConnectionSnapshot>,
    orphaned: bool,
    charge: ChargeSnapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConnectionSnapshot {
    slot: u32,
    seq: u32,
}

impl GuestArenas {
    /// The arenas as a value, prepared for another broker; [`stay`](Self::stay) undoes that.
    ///
    /// # Errors
    ///
    /// If a descriptor cannot be handed over.
    pub(in crate::core) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<GuestArenasSnapshot, HandoverError> {
        let Self { arenas, acquainted } = self;
        let arenas = arenas.iter().map(|(id, arena)| {
            let ArenaRecord {
                vm,
                port,
                address,
                listener,
                to,
                limits,
                monitor,
                // All are recorded by now.
                unrecorded: _,
                connections,
                is_orphaned,
                _charge: charge,
            } = arena;
            monitor.prepare_handover();
            let connections = connections.values();
            let connections = connections.map(|id| ConnectionSnapshot {
                slot: id.slot,
                seq: id.seq,
            });
            Ok(ArenaSnapshot {
                id: id.as_u64(),
                vm: vm.as_u64(),
                port: *port,
                partition: address.vm,
                service: address.service,
                listener: listener.as_u64(),
                to: (*to).into(),
                slots: limits.slots,
                ring: limits.ring.bytes(),
                memory: exports.fd(monitor.memory())?,
                grant: exports.fd(monitor.grant_memory())?,
                monitor: monitor.snapshot(),
                connections: connections.collect(),
                orphaned: *is_orphaned,
                charge: charge.snapshot(),
            })
        });
        Ok(GuestArenasSnapshot {
            version: GUEST_ARENAS_SNAPSHOT_VERSION,
            arenas: arenas.collect::<Result<_, HandoverError>>()?,
            acquainted: acquainted
                .iter()
                .map(|(listener, vm)| (listener.as_u64(), vm.as_u64()))
                .collect(),
        })
    }

    /// The arenas stay with this broker after a snapshot.
    pub(in crate::core) fn stay(&self) {
        for arena in self.arenas.values() {
            arena.monitor.keep();
        }
    }

    /// The arenas of a snapshot. Leaves a [`SharedArena`] for the link of each. `is_connection` says whether there is a
    /// connection with an id in the fabric, `is_vm` which partitions are VMs.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged, or a descriptor is missing or of no arena.
    pub(in crate::core) fn restore(
        snapshot: GuestArenasSnapshot,
        imports: &mut Imports,
        descriptors: &Budget,
        is_connection: impl Fn(ConnectionId) -> bool,
        is_vm: impl Fn(PartitionKey) -> bool,
    ) -> Result<Self, HandoverError> {
        let GuestArenasSnapshot {
            version,
            arenas,
            acquainted,
        } = snapshot;
        check_version(version, GUEST_ARENAS_SNAPSHOT_VERSION)?;
        let mut restored = BTreeMap::new();
        let mut free_from = 0;
        for arena in arenas {
            let ArenaSnapshot {
                id: first,
                vm,
                port,
                partition,
                service,
                listener,
                to,
                slots,
                ring,
                memory,
                grant,
                monitor,
                connections,
                orphaned,
                charge,
            } = arena;
            ensure(first >= free_from, "two arenas have the same ids")?;
            free_from = first.saturating_add(ARENA_IDS);
            let id = ConnectionId::from_u64(first);
            ensure(is_connection(id), "an arena is no connection")?;
            let vm = PartitionKey::from_u64(vm);
            ensure(is_vm(vm), "an arena is of no VM")?;
            let impossible = || HandoverError::inconsistent("an arena has an impossible size");
            let ring = RingSize::exactly(ring).ok_or_else(impossible)?;
            ensure(
                (1..=ArenaLimits::MAX_SLOTS).contains(&slots),
                "an arena has an impossible size",
            )?;
            let [memory, grant] = [imports.fd(memory)?, imports.fd(grant)?];
            let monitor = ArenaMonitor::restore(monitor, memory, grant);
            let monitor = monitor.map_err(|error| HandoverError::damaged(error.to_string()))?;
            let shared = SharedArena {
                monitor: Arc::new(monitor),
                unrecorded: Unrecorded::default(),
            };
            let mut of_arena = BTreeMap::new();
            let mut used = HashSet::new();
            for ConnectionSnapshot { slot, seq } in connections {
                let is_possible =
                    slot < slots && (1..ARENA_IDS).contains(&seq.into()) && used.insert(slot);
                ensure(is_possible, "a connection of an arena has an impossible id")?;
                let id = ConnectionId::from_u64(first.saturating_add(seq.into()));
                let before = of_arena.insert(id, SlotId { slot, seq });
                ensure(before.is_none(), "two connections have one id")?;
            }
            let record = ArenaRecord {
                vm,
                port,
                address: SockAddrHv::new(partition, service),
                listener: ListenerId::from_u64(listener),
                to: to.into(),
                limits: ArenaLimits { slots, ring },
                monitor: Arc::clone(&shared.monitor),
                unrecorded: shared.unrecorded.clone(),
                connections: of_arena,
                is_orphaned: orphaned,
                _charge: charge.charge(descriptors, MAX_CHARGE),
            };
            imports.keep(first, shared);
            restored.insert(id, record);
        }
        let acquainted: BTreeSet<_> = acquainted
            .into_iter()
            .map(|(listener, vm)| (ListenerId::from_u64(listener), PartitionKey::from_u64(vm)))
            .collect();
        Ok(Self {
            arenas: restored,
            acquainted,
        })
    }
}
