//! The host's side of the kernel's vhost-vsock, shared by all VMs of one network namespace: the ports that
//! the broker owns, and a thread that accepts and connects.
//!
//! Ports are changed on the core's thread, by calls that never block, so that a change is done when its
//! operator gets the answer. Everything else is done by the thread.

pub(super) mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvsock_fabric::{ConnectionId, PartitionState, Refusal};
use hvsock_sys::sync::lock;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::expected::ExpectedPorts;
use super::ports::{MAX_PORTS, PortFault, PortIo, Ports, Wanted};
use super::sockets::{PeerAddress, Sockets};
use super::strangers::Strangers;
use super::{connects::Connects, refusal};
use crate::guest_link::{
    Destination, EventSender, GuestRequest, LinkEvent, OfferedService, RequestId, Service,
    SocketKind,
};
use crate::sandbox;

/// The token of the waker. Those of listening ports are the ports, which are smaller.
const WAKER: Token = Token(usize::MAX);
/// The first token of a connect.
const FIRST_CONNECT: usize = 1 << 33;

/// Connections that one port accepts before others have their turn.
const ACCEPTS: usize = 64;
/// Requests of one guest that the core has not answered, at most: those beyond are closed.
pub(super) const MAX_REQUESTS: usize = 256;
/// One in so many descriptors may be a port's.
const PORT_SHARE: usize = 16;
/// How often the thread looks whether the kernel serves virtual machines.
const LOOK: Duration = Duration::from_secs(3);
/// The problem of a VM while the kernel does not.
const UNSERVED: &str = "this kernel serves no virtual machine; load its module vhost_vsock";
/// How often a process that has a port is searched again. A search has a time limit, which a busy machine exceeds.
const SEARCHES: u8 = 8;
/// The wait after the system has no descriptor for an accept.
const SHORTAGE_WAIT: Duration = Duration::from_millis(100);

/// The lowest CID of a guest. Lower ones are the machine itself, and the host of a machine that is virtual
/// itself.
pub(super) const FIRST_GUEST: u32 = 3;

/// The host's side in one network namespace. Dropping it frees the ports and ends the thread.
pub(super) struct KernelHost {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    sockets: Box<dyn Sockets>,
    registry: Registry,
    waker: Waker,
    state: Mutex<State>,
    /// The thread is frozen, or is to be no longer.
    frozen: Condvar,
}

struct State {
    /// The VMs by CID.
    vms: BTreeMap<u32, Vm>,
    ports: Ports<OwnedFd>,
    expected: ExpectedPorts<OwnedFd>,
    /// Ports at which connections may wait.
    ready: BTreeSet<u32>,
    connects: Connects,
    strangers: Strangers,
    /// Ports that a process has that was not found, and how often to search it again.
    unnamed: BTreeMap<u32, u8>,
    /// When to look again whether the kernel serves virtual machines.
    next_look: Instant,
    stopped: bool,
    freeze: Freeze,
}

/// How far a handover of the state to another process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Freeze {
    /// The thread is to do nothing.
    is_wanted: bool,
    /// It does nothing.
    is_reached: bool,
    /// This is the other process, and the first one may go on: no port is bound or freed.
    is_dormant: bool,
}

struct Vm {
    events: EventSender,
    services: Vec<OfferedService>,
    next_request: u64,
    /// Requests that the core has not answered.
    requests: BTreeSet<u64>,
    /// Connections that were closed because there were too many requests, since the last report.
    dropped: u64,
    /// The faults of ports that the core has been told.
    reported: BTreeSet<u32>,
    /// Whether a manager tells the VM's state.
    has_manager: bool,
    /// Whether the core has been told that the kernel serves no virtual machines.
    is_unserved: bool,
}

/// A VM of the same CID is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CidTaken;

impl KernelHost {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// If a descriptor or the thread cannot be made.
    pub(super) fn start(sockets: Box<dyn Sockets>) -> io::Result<Self> {
        Self::start_in(sockets, Freeze::default())
    }

    fn start_in(sockets: Box<dyn Sockets>, freeze: Freeze) -> io::Result<Self> {
        let poll = Poll::new()?;
        let shared = Arc::new(Shared {
            sockets,
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            state: Mutex::new(State::new(freeze)),
            frozen: Condvar::new(),
        });
        let thread = std::thread::Builder::new().name("vsock-host".into());
        let host = Arc::clone(&shared);
        let run = move || {
            sandbox::enter(sandbox::Kind::KernelVsock);
            host.run(poll);
        };
        let thread = sandbox::outside(|| thread.spawn(run))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Adds a VM. With `has_manager` its state is told by another.
    pub(super) fn add(
        &self,
        cid: u32,
        events: EventSender,
        has_manager: bool,
    ) -> Result<(), CidTaken> {
        let mut state = self.shared.lock();
        if state.vms.contains_key(&cid) {
            return Err(CidTaken);
        }
        let vm = Vm {
            events,
            services: Vec::new(),
            next_request: 0,
            requests: BTreeSet::new(),
            dropped: 0,
            reported: BTreeSet::new(),
            has_manager,
            is_unserved: false,
        };
        state.vms.insert(cid, vm);
        state.next_look = Instant::now();
        self.shared.wake();
        Ok(())
    }

    /// Removes a VM, its connects and what only it wants of ports. Sends no event.
    pub(super) fn remove(&self, cid: u32) {
        let mut state = self.shared.lock();
        state.vms.remove(&cid);
        state.connects.remove_of(cid);
        state.expected.remove_of(cid);
        if !state.freeze.is_dormant {
            self.shared.update_ports(&mut state);
        }
    }

    /// Sets the services that a VM may know. The ports are as wanted, or their faults are known, when this
    /// returns.
    pub(super) fn set_services(&self, cid: u32, services: Vec<OfferedService>) {
        let mut state = self.shared.lock();
        if let Some(vm) = state.vms.get_mut(&cid) {
            vm.services = services;
        }
        if !state.freeze.is_dormant {
            self.shared.update_ports(&mut state);
        }
    }

    /// Connects to a guest.
    pub(super) fn connect(&self, cid: u32, port: u32, id: ConnectionId, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.shared.lock().connects.queue(cid, port, id, deadline);
        self.shared.wake();
    }

    /// Expects a connection of a guest at a port that is no service's.
    ///
    /// # Errors
    ///
    /// Why the port cannot be had.
    pub(super) fn expect(&self, cid: u32, port: u32) -> Result<(), Refusal> {
        let mut state = self.shared.lock();
        let refused = |fault| refusal::port_problem(port, fault, None).refusal;
        if !state.expected.has_room() {
            return Err(refused(PortFault::TooMany));
        }
        if state.expected.contains(port) {
            return Err(refused(PortFault::InUse));
        }
        let mut io = self.shared.io();
        let listener = io.bind(port).map_err(refused)?;
        io.listen(port, &listener).map_err(refused)?;
        state.expected.insert(cid, port, listener);
        Ok(())
    }

    /// Expects no connection at a port any more. Those that have not been accepted are reset.
    pub(super) fn release(&self, cid: u32, port: u32) {
        self.shared.lock().expected.remove(cid, port);
    }

    /// Gives up a connect, if it is not answered.
    pub(super) fn abort(&self, id: ConnectionId) {
        self.shared.lock().connects.abort(id);
    }

    /// The core has answered a request.
    pub(super) fn answered(&self, cid: u32, request: RequestId) {
        if let Some(vm) = self.shared.lock().vms.get_mut(&cid) {
            vm.requests.remove(&request.0);
        }
    }
}

impl Drop for KernelHost {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.frozen.notify_all();
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The system calls of the table of ports.
struct Io<'a> {
    sockets: &'a dyn Sockets,
    registry: &'a Registry,
}

impl PortIo for Io<'_> {
    type Socket = OwnedFd;

    fn bind(&mut self, port: u32) -> Result<OwnedFd, PortFault> {
        let bound = self.sockets.bind(port);
        bound.map_err(|error| refusal::of_port(&error))
    }

    fn listen(&mut self, port: u32, socket: &OwnedFd) -> Result<(), PortFault> {
        // First, so that no socket listens that nobody accepts from.
        let fd = socket.as_raw_fd();
        let (mut source, token) = (SourceFd(&fd), Token(port as usize));
        let watched = self
            .registry
            .register(&mut source, token, Interest::READABLE);
        let listening = watched.and_then(|()| self.sockets.listen(socket));
        listening.map_err(|error| {
            let _ = self.registry.deregister(&mut SourceFd(&fd));
            refusal::of_port(&error)
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wake(&self) {
        // An eventfd that is in an epoll set accepts every write.
        let _ = self.waker.wake();
    }

    fn io(&self) -> Io<'_> {
        Io {
            sockets: &*self.sockets,
            registry: &self.registry,
        }
    }

    /// Makes the ports what the VMs want together.
    fn update_ports(&self, state: &mut State) {
        let mut wanted = BTreeMap::new();
        for service in state.vms.values().flat_map(|vm| &vm.services) {
            let Some(port) = service.port else { continue };
            let one = match service.listening {
                true => Wanted::Listening,
                false => Wanted::Bound,
            };
            let all = wanted.entry(port).or_insert(one);
            *all = one.max(*all);
        }
        state
            .ports
            .set_wanted(&mut self.io(), &wanted, Instant::now());
        // The thread finds out who has a port, and reports.
        self.wake();
    }

    fn run(&self, mut poll: Poll) {
        let mut events = Events::with_capacity(256);
        let mut wait = None;
        loop {
            if self.stay_frozen() {
                wait = Some(Duration::ZERO);
            }
            if let Err(error) = poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!("the thread of the kernel's vsock sockets has ended: {error}");
                return;
            }
            for event in &events {
                self.ready(event.token());
            }
            if self.lock().stopped {
                return;
            }
            let shortage = self.accept_all();
            self.run_connects();
            self.retry_ports();
            self.report_ports();
            self.look_for_vhost();
            wait = self.wait(shortage);
        }
    }

    /// Tells VMs that the kernel does not serve virtual machines, or that it does now.
    fn look_for_vhost(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.vms.is_empty() || now < state.next_look {
            return;
        }
        state.next_look = now + LOOK;
        let is_unserved = !self.sockets.serves_guests();
        for vm in state.vms.values_mut() {
            if vm.is_unserved != is_unserved {
                vm.is_unserved = is_unserved;
                vm.tell_served();
            }
        }
    }

    fn ready(&self, token: Token) {
        let mut state = self.lock();
        if token == WAKER {
            return;
        }
        match u32::try_from(token.0) {
            Ok(port) => {
                state.ready.insert(port);
            }
            Err(_) => state.connects.ready(token.0 - FIRST_CONNECT),
        }
    }

    /// How long the thread may park. `shortage` is whether an accept lacked a descriptor.
    fn wait(&self, shortage: bool) -> Option<Duration> {
        let state = self.lock();
        let now = Instant::now();
        let until = [
            (!state.vms.is_empty()).then_some(state.next_look),
            state.ports.next_retry(),
            state.connects.next_deadline(),
            state.strangers.next_report(),
        ];
        let until = until.into_iter().flatten().min();
        let until = until.map(|at| at.saturating_duration_since(now));
        match (state.ready.is_empty(), shortage) {
            (true, _) => until,
            (false, true) => Some(until.map_or(SHORTAGE_WAIT, |at| at.min(SHORTAGE_WAIT))),
            (false, false) => Some(Duration::ZERO),
        }
    }

    /// Accepts from every port at which connections may wait, some from each. Returns whether the system
    /// lacked a descriptor.
    fn accept_all(&self) -> bool {
        let ready: Vec<u32> = self.lock().ready.iter().copied().collect();
        let mut shortage = false;
        for port in ready {
            // The lock is released between two ports: the core may wait for it.
            shortage |= self.accept_from(port, &mut self.lock());
        }
        let mut state = self.lock();
        let now = Instant::now();
        let strangers = state.strangers.take_due(now);
        if let Some(events) = state.vms.values().next().map(|vm| vm.events.clone()) {
            for stranger in strangers {
                events.send(LinkEvent::Stranger(stranger));
            }
        }
        for vm in state.vms.values_mut().filter(|vm| vm.dropped > 0) {
            let count = std::mem::take(&mut vm.dropped);
            vm.events.send(LinkEvent::Fault(format!(
                "closed {count} connections of the guest: {MAX_REQUESTS} others have no answer yet"
            )));
        }
        shortage
    }

    fn accept_from(&self, port: u32, state: &mut State) -> bool {
        for _ in 0..ACCEPTS {
            let expected = state.expected.listener(port);
            let Some(listener) = expected.or_else(|| state.ports.listener(port)) else {
                state.ready.remove(&port);
                return false;
            };
            match self.sockets.accept(listener) {
                Ok(Some((socket, peer))) => state.accepted(port, socket, peer),
                Ok(None) => {
                    state.ready.remove(&port);
                    return false;
                }
                // Connections wait until there are descriptors or memory again.
                Err(_) => return true,
            }
        }
        false
    }

    fn run_connects(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let state = &mut *state;
        for started in state.connects.take_queued() {
            let timeout = started.deadline.saturating_duration_since(now);
            let socket = self.sockets.connect(started.cid, started.port, timeout);
            let done = socket.and_then(|socket| {
                let fd = socket.as_raw_fd();
                let token = state.connects.begin(started, socket);
                let token = Token(FIRST_CONNECT + token);
                self.registry
                    .register(&mut SourceFd(&fd), token, Interest::WRITABLE)
            });
            if let Err(error) = done {
                state.connects.abort(started.id);
                state.failed(started.cid, started.id, refusal::of_connect(&error));
            }
        }
        for token in state.connects.take_ready() {
            let Some(connect) = state.connects.get(token) else {
                continue;
            };
            match self.sockets.connected(&connect.socket) {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(connect) = state.connects.take(token) {
                        let fd = connect.socket.as_raw_fd();
                        let _ = self.registry.deregister(&mut SourceFd(&fd));
                        let (cid, id) = (connect.wanted.cid, connect.wanted.id);
                        if let Some(vm) = state.vms.get(&cid) {
                            let event = LinkEvent::Connected(id, Some(connect.socket));
                            vm.events.send(event);
                        }
                    }
                }
                Err(error) => {
                    if let Some(connect) = state.connects.take(token) {
                        let refusal = refusal::of_connect(&error);
                        state.failed(connect.wanted.cid, connect.wanted.id, refusal);
                    }
                }
            }
        }
        for connect in state.connects.take_expired(now) {
            state.failed(connect.cid, connect.id, Refusal::TimedOut);
        }
    }

    fn retry_ports(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        for port in state.ports.retry(&mut self.io(), Instant::now()) {
            if let Some(left @ 1..) = state.unnamed.get_mut(&port) {
                *left -= 1;
                state.ports.judge_again(port);
            }
        }
    }

    /// Reports ports that cannot be had, and those that can again, to the VMs that want them.
    fn report_ports(&self) {
        let changed: Vec<(u32, Option<PortFault>)> = {
            let mut state = self.lock();
            let changed = state.ports.take_changed();
            let with_fault = changed
                .into_iter()
                .map(|port| (port, state.ports.fault(port)));
            with_fault.collect()
        };
        for (port, fault) in changed {
            // It searches all processes, so the lock is not held.
            let holder = (fault == Some(PortFault::InUse)).then(|| self.sockets.holder(port));
            let holder = holder.flatten();
            let found = fault.map(|fault| refusal::port_problem(port, fault, holder.as_deref()));
            let mut state = self.lock();
            let is_unnamed = fault == Some(PortFault::InUse) && holder.is_none();
            let says_nothing_new = is_unnamed && state.unnamed.contains_key(&port);
            if !is_unnamed {
                state.unnamed.remove(&port);
            } else if !says_nothing_new {
                state.unnamed.insert(port, SEARCHES);
            }
            for vm in state.vms.values_mut() {
                let wants = vm.services.iter().any(|one| one.port == Some(port));
                let problem = found.clone().filter(|_| wants);
                let was_told = match &problem {
                    Some(_) => !vm.reported.insert(port),
                    None => vm.reported.remove(&port),
                };
                let is_repeated = says_nothing_new && problem.is_some() && was_told;
                if (problem.is_some() || was_told) && !is_repeated {
                    vm.events.send(LinkEvent::PortProblem(port, problem));
                }
            }
        }
        // A VM that wants a port no more is no longer concerned.
        let mut state = self.lock();
        for vm in state.vms.values_mut() {
            let services = &vm.services;
            let gone: Vec<u32> = vm
                .reported
                .iter()
                .filter(|port| !services.iter().any(|one| one.port == Some(**port)))
                .copied()
                .collect();
            for port in gone {
                vm.reported.remove(&port);
                vm.events.send(LinkEvent::PortProblem(port, None));
            }
        }
    }
}

impl Vm {
    fn tell_served(&self) {
        let (problem, known) = match self.is_unserved {
            true => (Some(UNSERVED.to_owned()), PartitionState::Off),
            false => (None, PartitionState::Unknown),
        };
        self.events.send(LinkEvent::Problem(problem));
        if !self.has_manager {
            self.events.send(LinkEvent::State(known));
        }
    }
}

impl State {
    fn new(freeze: Freeze) -> Self {
        let limit = usize::try_from(hvsock_sys::limits::descriptors()).unwrap_or(MAX_PORTS);
        Self {
            vms: BTreeMap::new(),
            ports: Ports::new((limit / PORT_SHARE).min(MAX_PORTS)),
            expected: ExpectedPorts::default(),
            ready: BTreeSet::new(),
            connects: Connects::default(),
            strangers: Strangers::default(),
            unnamed: BTreeMap::new(),
            next_look: Instant::now(),
            stopped: false,
            freeze,
        }
    }

    /// Passes a connection on to the core, for the VM that has its CID.
    fn accepted(&mut self, port: u32, socket: OwnedFd, peer: PeerAddress) {
        let vm = match peer.cid {
            FIRST_GUEST.. if self.expected.guest(port).is_none_or(|cid| cid == peer.cid) => {
                self.vms.get_mut(&peer.cid)
            }
            _ => None,
        };
        let Some(vm) = vm else {
            // The socket is closed, which is all the refusal that there is.
            self.strangers.add(peer.cid, port, Instant::now());
            return;
        };
        if vm.requests.len() >= MAX_REQUESTS {
            vm.dropped = vm.dropped.saturating_add(1);
            return;
        }
        let id = vm.next_request;
        vm.next_request = id.wrapping_add(1);
        vm.requests.insert(id);
        let request = GuestRequest {
            destination: Destination::Host,
            service: Service::Port(port),
            kind: SocketKind::Stream,
            source_port: Some(peer.port),
            identity: None,
            socket: Some(socket),
        };
        vm.events.send(LinkEvent::Request(RequestId(id), request));
    }

    fn failed(&self, cid: u32, id: ConnectionId, refusal: Refusal) {
        if let Some(vm) = self.vms.get(&cid) {
            vm.events.send(LinkEvent::Failed(id, refusal));
        }
    }
}
