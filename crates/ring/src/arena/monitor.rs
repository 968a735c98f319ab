//! The broker's access to an arena: which connections there are, and orders to them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use hvsock_sys::shared_memory::Mapping;
use hvsock_sys::sync::lock;

use super::grant::{Grant, GrantReader, GrantWriter, Terms};
use super::wakeups::wake_end_without_doorbell;
use super::words::{ArenaWords, ClientEntry, SLOTS, ServerEntry, SlotWords};
use super::{ResetCause, SlotId, changes, reset, table};
use crate::layout::{READER_GONE, RESET, SUSPENDED};
use crate::sync::{Ordering, fence};
use crate::{RingSide, copy};

/// Maps the words of an arena, and not its rings, for the process that created it and handed out both ends.
///
/// Both ends can write the same words. So what is read here are the pair's own claims: use them for display,
/// and for decisions about this pair only. A claim that has been read is not taken back. An order is one to
/// a connection with its sequence number, and never reaches a later one in the same slot. It wakes parked
/// threads. A process that watches its ends as descriptors drains its ready set when it gets a message.
#[derive(Debug)]
pub struct ArenaMonitor {
    mapping: Mapping,
    page: Page,
    memory: OwnedFd,
    grant_memory: OwnedFd,
    state: Mutex<State>,
}

/// The grant page.
#[derive(Debug)]
enum Page {
    Own(GrantWriter),
    /// That of a broker before this one, which has revoked the grant.
    Inherited(GrantReader),
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// By the number of the slot.
    pub(super) claims: Vec<Claims>,
    pub(super) totals: Totals,
    /// The sides whose process is gone.
    pub(super) gone: [bool; 2],
    /// The counters of changes before the last scan.
    pub(super) changes: [u64; 4],
    /// What the grant page says again if the arena stays with this broker.
    pub(super) terms: Option<Terms>,
}

/// What the pair has claimed of the last connection in a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Claims {
    pub(super) seq: u32,
    pub(super) accepted: bool,
    pub(super) written: [u64; 2],
    pub(super) ended: [bool; 2],
}

/// A connection, as the pair claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotView {
    /// Its slot and sequence number.
    pub id: SlotId,
    /// The server has accepted it.
    pub accepted: bool,
    /// When it was opened, in microseconds of `CLOCK_MONOTONIC`, by the client's clock.
    pub opened_at: u64,
    /// Bytes that each side has written.
    pub written: [u64; 2],
    /// Whether each side shut down its writing direction.
    pub ended: [bool; 2],
    /// Whether each side has closed its end. What it wrote is then in the [`Totals`].
    pub closed: [bool; 2],
    /// It is suspended.
    pub suspended: bool,
    /// Whether each side wants it to be kept while a partition is suspended.
    pub keep: [bool; 2],
}

/// What a pair claims about all connections so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections ever opened.
    pub opened: u64,
    /// Bytes that each side wrote to connections that it has closed.
    pub closed_bytes: [u64; 2],
}

impl ArenaMonitor {
    /// That of an arena that this broker creates, with descriptors of its memory and of its grant page.
    pub(crate) fn new(
        memory: OwnedFd,
        grant_memory: OwnedFd,
        grant: GrantWriter,
    ) -> io::Result<Self> {
        Ok(Self {
            mapping: Mapping::new(&memory, size_of::<ArenaWords>())?,
            page: Page::Own(grant),
            memory,
            grant_memory,
            state: Mutex::default(),
        })
    }

    /// That of an arena which another broker has handed over.
    pub(super) fn inherited(
        memory: OwnedFd,
        grant_memory: OwnedFd,
        state: State,
    ) -> io::Result<Self> {
        Ok(Self {
            mapping: Mapping::new(&memory, size_of::<ArenaWords>())?,
            page: Page::Inherited(GrantReader::open(&grant_memory)?),
            memory,
            grant_memory,
            state: Mutex::new(state),
        })
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The arena's memory.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// The memory of the grant page.
    pub fn grant_memory(&self) -> BorrowedFd<'_> {
        self.grant_memory.as_fd()
    }

    /// Prepares the arena for a broker that takes it over and cannot write the grant page: revokes the grant, so
    /// that the next connect asks the broker, which then makes another arena. What is open stays, and the server
    /// accepts what is in the queue. Until [`keep`](Self::keep) changes of the grant are only recorded.
    pub fn prepare_handover(&self) {
        let mut state = lock(&self.state);
        if let (Page::Own(page), None) = (&self.page, state.terms) {
            let published = &self.words().queue.published.0;
            state.terms = Some(page.revoke_after(|| published.load(Ordering::Acquire)));
        }
    }

    /// Undoes [`prepare_handover`](Self::prepare_handover): the arena stays with this broker.
    pub fn keep(&self) {
        let mut state = lock(&self.state);
        if let (Page::Own(page), Some(terms)) = (&self.page, state.terms.take()) {
            page.restore(terms);
        }
    }

    /// Whether this broker can grant anything. It cannot in an arena that it has taken over: then the grant is
    /// revoked for good.
    pub fn can_grant(&self) -> bool {
        matches!(self.page, Page::Own(_))
    }

    fn words(&self) -> &ArenaWords {
        copy::arena(&self.mapping)
    }

    fn slot(&self, slot: u32) -> &SlotWords {
        &self.words().slots.0[slot as usize % SLOTS]
    }

    /// The connections of which at least one end is open, in the order of their slots. Their number is at
    /// most that of the granted slots. A hostile client can give the same sequence number to several.
    pub fn scan(&self) -> Vec<SlotView> {
        let mut state = lock(&self.state);
        state.changes = changes::counters(self.words());
        let gone = state.gone;
        self.open_slots(gone)
            .map(|id| self.view(&mut state, id))
            .collect()
    }

    /// One connection, unless both of its ends are closed.
    pub fn connection(&self, id: SlotId) -> Option<SlotView> {
        let mut state = lock(&self.state);
        let (client, server) = self.entries(id.slot);
        let open = table::open_connection(client, server, id.slot, state.gone)?;
        (open == id).then(|| self.view(&mut state, id))
    }

    /// The connections of which at least one end is open.
    fn open_slots(&self, gone: [bool; 2]) -> impl Iterator<Item = SlotId> + '_ {
        (0..self.granted()).filter_map(move |slot| {
            let (client, server) = self.entries(slot);
            let id = table::open_connection(client, server, slot, gone)?;
            // A client that was killed while it opened a connection has not published it.
            let is_known = !gone[0] || table::is_accepted(server, id.seq) || self.pending() != 0;
            is_known.then_some(id)
        })
    }

    fn entries(&self, slot: u32) -> (&ClientEntry, &ServerEntry) {
        let (words, at) = (self.words(), slot as usize % SLOTS);
        (&words.opened.0[at], &words.accepted.0[at])
    }

    fn is_accepted(&self, id: SlotId) -> bool {
        table::is_accepted(self.entries(id.slot).1, id.seq)
    }

    fn view(&self, state: &mut State, id: SlotId) -> SlotView {
        let at = id.slot as usize;
        if state.claims.len() <= at {
            state.claims.resize(at + 1, Claims::default());
        }
        let claims = &mut state.claims[at];
        if claims.seq != id.seq {
            *claims = Claims {
                seq: id.seq,
                ..Claims::default()
            };
        }
        let slot = self.slot(id.slot);
        claims.accepted |= self.is_accepted(id);
        for side in [0, 1] {
            let direction = &slot.header.directions[side];
            let written = direction.head.0.load(Ordering::Acquire);
            claims.written[side] = claims.written[side].max(written);
            claims.ended[side] |= direction.close.0.ended.load(Ordering::Acquire) != 0;
        }
        let (client, server) = self.entries(id.slot);
        SlotView {
            id,
            accepted: claims.accepted,
            opened_at: client.opened_at.load(Ordering::Relaxed),
            written: claims.written,
            ended: claims.ended,
            closed: [table::is_closed(client), table::is_finished(server, id.seq)],
            suspended: slot.header.state.0.load(Ordering::Relaxed) & SUSPENDED != 0,
            keep: [
                client.keep.load(Ordering::Relaxed) != 0,
                server.keep.load(Ordering::Relaxed) != 0,
            ],
        }
    }

    /// Whether the client uses a slot that is not granted.
    pub fn exceeds_grant(&self) -> bool {
        let ungranted = &self.words().opened.0[self.granted() as usize..];
        ungranted.iter().any(table::is_in_use)
    }

    /// What the pair claims about all connections so far. No value decreases.
    pub fn totals(&self) -> Totals {
        let words = self.words();
        let known = &mut lock(&self.state).totals;
        let opened = words.queue.published.0.load(Ordering::Acquire);
        known.opened = known.opened.max(opened);
        for (known, totals) in known.closed_bytes.iter_mut().zip(&words.totals) {
            *known = (*known).max(totals.0.closed_bytes.load(Ordering::Acquire));
        }
        *known
    }

    /// The number of connections that the server has not taken from the queue.
    pub fn pending(&self) -> u32 {
        let queue = &self.words().queue;
        let taken = queue.taken.0.load(Ordering::Acquire);
        let published = queue.published.0.load(Ordering::Acquire);
        match published.wrapping_sub(taken) {
            // An impossible claim.
            pending if pending > SLOTS as u64 => 0,
            pending => pending as u32,
        }
    }

    /// What is granted.
    pub fn grant(&self) -> Grant {
        match &self.page {
            Page::Own(page) => lock(&self.state).terms.map_or(page.grant(), |it| it.grant),
            // Whatever a damaged page says: nothing more is granted in it.
            Page::Inherited(_) => Grant::Revoked,
        }
    }

    /// Grants or revokes. After this returned, no connection is opened or accepted that
    /// [`scan`](Self::scan) does not show, unless both processes violate the protocol. Changes nothing if
    /// this broker [cannot grant](Self::can_grant).
    pub fn set_grant(&self, grant: Grant) {
        let Page::Own(page) = &self.page else {
            return;
        };
        let mut state = lock(&self.state);
        match &mut state.terms {
            Some(terms) => terms.grant = grant,
            None => page.set(grant),
        }
    }

    /// Lets the server accept nothing more that the client has left in the queue, after the grant is revoked
    /// for another reason than the end of the client's process.
    pub fn withdraw_left(&self) {
        match &self.page {
            Page::Own(page) => {
                // Orders this with the end of the client's process: one of both finds what the other has stored.
                let mut state = lock(&self.state);
                if let Some(terms) = &mut state.terms {
                    terms.withdraw_left();
                }
                page.withdraw_left();
            }
            // A server discards what the broker has reset.
            Page::Inherited(_) => self.reset_unaccepted(ResetCause::Control),
        }
    }

    /// The number of granted slots.
    pub fn granted(&self) -> u32 {
        let granted = match &self.page {
            Page::Own(page) => page.granted(),
            Page::Inherited(page) => page.granted(),
        };
        granted.min(SLOTS as u32)
    }

    /// Grants more slots, up to the arena's limit. A smaller number changes nothing.
    pub fn set_granted_slots(&self, granted: u32) {
        if let Page::Own(page) = &self.page {
            page.raise_granted(granted);
        }
    }

    /// Sets how many connections may wait to be accepted.
    pub fn set_backlog(&self, backlog: u32) {
        if let Page::Own(page) = &self.page {
            page.set_backlog(backlog);
        }
    }

    /// Resets a connection: both ends can read the bytes written so far, then get an error.
    pub fn reset(&self, id: SlotId, cause: ResetCause) {
        self.order(id, RESET | cause.bits(), 0);
    }

    /// Resets every connection.
    pub fn reset_all(&self, cause: ResetCause) {
        for id in self.open_slots(self.gone()) {
            self.reset(id, cause);
        }
    }

    /// Resets every connection that the server has not accepted, after the grant was revoked.
    pub fn reset_unaccepted(&self, cause: ResetCause) {
        fence(Ordering::SeqCst);
        for id in self.open_slots(self.gone()) {
            if !self.is_accepted(id) {
                self.reset(id, cause);
            }
        }
    }

    /// Suspends a connection, so that neither end reads, or resumes it.
    pub fn suspend(&self, id: SlotId, suspended: bool) {
        match suspended {
            true => self.order(id, SUSPENDED, 0),
            false => self.order(id, 0, SUSPENDED),
        }
    }

    /// Suspends or resumes every connection.
    pub fn suspend_all(&self, suspended: bool) {
        for id in self.open_slots(self.gone()) {
            self.suspend(id, suspended);
        }
    }

    /// Closes every end of a side whose process is gone: as if each end had been dropped. The server can
    /// still accept what the client has left in the queue, also after the grant is revoked, but not if it was
    /// revoked before.
    pub fn close_end(&self, side: RingSide) {
        let mut state = lock(&self.state);
        if side == RingSide::First
            && let Page::Own(page) = &self.page
        {
            let published = self.words().queue.published.0.load(Ordering::Acquire);
            let grant = state.terms.map_or(page.grant(), |terms| terms.grant);
            let left = if grant == Grant::Revoked {
                0
            } else {
                published
            };
            if let Some(terms) = &mut state.terms {
                terms.set_left(left);
            }
            page.set_left(left);
        }
        state.gone[side.index()] = true;
        drop(state);
        // As if the other process was gone: the slots in which this side's end is open.
        let mut gone = [false; 2];
        gone[side.other().index()] = true;
        for id in self.open_slots(gone) {
            self.close_slot(id, side);
        }
    }

    fn close_slot(&self, id: SlotId, side: RingSide) {
        let directions = &self.slot(id.slot).header.directions;
        let (own, other) = (&directions[side.index()], &directions[side.other().index()]);
        if own.close.0.ended.load(Ordering::Acquire) == 0 {
            self.reset(id, ResetCause::PeerGone);
        }
        other
            .close
            .0
            .closed
            .fetch_max(READER_GONE, Ordering::Release);
        fence(Ordering::SeqCst);
        if other.head.0.load(Ordering::Acquire) != other.tail.0.load(Ordering::Acquire) {
            self.reset(id, ResetCause::UnreadData);
        }
        self.wake(id.slot);
    }

    /// Asks the pair for a message at the next change. Returns `false` if something has changed since the
    /// last scan: scan again, and ask again later.
    pub fn request_changes(&self) -> bool {
        let (words, known) = (self.words(), lock(&self.state).changes);
        changes::request(&words.broker_request.0, || {
            changes::counters(words) == known
        })
    }

    fn gone(&self) -> [bool; 2] {
        lock(&self.state).gone
    }

    /// Changes the state of a connection, and wakes both ends.
    fn order(&self, id: SlotId, set: u64, clear: u64) {
        let state = &self.slot(id.slot).header.state.0;
        let is_reset = set & RESET != 0 && state.load(Ordering::Acquire) & RESET != 0;
        if !is_reset && reset::change(state, id.seq, set, clear).is_some() {
            self.wake(id.slot);
        }
    }

    fn wake(&self, slot: u32) {
        for at in RingSide::BOTH.map(RingSide::index) {
            let wakeups = &self.slot(slot).wakeups[at].0;
            wake_end_without_doorbell(wakeups, &self.words().ready[at], slot);
        }
    }
}
