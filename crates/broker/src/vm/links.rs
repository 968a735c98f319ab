//! The connections of one guest: what the protocol says of them on one side, where they lead on
//! the other, and how the one follows from the other.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::{ConnectionId, End, Refusal};
use hvsock_virtio::{Closed, Handle, Muxer, SocketKind, Window};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use slab::Slab;

use super::VmNews;
use super::link::Body;
use super::sibling::{self, Doorstep};
use crate::pump::{Control, Counters, Report, unread_data};
use crate::reply::refused;

/// The first token of a link.
const FIRST: usize = 16;
/// Above a token's place is the generation of what has it, so that an event that was on its way
/// when a link ended is not taken for one of the next link in its place.
const GENERATION: u32 = 32;
const GENERATIONS: usize = 1 << 16;

/// Links that are looked at while the thread is awake; with more, all of them are to tell.
pub(super) const MAX_WATCHED: usize = 64;

/// What a connection leads to.
pub(crate) enum LinkParts {
    /// The broker's end of a ring.
    Ring(Box<hvsock_ring::End>),
    /// The broker's end of a socket pair, and whether the process is a plain program.
    Socket { data: OwnedFd, plain: bool },
    /// A sibling guest.
    Sibling(sibling::End),
}

/// A connection that the core has made.
pub(crate) struct Linked {
    pub(crate) connection: ConnectionId,
    pub(crate) parts: LinkParts,
    /// The process's control connection; none for a sibling, and none yet for a process whose
    /// connection the guest has not accepted.
    pub(crate) control: Option<Control>,
    pub(crate) counters: Arc<Counters>,
    /// Bytes from the guest that there is room for.
    pub(crate) alloc: u32,
    /// Which end the guest is.
    pub(crate) guest: End,
    /// This thread tells the core of the connection's end.
    pub(crate) reports: bool,
}

/// One connection.
pub(super) struct Link {
    pub(super) id: ConnectionId,
    generation: usize,
    /// None once the protocol is through with it.
    pub(super) handle: Option<Handle>,
    pub(super) body: Body,
    control: Option<Control>,
    counters: Arc<Counters>,
    guest: End,
    reports: bool,
    alloc: u32,
    /// The guest has accepted, or was accepted.
    open: bool,
    /// Its body's descriptor is watched.
    watched: bool,
    /// Of a SEQPACKET socket.
    pub(super) in_messages: bool,
    /// Bytes that the guest sent.
    delivered: u64,
    /// How many of them the other end has taken, as far as the protocol knows.
    taken: u64,
    suspended: bool,
    /// The guest was told that nothing follows.
    finished: bool,
    /// It is among those that are looked at for bytes.
    pub(super) idle: bool,
    /// It is among those that are looked at for room.
    thirsty: bool,
}

/// All connections of one guest.
pub(super) struct Links {
    registry: Registry,
    door: Arc<Doorstep>,
    slab: Slab<Link>,
    next_generation: usize,
    by_id: HashMap<ConnectionId, usize>,
    /// The places of links by their handle's index.
    by_handle: Vec<Option<usize>>,
    /// Links with little room for the guest, that were not asked to tell of more yet.
    thirsty: Vec<usize>,
    /// Links whose processes had more to say than is heard at once.
    talking: Vec<usize>,
    reports: Vec<Report>,
    news: Vec<VmNews>,
}

impl Link {
    /// Whether its bytes may go to the guest now.
    pub(super) fn may_fill(&self) -> bool {
        let is_heard = self.control.is_some() || matches!(self.body, Body::Sibling(_));
        self.open && is_heard && !self.suspended
    }

    /// The body, and what it may need of the process.
    pub(super) fn parts(&mut self) -> (&mut Body, Option<&mut Control>) {
        (&mut self.body, self.control.as_mut())
    }

    /// Counts bytes from the guest.
    pub(super) fn count_delivered(&mut self, bytes: usize) {
        self.delivered += bytes as u64;
        self.counters.add(way(self.guest), bytes);
    }

    /// Counts bytes to the guest.
    pub(super) fn count_filled(&self, bytes: usize) {
        self.counters.add(1 - way(self.guest), bytes);
    }

    /// Tells the protocol how many of the guest's bytes the other end has taken since.
    fn credit(&mut self, mux: &mut Muxer) {
        let Some(handle) = self.handle else { return };
        let taken = self.body.taken();
        let fresh = taken.wrapping_sub(self.taken);
        if fresh > 0 && fresh <= self.delivered.wrapping_sub(self.taken) {
            self.taken = taken;
            // Not more than was delivered, which is not more than the credit was.
            mux.freed(handle, fresh as u32);
        }
    }

    /// Asks the body to tell when there is room for the guest again, if there is little; whether
    /// there is some already.
    fn arm_room(&self, mux: &Muxer) -> bool {
        let Some(handle) = self.handle else {
            return false;
        };
        let window = mux.freed_window(handle);
        if !is_low(window) {
            return false;
        }
        // Told at a quarter more than it believes in, and not a byte less: below it the muxer has
        // nothing to tell, and this would look again at once.
        let quarter = window.size.div_ceil(4);
        let unread = u64::from(window.size - window.believed - quarter);
        let taken = self.delivered.saturating_sub(unread);
        !self.body.arm_taken(taken, u64::from(window.alloc) - unread)
    }

    fn tell(&self, message: &BrokerMessage) {
        if let Some(control) = &self.control {
            control.tell(message);
        }
    }
}

/// Whether the guest believes to have so little room that its writes may wait for more.
fn is_low(window: Window) -> bool {
    window.believed < window.size / 2
}

fn way(guest: End) -> usize {
    match guest {
        End::Client => 0,
        End::Server => 1,
    }
}

impl Links {
    pub(super) fn new(registry: Registry, door: Arc<Doorstep>) -> Self {
        Self {
            registry,
            door,
            slab: Slab::new(),
            next_generation: 0,
            by_id: HashMap::new(),
            by_handle: Vec::new(),
            thirsty: Vec::new(),
            talking: Vec::new(),
            reports: Vec::new(),
            news: Vec::new(),
        }
    }

    /// Hears the processes out that had more to say; whether there were any.
    pub(super) fn hear_out(&mut self, mux: &mut Muxer, now: Instant) -> bool {
        let talking = std::mem::take(&mut self.talking);
        for place in &talking {
            self.attend(*place, mux, now);
        }
        !talking.is_empty()
    }

    /// What the core must know.
    pub(super) fn drain(&mut self) -> (std::vec::Drain<'_, Report>, std::vec::Drain<'_, VmNews>) {
        (self.reports.drain(..), self.news.drain(..))
    }

    pub(super) fn at(&mut self, place: usize) -> Option<&mut Link> {
        self.slab.get_mut(place)
    }

    pub(super) fn place_of(&self, handle: Handle) -> Option<usize> {
        let place = self.by_handle.get(handle.index()).copied().flatten()?;
        let link = self.slab.get(place)?;
        (link.handle == Some(handle)).then_some(place)
    }

    pub(super) fn place_of_id(&self, id: ConnectionId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Whether a token is a link's.
    pub(super) fn owns(token: Token) -> bool {
        token.0 >= FIRST
    }

    /// Looks after the room of a link from now on, if the guest believes to have little.
    pub(super) fn watch_room(&mut self, place: usize, mux: &Muxer) {
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        let Some(handle) = link.handle else { return };
        if !link.thirsty && is_low(mux.freed_window(handle)) {
            link.thirsty = true;
            self.thirsty.push(place);
        }
    }

    /// Looks whether links with little room have more; whether one has.
    pub(super) fn look_for_room(&mut self, mux: &mut Muxer) -> bool {
        let mut found = false;
        if self.thirsty.len() > MAX_WATCHED {
            found |= self.arm_room(mux);
        }
        for index in (0..self.thirsty.len()).rev() {
            let place = self.thirsty[index];
            let Some(link) = self.slab.get_mut(place) else {
                self.thirsty.swap_remove(index);
                continue;
            };
            link.credit(mux);
            let window = link.handle.map(|handle| mux.freed_window(handle));
            if window.is_none_or(|window| !is_low(window)) {
                link.thirsty = false;
                self.thirsty.swap_remove(index);
                found = true;
            }
        }
        found
    }

    /// Has links with little room tell when they have more; whether one has some already.
    pub(super) fn arm_room(&mut self, mux: &mut Muxer) -> bool {
        let mut found = false;
        for place in std::mem::take(&mut self.thirsty) {
            let Some(link) = self.slab.get_mut(place) else {
                continue;
            };
            link.thirsty = false;
            link.credit(mux);
            if link.arm_room(mux) {
                link.thirsty = true;
                self.thirsty.push(place);
                found = true;
            }
        }
        found
    }

    /// Takes a connection in that has a handle by now.
    pub(super) fn insert(
        &mut self,
        handle: Handle,
        kind: SocketKind,
        linked: Linked,
        open: bool,
    ) -> usize {
        let body = match linked.parts {
            LinkParts::Ring(end) => Body::ring(*end),
            LinkParts::Socket { data, plain } => Body::socket(data, plain),
            LinkParts::Sibling(end) => Body::Sibling(end),
        };
        self.next_generation = (self.next_generation + 1) % GENERATIONS;
        let place = self.slab.insert(Link {
            id: linked.connection,
            generation: self.next_generation,
            handle: Some(handle),
            body,
            control: None,
            counters: linked.counters,
            guest: linked.guest,
            reports: linked.reports,
            alloc: linked.alloc,
            open,
            watched: false,
            in_messages: kind == SocketKind::Seqpacket,
            delivered: 0,
            taken: 0,
            suspended: false,
            finished: false,
            idle: false,
            thirsty: false,
        });
        let index = handle.index();
        if self.by_handle.len() <= index {
            self.by_handle.resize(index + 1, None);
        }
        self.by_handle[index] = Some(place);
        self.by_id.insert(linked.connection, place);
        place
    }

    /// Watches a link's descriptor, and hears its process from now on.
    pub(super) fn watch(&mut self, place: usize, control: Option<Control>) -> io::Result<()> {
        let Some(link) = self.slab.get_mut(place) else {
            return Ok(());
        };
        let token = |which| Token(link.generation << GENERATION | (FIRST + place * 2 + which));
        if let Some(fd) = link.body.descriptor()
            && !link.watched
        {
            let interest = match link.body {
                Body::Socket(_) => Interest::READABLE | Interest::WRITABLE,
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
        if let Body::Sibling(end) = &link.body {
            end.settle(Arc::clone(&self.door), link.id);
        }
        Ok(())
    }

    /// Takes an event of a link's descriptors; the link, if it is still there.
    pub(super) fn note(&mut self, event: &Event) -> Option<usize> {
        let token = event.token().0;
        let generation = token >> GENERATION;
        let number = (token & ((1 << GENERATION) - 1)) - FIRST;
        let place = number / 2;
        let link = self.slab.get_mut(place)?;
        if link.generation != generation {
            return None;
        }
        if number.is_multiple_of(2) {
            link.body.ready(event);
        } else if let Some(control) = &mut link.control {
            control.readable = true;
        }
        Some(place)
    }

    /// Looks after a link with which something has happened: what its process says, whether its
    /// other end is gone, whether there is room or data.
    pub(super) fn attend(&mut self, place: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        if let Some(control) = &mut link.control
            && control.readable
        {
            let read = control.read();
            if control.readable {
                // Its descriptor says nothing of what was left unread.
                self.talking.push(place);
            }
            if let Some(value) = control.option.take() {
                self.reports.push(Report::ConnectedSuspend {
                    connection: link.id,
                    end: other(link.guest),
                    value,
                });
            }
            if let Err(refusal) = read {
                return self.reset(place, mux, &refusal);
            }
        }
        let (body, control) = link.parts();
        body.flush(control.as_deref());
        if let Body::Sibling(_) = link.body {
            return self.attend_sibling(place, mux, now);
        }
        link.credit(mux);
        // What it told of may have been less than is worth telling the guest.
        self.watch_room(place, mux);
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        let is_gone = link.control.as_ref().is_some_and(|control| control.closed);
        match link.handle {
            None if is_gone && link.body.is_flushed() => self.remove(place, None),
            Some(handle) if is_gone => {
                if link.body.leaves_unread(link.delivered) {
                    return self.reset(place, mux, &unread_data());
                }
                if link.finished {
                    mux.close(now, handle);
                } else {
                    // What it wrote goes to the guest, and then how it ended.
                    mux.readable(handle);
                }
            }
            Some(handle) if link.may_fill() => mux.readable(handle),
            _ => {}
        }
    }

    fn attend_sibling(&mut self, place: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        let Body::Sibling(end) = &link.body else {
            return;
        };
        let news = end.look();
        if news.is_cut
            && let Some(refusal) = &news.broken
        {
            return self.reset(place, mux, refusal);
        }
        let Some(handle) = link.handle else {
            if news.gone || news.broken.is_some() {
                self.remove(place, news.broken);
            }
            return;
        };
        if !link.open {
            match news.broken {
                Some(refusal) => {
                    mux.refuse(handle);
                    return self.remove(place, Some(refusal));
                }
                None if news.connected => {
                    link.open = true;
                    mux.accept(handle, link.alloc);
                }
                None => return,
            }
        }
        link.credit(mux);
        self.watch_room(place, mux);
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        if news.closed {
            if link.finished {
                mux.close(now, handle);
            } else {
                mux.close_read(handle);
            }
        }
        mux.readable(handle);
    }

    /// There is nothing more for the guest.
    pub(super) fn ended(&mut self, place: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        let Some(handle) = link.handle else { return };
        link.finished = true;
        let is_gone = match &link.body {
            Body::Sibling(end) => end.look().closed,
            _ => link.control.as_ref().is_some_and(|control| control.closed),
        };
        if is_gone {
            mux.close(now, handle);
        } else {
            mux.finish(handle);
        }
    }

    /// The guest sends no more.
    pub(super) fn guest_finished(&mut self, handle: Handle) {
        if let Some(link) = self.of(handle) {
            let (body, control) = link.parts();
            body.finish(control.as_deref());
        }
    }

    /// The guest reads no more.
    pub(super) fn guest_closed_read(&mut self, handle: Handle) {
        if let Some(link) = self.of(handle) {
            link.body.close_read();
        }
    }

    /// The other end takes nothing more of what the guest sends.
    pub(super) fn reads_no_more(&mut self, place: usize, mux: &mut Muxer) {
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        if let Some(handle) = link.handle {
            mux.close_read(handle);
        }
    }

    /// The guest has accepted what the core asked it for.
    pub(super) fn connected(&mut self, handle: Handle, mux: &mut Muxer) {
        let Some(link) = self.of(handle) else {
            return mux.reset(handle);
        };
        link.open = true;
        if let Body::Sibling(end) = &link.body {
            end.connected();
            mux.readable(handle);
        } else {
            let id = link.id;
            self.news.push(VmNews::Connected(id));
        }
    }

    /// The protocol is through with a connection.
    pub(super) fn closed(&mut self, handle: Handle, reason: Closed) {
        let Some(place) = self.place_of(handle) else {
            return;
        };
        self.by_handle[handle.index()] = None;
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        link.handle = None;
        let refusal = match reason {
            Closed::Clean => {
                let (body, control) = link.parts();
                body.finish(control.as_deref());
                body.close_read();
                if !link.open {
                    let cause = "the connection was given up".into();
                    return self.failed(place, Refusal::Reset { cause });
                }
                // Who reports the end waits for the other side's.
                let is_gone = match &link.body {
                    Body::Sibling(end) => !link.reports || end.look().gone,
                    _ => link.control.as_ref().is_some_and(|control| control.closed),
                };
                if is_gone && link.body.is_flushed() {
                    self.remove(place, None);
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
            return self.failed(place, refusal);
        }
        self.tell_and_break(place, &refusal, false);
        self.remove(place, Some(refusal));
    }

    /// The guest did not accept.
    fn failed(&mut self, place: usize, refusal: Refusal) {
        let Some(link) = self.slab.get_mut(place) else {
            return;
        };
        link.body.break_off(&refusal, false);
        if link.reports {
            let id = link.id;
            link.reports = false;
            self.news.push(VmNews::Failed(id, refusal));
        }
        self.remove(place, None);
    }

    /// Ends a connection for both ends and tells them why.
    pub(super) fn reset(&mut self, place: usize, mux: &mut Muxer, refusal: &Refusal) {
        if let Some(handle) = self.slab.get(place).and_then(|link| link.handle) {
            mux.reset(handle);
        }
        self.tell_and_break(place, refusal, true);
        self.remove(place, Some(refusal.clone()));
    }

    fn tell_and_break(&mut self, place: usize, refusal: &Refusal, cut: bool) {
        if let Some(link) = self.slab.get_mut(place) {
            link.tell(&BrokerMessage::Reset(refused(refusal)));
            // Whoever sees that finds the reason said already.
            link.body.break_off(refusal, cut);
        }
    }

    /// Stops a connection's data, or lets it flow again.
    pub(super) fn suspend(&mut self, id: ConnectionId, suspended: bool, mux: &mut Muxer) {
        let Some(place) = self.place_of_id(id) else {
            return;
        };
        if let Some(link) = self.slab.get_mut(place) {
            link.suspended = suspended;
            if let (false, Some(handle)) = (suspended, link.handle) {
                mux.readable(handle);
            }
        }
    }

    /// The places of all links.
    pub(super) fn places(&self) -> Vec<usize> {
        self.slab.iter().map(|(place, _)| place).collect()
    }

    fn of(&mut self, handle: Handle) -> Option<&mut Link> {
        let place = self.place_of(handle)?;
        self.slab.get_mut(place)
    }

    /// Forgets a link, and reports its end if that is for this thread to do.
    fn remove(&mut self, place: usize, reason: Option<Refusal>) {
        let Some(link) = self.slab.try_remove(place) else {
            return;
        };
        if let Some(handle) = link.handle {
            self.by_handle[handle.index()] = None;
        }
        self.by_id.remove(&link.id);
        if let Some(fd) = link.body.descriptor() {
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        if let Some(control) = &link.control {
            let fd = control.as_fd().as_raw_fd();
            let _ = self.registry.deregister(&mut SourceFd(&fd));
        }
        if link.reports {
            self.reports.push(Report::Closed {
                connection: link.id,
                reason,
            });
        }
    }
}

fn other(end: End) -> End {
    match end {
        End::Client => End::Server,
        End::Server => End::Client,
    }
}

impl Linked {
    /// Ends a connection that came to nothing.
    pub(super) fn refuse(&self, refusal: &Refusal) {
        if let Some(control) = &self.control {
            control.tell(&BrokerMessage::Reset(refused(refusal)));
        }
        match &self.parts {
            LinkParts::Ring(end) => end.cut(),
            LinkParts::Socket { .. } => {}
            LinkParts::Sibling(end) => end.break_off(refusal.clone(), true),
        }
    }
}
