//! The connections that the data thread opens by itself, in arenas.

use std::time::Instant;

use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_virtio::{Handle, Muxer, SocketKind};
use mio::Token;

use super::Links;
use crate::guest_link::{LinkEvent, NotOpened};

impl Links {
    /// Opens a connection for a request of the guest in an arena for `port`, and accepts it. `None` if the
    /// core has to decide.
    ///
    /// # Errors
    ///
    /// The refusal of the request, which is left to the caller.
    pub(in super::super) fn connect_in_arena(
        &mut self,
        handle: Handle,
        port: u32,
        mux: &mut Muxer,
    ) -> Option<Result<usize, Refusal>> {
        if self.lingering.are_many() {
            self.sweep(Instant::now());
        }
        let (connection, place) = match self.arenas.connect(port)? {
            Ok(connected) => connected,
            Err(NotOpened::BacklogFull) => return Some(Err(Refusal::BacklogFull)),
            Err(NotOpened::AskCore) => return None,
        };
        let alloc = connection.end.buffer;
        let (id, end) = (connection.connection, connection.end);
        let slot = self.insert(handle, SocketKind::Stream, id, end, true);
        if let Some(link) = self.slab.get_mut(slot) {
            link.place = Some(place);
        }
        self.events.push(LinkEvent::Opened(connection.opened));
        if let Some(arena) = self.arenas.opened(place, slot) {
            self.events.push(LinkEvent::WantsSlots(arena));
        }
        mux.accept(handle, alloc);
        Some(Ok(slot))
    }

    /// Handles a readiness event of an arena.
    pub(in super::super) fn arena_ready(&mut self, token: Token, mux: &mut Muxer, now: Instant) {
        let (links, ended) = self.arenas.ready(token);
        for slot in links {
            self.update(slot, mux, now);
        }
        self.events.extend(ended.map(LinkEvent::ArenaEnded));
    }

    /// Updates the connections in arenas that are ready. Returns whether there were any.
    pub(in super::super) fn poll_arenas(&mut self, mux: &mut Muxer, now: Instant) -> bool {
        if !self.arenas.have_ready() {
            return false;
        }
        let mut links = std::mem::take(&mut self.ready);
        self.arenas.take_ready(&mut links);
        for slot in links.drain(..) {
            self.update(slot, mux, now);
        }
        self.ready = links;
        true
    }

    /// Ends an arena and resets its connections with the reason.
    pub(in super::super) fn close_arena(
        &mut self,
        id: ConnectionId,
        refusal: &Refusal,
        mux: &mut Muxer,
    ) {
        for slot in self.arenas.end(id) {
            self.reset(slot, mux, refusal);
        }
        let ended = self.arenas.remove_empty(id);
        self.events.extend(ended.map(LinkEvent::ArenaEnded));
    }
}
