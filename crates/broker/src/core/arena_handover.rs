//! The arenas of a broker before this one. They are granted no more, so they end with their connections: a pair that
//! connects again asks this broker, which makes another arena.
//!
//! Until then an arena counts as the connections that it has, not as the slots that it was granted. So what is left of
//! many upgrades does not use up the limits.

use std::time::Instant;

use hvsock_fabric::{Connection, ConnectionId};

use super::state::Core;
use crate::guest_link::SharedArena;
use crate::handover::{HandoverError, Imports};

impl Core {
    /// Checks that the links have taken all arenas of their guests: nobody else would end one.
    ///
    /// # Errors
    ///
    /// If the document is damaged.
    pub(super) fn check_guest_arenas(&self, imports: &mut Imports) -> Result<(), HandoverError> {
        let mut ids = self.guest_arenas.arenas.keys();
        match ids.any(|id| imports.kept::<SharedArena>(id.as_u64()).is_some()) {
            false => Ok(()),
            true => Err(HandoverError::inconsistent(
                "an arena of a guest has no link",
            )),
        }
    }

    /// Judges the arenas of the broker before by this release's rules, looks what has happened in them, and ends those
    /// that nobody uses.
    pub(super) fn begin_arenas(&mut self, now: Instant) {
        for id in self.arenas.ids() {
            self.judge_arena(id);
            self.scan_arena(id, now);
        }
        let guests: Vec<ConnectionId> = self.guest_arenas.arenas.keys().copied().collect();
        for id in guests {
            self.shrink_guest_arena(id);
            self.end_if_unused(id);
        }
    }

    /// Gives back what an arena of the broker before was granted and does not need.
    pub(super) fn shrink_arena(&mut self, id: ConnectionId) {
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        if arena.monitor.can_grant() {
            return;
        }
        let needed = arena.len() as u64;
        let charge = &mut arena.slots_charge;
        charge.shrink(charge.amount().saturating_sub(needed));
        self.shrink_weight(id, needed);
    }

    /// As [`shrink_arena`](Self::shrink_arena), of an arena of a guest.
    pub(super) fn shrink_guest_arena(&mut self, id: ConnectionId) {
        let arena = self.guest_arenas.arenas.get(&id);
        if let Some(arena) = arena.filter(|arena| !arena.monitor.can_grant()) {
            self.shrink_weight(id, arena.slots().into());
        }
    }

    fn shrink_weight(&mut self, id: ConnectionId, needed: u64) {
        let weight = self.fabric.connection(id).map_or(0, Connection::weight);
        let needed = u32::try_from(needed.max(1)).unwrap_or(u32::MAX);
        if needed < weight {
            // Cannot fail: it becomes less.
            let _ = self.fabric.set_weight(id, needed);
        }
    }
}
