//! The core thread. It owns the endpoints, the sessions and the fabric, so a verdict and its effects
//! happen in one step.
//!
//! The event loop waits for sockets, for [`Report`]s of the data threads, and for calls of a
//! [`Handle`](crate::Handle). A call is a closure that runs on this thread with `&mut Core`, so each
//! call sees a consistent state and needs no message protocol. Callers do blocking work (files, user
//! lookups) before they call.
//!
//! - [`accept`]: accepts clients from endpoints;
//! - [`session`]: handles messages on endpoint connections;
//! - [`idle`]: deadlines of sessions without a request;
//! - [`join`]: connects two sessions, with the descriptors of [`resources`];
//! - [`guests`]: connections with the guests of VMs;
//! - [`partitions`]: partitions, registrations, and the fabric's effects;
//! - [`vms`]: the state that only VMs have;
//! - [`view`]: snapshots for operators; [`labels`]: the names that they contain;
//! - [`liveness`]: heartbeats of guests; [`guest_reports`]: their entry points and events;
//! - [`counters`]: counters for metrics.

mod accept;
mod counters;
mod guest_reports;
mod guests;
mod idle;
mod join;
mod labels;
mod liveness;
mod partitions;
mod resources;
mod session;
mod view;
mod vms;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{Dirs, Transport};
use hvsock_fabric::{
    ConnectionId, Fabric, ListenerId, PartitionKey, PartitionKind, Refusal, RootSpec,
};
use hvsock_registry::Registration;
use hvsock_virtio::GuestCid;
use mio::{Events, Poll, Registry, Token, Waker};
use slab::Slab;

use crate::callers::{Caller, Callers};
use crate::data_path::{ByteCounters, ReportSender};
use crate::events::EventBus;
use crate::pump::{ConnectionSet, DataThread, Report};
use crate::vhost_user::VmEvent;
use crate::{BrokerConfig, StartError};

use counters::MetricsCounters;
use liveness::Liveness;
pub(crate) use partitions::AddError;

const WAKE: Token = Token(0);
/// The first token of the core thread's own connections, above those of endpoints and sessions.
const CORE_SET_BASE: usize = 1 << 48;
/// Bytes after which a relayed connection moves to a data thread.
const PROMOTE_AFTER: u64 = 64 * 1024;

/// A closure that a [`Handle`](crate::Handle) sends to the core thread.
pub(crate) type CoreCall = Box<dyn FnOnce(&mut Core) + Send>;

/// The sending side of the core thread's call queue.
#[derive(Clone)]
pub(crate) struct CoreLink {
    pub(crate) calls: Sender<CoreCall>,
    pub(crate) waker: Arc<Waker>,
}

/// An endpoint socket. A process that connects to it belongs to its partition.
struct Endpoint {
    socket: OwnedFd,
    partition: PartitionKey,
    path: PathBuf,
    /// Clients may be pending; the endpoint is in [`Core::busy_endpoints`].
    busy: bool,
}

/// The core's state of a listener, beside the fabric's.
struct ListenerRecord {
    session: usize,
    partition: PartitionKey,
    caller: Caller,
    address: SockAddrHv,
    backlog: u32,
    /// The transports that its process supports.
    preference: resources::TransportPreference,
    /// `HVSOCKET_CONNECTED_SUSPEND`, which accepted connections inherit.
    connected_suspend: bool,
    started: Instant,
}

/// The session that holds a leased registration.
#[derive(Clone, Copy)]
struct LeaseRecord {
    /// The session's serial number.
    serial: u64,
    /// The session's slab index, once it has one.
    session: usize,
}

/// One end of a connection.
#[derive(Clone, Copy)]
struct EndRecord {
    partition: PartitionKey,
    caller: Caller,
}

/// The thread that owns a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionOwner {
    /// The core thread.
    Core,
    /// A data thread, by its index.
    DataThread(usize),
    /// The data thread of a VM.
    Vm(PartitionKey),
}

/// The core's state of a connection, beside the fabric's.
struct ConnectionRecord {
    service: ServiceId,
    from: EndRecord,
    to: EndRecord,
    transport: Transport,
    counters: Arc<ByteCounters>,
    owner: ConnectionOwner,
    started: Instant,
}

/// A report of one of the other threads.
enum ThreadReport {
    /// Of a data thread.
    Data(Report),
    /// Of a VM's data thread.
    Vm(PartitionKey, VmEvent),
}

/// The sending side of the queue of reports.
struct ReportQueue {
    queue: Sender<ThreadReport>,
    waker: Arc<Waker>,
}

impl ReportQueue {
    fn of_data_thread(&self) -> ReportSender<Report> {
        self.sender(ThreadReport::Data)
    }

    fn of_vm(&self, vm: PartitionKey) -> ReportSender<VmEvent> {
        self.sender(move |event| ThreadReport::Vm(vm, event))
    }

    fn sender<T>(
        &self,
        wrap: impl Fn(T) -> ThreadReport + Send + Sync + 'static,
    ) -> ReportSender<T> {
        let (queue, waker) = (self.queue.clone(), Arc::clone(&self.waker));
        ReportSender::new(move |report| {
            // Sending fails only after the core thread has ended.
            if queue.send(wrap(report)).is_ok() {
                let _ = waker.wake();
            }
        })
    }
}

/// The state that the core thread owns.
pub(crate) struct Core {
    pub(crate) fabric: Fabric,
    pub(crate) events: EventBus,
    counters: MetricsCounters,
    pub(crate) dirs: Dirs,
    config: BrokerConfig,
    registry: Registry,
    endpoints: Slab<Endpoint>,
    busy_endpoints: Vec<usize>,
    shortage: accept::Shortage,
    sessions: Slab<Option<session::Session>>,
    /// Sessions whose last turn ended before all their messages were read.
    unfinished_sessions: VecDeque<usize>,
    idle: idle::IdleSessions,
    next_serial: u64,
    leases: HashMap<ServiceId, LeaseRecord>,
    /// Registrations from files that wait because a lease has the GUID, name or port.
    blocked_by_lease: BTreeMap<ServiceId, Box<Registration>>,
    vms: HashMap<PartitionKey, vms::VmRecord>,
    liveness: Liveness,
    /// The VMs by context id (CID).
    cids: BTreeMap<GuestCid, PartitionKey>,
    listeners: HashMap<ListenerId, ListenerRecord>,
    connections: HashMap<ConnectionId, ConnectionRecord>,
    /// Connects to guests that the guests have not accepted yet.
    pending: HashMap<ConnectionId, guests::Pending>,
    /// The next local port for a connection to a guest.
    next_port: u32,
    reports: ReportQueue,
    /// Preallocated resources of the next connection.
    spare: Option<resources::ConnectionResources>,
    /// When the last connection was established.
    last_connect: Option<Instant>,
    /// Connections between processes that are in no data thread: those through a ring, and those
    /// that have not moved [`PROMOTE_AFTER`] bytes.
    core_set: ConnectionSet,
    threads: Vec<DataThread>,
    next_thread: usize,
    callers: Callers,
    buffer: Vec<u8>,
    stopping: bool,
}

impl Core {
    /// Creates the core, its data threads, and the endpoint of the broker's own partition.
    /// [`Loop::run`] then runs it.
    pub(crate) fn open(
        config: BrokerConfig,
        registrations: hvsock_registry::Registry,
    ) -> Result<(Loop, CoreLink), StartError> {
        let poll = Poll::new().map_err(StartError::io("create an epoll descriptor"))?;
        let waker = Waker::new(poll.registry(), WAKE)
            .map(Arc::new)
            .map_err(StartError::io("create an eventfd"))?;
        let registry = poll
            .registry()
            .try_clone()
            .map_err(StartError::io("duplicate a descriptor"))?;
        let (queue, reports) = std::sync::mpsc::channel();
        let reporter = ReportQueue {
            queue,
            waker: Arc::clone(&waker),
        };
        let threads = (0..config.data_threads.max(1))
            .map(|index| DataThread::start(index, reporter.of_data_thread()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(StartError::io("start a data thread"))?;
        let core_set = poll
            .registry()
            .try_clone()
            .map(|registry| ConnectionSet::new(registry, CORE_SET_BASE, PROMOTE_AFTER))
            .map_err(StartError::io("duplicate a descriptor"))?;
        let root = RootSpec {
            kind: PartitionKind::Host,
            name: config.partition.clone(),
            vm_id: VmId::of_container(config.partition.as_str()),
        };
        let broker_uid = rustix::process::geteuid().as_raw();
        let mut fabric = Fabric::new(root, config.limits, broker_uid);
        let too_many = |error: hvsock_fabric::RegisterError| StartError::Registrations(error);
        fabric
            .set_registry(fabric.root(), registrations)
            .map_err(too_many)?;
        let mut core = Self {
            fabric,
            events: EventBus::default(),
            counters: MetricsCounters::default(),
            dirs: config.dirs.clone(),
            config,
            registry,
            endpoints: Slab::new(),
            busy_endpoints: Vec::new(),
            shortage: accept::Shortage::default(),
            sessions: Slab::new(),
            unfinished_sessions: VecDeque::new(),
            idle: idle::IdleSessions::default(),
            next_serial: 0,
            leases: HashMap::new(),
            blocked_by_lease: BTreeMap::new(),
            vms: HashMap::new(),
            liveness: Liveness::default(),
            cids: BTreeMap::new(),
            listeners: HashMap::new(),
            connections: HashMap::new(),
            pending: HashMap::new(),
            next_port: guests::FIRST_PORT,
            reports: reporter,
            spare: None,
            last_connect: None,
            core_set,
            threads,
            next_thread: 0,
            callers: Callers::new(),
            buffer: Vec::with_capacity(hvsock_endpoint::MAX_MESSAGE),
            stopping: false,
        };
        let own = core.fabric.root();
        let path = core.dirs.endpoint();
        core.open_endpoint(own, path)?;
        let (calls, queue) = std::sync::mpsc::channel();
        Ok((
            Loop {
                core,
                poll,
                calls: queue,
                reports,
            },
            CoreLink { calls, waker },
        ))
    }

    /// Ends the loop after the current call.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }
}

/// The core with its event sources.
pub(crate) struct Loop {
    core: Core,
    poll: Poll,
    calls: Receiver<CoreCall>,
    reports: Receiver<ThreadReport>,
}

impl Loop {
    /// Runs until [`Core::stop`], or until all [`CoreLink`]s are dropped.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.core.stopping {
            self.core.preallocate();
            let timeout = self.core.timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot poll for events; stopping the broker");
                    return;
                }
            }
            for event in &events {
                match event.token() {
                    WAKE => {}
                    Token(token) if token >= CORE_SET_BASE => {
                        self.core.core_set.handle_event(event);
                    }
                    Token(token) if token % 2 == 1 => self.core.mark_endpoint(token / 2),
                    Token(token) => self.core.session_event(token / 2 - 1),
                }
            }
            while let Ok(report) = self.reports.try_recv() {
                match report {
                    ThreadReport::Data(report) => self.core.handle_report(report),
                    ThreadReport::Vm(vm, event) => self.core.handle_vm_event(vm, event),
                }
            }
            self.core.accept_clients();
            self.core.resume_sessions();
            self.core.core_set.run_turns();
            self.core.expire(Instant::now());
            loop {
                match self.calls.try_recv() {
                    Ok(call) => call(&mut self.core),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => self.core.stopping = true,
                }
                if self.core.stopping {
                    break;
                }
            }
            // The calls may have closed connections, whose reports may close others.
            while let Some(report) = self.core.core_set.next_report() {
                self.core.handle_report(report);
            }
        }
        self.core.core_set.reset_all(&Refusal::Reset {
            cause: "the broker has stopped".into(),
        });
        self.core.close_endpoints();
    }
}

/// The token of an endpoint socket.
fn endpoint_token(index: usize) -> Token {
    Token(index * 2 + 1)
}

/// The token of a session.
fn session_token(index: usize) -> Token {
    Token((index + 1) * 2)
}
