//! The arenas in which this process connects.
//!
//! A connect looks here first. If there is an arena for its key and the broker still permits it, the
//! connection is opened without the broker. Otherwise the connect goes to the broker, which gives the true
//! answer. From the second connect of a key on, that offers to take an arena.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hvsock_endpoint::{ClientMessage, Connected};
use hvsock_fabric::Refusal;
use hvsock_ring::{ArenaClient, OpenError, RingEnd};
use hvsock_sys::sync::unpoisoned;

use super::end::Arena;
use super::key::{self, Key, KeyRef};
use super::per_process::PerProcess;
use super::watcher::Watcher;
use crate::Endpoint;
use crate::backend::Request;

/// The most keys that are remembered. A process that connects to more services gets connections with
/// memory of their own.
const MAX_KEYS: usize = 256;

static POOLS: PerProcess<Pool> = PerProcess::new();

/// All arenas of one process.
#[derive(Debug, Default)]
struct Pool {
    entries: RwLock<Vec<Arc<Entry>>>,
}

/// The arenas for one key. There is one for each that has had a connection.
#[derive(Debug)]
struct Entry {
    key: Key,
    arenas: RwLock<Vec<Pooled>>,
    /// A connect that offers to take an arena is in progress.
    is_offering: AtomicBool,
}

#[derive(Clone, Debug)]
struct Pooled {
    arena: Arc<Arena>,
    use_: Arc<Use>,
}

#[derive(Debug, Default)]
struct Use {
    /// A connection was opened since the last tick.
    is_recent: AtomicBool,
    /// The broker was asked for more slots.
    has_asked: AtomicBool,
}

/// The result of an attempt to connect in an arena.
#[allow(
    clippy::large_enum_variant,
    reason = "it is matched where it is returned and is never stored"
)]
pub(crate) enum Attempt {
    /// The connection is open.
    Connected(Arc<Arena>, RingEnd),
    /// The listener's backlog is full.
    Refused(Refusal),
    /// The broker must be asked. It is told that an arena is welcome if the [`Offer`] says so.
    Other(Option<Offer>),
}

/// What to do with the answer of the broker to a connect.
#[derive(Debug)]
pub(crate) struct Offer {
    pid: u32,
    state: OfferState,
}

#[derive(Debug)]
enum OfferState {
    /// The first connect of the process. Its key is read while the broker works.
    Unread,
    /// The first connect of a key.
    First(Key),
    /// A later one, which offers to take an arena.
    Later(Arc<Entry>),
    Done,
}

/// The result of a granted arena.
#[allow(
    clippy::large_enum_variant,
    reason = "it is matched where it is returned and is never stored"
)]
pub(crate) enum Granted {
    Connected(Arc<Arena>, RingEnd),
    Refused(Refusal),
    /// It was revoked at once. The broker must be asked again, without an offer.
    Again,
}

/// Connects in an arena, if this process has one for the request.
pub(crate) fn attempt(endpoint: &Endpoint, request: &Request) -> Attempt {
    if !key::is_possible(request) {
        return Attempt::Other(None);
    }
    let pid = std::process::id();
    let pool = POOLS.of(pid);
    if pool.entries().is_empty() {
        let state = OfferState::Unread;
        return Attempt::Other(Some(Offer { pid, state }));
    }
    let Some(key) = KeyRef::new(endpoint, request) else {
        return Attempt::Other(None);
    };
    let Some(entry) = pool.find(&key) else {
        let state = OfferState::First(key.to_key());
        return Attempt::Other(Some(Offer { pid, state }));
    };
    let is_growing = match entry.connect() {
        Ok((arena, end)) => {
            end.set_connected_suspend(request.settings.connected_suspend);
            return Attempt::Connected(arena, end);
        }
        Err(OpenError::BacklogFull) => return Attempt::Refused(Refusal::BacklogFull),
        Err(error) => error == OpenError::NoSlot,
    };
    // One at a time: many threads that connect at once need one arena. And none if one is growing.
    let offers = !is_growing && !entry.is_offering.swap(true, Ordering::AcqRel);
    let state = OfferState::Later(entry);
    Attempt::Other(offers.then_some(Offer { pid, state }))
}

/// Drops the arenas that nobody has used for a while. For the watcher.
fn retire_idle() {
    let pool = POOLS.of(std::process::id());
    let entries = pool.entries().clone();
    for entry in entries {
        let idle: Vec<Pooled> = {
            let mut arenas = entry.arenas_mut();
            let all = mem::take(&mut *arenas);
            let (kept, idle) = all.into_iter().partition(Pooled::is_kept);
            *arenas = kept;
            idle
        };
        // This may close descriptors, which needs no lock.
        drop(idle);
    }
}

impl Pool {
    fn entries(&self) -> RwLockReadGuard<'_, Vec<Arc<Entry>>> {
        unpoisoned(self.entries.read())
    }

    fn find(&self, key: &KeyRef<'_>) -> Option<Arc<Entry>> {
        let entries = self.entries();
        let found = entries.iter().find(|entry| entry.key.is(key));
        found.map(Arc::clone)
    }

    fn insert(&self, key: Key) {
        let mut entries = unpoisoned(self.entries.write());
        if entries.len() >= MAX_KEYS {
            let unused = entries.iter().position(|entry| entry.arenas().is_empty());
            let Some(unused) = unused else {
                return;
            };
            entries.remove(unused);
        }
        entries.push(Arc::new(Entry {
            key,
            arenas: RwLock::default(),
            is_offering: AtomicBool::new(false),
        }));
    }
}

impl Entry {
    fn arenas(&self) -> RwLockReadGuard<'_, Vec<Pooled>> {
        unpoisoned(self.arenas.read())
    }

    fn arenas_mut(&self) -> RwLockWriteGuard<'_, Vec<Pooled>> {
        unpoisoned(self.arenas.write())
    }

    /// Opens a connection. [`OpenError::NoSlot`] if there is none now, and the broker was asked for more.
    fn connect(&self) -> Result<(Arc<Arena>, RingEnd), OpenError> {
        let arenas = self.arenas();
        let mut result = OpenError::Revoked;
        for pooled in arenas.iter() {
            match pooled.connect() {
                Ok(end) => return Ok((Arc::clone(&pooled.arena), end)),
                Err(OpenError::BacklogFull) => return Err(OpenError::BacklogFull),
                Err(OpenError::NoSlot) if pooled.may_grow() => result = OpenError::NoSlot,
                Err(_) => {}
            }
        }
        Err(result)
    }

    fn add(&self, pooled: Pooled) {
        let old: Vec<Pooled> = {
            let mut arenas = self.arenas_mut();
            let all = mem::take(&mut *arenas);
            // The broker has granted another one because these are of no use any more.
            let (kept, old) = all.into_iter().partition(Pooled::is_usable);
            *arenas = kept;
            arenas.push(pooled);
            old
        };
        drop(old);
    }
}

impl Pooled {
    fn client(&self) -> Option<&ArenaClient> {
        self.arena.as_client()
    }

    fn connect(&self) -> Result<RingEnd, OpenError> {
        let client = self.client().ok_or(OpenError::Revoked)?;
        if self.arena.is_over() || self.arena.is_peer_gone() {
            return Err(OpenError::Revoked);
        }
        let opened = client.connect();
        match &opened {
            Ok(opened) => {
                if opened.tell_broker {
                    self.arena.tell(&ClientMessage::ArenaChanged);
                }
                if !self.use_.is_recent.load(Ordering::Relaxed) {
                    self.use_.is_recent.store(true, Ordering::Relaxed);
                }
                self.ask_for_slots(client.wants_more_slots());
            }
            Err(OpenError::NoSlot) => self.ask_for_slots(client.wants_more_slots()),
            Err(OpenError::Violation(_)) => self.arena.abandon(),
            Err(_) => {}
        }
        opened.map(|opened| opened.end)
    }

    /// Asks the broker for more slots, once for each number of them.
    fn ask_for_slots(&self, wants: bool) {
        let has_asked = &self.use_.has_asked;
        if has_asked.load(Ordering::Relaxed) != wants
            && has_asked.swap(wants, Ordering::Relaxed) != wants
            && wants
        {
            self.arena.tell(&ClientMessage::ArenaGrow);
        }
    }

    /// Whether the broker may grant more slots.
    fn may_grow(&self) -> bool {
        self.client().is_some_and(ArenaClient::wants_more_slots)
    }

    fn is_usable(&self) -> bool {
        let is_granted = self.client().is_some_and(ArenaClient::is_granted);
        is_granted && !self.arena.is_over() && !self.arena.is_peer_gone()
    }

    /// Whether it was used since the last call, or is in use.
    fn is_kept(&self) -> bool {
        self.use_.has_asked.store(false, Ordering::Relaxed);
        let is_recent = self.use_.is_recent.swap(false, Ordering::Relaxed);
        let in_use = self.client().is_some_and(|client| client.in_use() > 0);
        (is_recent || in_use) && !self.arena.is_over() && !self.arena.is_peer_gone()
    }
}

impl Offer {
    /// Whether the connect offers to take an arena.
    pub(crate) fn offers_arena(&self) -> bool {
        // The thread that serves arenas must run before there is one.
        matches!(self.state, OfferState::Later(_)) && Watcher::of_process().is_ok()
    }

    /// Reads the key if that has not been done: to be called while the connect waits for its reply.
    pub(crate) fn read_key(&mut self, endpoint: &Endpoint, request: &Request) {
        if let OfferState::Unread = self.state {
            self.state = match KeyRef::new(endpoint, request) {
                Some(key) => OfferState::First(key.to_key()),
                None => OfferState::Done,
            };
        }
    }

    /// The connect has made a connection with memory of its own.
    pub(crate) fn connected(mut self) {
        match mem::replace(&mut self.state, OfferState::Done) {
            OfferState::First(key) => POOLS.of(self.pid).insert(key),
            // Not granted. When this is dropped, the next connect may offer again.
            later => self.state = later,
        }
    }

    /// The broker has granted an arena. Opens the connection in it.
    pub(crate) fn granted(
        &self,
        connected: &Connected,
        descriptors: Vec<OwnedFd>,
        socket: Arc<OwnedFd>,
    ) -> io::Result<Granted> {
        let OfferState::Later(entry) = &self.state else {
            let text = "the broker chose a transport that was not offered";
            return Err(crate::error::new(io::ErrorKind::InvalidData, text));
        };
        Watcher::of_process()?.on_tick(retire_idle);
        let pooled = Pooled {
            arena: Arena::client(connected, descriptors, socket)?,
            use_: Arc::default(),
        };
        let end = pooled.connect();
        let arena = Arc::clone(&pooled.arena);
        entry.add(pooled);
        Ok(match end {
            Ok(end) => Granted::Connected(arena, end),
            Err(OpenError::BacklogFull) => Granted::Refused(Refusal::BacklogFull),
            Err(_) => Granted::Again,
        })
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let OfferState::Later(entry) = &self.state {
            entry.is_offering.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use hvsock_endpoint::Flags;

    use super::*;
    use crate::ToHvAddr as _;
    use crate::backend::{RequestKind, Settings};

    #[test]
    fn an_offer_that_the_broker_does_not_take_permits_the_next_one() {
        let request = Request {
            address: "hvsock://parent/web".to_hv_addr().unwrap(),
            kind: RequestKind::Connect { timeout_ms: 2000 },
            settings: Settings::default(),
            flags: Flags::default(),
            description: None,
        };
        let endpoint = Endpoint::at("/");
        let offered = || match attempt(&endpoint, &request) {
            Attempt::Other(offer) => offer,
            Attempt::Connected(..) | Attempt::Refused(_) => unreachable!("there is no arena"),
        };
        let mut first = offered().unwrap();
        first.read_key(&endpoint, &request);
        first.connected();
        for _ in 0..2 {
            let offer = offered().unwrap();
            assert!(offer.offers_arena());
            // One at a time, until it has its answer.
            assert!(offered().is_none());
            offer.connected();
        }
    }
}
