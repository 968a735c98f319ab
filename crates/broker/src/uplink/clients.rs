//! The table of guests' connections to the broker, and its limits.
//!
//! It makes no system call and reads no clock. A client has an index, by which epoll reports it and the core refers
//! to it. A client that has to be served again without an event waits for its turn.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use hvsock_endpoint::uplink::PRIVILEGED_PORTS;
use hvsock_fabric::PartitionKey;
use slab::Slab;

/// Connections of one VM from ports that any user of its guest may have. Those from privileged ports are counted
/// apart, so that no user keeps the guest's broker out.
pub(crate) const MAX_CLIENTS: usize = 64;

/// Queries on one connection.
pub(crate) const MAX_QUERIES: u32 = 64;

/// How long a guest may take for its first frame, and for each further one.
pub(crate) const QUERY_WAIT: Duration = Duration::from_secs(5);

/// How long a guest may take to read the last frame and to close its end.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// A connection that has been silent for this time makes room for another one of its guest.
const MIN_SILENCE: Duration = Duration::from_millis(250);

/// A connection. `S` is its socket and what else it holds.
#[derive(Debug)]
pub(crate) struct Client<S> {
    pub(crate) vm: PartitionKey,
    /// The guest's port. `None` on a link without ports.
    pub(crate) source_port: Option<u32>,
    pub(crate) role: Role,
    pub(crate) stream: S,
    /// Queries so far.
    pub(crate) queries: u32,
    since: Instant,
    deadline: Instant,
    queued: bool,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Look-ups and explanations, or nothing yet.
    Queries,
    /// It is the uplink of a guest's broker.
    Uplink,
    /// The broker has ended it, and waits for the guest to read the last frame.
    Closing,
}

impl<S> Client<S> {
    /// A connection that has sent no frame.
    pub(crate) fn new(vm: PartitionKey, source_port: Option<u32>, stream: S, now: Instant) -> Self {
        Self {
            vm,
            source_port,
            role: Role::Queries,
            stream,
            queries: 0,
            since: now,
            deadline: now + QUERY_WAIT,
            queued: false,
        }
    }

    /// Since when it has been silent, and when its time has passed.
    pub(crate) fn times(&self) -> (Instant, Instant) {
        (self.since, self.deadline)
    }

    /// The connection with what another process knew of it.
    pub(crate) fn resume(
        self,
        role: Role,
        queries: u32,
        (since, deadline): (Instant, Instant),
    ) -> Self {
        Self {
            role,
            queries,
            since,
            deadline,
            ..self
        }
    }

    /// Whether root of the guest has made it: it comes from a port that no other user can have.
    pub(crate) fn is_privileged(&self) -> bool {
        is_privileged(self.source_port)
    }

    fn place(&self) -> Place {
        (self.vm, self.is_privileged())
    }
}

/// The connections that are counted together.
type Place = (PartitionKey, bool);

fn is_privileged(source_port: Option<u32>) -> bool {
    source_port.is_some_and(|port| port < PRIVILEGED_PORTS)
}

/// The connections by index.
#[derive(Debug)]
pub(crate) struct Clients<S> {
    slots: Slab<Client<S>>,
    counts: HashMap<Place, usize>,
    deadlines: BTreeSet<(Instant, usize)>,
    /// Those that wait for their turn.
    turns: VecDeque<usize>,
    /// How many there have been.
    opened: u64,
}

impl<S> Default for Clients<S> {
    fn default() -> Self {
        Self {
            slots: Slab::new(),
            counts: HashMap::new(),
            deadlines: BTreeSet::new(),
            turns: VecDeque::new(),
            opened: 0,
        }
    }
}

impl<S> Clients<S> {
    /// Whether a VM may have one more connection from such a port.
    pub(crate) fn has_room(&self, vm: PartitionKey, source_port: Option<u32>) -> bool {
        let place = (vm, is_privileged(source_port));
        self.counts
            .get(&place)
            .is_none_or(|count| *count < MAX_CLIENTS)
    }

    /// The connection that makes room for another one of the same VM from such a port: that which has been silent
    /// for longest. `None` if all have sent something lately. Uplinks stay.
    pub(crate) fn most_silent(
        &self,
        vm: PartitionKey,
        source_port: Option<u32>,
        now: Instant,
    ) -> Option<usize> {
        let place = (vm, is_privileged(source_port));
        let silent = self.slots.iter().filter(|(_, client)| {
            let is_silent = now.saturating_duration_since(client.since) >= MIN_SILENCE;
            client.place() == place && client.role != Role::Uplink && is_silent
        });
        let oldest = silent.min_by_key(|(_, client)| client.since);
        oldest.map(|(index, _)| index)
    }

    /// How many connections there have been: a number that no other one has had.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// The index of the next connection to be inserted.
    pub(crate) fn next_index(&self) -> usize {
        self.slots.vacant_key()
    }

    /// Adds a connection at [`next_index`](Self::next_index).
    pub(crate) fn insert(&mut self, client: Client<S>) -> usize {
        *self.counts.entry(client.place()).or_default() += 1;
        self.opened += 1;
        let deadline = client.deadline;
        let index = self.slots.insert(client);
        self.deadlines.insert((deadline, index));
        index
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Client<S>> {
        self.slots.get(index)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Client<S>> {
        self.slots.get_mut(index)
    }

    pub(crate) fn remove(&mut self, index: usize) -> Option<Client<S>> {
        let client = self.slots.try_remove(index)?;
        self.deadlines.remove(&(client.deadline, index));
        let place = client.place();
        if let Some(count) = self.counts.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&place);
            }
        }
        Some(client)
    }

    /// All connections, in the order of their indexes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Client<S>)> {
        self.slots.iter()
    }

    /// There have been so many connections in another process.
    pub(crate) fn resume_opened(&mut self, opened: u64) {
        self.opened = opened;
    }

    /// The connections of a VM.
    pub(crate) fn of_vm(&self, vm: PartitionKey) -> Vec<usize> {
        let of_vm = self.slots.iter().filter(|(_, client)| client.vm == vm);
        of_vm.map(|(index, _)| index).collect()
    }

    /// Counts a query. Returns whether the connection may make it.
    pub(crate) fn count_query(&mut self, index: usize) -> bool {
        let Some(client) = self.slots.get_mut(index) else {
            return false;
        };
        client.queries = client.queries.saturating_add(1);
        client.queries <= MAX_QUERIES
    }

    /// Records that a frame has arrived. The next one has `wait` from now on.
    pub(crate) fn frame_arrived(&mut self, index: usize, now: Instant, wait: Duration) {
        if let Some(client) = self.slots.get_mut(index) {
            client.since = now;
            self.set_deadline(index, now + wait);
        }
    }

    /// Ends a connection once the guest has read what it was sent.
    pub(crate) fn close(&mut self, index: usize, now: Instant) {
        if let Some(client) = self.slots.get_mut(index) {
            client.role = Role::Closing;
            self.set_deadline(index, now + CLOSE_WAIT);
        }
    }

    /// Sets when a connection [expires](Self::expired).
    pub(crate) fn set_deadline(&mut self, index: usize, at: Instant) {
        if let Some(client) = self.slots.get_mut(index) {
            self.deadlines.remove(&(client.deadline, index));
            client.deadline = at;
            self.deadlines.insert((at, index));
        }
    }

    /// When [`expired`](Self::expired) has one.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A connection whose time has passed. The caller removes it or gives it another deadline.
    pub(crate) fn expired(&self, now: Instant) -> Option<usize> {
        let (at, index) = self.deadlines.first()?;
        (*at <= now).then_some(*index)
    }

    /// Has a connection wait for its turn, behind the others that do.
    pub(crate) fn enqueue(&mut self, index: usize) {
        if let Some(client) = self.slots.get_mut(index)
            && !client.queued
        {
            client.queued = true;
            self.turns.push_back(index);
        }
    }

    /// Whether a connection waits for its turn.
    pub(crate) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The connections whose turn it is. They wait no longer.
    pub(crate) fn take_turns(&mut self) -> Vec<usize> {
        let turns = std::mem::take(&mut self.turns);
        let due = turns.into_iter().filter(|index| {
            let client = self.slots.get_mut(*index);
            client.is_some_and(|client| std::mem::take(&mut client.queued))
        });
        due.collect()
    }
}

#[cfg(test)]
mod tests {
    use hvsock_fabric::{Fabric, Limits, PartitionKind, RootSpec};

    use super::*;

    /// The key of some partition.
    fn vm() -> PartitionKey {
        let root = RootSpec {
            kind: PartitionKind::Host,
            vm_id: hvsock_address::VmId::of_container("base"),
            name: "base".parse().unwrap(),
        };
        Fabric::new(root, Limits::default(), 0).root()
    }

    fn full(now: Instant) -> Clients<()> {
        let mut clients = Clients::default();
        for _ in 0..MAX_CLIENTS {
            assert!(clients.has_room(vm(), Some(5000)));
            clients.insert(Client::new(vm(), Some(5000), (), now));
        }
        clients
    }

    #[test]
    fn unprivileged_connections_leave_room_for_the_guests_broker() {
        let now = Instant::now();
        let mut clients = full(now);
        assert!(!clients.has_room(vm(), Some(5000)) && !clients.has_room(vm(), None));
        assert!(clients.has_room(vm(), Some(1023)));
        clients.insert(Client::new(vm(), Some(1023), (), now));
        assert!(!clients.has_room(vm(), Some(1024)));
        clients.remove(0);
        assert!(clients.has_room(vm(), None));
        for index in clients.of_vm(vm()) {
            clients.remove(index);
        }
        assert!(clients.counts.is_empty() && clients.deadlines.is_empty());
    }

    #[test]
    fn the_most_silent_connection_makes_room_unless_all_are_busy() {
        let start = Instant::now();
        let mut clients = full(start);
        assert_eq!(clients.most_silent(vm(), None, start), None);
        let later = start + MIN_SILENCE;
        clients.frame_arrived(0, later, QUERY_WAIT);
        assert_eq!(clients.most_silent(vm(), None, later), Some(1));
        assert_eq!(clients.most_silent(vm(), Some(1), later), None);
        clients.get_mut(1).unwrap().role = Role::Uplink;
        assert_eq!(clients.most_silent(vm(), None, later), Some(2));
    }

    #[test]
    fn each_frame_has_its_own_deadline() {
        let start = Instant::now();
        let mut clients: Clients<()> = Clients::default();
        let index = clients.insert(Client::new(vm(), None, (), start));
        assert_eq!(clients.next_deadline(), Some(start + QUERY_WAIT));
        let second = Duration::from_secs(1);
        clients.frame_arrived(index, start + second, QUERY_WAIT);
        assert_eq!(clients.expired(start + QUERY_WAIT), None);
        assert_eq!(clients.expired(start + second + QUERY_WAIT), Some(index));
        clients.close(index, start);
        assert_eq!(clients.next_deadline(), Some(start + CLOSE_WAIT));
        assert!((0..MAX_QUERIES).all(|_| clients.count_query(index)));
        assert!(!clients.count_query(index));
    }

    #[test]
    fn a_connection_waits_for_one_turn_at_a_time() {
        let mut clients: Clients<()> = Clients::default();
        let now = Instant::now();
        let first = clients.insert(Client::new(vm(), None, (), now));
        let gone = clients.insert(Client::new(vm(), None, (), now));
        for index in [gone, first, first] {
            clients.enqueue(index);
        }
        clients.remove(gone);
        assert!(clients.has_turns());
        assert_eq!(clients.take_turns(), [first]);
        assert!(!clients.has_turns());
        clients.enqueue(first);
        assert_eq!(clients.take_turns(), [first]);
    }
}
