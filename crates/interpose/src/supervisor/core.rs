//! The state of a supervisor, and what all of its parts use.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use hvsock::Refusal;
use hvsock_address::VmId;
use hvsock_endpoint::{ClientMessage, Refused};
use hvsock_sys::event::Set;
use hvsock_sys::foreign_socket;
use hvsock_sys::identity::Identity;
use hvsock_sys::impersonation;
use hvsock_sys::limits;
use hvsock_sys::remote::Credentials;
use hvsock_sys::seccomp::Notification;

use super::backlogs::Backlogs;
use super::ends::Ends;
use super::exchange::{Exchange, Purpose};
use super::prepared::Prepared;
use super::probes::Probes;
use super::program::Program;
use super::settings::{Event, Settings};
use super::sweeps::{MAX_SOCKETS, Sweep};
use super::table::Entry;
use super::waiting::{Wait, WaitKind, Waits};
use crate::broker::{Connection, OpenError};
use crate::model::{Errno, MAX_LEN, OwnCid, Ports};

/// The number of the event that ends the supervisor. The others follow it.
pub(crate) const STOP: u64 = 0;
/// The number of the end of bound sockets.
pub(crate) const CLOSED: u64 = STOP + 1;

/// How often a client whose broker is busy tries again.
const BUSY_RETRY: Duration = Duration::from_millis(2);
/// How long the context id of a partition is remembered.
const CID_LIFETIME: Duration = Duration::from_secs(10);

/// The requests that wait for the broker at most. A program can close a socket while it connects and begin again.
const MAX_EXCHANGES: usize = 4096;

/// The supervisor of the programs under one filter.
pub(crate) struct Core {
    pub(crate) program: Program,
    pub(crate) settings: Settings,
    /// What the supervisor waits for besides the program's calls.
    pub(crate) set: Set,
    /// By the inode of the Unix socket.
    pub(crate) sockets: HashMap<u64, Entry>,
    pub(crate) ports: Ports<u64>,
    pub(crate) own: OwnCid,
    pub(crate) exchanges: HashMap<u64, Exchange>,
    /// The inodes of listening sockets by the numbers of their listeners in the set.
    pub(crate) listeners: HashMap<u64, u64>,
    pub(crate) waits: Waits,
    /// Calls of `connect` to decide once no other call waits.
    pub(crate) connects: VecDeque<Notification>,
    pub(crate) backlogs: Backlogs,
    /// Calls to decide once more, since what they waited for has come.
    pub(crate) again: Vec<Notification>,
    /// Leases, which last as long as the supervisor.
    pub(crate) leases: Vec<Connection>,
    /// When a listener was last closed: the broker may still have it for a moment.
    pub(crate) listener_closed: Option<Instant>,
    pub(crate) ends: Ends,
    pub(crate) probes: Probes,
    pub(crate) sweep: Sweep,
    /// How many sockets may be bound, and about how many connections are received ahead for all of them.
    pub(crate) max_bound: usize,
    /// How many connections wait to be accepted, of all listeners.
    pub(crate) incoming: usize,
    /// The network namespace of the sockets that are made here.
    pub(crate) namespace: Option<u64>,
    pub(crate) prepared: Prepared,
    /// The device number of all sockets.
    pub(crate) device: Option<u64>,
    cids: HashMap<VmId, (u32, Instant)>,
    next_number: u64,
    identity: Identity,
    own_credentials: Option<Credentials>,
    has_reported_access: bool,
}

impl Core {
    pub(crate) fn new(program: Program, settings: Settings, set: Set, own: OwnCid) -> Self {
        let random = std::collections::hash_map::RandomState::new();
        let random = std::hash::BuildHasher::hash_one(&random, std::process::id());
        Self {
            program,
            settings,
            set,
            sockets: HashMap::new(),
            ports: Ports::new(random as u32),
            own,
            exchanges: HashMap::new(),
            listeners: HashMap::new(),
            waits: Waits::default(),
            connects: VecDeque::new(),
            backlogs: Backlogs::default(),
            again: Vec::new(),
            leases: Vec::new(),
            listener_closed: None,
            ends: Ends::default(),
            probes: Probes::new(Instant::now()),
            sweep: Sweep::new(Instant::now()),
            max_bound: max_bound(limits::descriptors()),
            incoming: 0,
            namespace: foreign_socket::create(true)
                .ok()
                .and_then(foreign_socket::namespace),
            prepared: Prepared::default(),
            device: None,
            cids: HashMap::new(),
            next_number: CLOSED + 1,
            identity: Identity::now(),
            own_credentials: impersonation::own().ok(),
            has_reported_access: false,
        }
    }

    /// A number that nothing else of this supervisor has.
    pub(crate) fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Tells the owner of the supervisor.
    pub(crate) fn report(&mut self, event: Event) {
        (self.settings.on_event)(event);
    }

    /// Reports once that programs cannot be served since this process may not look at them.
    pub(crate) fn report_no_access(&mut self, call: &Notification) {
        if !self.has_reported_access {
            self.has_reported_access = true;
            let process = call.thread.number();
            self.report(Event::NoAccess { process });
        }
    }

    /// Adds a socket of the program.
    ///
    /// # Errors
    ///
    /// `ENFILE` if there are too many.
    pub(crate) fn insert(&mut self, inode: u64, entry: Entry) -> Result<(), Errno> {
        if self.sockets.len() >= MAX_SOCKETS {
            return Err(Errno::ENFILE);
        }
        // The system uses the number of a closed socket again.
        self.remove(inode);
        self.sockets.insert(inode, entry);
        Ok(())
    }

    /// Whether there is space for another socket.
    pub(crate) fn check_space(&mut self) -> Result<(), Errno> {
        self.sweep(Instant::now());
        match self.sockets.len() < MAX_SOCKETS {
            true => Ok(()),
            false => Err(Errno::ENFILE),
        }
    }

    /// Forgets a socket that the program has closed.
    pub(crate) fn remove(&mut self, inode: u64) {
        self.ports.release(inode);
        let Some(entry) = self.sockets.remove(&inode) else {
            return;
        };
        if entry.name.is_some() {
            self.probes.changed(Instant::now());
        }
        self.ends.forget(entry.watch);
        if let Some(listening) = entry.listening {
            self.listeners.remove(&listening.number);
            self.incoming -= listening.incoming.len();
            self.listener_closed = Some(Instant::now());
            for number in listening.calls {
                if let Some(wait) = self.waits.remove(&number) {
                    self.program.answer(&wait.call, Err(Errno::EBADF));
                }
            }
        }
        if let Some(number) = entry.attempt {
            self.exchanges.remove(&number);
        }
    }

    /// Whose rights the broker is to judge a call by: those of its thread, if they are not this process's.
    ///
    /// # Errors
    ///
    /// `EPERM` if they cannot be found out.
    pub(crate) fn credentials(&self, call: &Notification) -> Result<Option<Credentials>, Errno> {
        // Nobody else can become another user.
        if self.identity.uid != 0 {
            return Ok(None);
        }
        let credentials = self.program.credentials(call)?;
        Ok((self.own_credentials.as_ref() != Some(&credentials)).then_some(credentials))
    }

    /// The address that a program gave to `bind` or `connect`.
    pub(crate) fn read_address(&self, call: &Notification) -> Result<Vec<u8>, Errno> {
        match usize::try_from(call.args[2] as i32) {
            Ok(len) if len <= MAX_LEN => self.program.read(call, call.args[1], len),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Sends messages to the broker on a connection of their own. What it answers goes to `purpose`.
    ///
    /// # Errors
    ///
    /// If there is no broker, or none can be reached.
    pub(crate) fn start(
        &mut self,
        purpose: Purpose,
        messages: Vec<ClientMessage>,
        credentials: Option<Credentials>,
        timeout: Duration,
    ) -> Result<u64, OpenError> {
        self.check_exchange_space()?;
        let number = self.number();
        let now = Instant::now();
        let mut exchange = Exchange {
            connection: None,
            outbox: messages,
            again: None,
            credentials,
            deadline: now + timeout,
            retry_at: None,
            purpose,
        };
        self.open(number, &mut exchange, now)?;
        self.exchanges.insert(number, exchange);
        Ok(number)
    }

    /// As [`start`](Self::start), on a prepared connection, where ATTACH was sent before. If the broker closes that without
    /// an answer, the exchange begins anew.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(crate) fn start_on(
        &mut self,
        connection: Connection,
        purpose: Purpose,
        messages: Vec<ClientMessage>,
        credentials: Option<Credentials>,
        timeout: Duration,
    ) -> Result<u64, OpenError> {
        self.check_exchange_space()?;
        let number = self.number();
        let is_missing =
            |message: &&ClientMessage| !matches!(message, ClientMessage::Attach { .. });
        for message in messages.iter().filter(is_missing) {
            connection.send(message);
        }
        self.set
            .add(&connection, number)
            .map_err(OpenError::System)?;
        let exchange = Exchange {
            connection: Some(connection),
            outbox: Vec::new(),
            again: Some(messages),
            credentials,
            deadline: Instant::now() + timeout,
            retry_at: None,
            purpose,
        };
        self.exchanges.insert(number, exchange);
        Ok(number)
    }

    /// As [`start`](Self::start), for a connect that waits for space in the backlog of its listener, if that is so.
    ///
    /// # Errors
    ///
    /// If there is no broker, or none can be reached.
    pub(crate) fn start_held(
        &mut self,
        purpose: Purpose,
        messages: Vec<ClientMessage>,
        credentials: Option<Credentials>,
        timeout: Duration,
    ) -> Result<u64, OpenError> {
        self.check_exchange_space()?;
        let (number, now) = (self.number(), Instant::now());
        let mut exchange = Exchange {
            connection: None,
            outbox: messages,
            again: None,
            credentials,
            deadline: now + timeout,
            retry_at: None,
            purpose,
        };
        if !self.hold(number, &mut exchange) {
            self.open(number, &mut exchange, now)?;
        }
        self.exchanges.insert(number, exchange);
        Ok(number)
    }

    fn check_exchange_space(&self) -> Result<(), OpenError> {
        match self.exchanges.len() < MAX_EXCHANGES {
            true => Ok(()),
            false => {
                let full = std::io::Error::from_raw_os_error(libc::ENOBUFS);
                Err(OpenError::System(full))
            }
        }
    }

    /// Opens the connection of an exchange and sends what waits; later, if the broker is busy.
    ///
    /// # Errors
    ///
    /// Other than [`OpenError::Busy`].
    pub(crate) fn open(
        &self,
        number: u64,
        exchange: &mut Exchange,
        now: Instant,
    ) -> Result<(), OpenError> {
        exchange.retry_at = None;
        exchange.connection = None;
        match Connection::open(&self.settings.endpoint, exchange.credentials.as_ref()) {
            Ok(connection) => {
                for message in exchange.outbox.drain(..) {
                    connection.send(&message);
                }
                let added = self.set.add(&connection, number);
                added.map_err(OpenError::System)?;
                exchange.connection = Some(connection);
                Ok(())
            }
            Err(OpenError::Busy) => {
                exchange.retry_at = Some(now + BUSY_RETRY);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps a call waiting.
    pub(crate) fn wait(&mut self, call: Notification, kind: WaitKind) -> u64 {
        let number = self.number();
        let since = Instant::now();
        let wait = Wait { call, since, kind };
        self.waits.insert(number, wait);
        number
    }

    /// The context id of a partition, if it was asked for lately.
    pub(crate) fn known_cid(&self, partition: VmId) -> Option<u32> {
        match partition {
            VmId::LOOPBACK => Some(self.own.0),
            VmId::PARENT => Some(hvsock_address::SockAddrVm::CID_HOST),
            id => {
                let (cid, asked) = self.cids.get(&id)?;
                (asked.elapsed() < CID_LIFETIME).then_some(*cid)
            }
        }
    }

    /// Remembers the context id of a partition.
    pub(crate) fn learn_cid(&mut self, partition: VmId, cid: u32) {
        const MAX: usize = 4096;
        if self.cids.len() >= MAX {
            self.cids.clear();
        }
        self.cids.insert(partition, (cid, Instant::now()));
    }

    /// Closes the sockets in `inodes` that the program has closed.
    pub(crate) fn remove_closed(&mut self, inodes: &[u64]) {
        for inode in inodes {
            if self.sockets.get(inode).is_some_and(Entry::is_closed) {
                self.remove(*inode);
            }
        }
    }
}

/// How many sockets may be bound: each takes a descriptor here, and another one if it listens. The others are for
/// connects and for connections that nobody has accepted, so a program that binds without end stops no other one.
fn max_bound(descriptors: u64) -> usize {
    let share = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
    share.min(MAX_SOCKETS / 2)
}

/// The inode of a descriptor of this process.
pub(crate) fn inode_of(fd: impl std::os::fd::AsFd) -> Result<u64, Errno> {
    foreign_socket::inode(fd).map_err(|error| Errno::of(&error))
}

/// The reason in a message of the broker.
pub(crate) fn refusal_in(refused: &Refused) -> Refusal {
    Refusal::from_wire(refused.code, &refused.detail)
}

/// What a call fails with if the broker cannot be reached: as where the kernel has no transport.
pub(crate) fn unreachable(error: &OpenError) -> Errno {
    match error {
        OpenError::NoBroker | OpenError::Busy => Errno::ENODEV,
        OpenError::System(error) => Errno::of(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_sockets_leave_most_descriptors_to_others() {
        assert_eq!(max_bound(1024), 256);
        assert_eq!(max_bound(1 << 20), MAX_SOCKETS / 2);
        assert_eq!(max_bound(u64::MAX), MAX_SOCKETS / 2);
    }
}
