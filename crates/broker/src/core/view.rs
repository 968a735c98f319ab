//! Snapshots of the core's state for operators.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_endpoint::Transport;
use hvsock_fabric::{ConnectionEnd, ConnectionId, ListenerId, PartitionKey};
use hvsock_registry::{Policy, Registration, Registry};

use super::arenas::{SeenConnection, connection_id};
use super::connections::ConnectionRecord;
use super::endpoints::EndpointKind;
use super::labels::{partition_label, registered, service_name};
use super::listeners::ListenerRecord;
use super::state::Core;
use crate::budget::{Budget, Owner, Shares};
use crate::callers::Caller;
use crate::events::{EventStream, NotResumable, RecordScope};
use crate::model::{
    self, Connection, ConnectionState, Guest, GuestBroker, Listener, Partition, PartitionState,
    ProblemKind, Service, ServiceMetrics, Share, SharedResource,
};

/// Most owners of a resource that are listed.
const MAX_OWNERS: usize = 64;

/// Numbers of objects, for the broker's status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// Registrations without the unchanged built-in ones.
    pub(crate) services: usize,
    pub(crate) partitions: usize,
    pub(crate) listeners: usize,
    pub(crate) connections: usize,
    /// What does not work as it should.
    pub(crate) problems: Vec<model::Problem>,
    pub(crate) descriptors: SharedResource,
    pub(crate) unread_messages: SharedResource,
}

/// A registration with its use. Copying it costs little.
#[derive(Clone, Debug)]
pub(crate) struct ListedService {
    registration: Arc<Registration>,
    built_in: bool,
    usage: Usage,
}

/// The current users of a service.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    listeners: usize,
    connections: usize,
}

impl From<ListedService> for Service {
    fn from(listed: ListedService) -> Self {
        let Usage {
            listeners,
            connections,
        } = listed.usage;
        let registration = Arc::unwrap_or_clone(listed.registration);
        Service {
            built_in: listed.built_in,
            ..Service::new(registration, listeners, connections)
        }
    }
}

impl Core {
    /// Subscribes to the events from now on; `None` if there are too many subscribers.
    /// Keeps events for the streams of the broker that was taken over.
    pub(super) fn keep_events(&mut self, resume: String) {
        self.telemetry.keep_for(resume);
    }

    /// Adds a subscriber to events from the end of an earlier stream on.
    pub(crate) fn resume_events(
        &mut self,
        records: RecordScope,
        resume: &str,
    ) -> Result<Option<EventStream>, NotResumable> {
        let own = partition_label(&self.fabric, self.fabric.root());
        self.telemetry.resume(records, resume, &own)
    }

    /// Adds a subscriber to events.
    pub(crate) fn subscribe(&mut self, records: RecordScope) -> Option<EventStream> {
        self.telemetry.subscribe(records)
    }

    /// Looks up a registration.
    pub(crate) fn registration(&self, service: &ServiceRef) -> Option<&Registration> {
        self.registry()?.resolve(service).ok()
    }

    /// The rules for a service, without any child's override.
    pub(crate) fn policy(&self, service: ServiceId) -> Option<Policy<'_>> {
        self.registry()?.policy(service)
    }

    /// A registration with its use and the rules in force.
    pub(crate) fn service(&self, service: &ServiceRef) -> Option<Service> {
        let registration = Arc::new(self.registration(service)?.clone());
        let service: Service = self.listed(&self.usage(), &registration).into();
        let policy = self.policy(service.id)?;
        Some(service.with_rules(&policy))
    }

    /// The registrations in force, each with its use, sorted by name; the unchanged built-in ones only
    /// if `all` is set.
    pub(crate) fn services(&self, all: bool) -> Vec<ListedService> {
        let usage = self.usage();
        let registrations = self.registry().into_iter().flat_map(Registry::shared);
        registrations
            .map(|registration| self.listed(&usage, registration))
            .filter(|listed| all || !listed.built_in)
            .collect()
    }

    fn listed(
        &self,
        usage: &HashMap<ServiceId, Usage>,
        registration: &Arc<Registration>,
    ) -> ListedService {
        ListedService {
            registration: self.resolved(registration),
            built_in: self.stored.is_built_in(registration.id),
            usage: usage.get(&registration.id).copied().unwrap_or_default(),
        }
    }

    /// A registration with what it inherits from its built-in one, so that it means the same where
    /// that one is not known.
    fn resolved(&self, registration: &Arc<Registration>) -> Arc<Registration> {
        let registry = self.registry();
        match registry.filter(|registry| registry.built_in(registration.id).is_some()) {
            Some(registry) => Arc::new(registry.resolved(registration)),
            None => Arc::clone(registration),
        }
    }

    /// The registrations that are stored, also those that wait for a lease to end.
    pub(crate) fn stored_registrations(&self) -> Vec<Arc<Registration>> {
        let in_force = self.registry().into_iter().flat_map(Registry::shared);
        let stored = in_force.filter(|one| !one.lease && !self.stored.is_built_in(one.id));
        let blocked = self
            .leases
            .blocked()
            .map(|one| Arc::new(one.registration.clone()));
        let stored = stored.cloned().chain(blocked);
        stored.map(|one| self.resolved(&one)).collect()
    }

    /// The counts of refusals by label.
    pub(crate) fn refusal_metrics(&self) -> BTreeMap<String, u64> {
        let counts = self.telemetry.refusals().iter();
        counts
            .map(|(label, count)| ((*label).to_owned(), *count))
            .collect()
    }

    /// Looks up a partition, as seen from the broker's own.
    pub(crate) fn find(&self, partition: &PartitionRef) -> Option<PartitionKey> {
        match partition {
            PartitionRef::Id(VmId::LOOPBACK) => Some(self.fabric.root()),
            PartitionRef::Id(id) => self.fabric.by_vm_id(*id),
            PartitionRef::Name(name) => self.fabric.by_name(name),
        }
    }

    /// Whether a virtual machine of this broker may announce a container of this name.
    pub(crate) fn may_announce(&self, name: &PartitionName) -> bool {
        let vm = name.vm().and_then(|vm| self.fabric.by_name(&vm));
        let vm = vm.filter(|key| *key != self.fabric.root());
        let vm = vm.and_then(|key| self.fabric.partition(key));
        vm.is_some_and(|vm| vm.kind() == hvsock_fabric::PartitionKind::Vm)
    }

    /// Counts registrations, partitions, listeners and connections, and lists problems.
    pub(crate) fn summary(&mut self) -> Summary {
        self.scan_arenas();
        let services = self.registry().map_or(0, Registry::len);
        let [descriptors, unread_messages] = self.shared_resources();
        Summary {
            descriptors,
            unread_messages,
            services: services - self.stored.built_in_count(),
            problems: self.problems.list(Instant::now()),
            partitions: self.fabric.partitions().count(),
            listeners: self.listeners.len(),
            connections: self.connections.len() + self.arenas.connections(),
        }
    }

    /// How many listeners, connections, VMs and containers there are.
    pub(crate) fn handed_over_counts(&mut self) -> (usize, usize, usize, usize) {
        let summary = self.summary();
        let of_kind = |kind| {
            let own = self.fabric.root();
            let all = self.fabric.partitions();
            all.filter(|(key, one)| *key != own && one.kind() == kind)
                .count()
        };
        let vms = of_kind(hvsock_fabric::PartitionKind::Vm);
        let containers = of_kind(hvsock_fabric::PartitionKind::Container);
        (summary.listeners, summary.connections, vms, containers)
    }

    /// The broker's descriptors, and the messages with descriptors that are unread.
    pub(crate) fn shared_resources(&mut self) -> [SharedResource; 2] {
        let shares = [&self.descriptors, self.in_flight.budget()].map(Budget::shares);
        shares.map(|shares| self.shared_resource(&shares))
    }

    fn shared_resource(&mut self, shares: &Shares) -> SharedResource {
        let mut owners: Vec<(Owner, u64)> = shares.owners().collect();
        owners.sort_by_key(|(owner, used)| (Reverse(*used), *owner));
        owners.truncate(MAX_OWNERS);
        let owners = owners.into_iter().map(|(owner, used)| Share {
            owner: match owner {
                Owner::Operator => "operators".to_owned(),
                Owner::User(uid) => format!("user {}", self.user_label(uid)),
                Owner::Partition(key) => {
                    format!("partition {}", partition_label(&self.fabric, key))
                }
            },
            used,
            limit: shares.limit(owner),
        });
        SharedResource {
            used: shares.total(),
            capacity: shares.capacity(),
            owners: owners.collect(),
        }
    }

    /// The current users of each service.
    fn usage(&self) -> HashMap<ServiceId, Usage> {
        let mut usage: HashMap<ServiceId, Usage> = HashMap::new();
        for service in self.listeners.services() {
            usage.entry(service).or_default().listeners += 1;
        }
        for connection in self.connections.records() {
            usage.entry(connection.service).or_default().connections += 1;
        }
        for (_, arena) in self.arenas.iter() {
            usage.entry(arena.request.service).or_default().connections += arena.len();
        }
        usage
    }

    /// Every partition, the broker's own first.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let listeners = self.listeners.by_partition();
        let mut connections = self.connections.by_partition();
        for (_, arena) in self.arenas.iter() {
            let (from, to) = (arena.from.partition, arena.to.partition);
            *connections.entry(from).or_default() += arena.len();
            if to != from {
                *connections.entry(to).or_default() += arena.len();
            }
        }
        let count = |of: &HashMap<_, usize>, key| of.get(&key).copied().unwrap_or(0);
        let now = Instant::now();
        let own = self.fabric.partition(self.fabric.root());
        let own = own.map(hvsock_fabric::Partition::name).cloned();
        let mut partitions: Vec<Partition> = self
            .fabric
            .partitions()
            .map(|(key, partition)| (key, partition, self.vms.get(key)))
            .map(|(key, partition, vm)| Partition {
                name: partition.name().clone(),
                id: partition.vm_id(),
                kind: partition.kind().into(),
                state: partition.state().into(),
                container: self.container(key, partition),
                parent: partition
                    .parent()
                    .and_then(|parent| Some(self.fabric.partition(parent)?.name().clone())),
                groups: partition.groups().to_vec(),
                endpoint: self
                    .endpoints
                    .path_of(EndpointKind::Endpoint, key)
                    .map(Path::to_owned),
                hybrid_socket: self
                    .endpoints
                    .path_of(EndpointKind::Hybrid, key)
                    .map(Path::to_owned),
                cid: match vm.and_then(|vm| vm.settings().spec.cid) {
                    None if key == self.fabric.root() => None,
                    cid => cid.or_else(|| self.cids.of(key)),
                },
                link: vm.map(|vm| vm.settings().spec.link.clone()),
                lacks: vm
                    .and_then(|vm| vm.link())
                    .map(|link| {
                        let limits = link.limits().iter().copied();
                        // The relay counts the bytes for a link that does not.
                        let counted = !link.hands_over();
                        let missing = link.capabilities().missing();
                        let missing = missing.filter(|what| !counted || *what != "byte counts");
                        let lacks = missing.chain(limits);
                        lacks.map(str::to_owned).collect()
                    })
                    .unwrap_or_default(),
                problems: {
                    let of_link = self
                        .problems
                        .text(ProblemKind::VmLink, partition.name().as_str());
                    let mut texts = self.port_problems.texts(key);
                    texts.extend(of_link.map(str::to_owned));
                    for kind in [ProblemKind::CdiDevice, ProblemKind::StaleMount] {
                        let text = self.problems.text(kind, partition.name().as_str());
                        texts.extend(text.map(str::to_owned));
                    }
                    texts.extend(self.refusal_at_host(partition.vm_id()));
                    texts
                },
                socket: vm.and_then(|vm| Some(vm.link()?.socket()?.to_owned())),
                unsealed_memory: vm.is_some_and(|vm| vm.settings().spec.unsealed_memory),
                user: vm.and_then(|vm| vm.settings().spec.user.clone()),
                paused_by_operator: match vm {
                    Some(vm) => vm.is_paused_by_operator(),
                    // Of its own VM.
                    None if self.is_nested(key) => false,
                    None => match self.containers.get(key) {
                        Some(container) => container.is_paused_by_operator(),
                        None => partition.state() == hvsock_fabric::PartitionState::Paused,
                    },
                },
                uplink: self.uplink_status(key).map(Box::new),
                listeners: count(&listeners, key),
                connections: count(&connections, key),
                broker: self.uplinks.get(key).map(|uplink| GuestBroker {
                    connected_seconds: now.duration_since(uplink.opened).as_secs_f64(),
                    containers: uplink.children().len(),
                }),
                guest: self.liveness.guest(key, now).map(Box::new),
            })
            .collect();
        partitions.sort_by_cached_key(|one| {
            (
                Some(&one.name) != own.as_ref(),
                one.parent.is_some(),
                one.name.clone(),
            )
        });
        partitions
    }

    /// One partition.
    pub(crate) fn partition(&self, partition: &PartitionRef) -> Option<Partition> {
        let key = self.find(partition)?;
        let id = self.fabric.partition(key)?.vm_id();
        self.partitions().into_iter().find(|one| one.id == id)
    }

    /// Every listener, oldest first.
    pub(crate) fn listeners(&mut self) -> Vec<Listener> {
        let now = Instant::now();
        let records: Vec<_> = self
            .listeners
            .iter()
            .map(|(id, record)| (id, *record))
            .collect();
        let mut listeners: Vec<Listener> = records
            .into_iter()
            .filter_map(|(id, record)| {
                let ListenerRecord {
                    partition,
                    caller,
                    address,
                    backlog,
                    connected_suspend,
                    started,
                    ..
                } = record;
                Some(Listener {
                    id: id.as_u64(),
                    service: address.service,
                    service_name: service_name(&self.fabric, address.service).cloned(),
                    from: self.source_label(address.vm),
                    end: self.end(partition, caller, connected_suspend)?,
                    backlog,
                    waiting: self.waiting(id),
                    age_seconds: now.duration_since(started).as_secs_f64(),
                })
            })
            .collect();
        listeners.sort_by_key(|listener| listener.id);
        listeners
    }

    /// Every connection, oldest first.
    pub(crate) fn connections(&mut self) -> Vec<Connection> {
        self.scan_arenas();
        let mut in_arenas = Vec::with_capacity(self.arenas.connections());
        for (arena, found) in self.arenas.iter() {
            in_arenas.extend(found.connections().map(|seen| (arena, seen.clone())));
        }
        let mut all: Vec<Connection> = Vec::with_capacity(in_arenas.len());
        for id in self.connections.ids() {
            all.extend(self.connection_without_arena(id));
        }
        for (arena, seen) in in_arenas {
            all.extend(self.connection_in_arena(arena, &seen));
        }
        all.sort_by_key(|connection| connection.id);
        all
    }

    /// One connection.
    pub(crate) fn connection(&mut self, id: ConnectionId) -> Option<Connection> {
        let Some((arena, seq)) = self.arenas.of_connection(id) else {
            return self.connection_without_arena(id);
        };
        self.scan_arena(arena, Instant::now());
        let seen = self.arenas.get(arena)?.connection(seq)?.clone();
        self.connection_in_arena(arena, &seen)
    }

    fn connection_without_arena(&mut self, id: ConnectionId) -> Option<Connection> {
        let &ConnectionRecord {
            service,
            from,
            to,
            transport,
            ref counters,
            started,
            ..
        } = self.connections.get(id)?;
        let counted = counters.counted();
        let in_arena = self.guest_arenas.view(id);
        let state = self
            .fabric
            .connection(in_arena.map_or(id, |(arena, _)| arena))?;
        let (waiting, suspended) = match in_arena {
            Some((_, slot)) => (
                slot.is_some_and(|slot| !slot.accepted),
                state.is_suspended(),
            ),
            None => (state.is_waiting(), state.is_suspended()),
        };
        let suspend = match in_arena {
            Some((_, slot)) => slot.map_or([false; 2], |slot| slot.keep),
            None => [
                state.connected_suspend(ConnectionEnd::Client),
                state.connected_suspend(ConnectionEnd::Server),
            ],
        };
        Some(Connection {
            id: id.as_u64(),
            service,
            service_name: service_name(&self.fabric, service).cloned(),
            from: self.end(from.partition, from.caller, suspend[0])?,
            to: self.end(to.partition, to.caller, suspend[1])?,
            transport: transport.name().into(),
            arena: None,
            state: match (suspended, waiting) {
                (true, _) => ConnectionState::Suspended,
                (false, true) => ConnectionState::Waiting,
                (false, false) => ConnectionState::Open,
            },
            bytes_sent: counted.map(|counted| counted[0]),
            bytes_received: counted.map(|counted| counted[1]),
            age_seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// A connection of an arena, as it was at the last scan.
    fn connection_in_arena(
        &mut self,
        arena: ConnectionId,
        seen: &SeenConnection,
    ) -> Option<Connection> {
        let found = self.arenas.get(arena)?;
        let (service, from, to) = (found.request.service, found.from, found.to);
        let SeenConnection {
            since,
            accepted,
            keep,
            written,
            ..
        } = *seen;
        let suspended = self.fabric.connection(arena)?.is_suspended();
        Some(Connection {
            id: connection_id(arena, seen.id).as_u64(),
            service,
            service_name: service_name(&self.fabric, service).cloned(),
            from: self.end(from.partition, from.caller, keep[0])?,
            to: self.end(to.partition, to.caller, keep[1])?,
            transport: Transport::Arena.name().into(),
            arena: Some(arena.as_u64()),
            state: match (suspended, accepted) {
                (true, _) => ConnectionState::Suspended,
                (false, false) => ConnectionState::Waiting,
                (false, true) => ConnectionState::Open,
            },
            bytes_sent: Some(written[0]),
            bytes_received: Some(written[1]),
            age_seconds: since.elapsed().as_secs_f64(),
        })
    }

    /// The counters of every service, including the bytes of established connections.
    pub(crate) fn service_metrics(&mut self) -> Vec<ServiceMetrics> {
        self.scan_arenas();
        let mut by_service: HashMap<Option<ServiceId>, ServiceMetrics> = HashMap::new();
        for (service, counters) in self.telemetry.services() {
            let metrics = by_service.entry(*service).or_default();
            metrics.connections_total = counters.connections;
            metrics.sent_bytes = counters.sent;
            metrics.received_bytes = counters.received;
        }
        for connection in self.connections.records() {
            let service = registered(&self.fabric, connection.service);
            let metrics = by_service.entry(service).or_default();
            metrics.connections += 1;
            let (sent, received) = (connection.counters.sent(), connection.counters.received());
            metrics.sent_bytes = metrics.sent_bytes.saturating_add(sent);
            metrics.received_bytes = metrics.received_bytes.saturating_add(received);
        }
        // Their bytes are counted at each scan.
        for (_, arena) in self.arenas.iter() {
            let service = registered(&self.fabric, arena.request.service);
            by_service.entry(service).or_default().connections += arena.len() as u64;
        }
        for service in self.listeners.services() {
            let service = registered(&self.fabric, service);
            by_service.entry(service).or_default().listeners += 1;
        }
        let mut metrics: Vec<ServiceMetrics> = by_service
            .into_iter()
            .map(|(service, metrics)| {
                let name = service.and_then(|id| service_name(&self.fabric, id));
                ServiceMetrics {
                    service: name.map(ToString::to_string),
                    ..metrics
                }
            })
            .collect();
        metrics.sort_by(|a, b| a.service.cmp(&b.service));
        metrics
    }

    /// The number of partitions by kind and state.
    pub(crate) fn partition_metrics(&self) -> Vec<(model::PartitionKind, PartitionState, u64)> {
        let mut counts: Vec<(model::PartitionKind, PartitionState, u64)> = Vec::new();
        for (_, partition) in self.fabric.partitions() {
            let (kind, state) = (partition.kind().into(), partition.state().into());
            match counts
                .iter_mut()
                .find(|(k, s, _)| (*k, *s) == (kind, state))
            {
                Some((.., count)) => *count += 1,
                None => counts.push((kind, state, 1)),
            }
        }
        counts
    }

    /// Every guest that has reported, sorted by partition name.
    pub(crate) fn guests(&self) -> Vec<(String, Guest)> {
        let now = Instant::now();
        let known = self.fabric.partitions().filter_map(|(key, partition)| {
            let guest = self.liveness.guest(key, now)?;
            Some((partition.name().to_string(), guest))
        });
        let mut known: Vec<_> = known.collect();
        known.sort_by(|(a, _), (b, _)| a.cmp(b));
        known
    }

    /// Number of connections that a listener has not accepted.
    fn waiting(&self, id: ListenerId) -> u32 {
        // An arena is not a connection: those in it are counted below, also before the listener has received it.
        let is_arena = |id| self.arenas.get(id).is_some() || self.guest_arenas.contains(id);
        let waiting = self.fabric.listener(id).map_or(0, |listener| {
            listener.waiting().filter(|one| !is_arena(*one)).count()
        });
        let in_arenas = self.arenas.iter().filter(|(_, arena)| arena.listener == id);
        let pending = in_arenas.map(|(_, arena)| arena.monitor.pending());
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let waiting = pending.fold(waiting, u32::saturating_add);
        waiting.saturating_add(self.guest_arenas.waiting(id))
    }

    /// A user's name, or the uid if it has none.
    pub(super) fn user_label(&mut self, uid: u32) -> String {
        self.callers
            .user(uid)
            .map_or_else(|| uid.to_string(), |name| name.to_string())
    }

    fn end(
        &mut self,
        partition: PartitionKey,
        caller: Caller,
        connected_suspend: bool,
    ) -> Option<model::ConnectionEnd> {
        let guest = self.vms.contains(self.carrier(partition)) || self.is_outer(partition);
        let partition = self.fabric.partition(partition)?;
        // A guest's numbers are not those of this machine's users.
        let user = match guest {
            true => None,
            false => self.callers.user(caller.uid).as_deref().map(str::to_owned),
        };
        Some(model::ConnectionEnd {
            partition: partition.name().clone(),
            vm_id: partition.vm_id(),
            guest,
            pid: caller.pid,
            uid: caller.uid,
            user,
            connected_suspend,
        })
    }

    /// A label for the partition that a listener accepts connections from.
    fn source_label(&self, vm: VmId) -> String {
        if let Some(word) = vm.well_known_name() {
            return if word == "wildcard" {
                "any".into()
            } else {
                word.into()
            };
        }
        match self.fabric.by_vm_id(vm) {
            Some(key) => partition_label(&self.fabric, key),
            None => vm.to_string(),
        }
    }
}
