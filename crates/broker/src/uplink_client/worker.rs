//! The thread of the uplink: it connects, accepts, and carries frames. Everything that it decides, the
//! [`Client`] decides.
//!
//! The core changes the client's state under a lock and wakes the thread, so that no call waits for the host.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrVm};
use hvsock_endpoint::uplink::{Request, UPLINK_PORT};
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::errno;
use hvsock_sys::sync::lock;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::client::{Client, Output};
use super::event::{UplinkEvent, WhyDown};
use super::lookups::{self, Lookups};
use super::refusal;
use super::stream::{FrameStream, Read};
use super::transport::UplinkTransport;
use crate::data_path::ReportSender;
use crate::guest_link::{
    Destination, EventSender, GuestRequest, LinkEvent, RequestId, Service, SocketKind, Stranger,
};
use crate::watchdog::{self, Step};

const WAKER: Token = Token(0);
/// Frames of the host that are handled before others have their turn.
const FRAMES: usize = 256;
/// Streams that one port accepts before others have their turn.
const ACCEPTS: usize = 64;
/// Streams of the host that the core has not answered, at most: those beyond are closed.
const MAX_REQUESTS: usize = 256;
/// The wait after the system had no descriptor for an accept.
const SHORTAGE_WAIT: Duration = Duration::from_millis(100);

/// What the core and the thread share.
pub(super) struct Shared {
    pub(super) transport: Arc<dyn UplinkTransport>,
    registry: Registry,
    waker: Waker,
    state: Mutex<State>,
    link: EventSender,
    uplink: ReportSender<UplinkEvent>,
}

/// The state under the lock.
pub(super) struct State {
    pub(super) client: Client,
    stream: Stream,
    connects: HashMap<ConnectionId, (OwnedFd, Token)>,
    expected: BTreeMap<Request, (OwnedFd, Token)>,
    ports: BTreeMap<u32, Port>,
    lookups: Lookups,
    sources: HashMap<Token, Source>,
    /// What may have something to do.
    ready: BTreeSet<Token>,
    next_token: usize,
    next_request: u64,
    /// Requests that the core has not answered.
    requests: BTreeSet<u64>,
    pub(super) stopped: bool,
}

/// A port of this machine that listens for a service.
struct Port {
    listener: OwnedFd,
    token: Token,
    service: ServiceId,
}

enum Stream {
    None,
    Dialing(OwnedFd, Token),
    Open(FrameStream, Token),
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Uplink,
    Connect(ConnectionId),
    Expected(Request),
    Port(u32),
    Lookup(u64),
}

impl Shared {
    pub(super) fn new(
        transport: Arc<dyn UplinkTransport>,
        poll: &Poll,
        client: Client,
        link: EventSender,
        uplink: ReportSender<UplinkEvent>,
    ) -> io::Result<Self> {
        let state = State {
            client,
            stream: Stream::None,
            connects: HashMap::new(),
            expected: BTreeMap::new(),
            ports: BTreeMap::new(),
            lookups: Lookups::default(),
            sources: HashMap::new(),
            ready: BTreeSet::new(),
            next_token: WAKER.0 + 1,
            next_request: 0,
            requests: BTreeSet::new(),
            stopped: false,
        };
        Ok(Self {
            transport,
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            state: Mutex::new(state),
            link,
            uplink,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the client's state, and wakes the thread to do what follows.
    pub(super) fn with_client<R>(&self, change: impl FnOnce(&mut Client, Instant) -> R) -> R {
        let result = change(&mut self.lock().client, Instant::now());
        self.wake();
        result
    }

    pub(super) fn wake(&self) {
        // An eventfd that is in an epoll set accepts every write.
        let _ = self.waker.wake();
    }

    /// The core has answered a request.
    pub(super) fn answered(&self, request: RequestId) {
        self.lock().requests.remove(&request.0);
    }

    /// Listens at a port of this machine for a service, on the caller's thread: the port listens, or is
    /// refused, when this returns.
    pub(super) fn open_port(&self, port: u32, service: ServiceId) -> Result<(), Refusal> {
        let mut state = self.lock();
        if let Some(other) = state.ports.get(&port) {
            return match other.service == service {
                true => Ok(()),
                false => Err(Refusal::AddressInUse),
            };
        }
        let opened = self.transport.listen(Some(port));
        let (listener, _) = opened.map_err(|error| refusal::of_listen(&error))?;
        let watched = self.watch(&mut state, &listener, Source::Port(port));
        let token = watched.map_err(|error| refusal::of_listen(&error))?;
        let opened = Port {
            listener,
            token,
            service,
        };
        state.ports.insert(port, opened);
        Ok(())
    }

    /// Stops listening at a port.
    pub(super) fn close_port(&self, port: u32) {
        let mut state = self.lock();
        if let Some(closed) = state.ports.remove(&port) {
            self.forget(&mut state, &closed.listener, closed.token);
        }
    }

    /// Looks the name of a service up, on a stream of its own. Returns `false` if too many are looked up, or it cannot
    /// be done.
    pub(super) fn look_up(&self, number: u64, name: String) -> bool {
        let mut state = self.lock();
        if !state.lookups.has_room() {
            return false;
        }
        let connecting = self
            .transport
            .connect(UPLINK_PORT, false, lookups::TIMEOUT)
            .and_then(|socket| {
                let token = self.watch(&mut state, &socket, Source::Lookup(number))?;
                Ok((socket, token))
            });
        let Ok((socket, token)) = connecting else {
            return false;
        };
        state.lookups.add(number, name, socket, token);
        self.wake();
        true
    }

    fn lookup_ready(&self, state: &mut State, number: u64) {
        let Some(lookup) = state.lookups.get_mut(number) else {
            return;
        };
        match self.transport.connected(lookup.stream.socket()) {
            Ok(false) => {}
            Ok(true) => {
                if let Some(answer) = lookup.proceed() {
                    self.end_lookup(state, number, answer);
                }
            }
            Err(_) => self.end_lookup(state, number, None),
        }
    }

    fn end_lookup(&self, state: &mut State, number: u64, answer: Option<[u8; 16]>) {
        if let Some(lookup) = state.lookups.remove(number) {
            self.forget(state, lookup.stream.socket(), lookup.token);
            let found = answer.map(ServiceId::from_guid_bytes);
            self.uplink.send(UplinkEvent::LookedUp(number, found));
        }
    }

    fn watch(&self, state: &mut State, socket: &OwnedFd, source: Source) -> io::Result<Token> {
        let token = Token(state.next_token);
        let interest = match source {
            Source::Uplink | Source::Connect(_) | Source::Lookup(_) => {
                Interest::READABLE | Interest::WRITABLE
            }
            Source::Expected(_) | Source::Port(_) => Interest::READABLE,
        };
        let fd = socket.as_raw_fd();
        self.registry
            .register(&mut SourceFd(&fd), token, interest)?;
        state.next_token += 1;
        state.sources.insert(token, source);
        // What happened before it was watched causes no event.
        state.ready.insert(token);
        Ok(token)
    }

    fn forget(&self, state: &mut State, socket: &OwnedFd, token: Token) {
        // A descriptor that a process has too stays in the set otherwise.
        let _ = self.registry.deregister(&mut SourceFd(&socket.as_raw_fd()));
        state.sources.remove(&token);
        state.ready.remove(&token);
    }

    /// Runs until [`State::stopped`].
    pub(super) fn run(&self, mut poll: Poll) {
        let mut events = Events::with_capacity(256);
        let mut wait = Some(Duration::ZERO);
        loop {
            watchdog::wait();
            let polled = poll.poll(&mut events, wait);
            watchdog::begin(Step::Events);
            if let Err(error) = polled
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!("the thread of the uplink has ended: {error}");
                return;
            }
            let mut guard = self.lock();
            let state = &mut *guard;
            if state.stopped {
                return;
            }
            for event in &events {
                if event.token() != WAKER {
                    state.ready.insert(event.token());
                }
            }
            let shortage = self.turn(state);
            let now = Instant::now();
            state.client.timeout(now);
            while let Some(number) = state.lookups.expired(now) {
                self.end_lookup(state, number, None);
            }
            self.act(state);
            wait = state.wait(Instant::now(), shortage);
        }
    }

    /// Handles what is ready. Returns whether the system lacked a descriptor.
    fn turn(&self, state: &mut State) -> bool {
        let mut shortage = false;
        for token in std::mem::take(&mut state.ready) {
            match state.sources.get(&token).copied() {
                None => {}
                Some(Source::Uplink) => self.uplink_ready(state, token),
                Some(Source::Connect(id)) => self.connect_ready(state, id),
                Some(Source::Expected(request)) => {
                    shortage |= self.expected_ready(state, request, token);
                }
                Some(Source::Port(port)) => shortage |= self.port_ready(state, port, token),
                Some(Source::Lookup(number)) => self.lookup_ready(state, number),
            }
        }
        shortage
    }

    fn uplink_ready(&self, state: &mut State, token: Token) {
        let now = Instant::now();
        if let Stream::Dialing(socket, _) = &state.stream {
            match self.transport.connected(socket) {
                Ok(false) => return,
                Ok(true) => {
                    let Stream::Dialing(socket, token) =
                        std::mem::replace(&mut state.stream, Stream::None)
                    else {
                        return;
                    };
                    state.stream = Stream::Open(FrameStream::new(socket), token);
                    state.client.connected(now);
                }
                Err(error) => {
                    self.hang_up(state);
                    state.client.dial_failed(now, why_down(&error));
                    return;
                }
            }
        }
        if let Stream::Open(stream, _) = &mut state.stream {
            stream.ready();
        }
        for _ in 0..FRAMES {
            let Stream::Open(stream, _) = &mut state.stream else {
                return;
            };
            match stream.read() {
                Read::Nothing => return,
                Read::Frame(frame) => {
                    state.client.frame(now, frame);
                    self.act(state);
                }
                Read::Ended(why) => {
                    self.hang_up(state);
                    return state.client.lost(now, WhyDown::Failed(why));
                }
            }
        }
        state.ready.insert(token);
    }

    fn connect_ready(&self, state: &mut State, id: ConnectionId) {
        let Some((socket, _)) = state.connects.get(&id) else {
            return;
        };
        let failed = match self.transport.connected(socket) {
            Ok(false) => return,
            Ok(true) => None,
            Err(error) => Some(refusal::of_connect(&error)),
        };
        if let Some((socket, token)) = state.connects.remove(&id) {
            self.forget(state, &socket, token);
            let now = Instant::now();
            match failed {
                None => {
                    state.client.stream_done(now, id);
                    self.link.send(LinkEvent::Connected(id, Some(socket)));
                }
                Some(refusal) => state.client.stream_failed(now, id, refusal),
            }
        }
    }

    fn expected_ready(&self, state: &mut State, request: Request, token: Token) -> bool {
        loop {
            let Some((listener, _)) = state.expected.get(&request) else {
                return false;
            };
            match self.transport.accept(listener) {
                Ok(None) => return false,
                Ok(Some((socket, SockAddrVm::CID_HOST))) => {
                    self.stop_listening(state, request);
                    if let Some((child, service)) = state.client.arrived(request) {
                        let destination = match child {
                            Some(id) => Destination::Partition(id),
                            None => Destination::Host,
                        };
                        self.request(state, destination, service, socket);
                    }
                    return false;
                }
                // Only the host was told this port.
                Ok(Some((_, cid))) => self.stranger(cid, 0),
                Err(_) => {
                    state.ready.insert(token);
                    return true;
                }
            }
        }
    }

    fn port_ready(&self, state: &mut State, port: u32, token: Token) -> bool {
        for _ in 0..ACCEPTS {
            let Some(open) = state.ports.get(&port) else {
                return false;
            };
            let service = open.service;
            match self.transport.accept(&open.listener) {
                Ok(None) => return false,
                Ok(Some((socket, SockAddrVm::CID_HOST))) => {
                    self.request(state, Destination::Host, service, socket);
                }
                Ok(Some((_, cid))) => self.stranger(cid, port),
                // Streams wait until there are descriptors or memory again.
                Err(_) => {
                    state.ready.insert(token);
                    return true;
                }
            }
        }
        state.ready.insert(token);
        false
    }

    /// Passes a stream of the host on to the core.
    fn request(
        &self,
        state: &mut State,
        destination: Destination,
        service: ServiceId,
        socket: OwnedFd,
    ) {
        if state.requests.len() >= MAX_REQUESTS {
            let what = "closed a connection of the host: too many others have no answer yet";
            return self.link.send(LinkEvent::Fault(what.into()));
        }
        let id = state.next_request;
        state.next_request = id.wrapping_add(1);
        state.requests.insert(id);
        let request = GuestRequest {
            destination,
            service: Service::Id(service),
            kind: SocketKind::Stream,
            source_port: None,
            identity: None,
            socket: Some(socket),
        };
        self.link.send(LinkEvent::Request(RequestId(id), request));
    }

    fn stranger(&self, cid: u32, port: u32) {
        let count = 1;
        let stranger = Stranger { cid, port, count };
        self.link.send(LinkEvent::Stranger(stranger));
    }

    /// Does what the client wants.
    fn act(&self, state: &mut State) {
        loop {
            while let Some(output) = state.client.next() {
                self.act_on(state, output);
            }
            let Stream::Open(stream, token) = &mut state.stream else {
                return;
            };
            match stream.flush() {
                Ok(()) => {
                    // It was not read from while there was too much to send.
                    if stream.wants_turn() {
                        state.ready.insert(*token);
                    }
                    return;
                }
                Err(why) => {
                    self.hang_up(state);
                    state.client.lost(Instant::now(), WhyDown::Failed(why));
                }
            }
        }
    }

    fn act_on(&self, state: &mut State, output: Output) {
        let now = Instant::now();
        match output {
            Output::Dial => {
                if let Err(error) = self.dial(state) {
                    state.client.dial_failed(now, why_down(&error));
                }
            }
            Output::Send(frame) => {
                if let Stream::Open(stream, _) = &mut state.stream
                    && let Err(why) = stream.add(&frame)
                {
                    state.client.give_up(now, WhyDown::Failed(why));
                }
            }
            Output::HangUp => {
                // What was sent before, such as a refusal, may still arrive.
                if let Stream::Open(stream, _) = &mut state.stream {
                    let _ = stream.flush();
                }
                self.hang_up(state);
            }
            Output::Connect { id, port, deadline } => {
                let timeout = deadline.saturating_duration_since(now);
                let started = self.transport.connect(port, false, timeout);
                let started = started.and_then(|socket| {
                    let token = self.watch(state, &socket, Source::Connect(id))?;
                    state.connects.insert(id, (socket, token));
                    Ok(())
                });
                if let Err(error) = started {
                    let refusal = refusal::of_connect(&error);
                    state.client.stream_failed(now, id, refusal);
                }
            }
            Output::Abort(id) => {
                if let Some((socket, token)) = state.connects.remove(&id) {
                    self.forget(state, &socket, token);
                }
            }
            Output::Fail(id, refusal) => self.link.send(LinkEvent::Failed(id, refusal)),
            Output::Listen { request } => {
                let opened = self.transport.listen(None).and_then(|(listener, port)| {
                    let token = self.watch(state, &listener, Source::Expected(request))?;
                    state.expected.insert(request, (listener, token));
                    Ok(port)
                });
                let port = opened.map_err(|error| refusal::of_listen(&error));
                state.client.listening(request, port);
            }
            Output::StopListening(request) => self.stop_listening(state, request),
            Output::Tell(event) => self.uplink.send(event),
        }
    }

    fn dial(&self, state: &mut State) -> io::Result<()> {
        let timeout = super::client::DIAL_TIMEOUT;
        let socket = self.transport.connect(UPLINK_PORT, true, timeout)?;
        let token = self.watch(state, &socket, Source::Uplink)?;
        state.stream = Stream::Dialing(socket, token);
        Ok(())
    }

    fn hang_up(&self, state: &mut State) {
        match std::mem::replace(&mut state.stream, Stream::None) {
            Stream::None => {}
            Stream::Dialing(socket, token) => self.forget(state, &socket, token),
            Stream::Open(stream, token) => self.forget(state, stream.socket(), token),
        }
    }

    fn stop_listening(&self, state: &mut State, request: Request) {
        if let Some((listener, token)) = state.expected.remove(&request) {
            self.forget(state, &listener, token);
        }
    }
}

impl State {
    /// How long the thread may park.
    fn wait(&self, now: Instant, shortage: bool) -> Option<Duration> {
        let until = self.client.deadline().into_iter();
        let until = until.chain(self.lookups.next_deadline()).min();
        let until = until.map(|at| at.saturating_duration_since(now));
        match (self.ready.is_empty(), shortage) {
            (true, _) => until,
            (false, true) => Some(until.map_or(SHORTAGE_WAIT, |at| at.min(SHORTAGE_WAIT))),
            (false, false) => Some(Duration::ZERO),
        }
    }
}

/// Why a stream to the host's broker could not be connected.
fn why_down(error: &io::Error) -> WhyDown {
    match error.raw_os_error() {
        Some(
            errno::ECONNRESET
            | errno::ECONNREFUSED
            | errno::ENODEV
            | errno::EHOSTUNREACH
            | errno::ENETUNREACH
            | errno::ETIMEDOUT,
        ) => WhyDown::NoBroker,
        Some(errno::EACCES | errno::EPERM) => WhyDown::Unprivileged,
        _ => WhyDown::Failed(format!("cannot connect to the host's broker: {error}")),
    }
}
