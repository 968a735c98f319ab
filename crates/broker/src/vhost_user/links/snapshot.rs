//! A guest's connections in the document of its device.

use std::collections::HashSet;

use hvsock_fabric::{ConnectionEnd, ConnectionId};
use hvsock_virtio::{Handle, HandleSnapshot, Muxer};
use serde::{Deserialize, Serialize};

use super::{Link, Links};
use crate::guest_link::peer::snapshot::PeerState;
use crate::guest_link::{LinkCounters, LinkEnd, Peer, Resuming};
use crate::handover::{Exports, HandoverError, Imports};
use crate::vhost_user::arenas::Arenas;
use crate::vhost_user::arenas::snapshot::{ArenasState, PlaceState};

/// The connections, in no order.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct LinksState {
    #[serde(default)]
    arenas: ArenasState,
    links: Vec<LinkState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LinkState {
    id: u64,
    /// Missing once the guest has closed the connection.
    handle: Option<HandleSnapshot>,
    peer: PeerState,
    /// The guest is the client.
    guest_connects: bool,
    reports: bool,
    alloc: u32,
    is_requested: bool,
    open: bool,
    in_messages: bool,
    delivered: u64,
    consumed: u64,
    suspended: bool,
    finished: bool,
    /// Where it is in an arena.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<PlaceState>,
}

/// Connections of a document that do not go on as they are.
#[derive(Debug, Default)]
pub(in super::super) struct NotResumed {
    /// Requests of the guest for a sibling that has not answered. The core gets them again.
    pub(in super::super) requests: Vec<Handle>,
    /// Links of connections that the core does not know.
    pub(in super::super) unknown: Vec<usize>,
}

impl Links {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<LinksState, HandoverError> {
        let arenas = self.arenas.hand_over(exports)?;
        let links = self.slab.iter();
        let links = links.map(|(_, link)| link.hand_over(&self.arenas, exports));
        Ok(LinksState {
            arenas,
            links: links.collect::<Result<_, _>>()?,
        })
    }

    /// Adds the connections of a document, whose state of the protocol is in `mux`. They are watched, but nothing is
    /// read or written.
    ///
    /// A connect of the core that the guest has not answered is given up: the core makes it again.
    pub(in super::super) fn resume(
        &mut self,
        state: LinksState,
        imports: &mut Imports,
        mux: &mut Muxer,
        resuming: &Resuming<'_>,
    ) -> Result<NotResumed, HandoverError> {
        let mut not_resumed = NotResumed::default();
        self.arenas.resume(state.arenas, imports)?;
        let (mut ids, mut handles) = (HashSet::new(), HashSet::new());
        for state in state.links {
            let id = ConnectionId::from_u64(state.id);
            let handle = state.handle.map(Handle::from);
            let key = handle.map(|handle| (handle, mux.key(handle)));
            let is_live = key.is_none_or(|(handle, key)| key.is_some() && handles.insert(handle));
            if !is_live || !ids.insert(id) {
                let what = "a connection of a guest is missing or there twice";
                return Err(HandoverError::inconsistent(what));
            }
            let (open, is_requested) = (state.open, state.is_requested);
            let counters = resuming.counters(id);
            let is_known = counters.is_some();
            let guest = match state.guest_connects {
                true => ConnectionEnd::Client,
                false => ConnectionEnd::Server,
            };
            let slot = |end| {
                let missing = || HandoverError::inconsistent("a connection has no arena");
                let place = state.place.ok_or_else(missing)?;
                self.arenas.resume_slot(place, end)
            };
            let end = LinkEnd {
                peer: Peer::resume(state.peer, id, imports, slot)?,
                // Of two siblings, the one that reports counts.
                counters: LinkCounters::new(
                    counters.filter(|_| state.reports).unwrap_or_default(),
                    guest,
                ),
                buffer: state.alloc,
                reports: state.reports && is_known,
            };
            let is_in_arena = end.peer.slot_state().is_some();
            if is_in_arena != state.place.is_some() || is_in_arena && !open {
                let what = "a connection is in an arena and is not";
                return Err(HandoverError::inconsistent(what));
            }
            if !open {
                match handle {
                    Some(handle) if is_requested => not_resumed.requests.push(handle),
                    Some(handle) => mux.reset(handle),
                    None => {}
                }
                continue;
            }
            let slot = self.insert_open(id, handle, end, is_requested);
            let place = state.place;
            let place = place.and_then(|place| self.arenas.resume_link(place, slot));
            if let Some(link) = self.slab.get_mut(slot) {
                link.in_messages = state.in_messages;
                link.delivered = state.delivered;
                link.consumed = state.consumed;
                link.suspended = state.suspended;
                link.finished = state.finished;
                link.place = place;
            }
            if !is_known {
                not_resumed.unknown.push(slot);
            }
            self.watch(slot)
                .map_err(HandoverError::io("watch a connection of a guest"))?;
        }
        match self.arenas.are_complete() {
            true => Ok(not_resumed),
            false => Err(HandoverError::inconsistent(
                "a connection in an arena is missing",
            )),
        }
    }

    /// Looks at the resumed connections in arenas that the guest has closed.
    pub(in super::super) fn resume_lingering(&mut self) {
        for slot in self.slots() {
            let link = self.slab.get(slot);
            if let Some(link) = link.filter(|link| link.place.is_some() && link.handle.is_none()) {
                let is_added = self.lingering.add(slot, link.id);
                link.peer.set_signals(!is_added);
            }
        }
    }

    /// Makes the ends of resumed connections the only ones.
    pub(in super::super) fn wake_ends(&mut self) {
        for (_, link) in &self.slab {
            link.peer.wake();
        }
    }
}

impl Link {
    fn hand_over(
        &self,
        arenas: &Arenas,
        exports: &mut Exports,
    ) -> Result<LinkState, HandoverError> {
        let Self {
            id,
            generation: _,
            handle,
            peer,
            counters,
            reports,
            alloc,
            is_requested,
            open,
            watched: _,
            in_messages,
            delivered,
            consumed,
            suspended,
            finished,
            // Where the thread looks is found out again.
            idle: _,
            low_credit: _,
            place,
        } = self;
        let place = place.zip(peer.slot_state());
        let place = place.and_then(|(place, slot)| arenas.state_of(place, slot));
        Ok(LinkState {
            id: id.as_u64(),
            handle: handle.map(HandleSnapshot::from),
            peer: peer.hand_over(*id, exports)?,
            guest_connects: counters.guest() == ConnectionEnd::Client,
            reports: *reports,
            alloc: *alloc,
            is_requested: *is_requested,
            open: *open,
            in_messages: *in_messages,
            delivered: *delivered,
            consumed: *consumed,
            suspended: *suspended,
            finished: *finished,
            place,
        })
    }
}
