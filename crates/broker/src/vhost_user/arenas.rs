//! The arenas of one guest: one for each listener's process with which it has several connections.
//!
//! A request for the port of an arena takes a slot in it and is answered at once. All connections of an
//! arena share one doorbell, which names the slots that are ready.

pub(super) mod snapshot;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use hvsock_fabric::ConnectionId;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use slab::Slab;

use crate::guest_link::{ArenaConnection, ArenaState, GuestArena, NotOpened};

/// The first mio token of an arena. Each has two: its doorbell and its control connection.
const FIRST: usize = 16;
/// The most arenas of one guest.
const MAX_ARENAS: usize = 120;
/// The token after the last one of an arena.
pub(super) const END: usize = FIRST + 2 * MAX_ARENAS;

/// All arenas of one guest.
#[derive(Debug)]
pub(super) struct Arenas {
    registry: Registry,
    slab: Slab<Entry>,
    /// The arenas that may have free slots, by port, in the order in which they are tried.
    by_port: HashMap<u32, Vec<usize>>,
    by_id: HashMap<ConnectionId, usize>,
}

#[derive(Debug)]
struct Entry {
    arena: GuestArena,
    /// The link of the connection in each slot.
    links: Vec<Option<usize>>,
    open: usize,
    /// The core was asked for more slots.
    grows: bool,
    ended: bool,
}

/// Where a link's connection is: the index of its arena, and its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    arena: usize,
    slot: u32,
}

impl Arenas {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry,
            slab: Slab::new(),
            by_port: HashMap::new(),
            by_id: HashMap::new(),
        }
    }

    /// Adds an arena. Gives it back if there are too many.
    ///
    /// # Errors
    ///
    /// If its descriptors cannot be watched.
    pub(super) fn add(&mut self, arena: GuestArena) -> Result<(), (GuestArena, io::Error)> {
        if self.slab.len() >= MAX_ARENAS {
            return Err((arena, io::ErrorKind::QuotaExceeded.into()));
        }
        let index = self.slab.vacant_key();
        if let Err(error) = self.watch(&arena, index) {
            return Err((arena, error));
        }
        self.by_port.entry(arena.port()).or_default().push(index);
        self.by_id.insert(arena.id(), index);
        self.slab.insert(Entry {
            arena,
            links: Vec::new(),
            open: 0,
            grows: false,
            ended: false,
        });
        Ok(())
    }

    fn watch(&self, arena: &GuestArena, index: usize) -> io::Result<()> {
        let fds = [Some(arena.doorbell()), arena.control_descriptor()];
        for (fd, which) in fds.into_iter().flatten().zip(0..) {
            let token = Token(FIRST + index * 2 + which);
            let mut source = SourceFd(&fd.as_raw_fd());
            self.registry
                .register(&mut source, token, Interest::READABLE)?;
        }
        Ok(())
    }

    /// The tokens of all arenas' descriptors.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let indexes = self.slab.iter().map(|(index, _)| FIRST + index * 2);
        indexes
            .flat_map(|first| [Token(first), Token(first + 1)])
            .collect()
    }

    /// Whether a token is an arena's.
    pub(super) fn owns(token: Token) -> bool {
        (FIRST..END).contains(&token.0)
    }

    /// Opens a connection to a port. `None` if no arena is for it.
    ///
    /// # Errors
    ///
    /// That of the arena that was tried last.
    pub(super) fn connect(
        &mut self,
        port: u32,
    ) -> Option<Result<(ArenaConnection, Place), NotOpened>> {
        let mut last = None;
        for &index in self.by_port.get(&port)? {
            let Some(entry) = self.slab.get(index) else {
                continue;
            };
            match entry.arena.connect() {
                Ok(connection) => {
                    let slot = connection.slot;
                    return Some(Ok((connection, Place { arena: index, slot })));
                }
                Err(error) => last = Some(Err(error)),
            }
        }
        last
    }

    /// Records the link of a connection that was opened. Returns the arena's number if the core is to
    /// grant it more slots.
    pub(super) fn opened(&mut self, place: Place, link: usize) -> Option<ConnectionId> {
        let entry = self.slab.get_mut(place.arena)?;
        let slot = place.slot as usize;
        if entry.links.len() <= slot {
            entry.links.resize(slot + 1, None);
        }
        entry.links[slot] = Some(link);
        entry.open += 1;
        let grows = entry.arena.wants_more_slots();
        let is_new = grows && !entry.grows;
        entry.grows = grows;
        is_new.then(|| entry.arena.id())
    }

    /// Forgets the link of a connection whose end is closed. Returns the number of its arena if that has
    /// ended with it.
    pub(super) fn closed(&mut self, place: Place, link: usize) -> Option<ConnectionId> {
        let entry = self.slab.get_mut(place.arena)?;
        entry.open -= 1;
        let slot = entry.links.get_mut(place.slot as usize)?;
        // The slot may be another connection's by now.
        if *slot == Some(link) {
            *slot = None;
        }
        self.remove_ended(place.arena)
    }

    /// Handles a readiness event of an arena, or looks at all of its slots' signals after the core has
    /// changed something. The second value is its number if it has ended.
    pub(super) fn ready(&mut self, token: Token) -> (Vec<usize>, Option<ConnectionId>) {
        let number = token.0 - FIRST;
        let (index, is_control) = (number / 2, number % 2 == 1);
        let mut links = Vec::new();
        let Some(entry) = self.slab.get_mut(index) else {
            return (links, None);
        };
        if is_control && !entry.ended {
            // Edge-triggered: all messages are read. There are few, and each read takes several.
            while let (more, state) = entry.arena.read_control()
                && !entry.ended
            {
                entry.ended = state == ArenaState::Ended;
                if !more {
                    break;
                }
            }
            if entry.ended {
                self.withdraw(index);
            }
        }
        self.drain(index, &mut links);
        let ended = self.remove_ended(index);
        (links, ended)
    }

    fn drain(&mut self, index: usize, links: &mut Vec<usize>) {
        if let Some(entry) = self.slab.get(index) {
            entry.arena.drain_ready(|slot| {
                let link = entry.links.get(slot as usize).copied().flatten();
                links.extend(link);
            });
        }
    }

    /// Whether a connection may be ready.
    pub(super) fn have_ready(&self) -> bool {
        self.used().any(|entry| entry.arena.has_ready())
    }

    /// Adds the links that may be ready.
    pub(super) fn take_ready(&self, links: &mut Vec<usize>) {
        for Entry {
            arena, links: of, ..
        } in self.used()
        {
            arena.take_ready(|slot| links.extend(of.get(slot as usize).copied().flatten()));
        }
    }

    /// Requests a wakeup for when a connection is ready. Returns `false` if one is already.
    pub(super) fn arm(&self) -> bool {
        let mut none = true;
        for entry in self.used() {
            none &= entry.arena.arm();
        }
        none
    }

    /// The arenas with connections.
    fn used(&self) -> impl Iterator<Item = &Entry> {
        let all = self.slab.iter().map(|(_, entry)| entry);
        all.filter(|entry| entry.open > 0)
    }

    /// Ends an arena with a reason. Returns the links of its connections, which are to be reset.
    pub(super) fn end(&mut self, id: ConnectionId) -> Vec<usize> {
        let Some(&index) = self.by_id.get(&id) else {
            return Vec::new();
        };
        self.withdraw(index);
        let Some(entry) = self.slab.get_mut(index) else {
            return Vec::new();
        };
        entry.ended = true;
        entry.links.iter().copied().flatten().collect()
    }

    /// Removes an arena that has ended and has no connections. Returns its number.
    pub(super) fn remove_empty(&mut self, id: ConnectionId) -> Option<ConnectionId> {
        let index = *self.by_id.get(&id)?;
        self.remove_ended(index)
    }

    /// The numbers of all arenas.
    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        self.by_id.keys().copied().collect()
    }

    /// Lets no more connections be opened in an arena.
    fn withdraw(&mut self, index: usize) {
        let Some(entry) = self.slab.get(index) else {
            return;
        };
        let port = entry.arena.port();
        if let Some(arenas) = self.by_port.get_mut(&port) {
            arenas.retain(|one| *one != index);
            if arenas.is_empty() {
                self.by_port.remove(&port);
            }
        }
    }

    fn remove_ended(&mut self, index: usize) -> Option<ConnectionId> {
        let entry = self.slab.get(index)?;
        if !entry.ended || entry.open > 0 {
            return None;
        }
        let Entry { arena, .. } = self.slab.remove(index);
        self.by_id.remove(&arena.id());
        let fds = [Some(arena.doorbell()), arena.control_descriptor()];
        for fd in fds.into_iter().flatten() {
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        Some(arena.id())
    }
}
