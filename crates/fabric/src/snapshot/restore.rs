//! How a snapshot becomes a fabric.

use std::collections::{BTreeSet, HashMap, VecDeque};

use hvsock_address::ServiceId;

use super::error::{SnapshotError, check_size, check_version, ensure, inconsistent};
use super::records::{
    ConnectionRecord, EffectRecord, FABRIC_SNAPSHOT_VERSION, FabricSnapshot, ListenerRecord,
    PartitionRecord, VERSION_WITHOUT_OUTER,
};
use crate::partition::{Partition, PartitionSpec};
use crate::tables::{Connection, Listener};
use crate::trace::NoTrace;
use crate::tree::Tree;
use crate::{
    Changes, ConnectionId, Destination, Effect, Fabric, Limits, ListenerId, Operators,
    PartitionKey, PartitionState,
};

/// Ids and slots beyond these have been forged. The next ones do not overflow.
const MAX_ID: u64 = i64::MAX as u64;
const MAX_SLOTS: usize = 1 << 20;

impl Fabric {
    /// The fabric of a snapshot, with these limits and operators. All keys and ids stay valid.
    ///
    /// Listeners and connections that are not allowed are closed: call
    /// [`poll_effect`](Self::poll_effect) afterwards. There are none if the snapshot is of a fabric with
    /// the same rules and operators.
    ///
    /// # Errors
    /// [`SnapshotError::UnsupportedVersion`] for another version, [`SnapshotError::LimitExceeded`] if a
    /// table exceeds `limits`, [`SnapshotError::Inconsistent`] if no fabric has such a state. So is the
    /// snapshot of a fabric [without listeners](Self::without_listeners): its owner makes it from what the
    /// system reports.
    pub fn restore(
        snapshot: FabricSnapshot,
        limits: Limits,
        operators: Operators,
    ) -> Result<Self, SnapshotError> {
        let FabricSnapshot {
            version,
            sees_listeners,
            partitions,
            outer,
            free_keys,
            retired_slots,
            next_listener,
            listeners,
            next_connection,
            connections,
            effects,
        } = snapshot;
        check_version(version, FABRIC_SNAPSHOT_VERSION)?;
        ensure(
            outer.is_none() || version > VERSION_WITHOUT_OUTER,
            "it has an outer partition, which its version has not",
        )?;
        // Such a fabric does not limit its connections, because it only explains.
        ensure(sees_listeners, "it is of a fabric that only explains")?;
        let own = partitions.len() - usize::from(outer.is_some()).min(partitions.len());
        check_size("partitions", own, limits.partitions)?;
        let slots = partitions.len() + free_keys.len() + retired_slots.len();
        check_size("partition slots", slots, MAX_SLOTS)?;
        check_size("listeners", listeners.len(), limits.listeners)?;
        let weight = connections.iter().map(|it| it.weight as usize);
        let weight = weight.fold(0, usize::saturating_add);
        check_size("connections", weight, limits.connections)?;
        // Of one change, and of restoring: each at most one for every listener and connection.
        let most = limits.listeners.saturating_add(limits.connections);
        check_size("effects", effects.len(), most.saturating_mul(2))?;
        let has_ids = |next| (1..=MAX_ID).contains(&next);
        ensure(
            has_ids(next_listener) && has_ids(next_connection),
            "its ids are used up, or begin with 0",
        )?;

        let partitions = partitions.into_iter().map(|it| it.restore(&limits));
        let partitions: Vec<_> = partitions.collect::<Result<_, _>>()?;
        let free: Vec<PartitionKey> = free_keys.into_iter().map(PartitionKey::from).collect();
        let outer_key = outer.map(|outer| PartitionKey::from(outer.key));
        let tree = Tree::restore(partitions, outer_key, &free, &retired_slots);
        let tree = tree.map_err(inconsistent)?;
        let mut fabric = Self {
            tree,
            limits,
            operators,
            sees_listeners,
            outer_is_mirrored: outer.is_some_and(|outer| outer.is_mirrored),
            listeners: HashMap::new(),
            addresses: HashMap::new(),
            connections: HashMap::new(),
            weight: 0,
            effects: VecDeque::new(),
            next_listener: ListenerId::from_u64(next_listener),
            next_connection: ConnectionId::from_u64(next_connection),
            generation: 0,
            changes: Changes::All,
        };
        ensure_ascending(listeners.iter().map(|it| it.id), next_listener)?;
        for listener in listeners {
            fabric.restore_listener(listener)?;
        }
        ensure_ascending(connections.iter().map(|it| it.id), next_connection)?;
        for connection in &connections {
            fabric.restore_connection(connection)?;
        }
        for effect in effects {
            fabric.restore_effect(effect)?;
        }
        let connections: BTreeSet<_> = fabric.connections.keys().copied().collect();
        fabric.reevaluate_connections(connections);
        let listeners: BTreeSet<_> = fabric.listeners.keys().copied().collect();
        fabric.reevaluate_listeners(listeners);
        Ok(fabric)
    }

    fn restore_listener(&mut self, record: ListenerRecord) -> Result<(), SnapshotError> {
        let id = ListenerId::from_u64(record.id);
        let key = PartitionKey::from(record.partition);
        let node = self.tree.node(key);
        let node = node.ok_or(inconsistent("a listener has no partition"))?;
        ensure(
            !self.tree.state(key).is_down(),
            "a listener is in a partition that is off",
        )?;
        ensure(
            record.service != ServiceId::ZERO,
            "a listener has no service",
        )?;
        let binding = self.tree.resolve_listen(node, record.vm, &mut NoTrace);
        let binding = binding.map_err(|_| inconsistent("a listener has an invalid address"))?;
        let listener = Listener {
            partition: key,
            vm: record.vm,
            binding,
            service: record.service,
            principal: record.principal.restore(),
            backlog: record.backlog,
            waiting: BTreeSet::new(),
            owners: self.owners_of(key, binding),
        };
        let limits = &self.limits;
        let most = limits.backlog_max.max(1);
        check_size("backlog_max", record.backlog as usize, most as usize)?;
        ensure(record.backlog > 0, "a listener has no backlog")?;
        check_size(
            "listeners_per_partition",
            node.partition.listeners.len() + 1,
            limits.listeners_per_partition,
        )?;
        let is_taken = self.addresses.contains_key(&listener.address());
        ensure(!is_taken, "two listeners have one address")?;
        self.insert_listener(id, listener);
        Ok(())
    }

    fn restore_connection(&mut self, record: &ConnectionRecord) -> Result<(), SnapshotError> {
        let id = ConnectionId::from_u64(record.id);
        let ends = [record.source, record.target].map(|key| self.tree.node(key.into()));
        let [Some(source), Some(target)] = ends else {
            return Err(inconsistent("a connection has no partition"));
        };
        let relation = self.tree.relation(source.key, target.key);
        let relation = relation.ok_or(inconsistent("a connection has unrelated ends"))?;
        let states = [source, target].map(|end| self.tree.state(end.key));
        ensure(
            !states.into_iter().any(PartitionState::is_down),
            "a connection has an end in a partition that is off",
        )?;
        let is_paused = states.contains(&PartitionState::Paused);
        ensure(
            record.suspended == is_paused,
            "a connection is suspended while both ends run, or not while one is paused",
        )?;
        ensure(
            record.service != ServiceId::ZERO,
            "a connection has no service",
        )?;
        ensure(record.weight > 0, "a connection has no weight")?;
        let destination = record.destination();
        match destination {
            Destination::Guest => {
                let is_guest = self.tree.leads_to_guest(target.key, relation);
                ensure(is_guest, "a connection leads to a guest that is none")?;
            }
            Destination::Listener(listener) => {
                ensure(
                    (1..self.next_listener.as_u64()).contains(&listener.as_u64()),
                    "a connection has a listener that never was",
                )?;
                match self.listeners.get(&listener) {
                    None => ensure(!record.waiting, "a pending connection has no listener")?,
                    Some(it) => {
                        ensure(
                            it.partition == target.key && it.service == record.service,
                            "a connection has a listener with another address",
                        )?;
                        let waiting = it.waiting.len() + usize::from(record.waiting);
                        check_size("pending connections", waiting, it.backlog as usize)?;
                    }
                }
            }
        }
        let limit = self.limits.connections_per_partition;
        for end in [source, target] {
            let used = end.partition.weight.saturating_add(record.weight as usize);
            check_size("connections_per_partition", used, limit)?;
        }
        let registry = self.registry_of(source, target, relation);
        let connection = Connection {
            source: source.key,
            target: target.key,
            destination,
            service: record.service,
            registry,
            waiting: record.waiting,
            suspended: record.suspended,
            client_connected_suspend: record.client_connected_suspend,
            server_connected_suspend: record.server_connected_suspend,
            weight: record.weight,
        };
        self.insert_connection(id, connection);
        Ok(())
    }

    fn restore_effect(&mut self, record: EffectRecord) -> Result<(), SnapshotError> {
        let effect = record.restore();
        let was = |id: u64, next: u64| (1..next).contains(&id);
        let next_connection = self.next_connection.as_u64();
        let fits = match &effect {
            Effect::ResetConnection { id, .. } => {
                was(id.as_u64(), next_connection) && !self.connections.contains_key(id)
            }
            Effect::CloseListener { id, .. } => {
                was(id.as_u64(), self.next_listener.as_u64()) && !self.listeners.contains_key(id)
            }
            Effect::Suspend { id } | Effect::Resume { id } => was(id.as_u64(), next_connection),
        };
        ensure(
            fits,
            "an effect closes what is still open, or what never was",
        )?;
        self.effects.push_back(effect);
        Ok(())
    }
}

/// Checks that ids are unique and sorted, and that each was given.
fn ensure_ascending(ids: impl Iterator<Item = u64>, next: u64) -> Result<(), SnapshotError> {
    let mut last = 0;
    for id in ids {
        ensure(
            id > last && id < next,
            "ids are not ascending, or were never given",
        )?;
        last = id;
    }
    Ok(())
}

impl PartitionRecord {
    fn restore(self, limits: &Limits) -> Result<(PartitionKey, Partition), SnapshotError> {
        let most = limits.groups_per_partition;
        check_size("groups_per_partition", self.groups.len(), most)?;
        let spec = PartitionSpec {
            kind: self.kind.restore(),
            name: self.name,
            vm_id: self.vm_id,
            groups: self.groups,
            state: self.state.restore(),
        };
        let mut partition = Partition::new(spec, self.parent.map(PartitionKey::from));
        ensure(
            partition.registry.is_some() == self.registry.is_some(),
            "a container has a registry, or another partition has none",
        )?;
        let registry = self.registry.map(|it| it.restore(limits.registrations));
        partition.registry = registry.transpose()?;
        Ok((self.key.into(), partition))
    }
}
