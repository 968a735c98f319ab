//! A guest's arenas in the document of its device.

use hvsock_fabric::ConnectionId;
use hvsock_ring::RingEndSnapshot;
use serde::{Deserialize, Serialize};

use super::{Arenas, Entry, MAX_ARENAS, Place};
use crate::guest_link::{GuestArena, GuestArenaState, Peer, SlotState};
use crate::handover::snapshot::{check_limit, ensure};
use crate::handover::{Exports, HandoverError, Imports};

/// The arenas. Their connections are with the other ones.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct ArenasState {
    arenas: Vec<ArenaState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ArenaState {
    arena: GuestArenaState,
    /// It ends with its last connection.
    ended: bool,
}

/// Where a connection is in an arena.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in super::super) struct PlaceState {
    /// The arena's number.
    arena: u64,
    slot: SlotState,
}

impl Arenas {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<ArenasState, HandoverError> {
        let arenas = self.slab.iter().map(|(_, entry)| {
            let Entry {
                arena,
                // They follow from the connections.
                links: _,
                open: _,
                // For connections that another broker does not open.
                grows: _,
                ended,
            } = entry;
            Ok(ArenaState {
                arena: arena.hand_over(exports)?,
                ended: *ended,
            })
        });
        Ok(ArenasState {
            arenas: arenas.collect::<Result<_, HandoverError>>()?,
        })
    }

    /// The value of a place whose connection is in this slot.
    pub(in super::super) fn state_of(&self, place: Place, slot: SlotState) -> Option<PlaceState> {
        let entry = self.slab.get(place.arena)?;
        let arena = entry.arena.id().as_u64();
        Some(PlaceState { arena, slot })
    }

    /// Adds the arenas of a document, and watches them. Their connections follow.
    pub(in super::super) fn resume(
        &mut self,
        state: ArenasState,
        imports: &mut Imports,
    ) -> Result<(), HandoverError> {
        let ArenasState { arenas } = state;
        check_limit("arenas of one guest", arenas.len(), MAX_ARENAS)?;
        for ArenaState { arena, ended } in arenas {
            let arena = GuestArena::resume(arena, imports)?;
            let id = arena.id();
            ensure(!self.by_id.contains_key(&id), "two arenas have one number")?;
            let added = self.add(arena);
            added.map_err(|(_, error)| HandoverError::io("watch an arena of a guest")(error))?;
            let index = self.by_id.get(&id).copied().unwrap_or_default();
            if let Some(entry) = self.slab.get_mut(index) {
                entry.ended = ended;
            }
            // Nothing more is granted in it.
            self.withdraw(index);
        }
        Ok(())
    }

    /// The other end of a connection of a document, which is to be that of a link.
    pub(in super::super) fn resume_slot(
        &self,
        state: PlaceState,
        end: RingEndSnapshot,
    ) -> Result<Peer, HandoverError> {
        let missing = || HandoverError::inconsistent("a connection has no arena");
        let id = ConnectionId::from_u64(state.arena);
        let index = *self.by_id.get(&id).ok_or_else(missing)?;
        let entry = self.slab.get(index).ok_or_else(missing)?;
        entry.arena.resume_slot(state.slot, end)
    }

    /// Records the link of a resumed connection.
    pub(in super::super) fn resume_link(
        &mut self,
        state: PlaceState,
        link: usize,
    ) -> Option<Place> {
        let arena = *self.by_id.get(&ConnectionId::from_u64(state.arena))?;
        let slot = state.slot.slot;
        let place = Place { arena, slot };
        self.opened(place, link);
        Some(place)
    }

    /// Whether every connection that is open in an arena has its link.
    pub(in super::super) fn are_complete(&self) -> bool {
        let mut all = self.slab.iter();
        all.all(|(_, entry)| entry.arena.is_complete())
    }
}
