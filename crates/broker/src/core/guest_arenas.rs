//! The table of guests' arenas: memory that a VM's link and a listener's process share for many connections.

pub(super) mod snapshot;
#[cfg(test)]
mod snapshot_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hvsock_address::SockAddrHv;
use hvsock_fabric::{ConnectionId, ListenerId, PartitionKey};
use hvsock_ring::{ArenaLimits, ArenaMonitor, Grant, SlotId, SlotView};

use super::connections::EndRecord;
use super::guest_shares::granted_bytes;
use crate::budget::Charge;
use crate::guest_link::Unrecorded;

/// The arenas of all guests.
#[derive(Debug, Default)]
pub(super) struct GuestArenas {
    /// By the first id of each arena's connections.
    pub(super) arenas: BTreeMap<ConnectionId, ArenaRecord>,
    /// The guests and listeners of which the listener's process has accepted a connection of the guest.
    pub(super) acquainted: BTreeSet<(ListenerId, PartitionKey)>,
}

/// An arena of a guest.
#[derive(Debug)]
pub(super) struct ArenaRecord {
    pub(super) vm: PartitionKey,
    pub(super) port: u32,
    pub(super) address: SockAddrHv,
    pub(super) listener: ListenerId,
    /// The listener's end.
    pub(super) to: EndRecord,
    pub(super) limits: ArenaLimits,
    pub(super) monitor: Arc<ArenaMonitor>,
    pub(super) unrecorded: Unrecorded,
    pub(super) connections: BTreeMap<ConnectionId, SlotId>,
    /// It ends with its last connection: the listener is closed, or the pair has another arena.
    pub(super) is_orphaned: bool,
    pub(super) _charge: Charge,
}

impl ArenaRecord {
    /// Whether the link can open one more connection in it.
    pub(super) fn has_free_slots(&self) -> bool {
        self.monitor.grant() == Grant::Granted
            && self.connections.len() < self.monitor.granted() as usize
    }

    /// The slots that it may have in use.
    pub(super) fn slots(&self) -> u32 {
        match self.monitor.can_grant() {
            true => self.monitor.granted(),
            // No more are opened.
            false => self.connections.len() as u32,
        }
    }

    /// Bytes of those slots' rings, each way.
    fn bytes(&self) -> u64 {
        granted_bytes(self.slots(), self.limits.ring.bytes())
    }
}

impl GuestArenas {
    /// Whether this is the first id of an arena.
    pub(super) fn contains(&self, id: ConnectionId) -> bool {
        self.arenas.contains_key(&id)
    }

    /// The arena of a connection, and its slot.
    pub(super) fn of_connection(
        &self,
        id: ConnectionId,
    ) -> Option<(ConnectionId, &ArenaRecord, SlotId)> {
        let (first, arena) = self.arenas.range(..=id).next_back()?;
        Some((*first, arena, *arena.connections.get(&id)?))
    }

    /// The first id of the arena of a connection, and what the arena says about it.
    pub(super) fn view(&self, id: ConnectionId) -> Option<(ConnectionId, Option<SlotView>)> {
        let (first, arena, slot) = self.of_connection(id)?;
        Some((first, arena.monitor.connection(slot)))
    }

    /// The number of connections that wait to be accepted by a listener.
    pub(super) fn waiting(&self, listener: ListenerId) -> u32 {
        let arenas = self.arenas.values();
        let arenas = arenas.filter(|arena| arena.listener == listener);
        arenas.map(|arena| arena.monitor.pending()).sum()
    }

    /// The arenas between a guest and a listener.
    pub(super) fn of_pair(&self, vm: PartitionKey, listener: ListenerId) -> Vec<ConnectionId> {
        let arenas = self.arenas.iter();
        let arenas = arenas.filter(|(_, arena)| arena.vm == vm && arena.listener == listener);
        arenas.map(|(id, _)| *id).collect()
    }

    /// Bytes of the granted rings of a guest's arenas, each way.
    pub(super) fn granted_bytes(&self, vm: PartitionKey) -> u64 {
        let arenas = self.arenas.values().filter(|arena| arena.vm == vm);
        arenas.map(ArenaRecord::bytes).sum()
    }
}
