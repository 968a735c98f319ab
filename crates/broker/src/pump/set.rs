//! A set of connections on one epoll descriptor.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use hvsock_fabric::{ConnectionEnd, ConnectionId, Refusal};
use hvsock_ring::SlotId;
use mio::unix::SourceFd;
use mio::{Registry, Token};
use slab::Slab;

use super::arena::ArenaNews;
use super::buffers::Buffers;
use super::connection::{Connection, SLOTS};
use super::turn::Turn;
use crate::data_path::ByteCounters;

/// The bit position of a token's generation, above its slab index. An event that was fetched before
/// its connection ended must not reach the next connection with the same index.
const GENERATION_SHIFT: u32 = 32;
/// Generations before wraparound, far more than one batch of events can span.
const GENERATIONS: usize = 1 << 16;

/// Buffered bytes of one set above which it reads in small chunks. A set thus buffers at most this
/// plus 8 KiB per connection.
const BUFFER_LIMIT: usize = 32 * 1024 * 1024;

/// A connection that moves to a set.
pub(crate) struct Adopted {
    pub(crate) id: ConnectionId,
    pub(crate) connection: Connection,
    pub(crate) counters: Arc<ByteCounters>,
}

/// A report of a connection set or data thread to the core.
#[derive(Debug)]
pub(crate) enum Report {
    /// A process set `HVSOCKET_CONNECTED_SUSPEND`.
    ConnectedSuspend {
        connection: ConnectionId,
        end: ConnectionEnd,
        value: bool,
    },
    /// A connection is closed. The reason is set unless both ends closed cleanly.
    Closed {
        connection: ConnectionId,
        reason: Option<Refusal>,
    },
    /// A connection has moved enough bytes to be promoted to a data thread.
    Busy { connection: ConnectionId },
    /// The ends of an arena have reported something.
    Arena {
        connection: ConnectionId,
        news: ArenaNews,
    },
}

/// A connection in a set.
pub(super) struct Held<'a> {
    pub(super) id: ConnectionId,
    pub(super) connection: &'a Connection,
    pub(super) counters: &'a ByteCounters,
    /// It waits for its turn.
    pub(super) queued: bool,
}

struct Entry {
    id: ConnectionId,
    generation: usize,
    connection: Connection,
    counters: Arc<ByteCounters>,
    queued: bool,
    /// Its share of [`ConnectionSet::buffered`].
    buffered: usize,
}

/// Connections that share an epoll descriptor and take turns.
pub(crate) struct ConnectionSet {
    registry: Registry,
    /// The first token of the set.
    base: usize,
    /// Bytes after which a relayed connection is reported as busy.
    busy_after: u64,
    entries: Slab<Entry>,
    next_generation: usize,
    by_id: HashMap<ConnectionId, usize>,
    /// The run queue: connections that may make progress.
    ready: VecDeque<usize>,
    /// Bytes buffered in memory, over all connections.
    buffered: usize,
    buffers: Buffers,
    /// Bytes moved since the last [`take_moved`](Self::take_moved).
    moved: u64,
    reports: VecDeque<Report>,
}

impl ConnectionSet {
    /// Creates an empty set that registers descriptors with `registry`, with tokens from `base` on.
    pub(crate) fn new(registry: Registry, base: usize, busy_after: u64) -> Self {
        Self {
            registry,
            base,
            busy_after,
            entries: Slab::new(),
            next_generation: 0,
            by_id: HashMap::new(),
            ready: VecDeque::new(),
            buffered: 0,
            buffers: Buffers::new(),
            moved: 0,
            reports: VecDeque::new(),
        }
    }

    /// The next report to the core, in order.
    pub(crate) fn next_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Whether a connection is in the run queue.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The bytes that relayed connections moved since the last call.
    pub(crate) fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Adds a connection.
    pub(crate) fn adopt(&mut self, adopted: Adopted) {
        let id = adopted.id;
        if let Err(error) = self.insert(adopted)
            && let Some(&index) = self.by_id.get(&id)
        {
            let which = format!("watched descriptors ({error})");
            self.close(index, Some(Refusal::LimitReached { which }));
        }
    }

    /// Adds a connection, which stays in the set if its descriptors cannot be watched.
    pub(super) fn insert(&mut self, adopted: Adopted) -> io::Result<()> {
        let Adopted {
            id,
            connection,
            counters,
        } = adopted;
        let buffered = connection.buffered();
        self.buffered += buffered;
        let generation = self.next_generation;
        self.next_generation = (generation + 1) % GENERATIONS;
        let entry = Entry {
            id,
            generation,
            connection,
            counters,
            queued: false,
            buffered,
        };
        let has_work = entry.connection.has_work();
        let index = self.entries.insert(entry);
        self.by_id.insert(id, index);
        self.watch(index)?;
        if has_work {
            self.enqueue(index);
        }
        Ok(())
    }

    /// All connections, in no particular order.
    pub(super) fn entries(&self) -> impl Iterator<Item = Held<'_>> {
        self.entries.iter().map(|(_, entry)| Held {
            id: entry.id,
            connection: &entry.connection,
            counters: &entry.counters,
            queued: entry.queued,
        })
    }

    /// Whether there are reports that the core has not taken.
    pub(super) fn has_reports(&self) -> bool {
        !self.reports.is_empty()
    }

    /// Gives a connection a turn.
    pub(super) fn enqueue_connection(&mut self, id: ConnectionId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.enqueue(index);
        }
    }

    /// Removes all connections, to move them to another set.
    pub(crate) fn release_all(&mut self) -> Vec<Adopted> {
        let ids: Vec<_> = self.by_id.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.release(id)).collect()
    }

    /// Removes a connection with its buffered bytes, to move it to another set.
    pub(crate) fn release(&mut self, id: ConnectionId) -> Option<Adopted> {
        let index = self.by_id.remove(&id)?;
        let entry = self.entries.try_remove(index)?;
        self.buffered -= entry.buffered;
        for (_, fd, _) in entry.connection.descriptors() {
            // An error means that it is not registered, which is fine.
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        Some(Adopted {
            id,
            connection: entry.connection,
            counters: entry.counters,
        })
    }

    /// Resets a connection and sends both ends the reason.
    pub(crate) fn reset(&mut self, id: ConnectionId, refusal: Refusal) {
        if let Some(&index) = self.by_id.get(&id) {
            self.close(index, Some(refusal));
        }
    }

    /// Resets one connection of an arena and sends both ends the reason.
    pub(crate) fn reset_slot(&mut self, arena: ConnectionId, id: SlotId, refusal: &Refusal) {
        if let Some(&index) = self.by_id.get(&arena) {
            self.entries[index].connection.reset_slot(id, refusal);
        }
    }

    /// Suspends or resumes a connection. One that cannot be suspended is reset, as without
    /// `HVSOCKET_CONNECTED_SUSPEND`.
    pub(crate) fn suspend(&mut self, id: ConnectionId, suspended: bool) {
        let Some(&index) = self.by_id.get(&id) else {
            return;
        };
        let connection = &mut self.entries[index].connection;
        match (connection.can_suspend(), suspended) {
            (true, _) => {
                connection.suspend(suspended);
                self.enqueue(index);
            }
            (false, true) => self.close(index, Some(Refusal::PartitionPaused)),
            (false, false) => {}
        }
    }

    /// Resets every connection with `refusal`, before the set is dropped.
    pub(crate) fn reset_all(&self, refusal: &Refusal) {
        for (_, entry) in &self.entries {
            entry.connection.reset(refusal);
        }
    }

    /// Handles an event of one of the set's tokens.
    pub(crate) fn handle_event(&mut self, event: &mio::event::Event) {
        let token = event.token().0.wrapping_sub(self.base);
        let (generation, slot) = (
            token >> GENERATION_SHIFT,
            token & ((1 << GENERATION_SHIFT) - 1),
        );
        let (index, slot) = (slot / SLOTS, slot % SLOTS);
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if entry.generation != generation {
            return;
        }
        entry.connection.ready(slot, event);
        self.enqueue(index);
    }

    /// Gives one turn to every connection in the run queue, round robin.
    pub(crate) fn run_turns(&mut self) {
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
        self.buffers.set_short(self.buffered > BUFFER_LIMIT);
        let relayed = |entry: &Entry| match entry.connection.is_relay() {
            // Counters of a damaged snapshot may have any value.
            true => entry
                .counters
                .sent()
                .saturating_add(entry.counters.received()),
            false => 0,
        };
        let before = relayed(entry);
        let turn = entry.connection.turn(&mut self.buffers, &entry.counters);
        let moved = relayed(entry);
        self.moved += moved.saturating_sub(before);
        let buffered = entry.connection.buffered();
        self.buffered = self.buffered - entry.buffered + buffered;
        entry.buffered = buffered;
        let id = entry.id;
        while let Some((end, value)) = entry.connection.take_option() {
            self.reports.push_back(Report::ConnectedSuspend {
                connection: id,
                end,
                value,
            });
        }
        let news = entry.connection.take_news();
        if news != ArenaNews::default() {
            self.reports.push_back(Report::Arena {
                connection: id,
                news,
            });
        }
        let busy = moved > self.busy_after;
        let watched = self.watch_writable(index);
        match (turn, watched) {
            (Turn::Closed(reason), _) => self.close(index, reason),
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
        self.buffered -= entry.buffered;
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
        self.base + (generation << GENERATION_SHIFT) + index * SLOTS
    }

    /// Registers a connection's descriptors. A descriptor that is ready causes an event at once.
    fn watch(&self, index: usize) -> io::Result<()> {
        let first = self.first_token(index);
        for (slot, fd, interest) in self.entries[index].connection.descriptors() {
            let fd = fd.as_raw_fd();
            self.registry
                .register(&mut SourceFd(&fd), Token(first + slot), interest)?;
        }
        Ok(())
    }

    /// Watches descriptors with a full send buffer for writability as well. Most connections never
    /// need this, and save the event that every new, writable descriptor would cause.
    fn watch_writable(&mut self, index: usize) -> io::Result<()> {
        let first = self.first_token(index);
        for (slot, fd, interest) in self.entries[index].connection.newly_full() {
            let fd = fd.as_raw_fd();
            self.registry
                .reregister(&mut SourceFd(&fd), Token(first + slot), interest)?;
        }
        Ok(())
    }
}
