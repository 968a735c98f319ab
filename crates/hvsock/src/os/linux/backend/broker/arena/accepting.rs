//! The arenas from which a listener accepts.
//!
//! An acceptor looks at the connect queues, which needs no system call. Before it waits it requests a
//! notification of each queue ("arms" it) and looks again. The doorbells of all arenas and the listener's
//! endpoint are in one set, which is also the listener's descriptor.
//!
//! A notification wakes one waiter, which may serve its connection for long. So whoever accepts while
//! others wait arms the queues again, or signals the set if more connections are there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use hvsock_endpoint::{ClientMessage, Incoming};
use hvsock_ring::{ArenaServer, RingEnd};
use hvsock_sys::event::{Ready, Set};
use hvsock_sys::sync::{lock, unpoisoned};

use super::super::spin::Spin;
use super::end::Arena;
use super::watcher::Watcher;

/// The endpoint's number in the set.
const ENDPOINT: u64 = 0;
/// The number of the descriptor that signals the set.
const SIGNAL: u64 = 1;
/// The first number of an arena.
const FIRST_ARENA: u64 = 2;

/// The longest spin for the next connection.
const LONGEST_SPIN: Duration = Duration::from_micros(20);
/// After so many connections from arenas, the endpoint is looked at once.
const ENDPOINT_TURN: u32 = 16;
/// Descriptors that are handled after one wait.
const ROUND: usize = 32;

/// The arenas of one listener.
#[derive(Debug)]
pub(crate) struct AcceptingArenas {
    shared: Arc<Shared>,
    /// The arena to begin with.
    next: AtomicUsize,
    /// Connections accepted since the endpoint was looked at.
    since_endpoint: AtomicU32,
    /// Connections that are accepted are kept while a partition is paused.
    connected_suspend: AtomicBool,
    /// The endpoint is watched for free space, too.
    watches_space: AtomicBool,
    spin: Spin,
}

#[derive(Debug)]
struct Shared {
    set: Set,
    arenas: RwLock<Vec<Accepting>>,
    next_number: AtomicU64,
    /// A descriptor that is readable at all times. In the set it signals it.
    signal: OnceLock<BorrowedFd<'static>>,
    is_signalled: Mutex<bool>,
    /// The set's descriptor was handed out.
    is_exported: AtomicBool,
    /// Threads that wait.
    waiting: AtomicU32,
}

/// One arena from which connections are accepted.
#[derive(Clone, Debug)]
struct Accepting {
    arena: Arc<Arena>,
    number: u64,
    state: Arc<AcceptingState>,
}

#[derive(Debug, Default)]
struct AcceptingState {
    /// A notification of the next connection is requested.
    is_armed: AtomicBool,
    /// The other process has closed the doorbell.
    has_hung_up: AtomicBool,
}

/// How a wait for a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// There may be a connection in an arena.
    InArena,
    /// There may be a message at the endpoint, or a connection anywhere.
    AtEndpoint,
    TimedOut,
}

impl AcceptingArenas {
    /// Creates the set of a listener, before it listens.
    pub(crate) fn new(connected_suspend: bool) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                set: Set::new()?,
                arenas: RwLock::default(),
                next_number: AtomicU64::new(FIRST_ARENA),
                signal: OnceLock::new(),
                is_signalled: Mutex::default(),
                is_exported: AtomicBool::new(false),
                waiting: AtomicU32::new(0),
            }),
            next: AtomicUsize::new(0),
            since_endpoint: AtomicU32::new(0),
            connected_suspend: AtomicBool::new(connected_suspend),
            watches_space: AtomicBool::new(false),
            spin: Spin::up_to(LONGEST_SPIN),
        })
    }

    /// Sets the endpoint, once.
    pub(crate) fn set_endpoint(&self, endpoint: impl AsFd) -> io::Result<()> {
        self.shared.set.add(endpoint, ENDPOINT)
    }

    /// Takes an arena of the broker.
    pub(crate) fn add(&self, incoming: Incoming, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let signal = Watcher::of_process()?.always_readable();
        self.shared.signal.get_or_init(|| signal);
        let arena = Arena::server(incoming, descriptors)?;
        let number = self.shared.next_number.fetch_add(1, Ordering::Relaxed);
        self.shared.set.add(arena.doorbell(), number)?;
        let shared = Arc::downgrade(&self.shared);
        arena.on_drained(move || {
            if let Some(shared) = Weak::upgrade(&shared) {
                shared.look_again();
            }
        });
        unpoisoned(self.shared.arenas.write()).push(Accepting {
            arena,
            number,
            state: Arc::default(),
        });
        // Its first connections may be there, and the caller may return one of the endpoint instead.
        self.shared.hand_over();
        Ok(())
    }

    /// Sets whether connections that are accepted are kept while a partition is paused.
    pub(crate) fn set_connected_suspend(&self, on: bool) {
        self.connected_suspend.store(on, Ordering::Relaxed);
    }

    /// Accepts a connection. Waits for nothing, and makes no system call unless others wait.
    pub(crate) fn accept(&self) -> Option<(Arc<Arena>, RingEnd)> {
        let arenas = self.shared.arenas();
        let count = arenas.len();
        let start = self.next.load(Ordering::Relaxed);
        for at in (start..start + count).map(|at| at % count) {
            let Some(end) = arenas[at].accept() else {
                continue;
            };
            let arena = Arc::clone(&arenas[at].arena);
            drop(arenas);
            self.next.store(at + 1, Ordering::Relaxed);
            self.since_endpoint.fetch_add(1, Ordering::Relaxed);
            if self.connected_suspend.load(Ordering::Relaxed) {
                end.set_connected_suspend(true);
            }
            self.shared.hand_over();
            return Some((arena, end));
        }
        None
    }

    /// Returns true if there is no arena.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.arenas().is_empty()
    }

    /// Accepts a connection that arrives within some microseconds.
    pub(crate) fn accept_spinning(&self) -> Option<(Arc<Arena>, RingEnd)> {
        let found = self.spin.until(|| {
            let arenas = self.shared.arenas();
            arenas.iter().any(Accepting::has_pending)
        });
        found.then(|| self.accept()).flatten()
    }

    /// Returns true if it is the endpoint's turn: connections that arrive there must not wait for an arena
    /// that is always busy.
    pub(crate) fn is_turn_of_endpoint(&self) -> bool {
        let is_turn = self.since_endpoint.load(Ordering::Relaxed) >= ENDPOINT_TURN;
        if is_turn {
            self.since_endpoint.store(0, Ordering::Relaxed);
        }
        is_turn
    }

    /// The descriptor that is readable when there may be a connection, or a message at the endpoint.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        if !self.shared.is_exported.swap(true, Ordering::SeqCst) {
            self.shared.hand_over();
        }
        self.shared.set.as_fd()
    }

    /// Prepares for a wait of others: of those who watch the descriptor, and of threads. Returns false if
    /// there is a connection now.
    pub(crate) fn would_block(&self) -> bool {
        self.shared.remove_dead();
        if !self.shared.has_waiters(0) {
            return true;
        }
        let mut ready = Vec::with_capacity(ROUND);
        if self
            .shared
            .set
            .wait(&mut ready, Some(Duration::ZERO))
            .is_ok()
        {
            self.shared.handle(&ready);
        }
        self.shared.prepare(0)
    }

    /// Waits until there may be a connection or a message at the endpoint, or until `deadline`.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> io::Result<Parked> {
        self.shared.remove_dead();
        let shared = &*self.shared;
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        let woken = self.park_registered(deadline);
        shared.waiting.fetch_sub(1, Ordering::SeqCst);
        woken
    }

    fn park_registered(&self, deadline: Option<Instant>) -> io::Result<Parked> {
        let shared = &*self.shared;
        let mut ready = Vec::with_capacity(ROUND);
        loop {
            // This thread is one of those that wait.
            if !shared.prepare(1) {
                return Ok(Parked::InArena);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            shared.set.wait(&mut ready, left)?;
            if shared.handle(&ready) {
                // This thread may have drained a doorbell, too, and need not accept there.
                if shared.has_waiters(1) && !shared.arm() {
                    shared.signal(true);
                }
                return Ok(Parked::AtEndpoint);
            }
            if shared.arenas().iter().any(Accepting::has_pending) {
                // This thread has drained the doorbell, and need not accept.
                if shared.has_waiters(1) {
                    shared.signal(true);
                }
                return Ok(Parked::InArena);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Parked::TimedOut);
            }
        }
    }

    /// Sets whether to wait for free space in the endpoint's socket, too.
    pub(crate) fn watch_space(&self, endpoint: impl AsFd, on: bool) -> io::Result<()> {
        if self.watches_space.swap(on, Ordering::Relaxed) != on {
            self.shared.set.watch_writable(endpoint, ENDPOINT, on)?;
        }
        Ok(())
    }
}

impl Shared {
    fn arenas(&self) -> RwLockReadGuard<'_, Vec<Accepting>> {
        unpoisoned(self.arenas.read())
    }

    /// Whether anybody waits for the set, besides so many threads.
    fn has_waiters(&self, besides: u32) -> bool {
        self.is_exported.load(Ordering::SeqCst) || self.waiting.load(Ordering::SeqCst) > besides
    }

    /// Leaves the connections that are there to others that wait.
    fn hand_over(&self) {
        if self.has_waiters(0) && !self.arm() {
            self.signal(true);
        }
    }

    /// The watcher has drained a doorbell, so that it wakes nobody else, or received a message.
    fn look_again(&self) {
        self.remove_dead();
        self.arenas().iter().for_each(Accepting::disarm);
        self.hand_over();
    }

    /// Withdraws the signal and requests a notification of each queue. Returns false if there is a
    /// connection. `own` is the number of waiting threads that the caller is.
    fn prepare(&self, own: u32) -> bool {
        self.signal(false);
        let is_armed = self.arm();
        if !is_armed && self.has_waiters(own) {
            self.signal(true);
        }
        is_armed
    }

    /// Requests a notification of each queue. Returns false if there is a connection.
    fn arm(&self) -> bool {
        self.arenas().iter().all(Accepting::arm)
    }

    /// Signals the set, or withdraws that.
    fn signal(&self, on: bool) {
        let Some(signal) = self.signal.get() else {
            return;
        };
        let mut is_signalled = lock(&self.is_signalled);
        if *is_signalled != on {
            let done = match on {
                true => self.set.add(signal, SIGNAL),
                false => self.set.remove(signal),
            };
            if done.is_ok() {
                *is_signalled = on;
            }
        }
    }

    /// Drains the doorbells that are ready. Returns whether there was something else.
    fn handle(&self, ready: &[Ready]) -> bool {
        let mut others = false;
        for ready in ready {
            if ready.number < FIRST_ARENA {
                others = true;
                continue;
            }
            let arenas = self.arenas();
            if let Some(found) = arenas.iter().find(|arena| arena.number == ready.number) {
                found.arena.drain_notifications();
                found.disarm();
                if ready.hung_up && !found.state.has_hung_up.swap(true, Ordering::AcqRel) {
                    // It stays ready.
                    let _ = self.set.remove(found.arena.doorbell());
                }
            }
        }
        others
    }

    /// Drops the arenas in which no connection is opened any more, after the last one was accepted.
    fn remove_dead(&self) {
        if !self.arenas().iter().any(Accepting::is_dead) {
            return;
        }
        let dead: Vec<Accepting> = {
            let mut arenas = unpoisoned(self.arenas.write());
            let (dead, kept) = arenas.drain(..).partition(Accepting::is_dead);
            *arenas = kept;
            dead
        };
        for accepting in &dead {
            if !accepting.state.has_hung_up.load(Ordering::Acquire) {
                let _ = self.set.remove(accepting.arena.doorbell());
            }
        }
    }
}

impl Accepting {
    fn accept(&self) -> Option<RingEnd> {
        match self.arena.as_server()?.accept() {
            Ok(Some(accepted)) => {
                // Before it is checked whether others wait, who look at this.
                if self.state.is_armed.load(Ordering::Relaxed) {
                    self.state.is_armed.store(false, Ordering::SeqCst);
                }
                if accepted.tell_broker {
                    self.arena.tell(&ClientMessage::ArenaChanged);
                }
                Some(accepted.end)
            }
            Ok(None) => None,
            Err(_) if self.arena.is_over() => None,
            Err(_) => {
                self.arena.abandon();
                None
            }
        }
    }

    fn has_pending(&self) -> bool {
        let server = self.arena.as_server();
        !self.arena.is_over() && server.is_some_and(ArenaServer::has_pending)
    }

    /// Requests a notification of the next connection. Returns false if there is one.
    fn arm(&self) -> bool {
        if self.arena.is_over() {
            return true;
        }
        // Set before the request: whoever takes the connection that answers it clears it.
        if self.state.is_armed.swap(true, Ordering::SeqCst) {
            return !self.has_pending();
        }
        let is_armed = self.arena.as_server().is_none_or(ArenaServer::arm_accept);
        if !is_armed {
            self.state.is_armed.store(false, Ordering::SeqCst);
        }
        is_armed
    }

    /// The doorbell was drained. What rang it may have used up the last request: the other process looks for one
    /// after it has published a connection, which may have been accepted and the queue armed again by then.
    fn disarm(&self) {
        self.state.is_armed.store(false, Ordering::SeqCst);
    }

    fn is_dead(&self) -> bool {
        let is_closed = self.arena.is_peer_gone() || self.state.has_hung_up.load(Ordering::Acquire);
        self.arena.is_over() || is_closed && !self.has_pending()
    }
}
