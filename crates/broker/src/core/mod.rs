//! The core thread: endpoints, sessions and the fabric, all in one place, so that a verdict and
//! what follows from it happen in one step.
//!
//! The loop waits for sockets, for [`Report`]s of the data threads and for commands of a
//! [`Handle`](crate::Handle). A command is a function that runs here with the whole core in its
//! hands: what an operator reads is one consistent state, and there is no protocol between the
//! two to keep in step. Whatever may block (files, name look-ups over a network) is done by the
//! caller before it comes here.
//!
//! - [`accept`]: clients are taken from endpoints;
//! - [`session`]: what processes say on their endpoint connections;
//! - [`idle`]: those who say nothing;
//! - [`join`]: two sessions become a connection, made of [`material`];
//! - [`guests`]: connections with the guests of VMs;
//! - [`partitions`]: partitions with their endpoints, and what the fabric wants done;
//! - [`vms`]: what more there is to partitions that are VMs;
//! - [`view`]: what an operator sees;
//! - [`liveness`]: what guests say of themselves, and whether they are still heard; [`guest_reports`]: who
//!   is told of it;
//! - [`tally`]: what is counted for metrics.

mod accept;
mod guest_reports;
mod guests;
mod idle;
mod join;
mod labels;
mod liveness;
mod material;
mod partitions;
mod session;
mod tally;
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
use crate::events::EventBus;
use crate::pump::{ConnectionSet, Counters, DataThread, Report, Reports};
use crate::{BrokerConfig, StartError};

use liveness::Liveness;
pub(crate) use partitions::AddError;
use tally::Tally;

const WAKE: Token = Token(0);
/// The first token of the core's own connections, far above those of endpoints and sessions.
const YOUNG: usize = 1 << 48;
/// Bytes after which a connection moves to a data thread.
const BUSY: u64 = 64 * 1024;

/// Work that a [`Handle`](crate::Handle) sends here.
pub(crate) type Command = Box<dyn FnOnce(&mut Core) + Send>;

/// The way to the core thread.
#[derive(Clone)]
pub(crate) struct CoreLink {
    pub(crate) commands: Sender<Command>,
    pub(crate) waker: Arc<Waker>,
}

/// An endpoint socket: whoever connects to it is in its partition.
struct Endpoint {
    socket: OwnedFd,
    partition: PartitionKey,
    path: PathBuf,
    /// Clients may wait; it is among [`Core::busy_endpoints`].
    busy: bool,
}

/// What the core knows of a listener beyond what the fabric does.
struct ListenerRecord {
    session: usize,
    partition: PartitionKey,
    caller: Caller,
    address: SockAddrHv,
    backlog: u32,
    /// What its process wants of the connections that it accepts.
    offer: material::Offer,
    /// The option as the listener set it, for the connections that it accepts.
    connected_suspend: bool,
    started: Instant,
}

/// Whose lease a registration is.
#[derive(Clone, Copy)]
struct LeaseRecord {
    /// The serial number of its session.
    serial: u64,
    /// Where its session is, once it has a place.
    session: usize,
}

/// One end of a connection.
#[derive(Clone, Copy)]
struct EndRecord {
    partition: PartitionKey,
    caller: Caller,
}

/// Who has a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The core itself.
    Own,
    /// A data thread.
    Thread(usize),
    /// The data thread of a VM.
    Vm(PartitionKey),
}

/// What the core knows of a connection beyond what the fabric does.
struct ConnectionRecord {
    service: ServiceId,
    from: EndRecord,
    to: EndRecord,
    transport: Transport,
    counters: Arc<Counters>,
    place: Place,
    started: Instant,
}

/// Everything that the core thread owns.
pub(crate) struct Core {
    pub(crate) fabric: Fabric,
    pub(crate) events: EventBus,
    tally: Tally,
    pub(crate) dirs: Dirs,
    config: BrokerConfig,
    registry: Registry,
    endpoints: Slab<Endpoint>,
    busy_endpoints: Vec<usize>,
    shortage: accept::Shortage,
    sessions: Slab<Option<session::Session>>,
    /// Sessions that have more to say than they were heard out in their last turn.
    talking: VecDeque<usize>,
    idle: idle::Idle,
    next_serial: u64,
    leases: HashMap<ServiceId, LeaseRecord>,
    /// What files say and could not be taken in, because a lease has the GUID, name or port.
    held_back: BTreeMap<ServiceId, Box<Registration>>,
    vms: HashMap<PartitionKey, vms::VmRecord>,
    liveness: Liveness,
    /// The VMs by their context ids.
    cids: BTreeMap<GuestCid, PartitionKey>,
    listeners: HashMap<ListenerId, ListenerRecord>,
    connections: HashMap<ConnectionId, ConnectionRecord>,
    /// Connections that guests were asked for and have not accepted.
    pending: HashMap<ConnectionId, guests::Pending>,
    /// The next port for a connection to a guest.
    next_port: u32,
    reports: Reports,
    /// The descriptors of a connection to come.
    spare: Option<material::Material>,
    /// When the last connection was made.
    last_connect: Option<Instant>,
    /// Connections that have not moved much.
    young: ConnectionSet,
    threads: Vec<DataThread>,
    next_thread: usize,
    callers: Callers,
    buffer: Vec<u8>,
    stopping: bool,
}

impl Core {
    /// Sets the core up and opens the endpoint of the broker's own partition; [`Loop::run`] does
    /// the rest.
    pub(crate) fn open(
        config: BrokerConfig,
        registrations: hvsock_registry::Registry,
    ) -> Result<(Loop, CoreLink), StartError> {
        let poll = Poll::new().map_err(StartError::io("make an epoll descriptor"))?;
        let waker = Waker::new(poll.registry(), WAKE)
            .map(Arc::new)
            .map_err(StartError::io("make an eventfd descriptor"))?;
        let registry = poll
            .registry()
            .try_clone()
            .map_err(StartError::io("duplicate a descriptor"))?;
        let (queue, reports) = std::sync::mpsc::channel();
        let reporter = Reports {
            queue,
            waker: Arc::clone(&waker),
        };
        let threads = (0..config.data_threads.max(1))
            .map(|index| DataThread::start(index, reporter.clone()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(StartError::io("start a data thread"))?;
        let young = poll
            .registry()
            .try_clone()
            .map(|registry| ConnectionSet::new(registry, YOUNG, BUSY))
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
            tally: Tally::default(),
            dirs: config.dirs.clone(),
            config,
            registry,
            endpoints: Slab::new(),
            busy_endpoints: Vec::new(),
            shortage: accept::Shortage::default(),
            sessions: Slab::new(),
            talking: VecDeque::new(),
            idle: idle::Idle::default(),
            next_serial: 0,
            leases: HashMap::new(),
            held_back: BTreeMap::new(),
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
            young,
            threads,
            next_thread: 0,
            callers: Callers::new(),
            buffer: Vec::with_capacity(hvsock_endpoint::MAX_MESSAGE),
            stopping: false,
        };
        let own = core.fabric.root();
        let path = core.dirs.endpoint();
        core.open_endpoint(own, path)?;
        let (commands, queue) = std::sync::mpsc::channel();
        Ok((
            Loop {
                core,
                poll,
                commands: queue,
                reports,
            },
            CoreLink { commands, waker },
        ))
    }

    /// Ends the loop after the command that calls this.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }
}

/// The core with what wakes it.
pub(crate) struct Loop {
    core: Core,
    poll: Poll,
    commands: Receiver<Command>,
    reports: Receiver<Report>,
}

impl Loop {
    /// Runs until [`Core::stop`], or until nobody can call it any more.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.core.stopping {
            self.core.make_spare();
            let timeout = self.core.timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for events; the broker stops");
                    return;
                }
            }
            for event in &events {
                match event.token() {
                    WAKE => {}
                    Token(token) if token >= YOUNG => self.core.young.handle_event(event),
                    Token(token) if token % 2 == 1 => self.core.mark_endpoint(token / 2),
                    Token(token) => self.core.note_session(token / 2 - 1),
                }
            }
            while let Ok(report) = self.reports.try_recv() {
                self.core.take_report(report);
            }
            self.core.accept_turns();
            self.core.hear_out();
            self.core.young.run_turns();
            self.core.expire(Instant::now());
            loop {
                match self.commands.try_recv() {
                    Ok(command) => command(&mut self.core),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => self.core.stopping = true,
                }
                if self.core.stopping {
                    break;
                }
            }
            // What was done above may have ended connections, and that may end others.
            while let Some(report) = self.core.young.next_report() {
                self.core.take_report(report);
            }
        }
        self.core.young.reset_all(&Refusal::Reset {
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
