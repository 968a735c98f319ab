//! The connections of one guest.
//!
//! A [`Link`] ties a connection of the vsock protocol (a [`Handle`] of the [`Muxer`]) to its peer
//! ([`Peer`]: a ring, a socket or a sibling). [`Links`] maps events of one side to calls on the
//! other: readiness, credit, half-close, close and reset.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::{ConnectionEnd, ConnectionId, Refusal};
use hvsock_virtio::{Closed, Handle, Muxer, SocketKind, Window};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use slab::Slab;

use super::VmEvent;
use super::link::Peer;
use super::sibling::{self, WakeQueue};
use crate::data_path::{ByteCounters, ControlConnection, unread_data};
use crate::reply::refused;

/// The first mio token of a link. A link has two: its peer's descriptor and its control socket.
const FIRST: usize = 16;
/// The bit position of the generation in a token. A stale event of a removed link has another
/// generation than the next link in the same slot and is dropped.
const GENERATION: u32 = 32;
const GENERATIONS: usize = 1 << 16;

/// The most links that the thread busy-polls. With more, it arms all of them for a wakeup.
pub(super) const MAX_WATCHED: usize = 64;

/// The broker's end of a connection's peer.
pub(crate) enum LinkParts {
    /// The broker's end of a ring.
    Ring(Box<hvsock_ring::RingEnd>),
    /// The broker's end of a socket pair. With `raw_fd`, the process has a raw fd and sends no
    /// SHUTDOWN message: end of file is a clean end.
    Socket { data: OwnedFd, raw_fd: bool },
    /// A sibling guest.
    Sibling(sibling::SiblingEnd),
}

/// A connection that the core hands to the data thread.
pub(crate) struct Linked {
    pub(crate) connection: ConnectionId,
    pub(crate) parts: LinkParts,
    /// The process's control connection. `None` for a sibling, and for a process until the guest
    /// has accepted ([`Command::Establish`](super::Command::Establish)).
    pub(crate) control: Option<ControlConnection>,
    pub(crate) counters: Arc<ByteCounters>,
    /// The buffer for bytes from the guest, in bytes: the `buf_alloc` that the guest is sent.
    pub(crate) alloc: u32,
    /// Which end the guest is.
    pub(crate) guest: ConnectionEnd,
    /// This thread reports the connection's close to the core. Of two siblings only one does.
    pub(crate) reports: bool,
}

/// One connection.
pub(super) struct Link {
    pub(super) id: ConnectionId,
    generation: usize,
    /// `None` once the muxer has closed the connection.
    pub(super) handle: Option<Handle>,
    pub(super) peer: Peer,
    control: Option<ControlConnection>,
    counters: Arc<ByteCounters>,
    guest: ConnectionEnd,
    reports: bool,
    alloc: u32,
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
}

/// All connections of one guest.
pub(super) struct Links {
    registry: Registry,
    wake_queue: Arc<WakeQueue>,
    slab: Slab<Link>,
    next_generation: usize,
    by_id: HashMap<ConnectionId, usize>,
    /// Slots of links, indexed by their handle's index.
    by_handle: Vec<Option<usize>>,
    /// Links whose guest has low credit and that are polled, not armed for a wakeup.
    low_credit: Vec<usize>,
    /// Links whose control socket had more messages than one read handles.
    unread_controls: Vec<usize>,
    events: Vec<VmEvent>,
}

impl Link {
    /// Whether the peer's bytes may be sent to the guest now.
    pub(super) fn may_fill(&self) -> bool {
        let has_peer = self.control.is_some() || matches!(self.peer, Peer::Sibling(_));
        self.open && has_peer && !self.suspended
    }

    /// The peer, and the process's control connection.
    pub(super) fn parts(&mut self) -> (&mut Peer, Option<&mut ControlConnection>) {
        (&mut self.peer, self.control.as_mut())
    }

    /// Counts bytes from the guest.
    pub(super) fn count_delivered(&mut self, bytes: usize) {
        self.delivered += bytes as u64;
        self.counters.add(direction(self.guest), bytes);
    }

    /// Counts bytes to the guest.
    pub(super) fn count_filled(&self, bytes: usize) {
        self.counters.add(1 - direction(self.guest), bytes);
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

    fn send(&self, message: &BrokerMessage) {
        if let Some(control) = &self.control {
            control.send(message);
        }
    }
}

/// Whether the guest's credit is below half of the window, so that its writes may soon block.
fn is_low(window: Window) -> bool {
    window.advertised_free < window.size / 2
}

fn direction(guest: ConnectionEnd) -> usize {
    match guest {
        ConnectionEnd::Client => 0,
        ConnectionEnd::Server => 1,
    }
}

impl Links {
    pub(super) fn new(registry: Registry, wake_queue: Arc<WakeQueue>) -> Self {
        Self {
            registry,
            wake_queue,
            slab: Slab::new(),
            next_generation: 0,
            by_id: HashMap::new(),
            by_handle: Vec::new(),
            low_credit: Vec::new(),
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
    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, VmEvent> {
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

    /// Adds a connection for a handle. Returns its slot.
    pub(super) fn insert(
        &mut self,
        handle: Handle,
        kind: SocketKind,
        linked: Linked,
        open: bool,
    ) -> usize {
        let peer = match linked.parts {
            LinkParts::Ring(end) => Peer::ring(*end),
            LinkParts::Socket { data, raw_fd } => Peer::socket(data, raw_fd),
            LinkParts::Sibling(end) => Peer::Sibling(end),
        };
        self.next_generation = (self.next_generation + 1) % GENERATIONS;
        let slot = self.slab.insert(Link {
            id: linked.connection,
            generation: self.next_generation,
            handle: Some(handle),
            peer,
            control: None,
            counters: linked.counters,
            guest: linked.guest,
            reports: linked.reports,
            alloc: linked.alloc,
            open,
            watched: false,
            in_messages: kind == SocketKind::Seqpacket,
            delivered: 0,
            consumed: 0,
            suspended: false,
            finished: false,
            idle: false,
            low_credit: false,
        });
        let index = handle.index();
        if self.by_handle.len() <= index {
            self.by_handle.resize(index + 1, None);
        }
        self.by_handle[index] = Some(slot);
        self.by_id.insert(linked.connection, slot);
        slot
    }

    /// Registers a link's descriptors with epoll, and attaches a sibling's wake queue.
    pub(super) fn watch(
        &mut self,
        slot: usize,
        control: Option<ControlConnection>,
    ) -> io::Result<()> {
        let Some(link) = self.slab.get_mut(slot) else {
            return Ok(());
        };
        let token = |which| Token(link.generation << GENERATION | (FIRST + slot * 2 + which));
        if let Some(fd) = link.peer.descriptor()
            && !link.watched
        {
            let interest = match link.peer {
                Peer::Socket(_) => Interest::READABLE | Interest::WRITABLE,
                _ => Interest::READABLE,
            };
            let mut source = SourceFd(&fd.as_raw_fd());
            self.registry.register(&mut source, token(0), interest)?;
            link.watched = true;
        }
        if let Some(control) = control {
            let fd = control.as_fd().as_raw_fd();
            let mut source = SourceFd(&fd);
            self.registry
                .register(&mut source, token(1), Interest::READABLE)?;
            link.control = Some(control);
        }
        if let Peer::Sibling(end) = &link.peer {
            end.attach(Arc::clone(&self.wake_queue), link.id);
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
            link.peer.ready(event);
        } else if let Some(control) = &mut link.control {
            control.readable = true;
        }
        Some(slot)
    }

    /// Updates a link after a notification: reads control messages, detects that the peer has
    /// closed, reports credit and readable data to the muxer.
    pub(super) fn update(&mut self, slot: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        if let Some(control) = &mut link.control
            && control.readable
        {
            let read = control.read();
            if control.readable {
                // epoll is edge-triggered and does not report the unread rest again.
                self.unread_controls.push(slot);
            }
            if let Some(value) = control.option.take() {
                self.events.push(VmEvent::ConnectedSuspend {
                    connection: link.id,
                    end: peer_end(link.guest),
                    value,
                });
            }
            if let Err(refusal) = read {
                return self.reset(slot, mux, &refusal);
            }
        }
        let (peer, control) = link.parts();
        peer.flush(control.as_deref());
        if let Peer::Sibling(_) = link.peer {
            return self.update_sibling(slot, mux, now);
        }
        link.report_consumed(mux);
        // The freed space may be too little for a credit update.
        self.watch_credit(slot, mux);
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        let is_gone = link.control.as_ref().is_some_and(|control| control.closed);
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
        let Peer::Sibling(end) = &link.peer else {
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
        let is_gone = match &link.peer {
            Peer::Sibling(end) => end.poll_peer().closed,
            _ => link.control.as_ref().is_some_and(|control| control.closed),
        };
        if is_gone {
            mux.close(now, handle);
        } else {
            mux.finish(handle);
        }
    }

    /// Handles the guest's shutdown of sending.
    pub(super) fn guest_finished(&mut self, handle: Handle) {
        if let Some(link) = self.link_mut(handle) {
            let (peer, control) = link.parts();
            peer.finish(control.as_deref());
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
        if let Peer::Sibling(end) = &link.peer {
            end.connected();
            mux.readable(handle);
        } else {
            let id = link.id;
            self.events.push(VmEvent::Connected(id));
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
                let (peer, control) = link.parts();
                peer.finish(control.as_deref());
                peer.close_read();
                if !link.open {
                    let cause = "the connection was closed before it was established".into();
                    return self.connect_failed(slot, Refusal::Reset { cause });
                }
                // An end that reports the close waits until the other side has closed.
                let is_gone = match &link.peer {
                    Peer::Sibling(end) => !link.reports || end.poll_peer().gone,
                    _ => link.control.as_ref().is_some_and(|control| control.closed),
                };
                if is_gone && link.peer.is_flushed() {
                    self.remove(slot, None);
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

    /// Handles a connect that the guest did not accept.
    fn connect_failed(&mut self, slot: usize, refusal: Refusal) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        link.peer.abort(&refusal, false);
        if link.reports {
            let id = link.id;
            link.reports = false;
            self.events.push(VmEvent::Failed(id, refusal));
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
            link.send(&BrokerMessage::Reset(refused(refusal)));
            // After the message, so that a process that sees the abort finds the reason queued.
            link.peer.abort(refusal, discard);
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
        if let Some(control) = &link.control {
            let fd = control.as_fd().as_raw_fd();
            let _ = self.registry.deregister(&mut SourceFd(&fd));
        }
        if link.reports {
            self.events.push(VmEvent::Closed {
                connection: link.id,
                reason,
            });
        }
    }
}

fn peer_end(end: ConnectionEnd) -> ConnectionEnd {
    match end {
        ConnectionEnd::Client => ConnectionEnd::Server,
        ConnectionEnd::Server => ConnectionEnd::Client,
    }
}

impl Linked {
    /// Resets a connection that was never established.
    pub(super) fn refuse(&self, refusal: &Refusal) {
        if let Some(control) = &self.control {
            control.send(&BrokerMessage::Reset(refused(refusal)));
        }
        match &self.parts {
            LinkParts::Ring(end) => end.reset(),
            LinkParts::Socket { .. } => {}
            LinkParts::Sibling(end) => end.abort(refusal.clone(), true),
        }
    }
}
