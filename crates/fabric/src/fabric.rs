//! The fabric: its state, queries, requests and socket events.

use std::collections::{HashMap, VecDeque};

use hvsock_address::{ElementName, PartitionName, PartitionRef, ServiceId, SockAddrHv, VmId};
use hvsock_registry::Registry;

use crate::boundary::Boundary;
use crate::evaluate_connect::Plan;
use crate::explain::{AccessExplanation, Audience, NoTrace, Recorder, Verdict};
use crate::partition::{Partition, PartitionState, RootSpec};
use crate::tables::{Binding, Connection, ListenAddress, Listener};
use crate::tree::{Relation, Tree};
use crate::{
    ConnectRequest, ConnectionEnd, ConnectionId, Destination, Effect, Limits, ListenRequest,
    ListenerId, PartitionKey, Refusal, Route,
};

/// Partitions, their registries, and their listeners and connections.
///
/// A state machine without I/O, clock or threads. Its owner reports events to it and applies its
/// effects. There are four families of functions:
///
/// - Queries take `&self` and change nothing: [`partition`](Self::partition),
///   [`listener`](Self::listener), [`connection`](Self::connection). Also
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
    pub(crate) broker_uid: u32,
    /// Whether every listener is known here: see [`without_listeners`](Self::without_listeners).
    pub(crate) sees_listeners: bool,
    pub(crate) listeners: HashMap<ListenerId, Listener>,
    /// Listeners by address.
    pub(crate) addresses: HashMap<ListenAddress, ListenerId>,
    pub(crate) connections: HashMap<ConnectionId, Connection>,
    pub(crate) effects: VecDeque<Effect>,
    next_listener: ListenerId,
    next_connection: ConnectionId,
}

impl Fabric {
    /// A fabric with only a root partition. `broker_uid` is the user that the broker runs as. Access
    /// rules do not restrict this user, like root.
    pub fn new(root: RootSpec, limits: Limits, broker_uid: u32) -> Self {
        Self {
            tree: Tree::new(root),
            limits,
            broker_uid,
            sees_listeners: true,
            listeners: HashMap::new(),
            addresses: HashMap::new(),
            connections: HashMap::new(),
            effects: VecDeque::new(),
            next_listener: ListenerId::from_u64(1),
            next_connection: ConnectionId::from_u64(1),
        }
    }

    /// A fabric for explanations on a system where the kernel makes the connections and does not reveal
    /// its listeners, such as Windows. A connect that passes all other checks has the destination
    /// [`Destination::Guest`]. There is no broker user.
    pub fn without_listeners(root: RootSpec, limits: Limits) -> Self {
        Self {
            sees_listeners: false,
            ..Self::new(root, limits, u32::MAX)
        }
    }

    /// The size limits of the tables.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The root partition.
    pub fn root(&self) -> PartitionKey {
        self.tree.root()
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
            _ if from == self.root() => Some(target.vm_id),
            _ => None,
        }
    }

    /// The service that a process in `from` names by its friendly name, according to its own
    /// partition's registry, or else its parent's.
    pub fn service_id_by_name(&self, from: PartitionKey, name: &ElementName) -> Option<ServiceId> {
        let partition = self.tree.get(from)?;
        let in_registry = |key| self.registry(key)?.by_name(name);
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

    /// What [`connect`](Self::connect) would return, and why. Changes nothing.
    pub fn explain_connect(
        &self,
        request: &ConnectRequest<'_>,
        audience: Audience,
    ) -> AccessExplanation {
        let mut recorder = Recorder::new(audience);
        let plan = self.evaluate_connect(request, &mut recorder);
        recorder.explain(plan.map(|plan| Verdict::Connect {
            target: plan.target,
            destination: plan.destination,
        }))
    }

    /// What [`listen`](Self::listen) would return, and why. Changes nothing.
    pub fn explain_listen(
        &self,
        request: &ListenRequest<'_>,
        audience: Audience,
    ) -> AccessExplanation {
        let mut recorder = Recorder::new(audience);
        let binding = self.evaluate_listen(request, &mut recorder);
        recorder.explain(binding.map(|_| Verdict::Listen))
    }

    /// Creates a listener.
    ///
    /// # Errors
    /// The [`Refusal`] of the first check that fails. Nothing is changed.
    pub fn listen(&mut self, request: &ListenRequest<'_>) -> Result<ListenerId, Refusal> {
        let binding = self.evaluate_listen(request, &mut NoTrace)?;
        let id = self.next_listener;
        self.next_listener = id.next();
        let listener = Listener {
            partition: request.from,
            vm: request.vm,
            binding,
            service: request.service,
            principal: request.principal.clone(),
            backlog: request.backlog.clamp(1, self.limits.backlog_max.max(1)),
            waiting: Default::default(),
            owners: self.owners_of(request.from, binding),
        };
        for owner in listener.owners.into_iter().flatten() {
            if let Some(owner) = self.tree.get_mut(owner) {
                owner
                    .dependents
                    .entry(listener.service)
                    .or_default()
                    .listeners
                    .insert(id);
            }
        }
        if let Some(partition) = self.tree.get_mut(listener.partition) {
            partition.listeners.insert(id);
        }
        if let Binding::Partition(key) = binding
            && let Some(partition) = self.tree.get_mut(key)
        {
            partition.watchers.insert(id);
        }
        self.addresses.insert(listener.address(), id);
        self.listeners.insert(id, listener);
        Ok(id)
    }

    /// Creates a pending connection to a listener or a guest.
    ///
    /// # Errors
    /// The [`Refusal`] of the first check that fails. Nothing is changed.
    pub fn connect(&mut self, request: &ConnectRequest<'_>) -> Result<Route, Refusal> {
        let plan = self.evaluate_connect(request, &mut NoTrace)?;
        let id = self.next_connection;
        self.next_connection = id.next();
        let service = request.service;
        for key in [request.from, plan.target] {
            if let Some(partition) = self.tree.get_mut(key) {
                partition.connections.insert(id);
            }
        }
        if let Some(owner) = plan.registry.and_then(|key| self.tree.get_mut(key)) {
            owner
                .dependents
                .entry(service)
                .or_default()
                .connections
                .insert(id);
        }
        if let Some(listener) = self.listener_mut(plan.destination) {
            listener.waiting.insert(id);
        }
        self.connections.insert(
            id,
            Connection {
                source: request.from,
                target: plan.target,
                destination: plan.destination,
                service,
                registry: plan.registry,
                waiting: true,
                suspended: false,
                client_connected_suspend: false,
                server_connected_suspend: false,
            },
        );
        Ok(self.route(id, request, &plan))
    }

    fn route(&self, connection: ConnectionId, request: &ConnectRequest<'_>, plan: &Plan) -> Route {
        let id_of = |key| self.tree.get(key).map_or(VmId::ZERO, Partition::vm_id);
        let (server, client) = match plan.relation {
            Relation::Itself => (VmId::LOOPBACK, VmId::LOOPBACK),
            Relation::Parent => (VmId::PARENT, id_of(request.from)),
            Relation::Child => (id_of(plan.target), VmId::PARENT),
            Relation::Sibling => (id_of(plan.target), id_of(request.from)),
        };
        Route {
            connection,
            destination: plan.destination,
            target: plan.target,
            server: SockAddrHv::new(server, request.service),
            client: SockAddrHv::new(client, ServiceId::ZERO),
        }
    }

    fn listener_mut(&mut self, destination: Destination) -> Option<&mut Listener> {
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

    fn forget_listener(&mut self, id: ListenerId) -> Option<Listener> {
        let listener = self.listeners.remove(&id)?;
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

    fn forget_connection(&mut self, id: ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        for key in [connection.source, connection.target] {
            if let Some(partition) = self.tree.get_mut(key) {
                partition.connections.remove(&id);
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

    /// The partitions whose registries a listener depends on, at most two.
    fn owners_of(&self, from: PartitionKey, binding: Binding) -> [Option<PartitionKey>; 2] {
        let from = self.tree.node(from);
        if binding == Binding::Loopback {
            return [from.and_then(|from| self.own_registry(from)), None];
        }
        let boundaries = from.map(|from| self.boundaries(from, binding));
        let owner = |boundary: Option<Boundary<'_>>| Some(boundary?.owner.key);
        boundaries.map_or([None, None], |boundaries| boundaries.map(owner))
    }
}
