//! The fabric: its state, queries and socket events.

use std::collections::{HashMap, VecDeque};

use hvsock_address::{ElementName, PartitionName, PartitionRef, ServiceId, VmId};
use hvsock_registry::{Principal, Registry, Requester};

use crate::partition::{Partition, PartitionState, RootSpec};
use crate::tables::{Binding, Connection, ListenAddress, Listener};
use crate::tree::{Relation, Tree};
use crate::{
    Changes, ConnectionEnd, ConnectionId, Destination, Effect, Limits, ListenerId, Operators,
    PartitionKey, Refusal,
};

/// Partitions, their registries, and their listeners and connections.
///
/// A state machine without I/O, clock or threads. Its owner reports events to it and applies its
/// effects. There are four families of functions:
///
/// - Queries take `&self` and change nothing: [`partition`](Self::partition),
///   [`listener`](Self::listener), [`connection`](Self::connection), [`judge`](Self::judge). Also
///   [`explain_connect`](Self::explain_connect) and [`explain_listen`](Self::explain_listen), which run
///   the same checks as the requests.
/// - Requests come from processes, which are untrusted: [`listen`](Self::listen) and
///   [`connect`](Self::connect). They are checked, and their cost does not grow with the number of
///   partitions, listeners or connections.
/// - Events come from the owners of sockets: [`accepted`](Self::accepted),
///   [`close_listener`](Self::close_listener), [`close_connection`](Self::close_connection),
///   [`set_connected_suspend`](Self::set_connected_suspend).
/// - Changes come from operators, who are trusted: partitions, their states and groups, and
///   registrations. A change closes the connections and listeners that it no longer allows.
///
/// Events and changes have effects: after each, call [`poll_effect`](Self::poll_effect) until it
/// returns `None`.
#[derive(Debug)]
pub struct Fabric {
    pub(crate) tree: Tree,
    pub(crate) limits: Limits,
    pub(crate) operators: Operators,
    /// Whether every listener is known here: see [`without_listeners`](Self::without_listeners).
    pub(crate) sees_listeners: bool,
    /// Whether the registry of the outer partition is what its host says at present.
    pub(crate) outer_is_mirrored: bool,
    pub(crate) listeners: HashMap<ListenerId, Listener>,
    /// Listeners by address.
    pub(crate) addresses: HashMap<ListenAddress, ListenerId>,
    pub(crate) connections: HashMap<ConnectionId, Connection>,
    /// The weight of all connections.
    pub(crate) weight: usize,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) next_listener: ListenerId,
    pub(crate) next_connection: ConnectionId,
    pub(crate) generation: u64,
    pub(crate) changes: Changes,
}

impl Fabric {
    /// A fabric with only a root partition. `broker_uid` is the user that the broker runs as, one of its
    /// [operators](Operators).
    pub fn new(root: RootSpec, limits: Limits, broker_uid: u32) -> Self {
        Self::with_operators(root, limits, Operators::of_broker(broker_uid))
    }

    /// A fabric with only a root partition and these operators.
    pub fn with_operators(root: RootSpec, limits: Limits, operators: Operators) -> Self {
        Self {
            tree: Tree::new(root),
            limits,
            operators,
            sees_listeners: true,
            outer_is_mirrored: false,
            listeners: HashMap::new(),
            addresses: HashMap::new(),
            connections: HashMap::new(),
            weight: 0,
            effects: VecDeque::new(),
            next_listener: ListenerId::from_u64(1),
            next_connection: ConnectionId::from_u64(1),
            generation: 0,
            changes: Changes::default(),
        }
    }

    /// A fabric for explanations on a system where the kernel makes the connections and does not reveal
    /// its listeners, such as Windows. A connect that passes all other checks has the destination
    /// [`Destination::Guest`]. There is no broker user.
    pub fn without_listeners(root: RootSpec, limits: Limits) -> Self {
        Self {
            sees_listeners: false,
            ..Self::with_operators(root, limits, Operators::root_only())
        }
    }

    /// The size limits of the tables.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Who may change partitions, registrations and connections.
    pub fn operators(&self) -> &Operators {
        &self.operators
    }

    /// Checks that a process in the partition `from` may register a service for as long as the process
    /// lives.
    ///
    /// # Errors
    /// [`Refusal::Denied`] with the rule, unless the user is an [operator](Operators) in the root
    /// partition.
    pub fn check_lease(&self, from: PartitionKey, principal: &Principal) -> Result<(), Refusal> {
        self.operators.check_lease(principal, from == self.root())
    }

    /// The root partition.
    pub fn root(&self) -> PartitionKey {
        self.tree.root()
    }

    /// A process of a partition as a requester towards another's registry. Whether it is root in its
    /// partition matters to a listener only.
    pub fn as_requester<'a>(&'a self, partition: &'a Partition, is_root: bool) -> Requester<'a> {
        self.tree.requester(partition, is_root)
    }

    /// A partition.
    pub fn partition(&self, key: PartitionKey) -> Option<&Partition> {
        self.tree.get(key)
    }

    /// All partitions.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionKey, &Partition)> {
        self.tree.iter()
    }

    /// The partition with this id.
    pub fn by_vm_id(&self, id: VmId) -> Option<PartitionKey> {
        self.tree.by_vm_id(id)
    }

    /// The partition with this name, ignoring case.
    pub fn by_name(&self, name: &PartitionName) -> Option<PartitionKey> {
        self.tree.by_name(name)
    }

    /// The partition that an operator names by name or id. `None` for a well-known id.
    pub fn find(&self, partition: &PartitionRef) -> Option<PartitionKey> {
        match partition {
            PartitionRef::Id(id) if id.is_well_known() => None,
            PartitionRef::Id(id) => self.by_vm_id(*id),
            PartitionRef::Name(name) => self.by_name(name),
        }
    }

    /// The effective state of a partition: its own state limited by those of its ancestors. A container
    /// in a paused VM is paused too. A partition that does not exist is off.
    pub fn state(&self, key: PartitionKey) -> PartitionState {
        self.tree.state(key)
    }

    /// The service registry of a partition. `None` for a container.
    pub fn registry(&self, key: PartitionKey) -> Option<&Registry> {
        self.tree.get(key)?.registry()
    }

    /// The id by which a process in `from` reaches the partition with this name. `None` if it cannot
    /// reach it, so that names of other partitions stay hidden. The root partition sees all names.
    pub fn vm_id_by_name(&self, from: PartitionKey, name: &PartitionName) -> Option<VmId> {
        let key = self.tree.by_name(name)?;
        let (source, target) = (self.tree.get(from)?, self.tree.get(key)?);
        match self.tree.relation(from, key) {
            Some(Relation::Itself) => Some(VmId::LOOPBACK),
            Some(Relation::Parent) => Some(VmId::PARENT),
            Some(Relation::Child) => Some(target.vm_id),
            Some(Relation::Sibling) if source.shares_group(target) => Some(target.vm_id),
            Some(Relation::Grandparent | Relation::Grandchild) => Some(target.vm_id),
            _ if from == self.root() => Some(target.vm_id),
            _ => None,
        }
    }

    /// The service that a process in `from` names by its friendly name, according to its own
    /// partition's registry, or else its parent's.
    pub fn service_id_by_name(&self, from: PartitionKey, name: &ElementName) -> Option<ServiceId> {
        let partition = self.tree.get(from)?;
        let is_known = |key: &_| self.outer_is_mirrored || Some(*key) != self.tree.outer();
        let in_registry = |key| self.registry(Some(key).filter(is_known)?)?.by_name(name);
        let found = in_registry(from).or_else(|| in_registry(partition.parent?))?;
        Some(found.id)
    }

    /// The service that the guest `from` addresses by a vsock port at its parent or a sibling: the one
    /// registered with this port (from the template or an alias), or else the one on the template.
    pub fn service_for_port(&self, from: PartitionKey, port: u32) -> ServiceId {
        let parent = self.tree.get(from).and_then(|from| from.parent);
        let registry = parent.and_then(|parent| self.registry(parent));
        let registered = registry.and_then(|registry| registry.by_port(port));
        registered.map_or(ServiceId::from_port(port), |found| found.id)
    }

    /// A listener.
    pub fn listener(&self, id: ListenerId) -> Option<&Listener> {
        self.listeners.get(&id)
    }

    /// All listeners, in arbitrary order.
    pub fn listeners(&self) -> impl ExactSizeIterator<Item = (ListenerId, &Listener)> {
        self.listeners.iter().map(|(id, listener)| (*id, listener))
    }

    /// A connection.
    pub fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(&id)
    }

    /// All connections, in arbitrary order.
    pub fn connections(&self) -> impl ExactSizeIterator<Item = (ConnectionId, &Connection)> {
        self.connections
            .iter()
            .map(|(id, connection)| (*id, connection))
    }

    pub(crate) fn listener_mut(&mut self, destination: Destination) -> Option<&mut Listener> {
        self.listeners.get_mut(&destination.listener()?)
    }

    /// Reports that the listener's process or the guest accepted the connection. This frees its slot in
    /// the backlog.
    pub fn accepted(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.waiting = false;
        let destination = connection.destination;
        if let Some(listener) = self.listener_mut(destination) {
            listener.waiting.remove(&id);
        }
    }

    /// Sets the socket option `HVSOCKET_CONNECTED_SUSPEND` of one end: whether the connection is
    /// suspended instead of reset while a partition is paused. One end with the option is enough. A
    /// guest's kernel has no such option, so for a connection with a guest only the other end decides.
    #[doc(alias = "HVSOCKET_CONNECTED_SUSPEND")]
    pub fn set_connected_suspend(&mut self, id: ConnectionId, end: ConnectionEnd, keep: bool) {
        if let Some(connection) = self.connections.get_mut(&id) {
            match end {
                ConnectionEnd::Client => connection.client_connected_suspend = keep,
                ConnectionEnd::Server => connection.server_connected_suspend = keep,
            }
        }
    }

    /// Reports that the listener's process closed it. Pending connections are reset.
    pub fn close_listener(&mut self, id: ListenerId) {
        if let Some(listener) = self.forget_listener(id) {
            for id in listener.waiting {
                self.reset_connection(id, &Refusal::NoListener);
            }
        }
    }

    /// Reports that both ends of the connection are closed. Has no effects.
    pub fn close_connection(&mut self, id: ConnectionId) {
        self.forget_connection(id);
    }

    /// A number that grows with every change that may alter a verdict. It is not in a snapshot, and says
    /// nothing about another fabric.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What has changed since the last call. Everything, in a fabric that was restored.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Records a change that concerns verdicts about one service only.
    pub(crate) fn service_changed(&mut self, service: ServiceId) {
        self.generation += 1;
        self.changes.add(service);
    }

    /// Records a change that may concern any verdict.
    pub(crate) fn anything_changed(&mut self) {
        self.generation += 1;
        self.changes = Changes::All;
    }

    /// The next effect to apply, in order. `None` when all are applied.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Resets a connection. Does nothing if it does not exist.
    pub(crate) fn reset_connection(&mut self, id: ConnectionId, refusal: &Refusal) {
        if self.forget_connection(id).is_some() {
            let refusal = refusal.clone();
            self.effects
                .push_back(Effect::ResetConnection { id, refusal });
        }
    }

    /// Closes a listener and resets its pending connections.
    pub(crate) fn terminate_listener(&mut self, id: ListenerId, refusal: Refusal) {
        if let Some(listener) = self.forget_listener(id) {
            for id in listener.waiting {
                self.reset_connection(id, &refusal);
            }
            self.effects
                .push_back(Effect::CloseListener { id, refusal });
        }
    }

    /// Adds a listener to the table and all indexes.
    pub(crate) fn insert_listener(&mut self, id: ListenerId, listener: Listener) {
        self.service_changed(listener.service);
        for owner in listener.owners.into_iter().flatten() {
            if let Some(owner) = self.tree.get_mut(owner) {
                let dependents = owner.dependents.entry(listener.service).or_default();
                dependents.listeners.insert(id);
            }
        }
        if let Some(partition) = self.tree.get_mut(listener.partition) {
            partition.listeners.insert(id);
        }
        if let Binding::Partition(key) = listener.binding
            && let Some(partition) = self.tree.get_mut(key)
        {
            partition.watchers.insert(id);
        }
        self.addresses.insert(listener.address(), id);
        self.listeners.insert(id, listener);
    }

    /// Adds a connection to the table and all indexes.
    pub(crate) fn insert_connection(&mut self, id: ConnectionId, connection: Connection) {
        let weight = connection.weight as usize;
        self.weight += weight;
        for key in [connection.source, connection.target] {
            if let Some(partition) = self.tree.get_mut(key)
                && partition.connections.insert(id)
            {
                partition.weight += weight;
            }
        }
        if let Some(owner) = connection.registry.and_then(|key| self.tree.get_mut(key)) {
            let dependents = owner.dependents.entry(connection.service).or_default();
            dependents.connections.insert(id);
        }
        if connection.waiting
            && let Some(listener) = self.listener_mut(connection.destination)
        {
            listener.waiting.insert(id);
        }
        self.connections.insert(id, connection);
    }

    fn forget_listener(&mut self, id: ListenerId) -> Option<Listener> {
        let listener = self.listeners.remove(&id)?;
        self.service_changed(listener.service);
        self.addresses.remove(&listener.address());
        if let Some(partition) = self.tree.get_mut(listener.partition) {
            partition.listeners.remove(&id);
        }
        if let Binding::Partition(key) = listener.binding
            && let Some(partition) = self.tree.get_mut(key)
        {
            partition.watchers.remove(&id);
        }
        for owner in listener.owners.into_iter().flatten() {
            if let Some(owner) = self.tree.get_mut(owner) {
                owner.release(listener.service, |dependents| {
                    dependents.listeners.remove(&id)
                });
            }
        }
        Some(listener)
    }

    pub(crate) fn forget_connection(&mut self, id: ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        let weight = connection.weight as usize;
        self.weight -= weight;
        for key in [connection.source, connection.target] {
            if let Some(partition) = self.tree.get_mut(key)
                && partition.connections.remove(&id)
            {
                partition.weight -= weight;
            }
        }
        if let Some(owner) = connection.registry.and_then(|key| self.tree.get_mut(key)) {
            owner.release(connection.service, |dependents| {
                dependents.connections.remove(&id)
            });
        }
        if connection.waiting
            && let Some(listener) = self.listener_mut(connection.destination)
        {
            listener.waiting.remove(&id);
        }
        Some(connection)
    }
}
