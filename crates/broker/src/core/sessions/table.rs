//! The table of sessions.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hvsock_fabric::PartitionKey;
use slab::Slab;

use super::entry::Entry;
use super::idle::IdleSessions;
use super::session::Session;
use crate::callers::Caller;

/// Cap of the idle timeout, so that adding it to an [`Instant`] cannot overflow.
pub(super) const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The bounds on idle sessions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// Most idle sessions by the sockets of one partition.
    pub(crate) idle_slots: usize,
    /// How long a session may be idle.
    pub(crate) idle_timeout: Duration,
}

/// The sessions by index.
///
/// A new session ([`open`](Self::open)) is outside the table until [`insert`](Self::insert). A session
/// whose messages are read is taken out ([`take`](Self::take)), since a request can consume it. Its
/// index stays reserved until [`give_back`](Self::give_back) or [`close`](Self::close).
#[derive(Debug)]
pub(crate) struct Sessions<D> {
    pub(super) limits: SessionLimits,
    pub(super) slots: Slab<Slot<D>>,
    pub(super) idle: IdleSessions,
    /// Sessions whose last turn ended before all their messages were read: serial numbers and
    /// indexes. Those of sessions that have been closed since are skipped.
    pub(super) unfinished: VecDeque<(u64, usize)>,
    /// Number of sessions in `unfinished` that are open.
    pub(super) unfinished_open: usize,
    pub(super) last_serial: u64,
}

#[derive(Debug)]
pub(super) enum Slot<D> {
    Present(Session<D>),
    /// The session is taken out.
    Taken {
        serial: u64,
        idle: bool,
        queued: bool,
    },
}

impl<D> Sessions<D> {
    /// An empty table.
    pub(crate) fn new(mut limits: SessionLimits) -> Self {
        limits.idle_timeout = limits.idle_timeout.min(MAX_IDLE_TIMEOUT);
        Self {
            limits,
            slots: Slab::new(),
            idle: IdleSessions::default(),
            unfinished: VecDeque::new(),
            unfinished_open: 0,
            last_serial: 0,
        }
    }

    /// The bounds on idle sessions.
    pub(crate) fn limits(&self) -> SessionLimits {
        self.limits
    }

    /// Creates a session for a client. It is not in the table.
    pub(crate) fn open(
        &mut self,
        socket: D,
        partition: PartitionKey,
        caller: Caller,
        entry: Entry,
    ) -> Session<D> {
        self.last_serial += 1;
        Session::new(self.last_serial, socket, partition, caller, entry)
    }

    /// Removes the oldest idle session by the sockets of a partition, if there is no slot for another one.
    pub(crate) fn evict_idle(&mut self, partition: PartitionKey) -> Option<Session<D>> {
        let slots = self.limits.idle_slots;
        let index = self.idle.evict_oldest(partition, slots)?;
        self.remove(index)
    }

    /// The index of the next session to be inserted.
    pub(crate) fn next_index(&self) -> usize {
        self.slots.vacant_key()
    }

    /// Adds a session at [`next_index`](Self::next_index). The serial number of an idle one must be the
    /// highest so far.
    pub(crate) fn insert(&mut self, session: Session<D>, now: Instant) -> usize {
        self.insert_until(session, now + self.limits.idle_timeout)
    }

    /// Adds a session. If it is idle, `deadline` must not be before those of the others.
    pub(super) fn insert_until(&mut self, session: Session<D>, deadline: Instant) -> usize {
        let entry = self.slots.vacant_entry();
        let index = entry.key();
        if session.is_idle() {
            self.idle
                .insert(session.socket_of(), session.serial, index, deadline);
        }
        entry.insert(Slot::Present(session));
        index
    }

    /// A session, unless it is taken out.
    pub(crate) fn get(&self, index: usize) -> Option<&Session<D>> {
        match self.slots.get(index)? {
            Slot::Present(session) => Some(session),
            Slot::Taken { .. } => None,
        }
    }

    /// A session, unless it is taken out, to change it.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Session<D>> {
        match self.slots.get_mut(index)? {
            Slot::Present(session) => Some(session),
            Slot::Taken { .. } => None,
        }
    }

    /// Whether an event of a session is handled at once: it is present, and does not wait for its turn.
    pub(crate) fn handles_events(&self, index: usize) -> bool {
        self.get(index).is_some_and(|session| !session.queued)
    }

    /// Takes a session out, unless it is already.
    pub(crate) fn take(&mut self, index: usize) -> Option<Session<D>> {
        let slot = self.slots.get_mut(index)?;
        let Slot::Present(session) = slot else {
            return None;
        };
        let taken = Slot::Taken {
            serial: session.serial,
            idle: session.is_idle(),
            queued: session.queued,
        };
        match std::mem::replace(slot, taken) {
            Slot::Present(session) => Some(session),
            Slot::Taken { .. } => None,
        }
    }

    /// Puts a session back that was taken out. If it may have more messages (`more`), it waits for its
    /// turn.
    pub(crate) fn give_back(&mut self, index: usize, mut session: Session<D>, more: bool) {
        let Some(slot @ &mut Slot::Taken { idle, queued, .. }) = self.slots.get_mut(index) else {
            return;
        };
        if idle && !session.is_idle() {
            self.idle.remove(session.serial);
        }
        session.queued = queued;
        *slot = Slot::Present(session);
        if more {
            self.enqueue(index);
        }
    }

    /// Has a session wait for its turn, behind the others that do.
    pub(crate) fn enqueue(&mut self, index: usize) {
        if let Some(Slot::Present(session)) = self.slots.get_mut(index)
            && !session.queued
        {
            session.queued = true;
            self.unfinished.push_back((session.serial, index));
            self.unfinished_open += 1;
        }
    }

    /// Frees the index of a session that was taken out, and is closed or has become a connection.
    pub(crate) fn close(&mut self, index: usize) {
        if let Some(Slot::Taken { .. }) = self.slots.get(index) {
            self.remove(index);
        }
    }

    /// Removes a session, unless it is taken out.
    pub(crate) fn withdraw(&mut self, index: usize) -> Option<Session<D>> {
        self.get(index)?;
        self.remove(index)
    }

    fn remove(&mut self, index: usize) -> Option<Session<D>> {
        let (serial, idle, queued) = match self.slots.get(index)? {
            Slot::Present(session) => (session.serial, session.is_idle(), session.queued),
            &Slot::Taken {
                serial,
                idle,
                queued,
            } => (serial, idle, queued),
        };
        if idle {
            self.idle.remove(serial);
        }
        if queued {
            self.unfinished_open -= 1;
        }
        match self.slots.remove(index) {
            Slot::Present(session) => Some(session),
            Slot::Taken { .. } => None,
        }
    }

    /// The sessions that are present, with their indexes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Session<D>)> {
        self.slots.iter().filter_map(|(index, slot)| match slot {
            Slot::Present(session) => Some((index, session)),
            Slot::Taken { .. } => None,
        })
    }

    /// The index of the session with a serial number, which is looked for among all.
    pub(crate) fn by_serial(&self, serial: u64) -> Option<usize> {
        let mut all = self.iter();
        let found = all.find(|(_, session)| session.serial == serial);
        found.map(|(index, _)| index)
    }

    /// The indexes of the sessions by the sockets of a partition.
    pub(crate) fn of_partition(&self, partition: PartitionKey) -> Vec<usize> {
        let of = self
            .iter()
            .filter(|(_, session)| session.socket_of() == partition);
        of.map(|(index, _)| index).collect()
    }

    /// The deadline of the oldest idle session.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.idle.next_deadline()
    }

    /// Removes the oldest idle session if its deadline has passed.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<Session<D>> {
        let index = self.idle.pop_expired(now)?;
        self.remove(index)
    }

    /// Whether a session waits for its turn.
    pub(crate) fn has_unfinished(&self) -> bool {
        self.unfinished_open > 0
    }

    /// Number of sessions that wait for their turn.
    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished_open
    }

    /// The session whose turn it is, oldest first. It waits no longer.
    pub(crate) fn next_turn(&mut self) -> Option<usize> {
        while let Some((serial, index)) = self.unfinished.pop_front() {
            let Some(slot) = self.slots.get_mut(index) else {
                continue;
            };
            let (current, queued, present) = match slot {
                Slot::Present(session) => (session.serial, &mut session.queued, true),
                Slot::Taken { serial, queued, .. } => (*serial, queued, false),
            };
            if current == serial && std::mem::take(queued) {
                self.unfinished_open -= 1;
                if present {
                    return Some(index);
                }
            }
        }
        None
    }
}
