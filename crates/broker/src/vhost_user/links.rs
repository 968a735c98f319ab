//! The connections of one guest.
//!
//! A [`Link`] ties a connection of the vsock protocol (a [`Handle`] of the [`Muxer`]) to its peer
//! ([`Peer`]: a ring, a socket or a sibling). [`Links`] maps events of one side to calls on the
//! other: readiness, credit, half-close, close and reset.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_virtio::{Closed, Handle, Muxer, SocketKind, Window};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use slab::Slab;

use super::arenas::{self, Arenas, Place};
use super::lingering::Lingering;
use super::wake::WakeQueue;
use crate::data_path::unread_data;
use crate::guest_link::{LinkCounters, LinkEnd, LinkEvent, NotOpened, Peer, Readiness};

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

    /// Reports to the muxer how many more bytes the peer has consumed. The muxer sends the credit
    /// update.
    fn report_consumed(&mut self, mux: &mut Muxer) {
        let Some(handle) = self.handle else { return };
        let consumed = self.peer.consumed();
        let fresh = consumed.wrapping_sub(self.consumed);
        if fresh > 0 && fresh <= self.delivered.wrapping_sub(self.consumed) {
            self.consumed = consumed;
            // Fits: it is at most what was delivered, and that is bounded by the credit.
            mux.freed(handle, fresh as u32);
        }
    }

    /// If the guest has low credit, requests a wakeup for when the peer has freed enough space for
    /// a credit update. Returns whether it already has.
    fn arm_credit(&self, mux: &Muxer) -> bool {
        let Some(handle) = self.handle else {
            return false;
        };
        let window = mux.receive_window(handle);
        if !is_low(window) {
            return false;
        }
        // Wake when free space is a quarter above the guest's credit, and not a byte earlier: below
        // that the muxer sends no credit update, and the link would be armed again at once.
        let quarter = window.size.div_ceil(4);
        let unread = u64::from(window.size - window.advertised_free - quarter);
        let consumed = self.delivered.saturating_sub(unread);
        !self
            .peer
            .arm_consumed(consumed, u64::from(window.alloc) - unread)
    }
}

fn readiness(event: &Event) -> Readiness {
    Readiness {
        readable: event.is_readable() || event.is_read_closed() || event.is_error(),
        writable: event.is_writable() || event.is_write_closed() || event.is_error(),
    }
}

/// Whether the guest's credit is below half of the window, so that its writes may soon block.
fn is_low(window: Window) -> bool {
    window.advertised_free < window.size / 2
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

    /// Polls a link for credit from now on if its guest has low credit.
    pub(super) fn watch_credit(&mut self, slot: usize, mux: &Muxer) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        let Some(handle) = link.handle else { return };
        if !link.low_credit && is_low(mux.receive_window(handle)) {
            link.low_credit = true;
            self.low_credit.push(slot);
        }
    }

    /// Polls the links with low credit. Returns whether one has enough again.
    pub(super) fn poll_credit(&mut self, mux: &mut Muxer) -> bool {
        let mut found = false;
        if self.low_credit.len() > MAX_WATCHED {
            found |= self.arm_credit(mux);
        }
        for index in (0..self.low_credit.len()).rev() {
            let slot = self.low_credit[index];
            let Some(link) = self.slab.get_mut(slot) else {
                self.low_credit.swap_remove(index);
                continue;
            };
            link.report_consumed(mux);
            let window = link.handle.map(|handle| mux.receive_window(handle));
            if window.is_none_or(|window| !is_low(window)) {
                link.low_credit = false;
                self.low_credit.swap_remove(index);
                found = true;
            }
        }
        found
    }

    /// Requests a wakeup from each link with low credit. Returns whether one has enough already.
    pub(super) fn arm_credit(&mut self, mux: &mut Muxer) -> bool {
        let mut found = false;
        for slot in std::mem::take(&mut self.low_credit) {
            let Some(link) = self.slab.get_mut(slot) else {
                continue;
            };
            link.low_credit = false;
            link.report_consumed(mux);
            if link.arm_credit(mux) {
                link.low_credit = true;
                self.low_credit.push(slot);
                found = true;
            }
        }
        found
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
        self.next_generation = (self.next_generation + 1) % GENERATIONS;
        let slot = self.slab.insert(Link {
            id,
            generation: self.next_generation,
            handle: Some(handle),
            peer: end.peer,
            counters: end.counters,
            reports: end.reports,
            alloc: end.buffer,
            is_requested,
            open,
            watched: false,
            in_messages: kind == SocketKind::Seqpacket,
            delivered: 0,
            consumed: 0,
            suspended: false,
            finished: false,
            idle: false,
            low_credit: false,
            place: None,
        });
        let index = handle.index();
        if self.by_handle.len() <= index {
            self.by_handle.resize(index + 1, None);
        }
        self.by_handle[index] = Some(slot);
        self.by_id.insert(id, slot);
        slot
    }

    /// Opens a connection for a request of the guest in an arena for `port`, and accepts it. `None` if the
    /// core has to decide.
    ///
    /// # Errors
    ///
    /// The refusal of the request, which is left to the caller.
    pub(super) fn connect_in_arena(
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
    pub(super) fn arena_ready(&mut self, token: Token, mux: &mut Muxer, now: Instant) {
        let (links, ended) = self.arenas.ready(token);
        for slot in links {
            self.update(slot, mux, now);
        }
        self.events.extend(ended.map(LinkEvent::ArenaEnded));
    }

    /// Updates the connections in arenas that are ready. Returns whether there were any.
    pub(super) fn poll_arenas(&mut self, mux: &mut Muxer, now: Instant) -> bool {
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
    pub(super) fn close_arena(&mut self, id: ConnectionId, refusal: &Refusal, mux: &mut Muxer) {
        for slot in self.arenas.end(id) {
            self.reset(slot, mux, refusal);
        }
        let ended = self.arenas.remove_empty(id);
        self.events.extend(ended.map(LinkEvent::ArenaEnded));
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

    /// Handles the end of the peer's data: half-closes the guest's connection, or closes it if the
    /// peer has closed too.
    pub(super) fn source_ended(&mut self, slot: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        let Some(handle) = link.handle else { return };
        link.finished = true;
        if link.peer.is_closed() {
            mux.close(now, handle);
        } else {
            mux.finish(handle);
        }
    }

    /// Handles the guest's shutdown of sending.
    pub(super) fn guest_finished(&mut self, handle: Handle) {
        if let Some(link) = self.link_mut(handle) {
            link.peer.finish();
        }
    }

    /// Handles the guest's shutdown of receiving.
    pub(super) fn guest_closed_read(&mut self, handle: Handle) {
        if let Some(link) = self.link_mut(handle) {
            link.peer.close_read();
        }
    }

    /// Handles the peer's shutdown of receiving.
    pub(super) fn peer_closed_read(&mut self, slot: usize, mux: &mut Muxer) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        if let Some(handle) = link.handle {
            mux.close_read(handle);
        }
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

    /// Handles the close of a connection by the muxer.
    pub(super) fn closed(&mut self, handle: Handle, reason: Closed) {
        let Some(slot) = self.slot_of(handle) else {
            return;
        };
        self.by_handle[handle.index()] = None;
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        link.handle = None;
        let refusal = match reason {
            Closed::Clean => {
                link.peer.finish();
                link.peer.close_read();
                if !link.open {
                    let cause = "the connection was closed before it was established".into();
                    return self.connect_failed(slot, Refusal::Reset { cause });
                }
                // An end that reports the close waits until the other side has closed.
                let is_gone = match link.peer.sibling_end() {
                    Some(end) => !link.reports || end.poll_peer().gone,
                    None => link.peer.is_closed(),
                };
                if is_gone && link.peer.is_flushed() {
                    self.remove(slot, None);
                } else if link.place.is_some() {
                    self.linger(slot);
                }
                return;
            }
            Closed::Refused => Refusal::NoListener,
            Closed::TimedOut if !link.open => Refusal::TimedOut,
            other => Refusal::Reset {
                cause: other.to_string(),
            },
        };
        if !link.open {
            return self.connect_failed(slot, refusal);
        }
        self.send_reset(slot, &refusal, false);
        self.remove(slot, Some(refusal));
    }

    /// Looks at a connection in an arena now and then until its process closes it.
    fn linger(&mut self, slot: usize) {
        if let Some(link) = self.slab.get(slot)
            && self.lingering.add(slot, link.id)
        {
            link.peer.set_signals(false);
        }
    }

    /// When to call [`sweep`](Self::sweep).
    pub(super) fn next_sweep(&self) -> Option<Instant> {
        self.lingering.next()
    }

    /// Removes the connections that the guest has closed and whose processes have closed meanwhile.
    pub(super) fn sweep(&mut self, now: Instant) {
        for (entry, is_last) in self.lingering.take(now) {
            let link = self.slab.get(entry.link);
            let Some(link) = link.filter(|link| link.id == entry.id) else {
                continue;
            };
            if is_last {
                link.peer.set_signals(true);
            }
            // After the request for signals: the process notifies of a close that this does not see.
            if link.peer.is_closed() {
                self.remove(entry.link, None);
            } else if !is_last {
                self.lingering.put_back(entry, now);
            }
        }
    }

    /// Handles a connect that was not accepted: by the guest, or by its sibling before the guest gave
    /// up.
    fn connect_failed(&mut self, slot: usize, refusal: Refusal) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        link.peer.reset(&refusal, false);
        if link.is_requested {
            return self.remove(slot, Some(refusal));
        }
        if link.reports {
            let id = link.id;
            link.reports = false;
            self.events.push(LinkEvent::Failed(id, refusal));
        }
        self.remove(slot, None);
    }

    /// Resets a connection and sends the refusal to both ends.
    pub(super) fn reset(&mut self, slot: usize, mux: &mut Muxer, refusal: &Refusal) {
        if let Some(handle) = self.slab.get(slot).and_then(|link| link.handle) {
            mux.reset(handle);
        }
        self.send_reset(slot, refusal, true);
        self.remove(slot, Some(refusal.clone()));
    }

    fn send_reset(&mut self, slot: usize, refusal: &Refusal, discard: bool) {
        if let Some(link) = self.slab.get_mut(slot) {
            link.peer.reset(refusal, discard);
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

    fn link_mut(&mut self, handle: Handle) -> Option<&mut Link> {
        let slot = self.slot_of(handle)?;
        self.slab.get_mut(slot)
    }

    /// Removes a link, and reports its close if `reports` is set.
    fn remove(&mut self, slot: usize, reason: Option<Refusal>) {
        let Some(link) = self.slab.try_remove(slot) else {
            return;
        };
        if let Some(handle) = link.handle {
            self.by_handle[handle.index()] = None;
        }
        self.by_id.remove(&link.id);
        if let Some(fd) = link.peer.descriptor() {
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        if let Some(fd) = link.peer.control_descriptor() {
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        if link.reports {
            self.events.push(LinkEvent::Closed(link.id, reason));
        }
        if let Some(place) = link.place {
            let ended = self.arenas.closed(place, slot);
            self.events.extend(ended.map(LinkEvent::ArenaEnded));
        }
    }
}
