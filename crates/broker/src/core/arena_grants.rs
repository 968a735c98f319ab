//! Judges the grants of arenas again, and closes, suspends and enlarges what is in them.
//!
//! A grant is the verdict for connects that no one asks the broker about. So it is withdrawn before anyone
//! can know of what forbids it: before the answer to an operator's call and before the reply to a process.

use hvsock_address::SockAddrHv;
use hvsock_fabric::{ConnectionId, Destination, PartitionState, Refusal};
use hvsock_ring::{Grant, ResetCause, SlotId};

use super::arenas::{SeenConnection, connection_id};
use super::state::Core;

impl Core {
    /// Judges the requests again whose verdict may have changed, and tells links of it.
    pub(crate) fn judge_arenas(&mut self) {
        let changes = self.fabric.take_changes();
        self.judge_guest_arenas(&changes);
        self.update_offered_services(&changes);
        self.update_mirrors(&changes);
        for id in self.arenas.concerned(&changes) {
            self.judge_arena(id);
        }
    }

    pub(super) fn judge_arena(&mut self, id: ConnectionId) {
        let Some(arena) = self.arenas.get(id) else {
            return;
        };
        let listener = arena.listener;
        let request = arena.request.as_request();
        let named = arena.request.named.as_deref();
        let address = SockAddrHv::new(arena.request.vm, arena.request.service);
        let arena_can_grant = arena.monitor.can_grant();
        // The process connects by the names, which must not reach what had them before.
        let is_allowed = self.fabric.judge(&request) == Ok(Destination::Listener(listener))
            && self.still_names(arena.request.from, named, address);
        // The next connect asks the broker, which makes a socket pair.
        let is_direct = self.fabric.is_direct(&request);
        let verdict = match self.fabric.connection(id) {
            // It is reset in the same step.
            None => Grant::Revoked,
            Some(_) if arena.gone != [false; 2] => Grant::Revoked,
            Some(connection) if connection.is_suspended() => Grant::Suspended,
            // The next connect makes an arena in which it can.
            Some(_) if !arena_can_grant => Grant::Revoked,
            Some(_) if is_allowed && !is_direct => Grant::Granted,
            Some(_) => Grant::Revoked,
        };
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        if verdict != arena.grant {
            arena.grant = verdict;
            arena.monitor.set_grant(verdict);
        }
        if verdict == Grant::Revoked && !is_allowed {
            arena.monitor.withdraw_left();
        }
        let is_closed = self.fabric.listener(listener).is_none();
        if is_closed && !std::mem::replace(&mut arena.is_orphaned, true) {
            self.reset_slots(id, &Refusal::NoListener, |seen| !seen.accepted);
            if let Some(arena) = self.arenas.get(id) {
                // What was opened after the scan.
                arena.monitor.reset_unaccepted(ResetCause::PeerGone);
            }
        }
    }

    /// Resets the connections of an arena that `is_concerned`, and sends both ends the reason.
    fn reset_slots(
        &mut self,
        id: ConnectionId,
        refusal: &Refusal,
        is_concerned: impl Fn(&SeenConnection) -> bool,
    ) {
        self.scan_arena(id, std::time::Instant::now());
        let Some(arena) = self.arenas.get(id) else {
            return;
        };
        let concerned: Vec<SlotId> = arena
            .connections()
            .filter(|seen| is_concerned(seen))
            .map(|seen| seen.id)
            .collect();
        for slot in concerned {
            self.reset_slot(id, slot, refusal);
        }
    }

    /// Resets one connection of an arena.
    fn reset_slot(&mut self, id: ConnectionId, slot: SlotId, refusal: &Refusal) {
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        if let Some(seen) = arena.mark_reset(slot) {
            self.data_threads.reset_slot(id, slot, refusal);
            self.report_closed(id, &seen, Some(refusal));
        }
    }

    /// Resets an arena, or the connection with this id in one. Returns `false` if there is neither.
    pub(super) fn reset_in_arena(&mut self, id: ConnectionId, refusal: &Refusal) -> bool {
        if self.arenas.get(id).is_some() {
            self.reset_whole_arena(id, refusal.clone());
            return true;
        }
        let Some((arena, seq)) = self.arenas.of_connection(id) else {
            return false;
        };
        let found = self.arenas.get(arena);
        let Some(seen) = found.and_then(|arena| arena.connection(seq)) else {
            return false;
        };
        debug_assert_eq!(connection_id(arena, seen.id), id);
        let slot = seen.id;
        self.reset_slot(arena, slot, refusal);
        true
    }

    /// Resets all connections of an arena, and ends it.
    pub(super) fn reset_whole_arena(&mut self, id: ConnectionId, refusal: Refusal) {
        if let Some(arena) = self.arenas.get_mut(id) {
            arena.grant = Grant::Revoked;
            self.data_threads.reset(arena.place, id, refusal);
        }
    }

    /// Suspends an arena, or resumes it. Connections that no end wants to be kept are reset, unless both
    /// ends are paused.
    pub(super) fn suspend_arena(&mut self, id: ConnectionId, suspended: bool) {
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        let place = arena.place;
        if suspended {
            arena.grant = Grant::Suspended;
            arena.monitor.set_grant(Grant::Suspended);
            let ends = [arena.from.partition, arena.to.partition];
            let is_whole = ends
                .iter()
                .all(|end| self.fabric.state(*end) == PartitionState::Paused);
            if !is_whole {
                let refusal = Refusal::PartitionPaused;
                self.reset_slots(id, &refusal, |seen| seen.keep == [false; 2]);
            }
        }
        self.data_threads.suspend(place, id, suspended);
        self.judge_arena(id);
    }

    /// Grants an arena twice as many slots, if limits and shares allow it.
    pub(super) fn grow_arena(&mut self, id: ConnectionId) {
        let Some(arena) = self.arenas.get_mut(id) else {
            return;
        };
        let granted = arena.monitor.granted();
        let more = granted.min(arena.max_slots.saturating_sub(granted));
        if more == 0 || arena.grant != Grant::Granted {
            return;
        }
        let owner = arena.slots_charge.owner();
        let Ok(charge) = self.arena_slots.charge(owner, more.into()) else {
            return;
        };
        if self.fabric.set_weight(id, granted + more).is_ok() {
            arena.slots_charge.merge(charge);
            arena.monitor.set_granted_slots(granted + more);
        }
    }
}
