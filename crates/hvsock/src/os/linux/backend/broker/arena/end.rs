//! One process's end of an arena.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{ClientMessage, Connected, Incoming};
use hvsock_ring::{ArenaClient, ArenaServer, Doorbells, SlotId, TellBroker};
use hvsock_sys::event::Event;
use hvsock_sys::sync::lock;

use super::super::control::ResetReason;
use super::control::ArenaControl;
use super::watcher::{Registration, Served, Watcher};
use crate::Peer;
use crate::backend::ConnectionInfo;

/// One process's end of an arena. It lives as long as somebody opens or accepts connections in it, or one
/// of them is open.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Set once. Dropped before the descriptors that the watcher knows.
    registration: OnceLock<Registration>,
    end: ArenaEnd,
    control: Arc<ArenaControl>,
    identity: Identity,
    watched: Mutex<WatchedSlots>,
    /// No connection can be opened or accepted any more.
    is_over: AtomicBool,
    /// The other process has closed its end.
    peer_closed: AtomicBool,
    /// Called when acceptors must look again: after the watcher has drained the doorbell, which they may
    /// wait for, and after a message of the broker.
    on_drained: OnceLock<OnDrained>,
}

/// What is called when acceptors must look again.
struct OnDrained(Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for OnDrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDrained")
    }
}

#[derive(Debug)]
enum ArenaEnd {
    Client(ArenaClient),
    Server(ArenaServer),
}

/// What all connections of the arena have in common.
#[derive(Debug)]
struct Identity {
    local: SockAddrHv,
    peer: SockAddrHv,
    peer_process: Option<Arc<Peer>>,
    /// The first of the arena's connection ids.
    first_id: u64,
}

/// The connections that are watched as descriptors, by slot.
#[derive(Debug, Default)]
struct WatchedSlots {
    events: Vec<Option<Arc<Event>>>,
    count: usize,
}

impl Arena {
    /// Opens the connecting process's end.
    pub(super) fn client(
        connected: &Connected,
        descriptors: Vec<OwnedFd>,
        socket: Arc<OwnedFd>,
    ) -> io::Result<Arc<Self>> {
        let identity = Identity {
            local: connected.local,
            peer: connected.peer,
            peer_process: None,
            first_id: connected.connection,
        };
        Self::open(identity, socket, |tell_broker| {
            let (memory, grant, doorbells) = parts(descriptors)?;
            let client = ArenaClient::open(memory, grant, doorbells, tell_broker)?;
            Ok(ArenaEnd::Client(client))
        })
    }

    /// Opens the listening process's end. The last descriptor is its control connection.
    pub(super) fn server(
        incoming: Incoming,
        mut descriptors: Vec<OwnedFd>,
    ) -> io::Result<Arc<Self>> {
        let socket = descriptors.pop().ok_or_else(unexpected_descriptors)?;
        let identity = Identity {
            local: incoming.local,
            peer: incoming.peer,
            first_id: incoming.connection,
            peer_process: Some(Arc::new(Peer::of_wire(incoming))),
        };
        Self::open(identity, Arc::new(socket), |tell_broker| {
            let (memory, grant, doorbells) = parts(descriptors)?;
            let server = ArenaServer::open(memory, grant, doorbells, tell_broker)?;
            Ok(ArenaEnd::Server(server))
        })
    }

    fn open(
        identity: Identity,
        socket: Arc<OwnedFd>,
        end: impl FnOnce(TellBroker) -> io::Result<ArenaEnd>,
    ) -> io::Result<Arc<Self>> {
        let control = Arc::new(ArenaControl::new(socket));
        let told = Arc::clone(&control);
        let end = end(Arc::new(move || told.send(&ClientMessage::ArenaChanged)))?;
        let arena = Arc::new(Self {
            end,
            control,
            identity,
            watched: Mutex::default(),
            is_over: AtomicBool::new(false),
            peer_closed: AtomicBool::new(false),
            on_drained: OnceLock::new(),
            registration: OnceLock::new(),
        });
        let registration = Watcher::of_process()?.serve(&arena)?;
        arena.registration.get_or_init(|| registration);
        Ok(arena)
    }

    /// The end in which this process opens connections.
    pub(super) fn as_client(&self) -> Option<&ArenaClient> {
        match &self.end {
            ArenaEnd::Client(client) => Some(client),
            ArenaEnd::Server(_) => None,
        }
    }

    /// The end from which this process accepts connections.
    pub(super) fn as_server(&self) -> Option<&ArenaServer> {
        match &self.end {
            ArenaEnd::Client(_) => None,
            ArenaEnd::Server(server) => Some(server),
        }
    }

    /// What is known of a connection.
    pub(crate) fn connection_info(&self, id: SlotId) -> ConnectionInfo {
        ConnectionInfo {
            local: self.identity.local,
            peer: self.identity.peer,
            peer_process: self.identity.peer_process.clone(),
            id: self.identity.first_id.wrapping_add(id.seq.into()),
        }
    }

    /// No connection can be opened or accepted any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// The other process opens or accepts nothing more.
    pub(super) fn is_peer_gone(&self) -> bool {
        self.peer_closed.load(Ordering::Acquire)
    }

    /// Why a connection was reset, as far as messages were received.
    pub(super) fn reason(&self, id: SlotId) -> Option<ResetReason> {
        self.control.reason(id)
    }

    /// Forgets the reason of a connection that is dropped.
    pub(super) fn forget(&self, id: SlotId) {
        self.control.forget(id);
    }

    /// Sends the broker a message.
    pub(super) fn tell(&self, message: &ClientMessage) {
        self.control.send(message);
    }

    /// Receives the pending messages. Returns false after the last one.
    pub(super) fn receive(&self) -> bool {
        let news = self.control.receive();
        if news.peer_closed {
            self.peer_closed.store(true, Ordering::Release);
        }
        if news.reset && !self.is_over.swap(true, Ordering::AcqRel) {
            match &self.end {
                ArenaEnd::Client(client) => client.mark_ended(),
                ArenaEnd::Server(server) => server.mark_ended(),
            }
        }
        if news.any {
            // The broker has no doorbell. Its message stands for all that it has changed.
            self.wake_watched();
            self.notify_acceptors();
        }
        !news.reset
    }

    /// Ends the arena, because the other process violates its protocol: the broker resets what is left.
    pub(super) fn abandon(&self) {
        self.is_over.store(true, Ordering::Release);
        match &self.end {
            ArenaEnd::Client(client) => client.mark_ended(),
            ArenaEnd::Server(server) => server.mark_ended(),
        }
        self.control.abandon();
        self.wake_watched();
    }

    fn notify_acceptors(&self) {
        if let Some(OnDrained(call)) = self.on_drained.get() {
            call();
        }
    }

    fn wake_watched(&self) {
        let watched = lock(&self.watched);
        watched
            .events
            .iter()
            .flatten()
            .for_each(|event| event.set());
    }

    /// Drains the doorbell, and passes the notifications in it on to the connections that are watched.
    pub(super) fn drain_notifications(&self) {
        self.drain_to(&lock(&self.watched));
    }

    fn drain_to(&self, watched: &WatchedSlots) {
        let wake = |slot: u32| {
            if let Some(Some(event)) = watched.events.get(slot as usize) {
                event.set();
            }
        };
        // Whether the other process has hung up is for the caller, who polls the doorbell.
        let _ = match &self.end {
            ArenaEnd::Client(client) => client.drain_ready(wake),
            ArenaEnd::Server(server) => server.drain_ready(wake),
        };
    }

    /// The event of a connection, which notifications set from now on. Earlier ones do not: they may be for
    /// the slot's previous connection.
    pub(super) fn watch(&self, slot: u32) -> io::Result<Arc<Event>> {
        let event = self.watch_from_now_on(slot);
        // They may have waited for the doorbell that is drained now, also where it cannot be watched.
        self.notify_acceptors();
        event
    }

    fn watch_from_now_on(&self, slot: u32) -> io::Result<Arc<Event>> {
        let mut watched = lock(&self.watched);
        let index = slot as usize;
        if watched.events.len() <= index {
            watched.events.resize(index + 1, None);
        }
        if let Some(event) = &watched.events[index] {
            return Ok(Arc::clone(event));
        }
        let event = Arc::new(Event::new()?);
        self.drain_to(&watched);
        if watched.count == 0
            && let Some(registration) = self.registration.get()
        {
            registration.serve_doorbell(self.doorbell(), true)?;
        }
        watched.count += 1;
        watched.events[index] = Some(Arc::clone(&event));
        Ok(event)
    }

    /// Ends [`watch`](Self::watch) of a connection that is dropped.
    pub(super) fn unwatch(&self, slot: u32) {
        let mut watched = lock(&self.watched);
        let event = watched.events.get_mut(slot as usize).and_then(Option::take);
        if event.is_some() {
            watched.count -= 1;
            if watched.count == 0
                && let Some(registration) = self.registration.get()
            {
                let _ = registration.serve_doorbell(self.doorbell(), false);
            }
        }
    }

    /// Sets what is called when acceptors must look again.
    pub(super) fn on_drained(&self, call: impl Fn() + Send + Sync + 'static) {
        let call = OnDrained(Box::new(call));
        self.on_drained.get_or_init(|| call);
    }

    /// A descriptor that is readable at all times, for a connection that cannot have one of its own.
    pub(super) fn always_readable(&self) -> BorrowedFd<'_> {
        match self.registration.get() {
            Some(registration) => registration.always_readable(),
            None => self.control.as_fd(),
        }
    }

    /// The doorbell of this process.
    pub(super) fn doorbell(&self) -> BorrowedFd<'_> {
        match &self.end {
            ArenaEnd::Client(client) => client.doorbell(),
            ArenaEnd::Server(server) => server.doorbell(),
        }
    }
}

impl Served for Arena {
    fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell()
    }

    fn control_ready(&self) -> bool {
        self.receive()
    }

    fn doorbell_ready(&self) {
        self.drain_notifications();
        self.notify_acceptors();
    }
}

fn parts(descriptors: Vec<OwnedFd>) -> io::Result<(OwnedFd, OwnedFd, Doorbells)> {
    let [memory, grant, own, peer] =
        <[OwnedFd; 4]>::try_from(descriptors).map_err(|_| unexpected_descriptors())?;
    Ok((memory, grant, Doorbells { own, peer }))
}

fn unexpected_descriptors() -> io::Error {
    let text = "the broker sent unexpected descriptors for the transport";
    crate::error::new(io::ErrorKind::InvalidData, text)
}
