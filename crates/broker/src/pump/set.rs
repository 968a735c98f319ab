//! A set of connections on one epoll descriptor, whichever thread waits on it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use hvsock_fabric::{ConnectionId, Refusal};
use mio::unix::SourceFd;
use mio::{Registry, Token};
use slab::Slab;

use super::connection::{Connection, PLACES, Turn};
use super::{Adopted, Counters, Report};

/// Above a token's place in the slab is its generation, so that an event which was already on its
/// way when its connection ended is not taken for one of the next connection in that place.
const GENERATION: u32 = 32;
/// Generations until the first comes again: far more than one batch of events can span.
const GENERATIONS: usize = 1 << 16;

/// Bytes read at once. A Unix socket's default buffer holds some 200 KiB.
const SCRATCH: usize = 64 * 1024;
/// Bytes read at once while more than [`WAITING_LIMIT`] wait in memory for slow readers.
const SCRATCH_WHEN_FULL: usize = 4 * 1024;
/// Bytes that may wait in one set's memory before it takes only small bites. With the small ones,
/// a set holds at most this and 8 KiB a connection.
const WAITING_LIMIT: usize = 32 * 1024 * 1024;

struct Entry {
    id: ConnectionId,
    generation: usize,
    connection: Connection,
    counters: Arc<Counters>,
    queued: bool,
    /// Its share of [`ConnectionSet::waiting`].
    waiting: usize,
}

/// Connections that are moved forward together, each in its turn.
pub(crate) struct ConnectionSet {
    registry: Registry,
    /// The first of the set's tokens.
    base: usize,
    /// Bytes after which a connection is reported as busy.
    busy_after: u64,
    entries: Slab<Entry>,
    next_generation: usize,
    by_id: HashMap<ConnectionId, usize>,
    /// Connections that may be able to move.
    ready: VecDeque<usize>,
    /// Bytes that wait in memory, over all connections.
    waiting: usize,
    scratch: Vec<u8>,
    reports: VecDeque<Report>,
}

impl ConnectionSet {
    /// An empty set that watches through `registry`, with tokens from `base` on.
    pub(crate) fn new(registry: Registry, base: usize, busy_after: u64) -> Self {
        Self {
            registry,
            base,
            busy_after,
            entries: Slab::new(),
            next_generation: 0,
            by_id: HashMap::new(),
            ready: VecDeque::new(),
            waiting: 0,
            scratch: vec![0; SCRATCH],
            reports: VecDeque::new(),
        }
    }

    /// What the set's owner must know, in order.
    pub(crate) fn next_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Whether some connection can move now.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes a connection in.
    pub(crate) fn adopt(&mut self, adopted: Adopted) {
        let Adopted {
            id,
            connection,
            counters,
        } = adopted;
        let waiting = connection.waiting();
        self.waiting += waiting;
        let generation = self.next_generation;
        self.next_generation = (generation + 1) % GENERATIONS;
        let entry = Entry {
            id,
            generation,
            connection,
            counters,
            queued: false,
            waiting,
        };
        let index = self.entries.insert(entry);
        self.by_id.insert(id, index);
        if let Err(error) = self.watch(index) {
            let which = format!("watched descriptors ({error})");
            self.close(index, Some(Refusal::LimitReached { which }));
        } else if waiting > 0 {
            self.enqueue(index);
        }
    }

    /// Gives a connection away, with whatever waits in it.
    pub(crate) fn release(&mut self, id: ConnectionId) -> Option<Adopted> {
        let index = self.by_id.remove(&id)?;
        let entry = self.entries.try_remove(index)?;
        self.waiting -= entry.waiting;
        for (_, fd, _) in entry.connection.descriptors() {
            // It is watched; and if not, that is as well.
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        Some(Adopted {
            id,
            connection: entry.connection,
            counters: entry.counters,
        })
    }

    /// Ends a connection and tells both ends why.
    pub(crate) fn cut(&mut self, id: ConnectionId, refusal: Refusal) {
        if let Some(&index) = self.by_id.get(&id) {
            self.close(index, Some(refusal));
        }
    }

    /// Stops a connection's data, or lets it flow again.
    pub(crate) fn suspend(&mut self, id: ConnectionId, suspended: bool) {
        if let Some(&index) = self.by_id.get(&id) {
            self.entries[index].connection.suspend(suspended);
            self.enqueue(index);
        }
    }

    /// Tells every process why its connection ends with this set.
    pub(crate) fn reset_all(&self, refusal: &Refusal) {
        for (_, entry) in &self.entries {
            entry.connection.reset(refusal);
        }
    }

    /// Takes an event of one of the set's tokens.
    pub(crate) fn note(&mut self, event: &mio::event::Event) {
        let token = event.token().0.wrapping_sub(self.base);
        let (generation, place) = (token >> GENERATION, token & ((1 << GENERATION) - 1));
        let (index, place) = (place / PLACES, place % PLACES);
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if entry.generation != generation {
            return;
        }
        entry.connection.ready(place, event);
        self.enqueue(index);
    }

    /// Gives one turn to every connection that is ready now.
    pub(crate) fn turns(&mut self) {
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                self.turn(index);
            }
        }
    }

    fn turn(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        entry.queued = false;
        let bite = if self.waiting > WAITING_LIMIT {
            SCRATCH_WHEN_FULL
        } else {
            SCRATCH
        };
        let turn = entry
            .connection
            .turn(&mut self.scratch[..bite], &entry.counters);
        let waiting = entry.connection.waiting();
        self.waiting = self.waiting - entry.waiting + waiting;
        entry.waiting = waiting;
        let id = entry.id;
        while let Some((end, value)) = entry.connection.take_option() {
            self.reports.push_back(Report::ConnectedSuspend {
                connection: id,
                end,
                value,
            });
        }
        let busy = entry.connection.is_pumped()
            && entry.counters.sent() + entry.counters.received() > self.busy_after;
        let watched = self.watch_for_room(index);
        match (turn, watched) {
            (Turn::Over(reason), _) => self.close(index, reason),
            (_, Err(error)) => {
                let which = format!("watched descriptors ({error})");
                self.close(index, Some(Refusal::LimitReached { which }));
            }
            (turn, Ok(())) => {
                if matches!(turn, Turn::Again) {
                    self.enqueue(index);
                }
                if busy {
                    self.reports.push_back(Report::Busy { connection: id });
                }
            }
        }
    }

    fn enqueue(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index)
            && !entry.queued
        {
            entry.queued = true;
            self.ready.push_back(index);
        }
    }

    fn close(&mut self, index: usize, reason: Option<Refusal>) {
        let Some(entry) = self.entries.try_remove(index) else {
            return;
        };
        self.by_id.remove(&entry.id);
        self.waiting -= entry.waiting;
        if let Some(refusal) = &reason {
            entry.connection.reset(refusal);
        }
        self.reports.push_back(Report::Closed {
            connection: entry.id,
            reason,
        });
    }

    /// The first token of a connection.
    fn first_token(&self, index: usize) -> usize {
        let generation = self.entries[index].generation;
        self.base + (generation << GENERATION) + index * PLACES
    }

    /// Watches a connection's descriptors. Whatever is ready by now comes as an event.
    fn watch(&self, index: usize) -> io::Result<()> {
        let first = self.first_token(index);
        for (place, fd, interest) in self.entries[index].connection.descriptors() {
            let fd = fd.as_raw_fd();
            self.registry
                .register(&mut SourceFd(&fd), Token(first + place), interest)?;
        }
        Ok(())
    }

    /// Watches the sides that had no room for room as well. Most connections never come to that,
    /// and are spared an event for the room that every new descriptor has.
    fn watch_for_room(&mut self, index: usize) -> io::Result<()> {
        let first = self.first_token(index);
        for (place, fd, interest) in self.entries[index].connection.out_of_room() {
            let fd = fd.as_raw_fd();
            self.registry
                .reregister(&mut SourceFd(&fd), Token(first + place), interest)?;
        }
        Ok(())
    }
}
