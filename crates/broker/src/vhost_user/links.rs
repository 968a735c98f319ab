//! The connections of one guest.
//!
//! A [`Link`] ties a connection of the vsock protocol (a [`Handle`] of the [`Muxer`]) to its peer
//! ([`Peer`]: a ring, a socket or a sibling). [`Links`] maps events of one side to calls on the
//! other: readiness, credit, half-close, close and reset.

mod credit;
mod ends;
mod in_arenas;
pub(super) mod snapshot;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use hvsock_fabric::ConnectionId;
use hvsock_virtio::{Handle, Muxer, SocketKind};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use slab::Slab;

use super::arenas::{self, Arenas, Place};
use super::lingering::Lingering;
use super::wake::WakeQueue;
use crate::data_path::unread_data;
use crate::guest_link::{LinkCounters, LinkEnd, LinkEvent, Peer, Readiness};

/// The first mio token of a link. A link has two: its peer's descriptor and its control socket.
const FIRST: usize = arenas::END;
/// The bit position of the generation in a token. A stale event of a removed link has another
/// generation than the next link in the same slot and is dropped.
const GENERATION: u32 = 32;
const GENERATIONS: usize = 1 << 16;

/// The most links that the thread busy-polls. With more, it arms all of them for a wakeup.
pub(super) const MAX_WATCHED: usize = 64;

/// One connection.
pub(super) struct Link {
    pub(super) id: ConnectionId,
    generation: usize,
    /// `None` once the muxer has closed the connection.
    pub(super) handle: Option<Handle>,
    pub(super) peer: Peer,
    counters: LinkCounters,
    reports: bool,
    alloc: u32,
    /// The guest has requested it, not the core.
    is_requested: bool,
    /// The connection is established.
    open: bool,
    /// The peer's descriptor is registered with epoll.
    watched: bool,
    /// A SEQPACKET connection, which keeps message ends.
    pub(super) in_messages: bool,
    /// Bytes received from the guest.
    delivered: u64,
    /// How many of them the peer has consumed, as last reported to the muxer.
    consumed: u64,
    suspended: bool,
    /// The guest was sent the end of the peer's data.
    finished: bool,
    /// It is in the worker's list of links polled for bytes.
    pub(super) idle: bool,
    /// It is in the list of links polled for credit.
    low_credit: bool,
    /// Where it is in an arena, if it is in one.
    place: Option<Place>,
}

/// All connections of one guest.
pub(super) struct Links {
    registry: Registry,
    wake_queue: Arc<WakeQueue>,
    pub(super) arenas: Arenas,
    slab: Slab<Link>,
    next_generation: usize,
    by_id: HashMap<ConnectionId, usize>,
    /// Slots of links, indexed by their handle's index.
    by_handle: Vec<Option<usize>>,
    /// Links whose guest has low credit and that are polled, not armed for a wakeup.
    low_credit: Vec<usize>,
    lingering: Lingering,
    /// Links of arenas that are being updated.
    ready: Vec<usize>,
    /// Links whose control socket had more messages than one read handles.
    unread_controls: Vec<usize>,
    events: Vec<LinkEvent>,
}

impl Link {
    /// Whether the peer's bytes may be sent to the guest now.
    pub(super) fn may_fill(&self) -> bool {
        self.open && self.peer.is_established() && !self.suspended
    }

    /// Counts bytes from the guest.
    pub(super) fn count_delivered(&mut self, bytes: usize) {
        self.delivered += bytes as u64;
        self.counters.add_from_guest(bytes);
    }

    /// Counts bytes to the guest.
    pub(super) fn count_filled(&self, bytes: usize) {
        self.counters.add_to_guest(bytes);
    }
}

fn readiness(event: &Event) -> Readiness {
    Readiness {
        readable: event.is_readable() || event.is_read_closed() || event.is_error(),
        writable: event.is_writable() || event.is_write_closed() || event.is_error(),
    }
}

impl Links {
    pub(super) fn new(registry: Registry, wake_queue: Arc<WakeQueue>, arenas: Arenas) -> Self {
        Self {
            registry,
            wake_queue,
            arenas,
            slab: Slab::new(),
            next_generation: 0,
            by_id: HashMap::new(),
            by_handle: Vec::new(),
            low_credit: Vec::new(),
            lingering: Lingering::default(),
            ready: Vec::new(),
            unread_controls: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Reads the control sockets that had messages left. Returns whether there were any.
    pub(super) fn poll_controls(&mut self, mux: &mut Muxer, now: Instant) -> bool {
        let unread_controls = std::mem::take(&mut self.unread_controls);
        for slot in &unread_controls {
            self.update(*slot, mux, now);
        }
        !unread_controls.is_empty()
    }

    /// Drains the events for the core.
    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, LinkEvent> {
        self.events.drain(..)
    }

    pub(super) fn at(&mut self, slot: usize) -> Option<&mut Link> {
        self.slab.get_mut(slot)
    }

    pub(super) fn slot_of(&self, handle: Handle) -> Option<usize> {
        let slot = self.by_handle.get(handle.index()).copied().flatten()?;
        let link = self.slab.get(slot)?;
        (link.handle == Some(handle)).then_some(slot)
    }

    pub(super) fn slot_of_id(&self, id: ConnectionId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Whether a token is a link's.
    pub(super) fn owns(token: Token) -> bool {
        token.0 >= FIRST
    }

    /// Adds a connection for a handle, which the guest (`is_requested`) or the core has requested.
    /// Returns its slot.
    pub(super) fn insert(
        &mut self,
        handle: Handle,
        kind: SocketKind,
        id: ConnectionId,
        end: LinkEnd,
        is_requested: bool,
    ) -> usize {
        // A sibling has to accept the guest's request as well.
        let open = is_requested && end.peer.sibling_end().is_none();
        let slot = self.insert_open(id, Some(handle), end, is_requested);
        if let Some(link) = self.slab.get_mut(slot) {
            link.open = open;
            link.in_messages = kind == SocketKind::Seqpacket;
        }
        slot
    }

    /// Adds an established connection, of a stream.
    fn insert_open(
        &mut self,
        id: ConnectionId,
        handle: Option<Handle>,
        end: LinkEnd,
        is_requested: bool,
    ) -> usize {
        self.next_generation = (self.next_generation + 1) % GENERATIONS;
        let slot = self.slab.insert(Link {
            id,
            generation: self.next_generation,
            handle,
            peer: end.peer,
            counters: end.counters,
            reports: end.reports,
            alloc: end.buffer,
            is_requested,
            open: true,
            watched: false,
            in_messages: false,
            delivered: 0,
            consumed: 0,
            suspended: false,
            finished: false,
            idle: false,
            low_credit: false,
            place: None,
        });
        if let Some(index) = handle.map(Handle::index) {
            if self.by_handle.len() <= index {
                self.by_handle.resize(index + 1, None);
            }
            self.by_handle[index] = Some(slot);
        }
        self.by_id.insert(id, slot);
        slot
    }

    /// Registers a link's descriptors with epoll, and attaches a sibling's wake queue.
    pub(super) fn watch(&mut self, slot: usize) -> io::Result<()> {
        let Some(link) = self.slab.get_mut(slot) else {
            return Ok(());
        };
        let token = |which| Token(link.generation << GENERATION | (FIRST + slot * 2 + which));
        if let Some(fd) = link.peer.descriptor()
            && !link.watched
        {
            let interest = match link.peer.watches_writable() {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            let mut source = SourceFd(&fd.as_raw_fd());
            self.registry.register(&mut source, token(0), interest)?;
            link.watched = true;
        }
        if let Some(fd) = link.peer.control_descriptor() {
            let mut source = SourceFd(&fd.as_raw_fd());
            self.registry
                .register(&mut source, token(1), Interest::READABLE)?;
        }
        if let Some(end) = link.peer.sibling_end() {
            let wake_queue = Arc::clone(&self.wake_queue);
            end.attach(wake_queue, link.id);
        }
        Ok(())
    }

    /// Records a readiness event. Returns the link's slot, or `None` if the event is stale.
    pub(super) fn record_readiness(&mut self, event: &Event) -> Option<usize> {
        let token = event.token().0;
        let generation = token >> GENERATION;
        let number = (token & ((1 << GENERATION) - 1)) - FIRST;
        let slot = number / 2;
        let link = self.slab.get_mut(slot)?;
        if link.generation != generation {
            return None;
        }
        if number.is_multiple_of(2) {
            link.peer.data_ready(readiness(event));
        } else {
            link.peer.control_ready();
        }
        Some(slot)
    }

    /// Updates a link after a notification: reads control messages, detects that the peer has
    /// closed, reports credit and readable data to the muxer.
    pub(super) fn update(&mut self, slot: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        if link.peer.has_control_messages() {
            let (update, read) = link.peer.read_control();
            if update.more {
                // epoll is edge-triggered and does not report the unread rest again.
                self.unread_controls.push(slot);
            }
            if let Some(value) = update.connected_suspend {
                self.events
                    .push(LinkEvent::ConnectedSuspend(link.id, value));
            }
            if let Err(refusal) = read {
                return self.reset(slot, mux, &refusal);
            }
        }
        link.peer.flush();
        if link.peer.sibling_end().is_some() {
            return self.update_sibling(slot, mux, now);
        }
        link.report_consumed(mux);
        // The freed space may be too little for a credit update.
        self.watch_credit(slot, mux);
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        let is_gone = link.peer.is_closed();
        match link.handle {
            None if is_gone && link.peer.is_flushed() => self.remove(slot, None),
            Some(handle) if is_gone => {
                if link.peer.leaves_unread(link.delivered) {
                    return self.reset(slot, mux, &unread_data());
                }
                if link.finished {
                    mux.close(now, handle);
                } else {
                    // The guest receives what the process wrote, and then the kind of end.
                    mux.readable(handle);
                }
            }
            Some(handle) if link.may_fill() => mux.readable(handle),
            _ => {}
        }
    }

    fn update_sibling(&mut self, slot: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        let Some(end) = link.peer.sibling_end() else {
            return;
        };
        let peer_state = end.poll_peer();
        if peer_state.is_reset
            && let Some(refusal) = &peer_state.failure
        {
            return self.reset(slot, mux, refusal);
        }
        let Some(handle) = link.handle else {
            if peer_state.gone || peer_state.failure.is_some() {
                self.remove(slot, peer_state.failure);
            }
            return;
        };
        if !link.open {
            match peer_state.failure {
                Some(refusal) => {
                    mux.refuse(handle);
                    return self.remove(slot, Some(refusal));
                }
                None if peer_state.connected => {
                    link.open = true;
                    mux.accept(handle, link.alloc);
                }
                None => return,
            }
        }
        link.report_consumed(mux);
        self.watch_credit(slot, mux);
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        if peer_state.closed {
            if link.finished {
                mux.close(now, handle);
            } else {
                mux.close_read(handle);
            }
        }
        mux.readable(handle);
    }

    /// Handles the guest's acceptance of a connection.
    pub(super) fn connected(&mut self, handle: Handle, mux: &mut Muxer) {
        let Some(link) = self.link_mut(handle) else {
            return mux.reset(handle);
        };
        link.open = true;
        if let Some(end) = link.peer.sibling_end() {
            end.connected();
            mux.readable(handle);
        } else {
            let id = link.id;
            self.events.push(LinkEvent::Connected(id, None));
        }
    }

    /// Suspends or resumes a connection's data to the guest.
    pub(super) fn suspend(&mut self, id: ConnectionId, suspended: bool, mux: &mut Muxer) {
        let Some(slot) = self.slot_of_id(id) else {
            return;
        };
        if let Some(link) = self.slab.get_mut(slot) {
            link.suspended = suspended;
            if let (false, Some(handle)) = (suspended, link.handle) {
                mux.readable(handle);
            }
        }
    }

    /// The slots of all links.
    pub(super) fn slots(&self) -> Vec<usize> {
        self.slab.iter().map(|(slot, _)| slot).collect()
    }

    /// The slots of the links whose connection the guest knows as established.
    pub(super) fn established(&self) -> Vec<usize> {
        let is_open = |link: &Link| link.open && link.handle.is_some();
        let open = self.slab.iter().filter(|(_, link)| is_open(link));
        open.map(|(slot, _)| slot).collect()
    }

    /// Handles each link and arena as if all of its descriptors were ready.
    pub(super) fn wake_all(&mut self, mux: &mut Muxer, now: Instant) {
        for token in self.arenas.tokens() {
            self.arena_ready(token, mux, now);
        }
        for slot in self.slots() {
            let Some(link) = self.slab.get_mut(slot) else {
                continue;
            };
            link.peer.data_ready(Readiness {
                readable: true,
                writable: true,
            });
            link.peer.control_ready();
            self.update(slot, mux, now);
        }
    }

    fn link_mut(&mut self, handle: Handle) -> Option<&mut Link> {
        let slot = self.slot_of(handle)?;
        self.slab.get_mut(slot)
    }
}
