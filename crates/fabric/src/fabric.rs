//! The fabric itself: what it holds, what can be asked about it, and how connections come and go.

use std::collections::{HashMap, VecDeque};

use hvsock_address::{ElementName, PartitionName, PartitionRef, ServiceId, SockAddrHv, VmId};
use hvsock_registry::Registry;

use crate::explain::{Audience, Explanation, Notes, Silent, Verdict};
use crate::judge_connect::Plan;
use crate::partition::{Partition, PartitionState, RootSpec};
use crate::tables::{Bound, Connection, ListenAddress, Listener};
use crate::terms::Border;
use crate::tree::{Relation, Tree};
use crate::{
    ConnectRequest, ConnectionId, Destination, Effect, End, Limits, ListenRequest, ListenerId,
    PartitionKey, Refusal, Route,
};

/// Partitions, their registries, and who listens and is connected in them.
///
/// A state machine without I/O, clock or threads: its owner tells it what happens and does what it
/// answers. Its functions come in four families:
///
/// - Questions take `&self` and change nothing: [`partition`](Self::partition),
///   [`listener`](Self::listener), [`connection`](Self::connection), and
///   [`explain_connect`](Self::explain_connect) and [`explain_listen`](Self::explain_listen), which
///   take the same way as the requests.
/// - Requests come from processes, who are not trusted: [`listen`](Self::listen) and
///   [`connect`](Self::connect). They are judged, and their cost does not grow with what the fabric
///   holds.
/// - News from those who own sockets: [`accepted`](Self::accepted),
///   [`close_listener`](Self::close_listener), [`close_connection`](Self::close_connection),
///   [`set_connected_suspend`](Self::set_connected_suspend).
/// - Changes come from operators, who are trusted: adding and removing partitions, their states and
///   groups, and registrations. They may cut what they no longer allow.
///
/// News and changes have effects: after each of them, call [`poll_effect`](Self::poll_effect) until
/// it returns `None`.
#[derive(Debug)]
pub struct Fabric {
    pub(crate) tree: Tree,
    pub(crate) limits: Limits,
    pub(crate) broker_uid: u32,
    /// Whether every listener is known here: see [`without_listeners`](Self::without_listeners).
    pub(crate) sees_listeners: bool,
    pub(crate) listeners: HashMap<ListenerId, Listener>,
    /// Where those who connect find listeners.
    pub(crate) addresses: HashMap<ListenAddress, ListenerId>,
    pub(crate) connections: HashMap<ConnectionId, Connection>,
    pub(crate) effects: VecDeque<Effect>,
    next_listener: ListenerId,
    next_connection: ConnectionId,
}

impl Fabric {
    /// A fabric with a root partition only. `broker_uid` is the user that the broker runs as, who
    /// may do in the partitions' registries what root may.
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

    /// A fabric for explanations where a system's kernel makes the connections and tells nobody who
    /// listens: whatever gets as far as that question is the kernel's to answer, as it is with
    /// [`Destination::Guest`]. There is no broker, and so no user who has its rights.
    pub fn without_listeners(root: RootSpec, limits: Limits) -> Self {
        Self {
            sees_listeners: false,
            ..Self::new(root, limits, u32::MAX)
        }
    }

    /// How large each table may grow.
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

    /// The partition with this name, whatever its case.
    pub fn by_name(&self, name: &PartitionName) -> Option<PartitionKey> {
        self.tree.by_name(name)
    }

    /// The partition that an operator means by a name or an id; a well-known word means none.
    pub fn find(&self, partition: &PartitionRef) -> Option<PartitionKey> {
        match partition {
            PartitionRef::Id(id) if id.is_well_known() => None,
            PartitionRef::Id(id) => self.by_vm_id(*id),
            PartitionRef::Name(name) => self.by_name(name),
        }
    }

    /// Whether a partition takes part: the worst of its own state and those of the partitions
    /// around it, since whatever is in a paused VM stands still with it. One that is gone is off.
    pub fn state(&self, key: PartitionKey) -> PartitionState {
        self.tree.state(key)
    }

    /// The services that a partition's owner allows, if it is one that has children.
    pub fn registry(&self, key: PartitionKey) -> Option<&Registry> {
        self.tree.get(key)?.registry()
    }

    /// The id by which a process in `from` reaches the partition with this name. Names that it may
    /// not reach do not exist for it, except in the root partition, where all are known.
    pub fn vm_id_of(&self, from: PartitionKey, name: &PartitionName) -> Option<VmId> {
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

    /// The service that a process in `from` means by a friendly name: as its own partition's
    /// registry has it, or else its parent's.
    pub fn service_id_of(&self, from: PartitionKey, name: &ElementName) -> Option<ServiceId> {
        let partition = self.tree.get(from)?;
        let in_registry = |key| self.registry(key)?.by_name(name);
        let found = in_registry(from).or_else(|| in_registry(partition.parent?))?;
        Some(found.id)
    }

    /// The service that the guest `from` means by a vsock port, towards its parent or a sibling:
    /// the one registered there that has it, be it the template's port or an alias, or else the
    /// one of the template.
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

    /// All listeners, in no order.
    pub fn listeners(&self) -> impl ExactSizeIterator<Item = (ListenerId, &Listener)> {
        self.listeners.iter().map(|(id, listener)| (*id, listener))
    }

    /// A connection.
    pub fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(&id)
    }

    /// All connections, in no order.
    pub fn connections(&self) -> impl ExactSizeIterator<Item = (ConnectionId, &Connection)> {
        self.connections
            .iter()
            .map(|(id, connection)| (*id, connection))
    }

    /// What [`connect`](Self::connect) would answer, and why.
    pub fn explain_connect(&self, request: &ConnectRequest<'_>, audience: Audience) -> Explanation {
        let mut notes = Notes::new(audience);
        let plan = self.judge_connect(request, &mut notes);
        notes.explain(plan.map(|plan| Verdict::Connect {
            target: plan.target,
            destination: plan.destination,
        }))
    }

    /// What [`listen`](Self::listen) would answer, and why.
    pub fn explain_listen(&self, request: &ListenRequest<'_>, audience: Audience) -> Explanation {
        let mut notes = Notes::new(audience);
        let bound = self.judge_listen(request, &mut notes);
        notes.explain(bound.map(|_| Verdict::Listen))
    }

    /// Begins to listen.
    pub fn listen(&mut self, request: &ListenRequest<'_>) -> Result<ListenerId, Refusal> {
        let bound = self.judge_listen(request, &mut Silent)?;
        let id = self.next_listener;
        self.next_listener = id.next();
        let listener = Listener {
            partition: request.from,
            vm: request.vm,
            bound,
            service: request.service,
            principal: request.principal.clone(),
            backlog: request.backlog.clamp(1, self.limits.backlog_max.max(1)),
            waiting: Default::default(),
            owners: self.owners_of(request.from, bound),
        };
        for owner in listener.owners.into_iter().flatten() {
            if let Some(owner) = self.tree.get_mut(owner) {
                owner
                    .uses
                    .entry(listener.service)
                    .or_default()
                    .listeners
                    .insert(id);
            }
        }
        if let Some(partition) = self.tree.get_mut(listener.partition) {
            partition.listeners.insert(id);
        }
        if let Bound::Partition(key) = bound
            && let Some(partition) = self.tree.get_mut(key)
        {
            partition.watchers.insert(id);
        }
        self.addresses.insert(listener.address(), id);
        self.listeners.insert(id, listener);
        Ok(id)
    }

    /// Connects, if somebody listens who may be connected to.
    pub fn connect(&mut self, request: &ConnectRequest<'_>) -> Result<Route, Refusal> {
        let plan = self.judge_connect(request, &mut Silent)?;
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
                .uses
                .entry(service)
                .or_default()
                .connections
                .insert(id);
        }
        if let Some(listener) = self.taker_mut(plan.destination) {
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
                client_keeps: false,
                server_keeps: false,
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

    fn taker_mut(&mut self, destination: Destination) -> Option<&mut Listener> {
        self.listeners.get_mut(&destination.listener()?)
    }

    /// The listener's process, or the guest, took the connection: another may wait in its place.
    pub fn accepted(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.waiting = false;
        let destination = connection.destination;
        if let Some(listener) = self.taker_mut(destination) {
            listener.waiting.remove(&id);
        }
    }

    /// A socket option of one end: whether it wants the connection kept, not cut, while a partition
    /// is paused (`HVSOCKET_CONNECTED_SUSPEND`). One end that wants it is enough; a guest's kernel
    /// has no such option, so that for a connection with a guest the process at the other end
    /// decides alone.
    pub fn set_connected_suspend(&mut self, id: ConnectionId, end: End, keep: bool) {
        if let Some(connection) = self.connections.get_mut(&id) {
            match end {
                End::Client => connection.client_keeps = keep,
                End::Server => connection.server_keeps = keep,
            }
        }
    }

    /// The listener's process closed it. Connections that it had not accepted are cut.
    pub fn close_listener(&mut self, id: ListenerId) {
        if let Some(listener) = self.forget_listener(id) {
            for id in listener.waiting {
                self.cut_connection(id, &Refusal::NoListener);
            }
        }
    }

    /// The connection ended at both its ends. Has no effects.
    pub fn close_connection(&mut self, id: ConnectionId) {
        self.forget_connection(id);
    }

    /// The next thing to do about what happened, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Breaks a connection off; one that is gone already stays so.
    pub(crate) fn cut_connection(&mut self, id: ConnectionId, refusal: &Refusal) {
        if self.forget_connection(id).is_some() {
            let refusal = refusal.clone();
            self.effects
                .push_back(Effect::CutConnection { id, refusal });
        }
    }

    /// Ends a listener and cuts what waits for it.
    pub(crate) fn cut_listener(&mut self, id: ListenerId, refusal: Refusal) {
        if let Some(listener) = self.forget_listener(id) {
            for id in listener.waiting {
                self.cut_connection(id, &refusal);
            }
            self.effects.push_back(Effect::CutListener { id, refusal });
        }
    }

    fn forget_listener(&mut self, id: ListenerId) -> Option<Listener> {
        let listener = self.listeners.remove(&id)?;
        self.addresses.remove(&listener.address());
        if let Some(partition) = self.tree.get_mut(listener.partition) {
            partition.listeners.remove(&id);
        }
        if let Bound::Partition(key) = listener.bound
            && let Some(partition) = self.tree.get_mut(key)
        {
            partition.watchers.remove(&id);
        }
        for owner in listener.owners.into_iter().flatten() {
            if let Some(owner) = self.tree.get_mut(owner) {
                owner.release(listener.service, |uses| uses.listeners.remove(&id));
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
            owner.release(connection.service, |uses| uses.connections.remove(&id));
        }
        if connection.waiting
            && let Some(listener) = self.taker_mut(connection.destination)
        {
            listener.waiting.remove(&id);
        }
        Some(connection)
    }

    /// The partitions whose registries a listener depends on.
    fn owners_of(&self, from: PartitionKey, bound: Bound) -> [Option<PartitionKey>; 2] {
        let from = self.tree.place(from);
        if bound == Bound::Loopback {
            return [from.and_then(|from| self.inside_registry(from)), None];
        }
        let borders = from.map(|from| self.borders(from, bound));
        let owner = |border: Option<Border<'_>>| Some(border?.owner.key);
        borders.map_or([None, None], |borders| borders.map(owner))
    }
}
