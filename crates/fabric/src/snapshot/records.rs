//! The data types of a snapshot, and how a fabric becomes one.

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_registry::{Principal, Registry};
use serde::{Deserialize, Serialize};

use super::error::read_version;
use super::registry::RegistryRecord;
use crate::tables::{Connection, Listener};
use crate::{
    Block, ConnectionId, Destination, Effect, Fabric, ListenerId, Partition, PartitionKey,
    PartitionKind, PartitionState, Refusal,
};

/// The newest version of [`FabricSnapshot`]. A snapshot that needs nothing that is new in it has the
/// version before, so that older releases read it as well.
///
/// - 1: the first one.
/// - 2: an outer partition; nested names; containers that have exited.
pub const FABRIC_SNAPSHOT_VERSION: u32 = 2;

/// The newest version that has neither an outer partition nor nested names.
pub(super) const VERSION_WITHOUT_OUTER: u32 = 1;

/// A [`Fabric`] without its limits and operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricSnapshot {
    #[serde(deserialize_with = "read_version::<_, FABRIC_SNAPSHOT_VERSION>")]
    pub(super) version: u32,
    /// False for a fabric [without listeners](Fabric::without_listeners), which cannot be restored.
    pub(super) sees_listeners: bool,
    /// By slot.
    pub(super) partitions: Vec<PartitionRecord>,
    /// Which of them is the outer one. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) outer: Option<OuterRecord>,
    /// The keys of the next partitions in used slots, the first one to use last.
    pub(super) free_keys: Vec<PartitionKeySnapshot>,
    /// Slots that are not used again.
    pub(super) retired_slots: Vec<u32>,
    pub(super) next_listener: u64,
    /// By id.
    pub(super) listeners: Vec<ListenerRecord>,
    pub(super) next_connection: u64,
    /// By id.
    pub(super) connections: Vec<ConnectionRecord>,
    /// Effects that were not polled, in order.
    pub(super) effects: Vec<EffectRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OuterRecord {
    pub(super) key: PartitionKeySnapshot,
    /// Whether its registry is what the host said last, with a connection to it.
    pub(super) is_mirrored: bool,
}

/// A [`PartitionKey`], for the snapshot of a fabric's owner. It stays valid through the fabric's
/// snapshot. A key that never existed does no harm: the fabric has no partition for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionKeySnapshot {
    slot: u32,
    generation: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartitionRecord {
    pub(super) key: PartitionKeySnapshot,
    /// Absent for the root, or for the outer partition if there is one.
    pub(super) parent: Option<PartitionKeySnapshot>,
    pub(super) kind: KindRecord,
    pub(super) name: PartitionName,
    pub(super) vm_id: VmId,
    pub(super) groups: Vec<String>,
    /// Its own state, not limited by that of its parent.
    pub(super) state: StateRecord,
    /// Absent for a container.
    pub(super) registry: Option<RegistryRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KindRecord {
    Host,
    Vm,
    Container,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StateRecord {
    Defined,
    Connected,
    Running,
    Paused,
    Off,
    Unknown,
    Exited,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListenerRecord {
    pub(super) id: u64,
    pub(super) partition: PartitionKeySnapshot,
    /// The partitions to accept from, as requested.
    pub(super) vm: VmId,
    pub(super) service: ServiceId,
    pub(super) principal: PrincipalRecord,
    /// Pending connections.
    pub(super) backlog: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PrincipalRecord {
    uid: u32,
    user: Option<String>,
    groups: Vec<(u32, Option<String>)>,
    /// Absent in snapshots of older releases: unknown, so not root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition_uid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConnectionRecord {
    pub(super) id: u64,
    pub(super) source: PartitionKeySnapshot,
    pub(super) target: PartitionKeySnapshot,
    /// The listener that accepts or accepted it; absent for a guest.
    pub(super) listener: Option<u64>,
    pub(super) service: ServiceId,
    /// Pending.
    pub(super) waiting: bool,
    pub(super) suspended: bool,
    pub(super) client_connected_suspend: bool,
    pub(super) server_connected_suspend: bool,
    /// Absent for a connection that counts as one.
    #[serde(default = "single", skip_serializing_if = "is_single")]
    pub(super) weight: u32,
}

fn single() -> u32 {
    Block::SINGLE.weight
}

fn is_single(weight: &u32) -> bool {
    *weight == single()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum EffectRecord {
    ResetConnection { id: u64, refusal: RefusalRecord },
    CloseListener { id: u64, refusal: RefusalRecord },
    Suspend { id: u64 },
    Resume { id: u64 },
}

/// As in the endpoint protocol, whose codes do not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RefusalRecord {
    code: u32,
    detail: String,
}

impl Fabric {
    /// The fabric as a value.
    pub fn snapshot(&self) -> FabricSnapshot {
        let Self {
            tree,
            limits: _,
            operators: _,
            sees_listeners,
            outer_is_mirrored,
            listeners,
            // Follows from the listeners.
            addresses: _,
            connections,
            // Follows from the connections.
            weight: _,
            effects,
            next_listener,
            next_connection,
            // The owner of a restored fabric judges all requests again.
            generation: _,
            changes: _,
        } = self;
        let mut listeners: Vec<_> = listeners
            .iter()
            .map(|(id, listener)| ListenerRecord::new(*id, listener))
            .collect();
        listeners.sort_unstable_by_key(|listener| listener.id);
        let mut connections: Vec<_> = connections
            .iter()
            .map(|(id, connection)| ConnectionRecord::new(*id, connection))
            .collect();
        connections.sort_unstable_by_key(|connection| connection.id);
        let outer = tree.outer().map(|key| OuterRecord {
            key: key.into(),
            is_mirrored: *outer_is_mirrored,
        });
        let mut partitions = tree.iter().map(|(_, partition)| partition);
        let is_newer = outer.is_some() || partitions.any(is_of_version_2);
        FabricSnapshot {
            version: match is_newer {
                true => FABRIC_SNAPSHOT_VERSION,
                false => VERSION_WITHOUT_OUTER,
            },
            outer,
            sees_listeners: *sees_listeners,
            partitions: tree
                .iter()
                .map(|(key, partition)| PartitionRecord::new(key, partition))
                .collect(),
            free_keys: tree.free().map(PartitionKeySnapshot::from).collect(),
            retired_slots: tree.retired().collect(),
            next_listener: next_listener.as_u64(),
            listeners,
            next_connection: next_connection.as_u64(),
            connections,
            effects: effects.iter().map(EffectRecord::new).collect(),
        }
    }
}

/// Whether a partition has something that the first version has not: a nested name, or an override for
/// one in its registry, or the state of a container that has exited.
fn is_of_version_2(partition: &Partition) -> bool {
    let registrations = partition.registry().into_iter().flat_map(Registry::iter);
    let mut names = registrations.flat_map(|it| it.vm.keys());
    partition.name.is_nested()
        || partition.state == PartitionState::Exited
        || names.any(PartitionName::is_nested)
}

impl PartitionRecord {
    fn new(key: PartitionKey, partition: &Partition) -> Self {
        let Partition {
            kind,
            name,
            vm_id,
            groups,
            state,
            parent,
            registry,
            // Follow from the parents, listeners and connections.
            children: _,
            listeners: _,
            connections: _,
            weight: _,
            watchers: _,
            dependents: _,
        } = partition;
        Self {
            key: key.into(),
            parent: parent.map(PartitionKeySnapshot::from),
            kind: match kind {
                PartitionKind::Host => KindRecord::Host,
                PartitionKind::Vm => KindRecord::Vm,
                PartitionKind::Container => KindRecord::Container,
            },
            name: name.clone(),
            vm_id: *vm_id,
            groups: groups.clone(),
            state: match state {
                PartitionState::Defined => StateRecord::Defined,
                PartitionState::Connected => StateRecord::Connected,
                PartitionState::Running => StateRecord::Running,
                PartitionState::Paused => StateRecord::Paused,
                PartitionState::Off => StateRecord::Off,
                PartitionState::Unknown => StateRecord::Unknown,
                PartitionState::Exited => StateRecord::Exited,
            },
            registry: registry.as_ref().map(RegistryRecord::new),
        }
    }
}

impl KindRecord {
    pub(super) fn restore(self) -> PartitionKind {
        match self {
            Self::Host => PartitionKind::Host,
            Self::Vm => PartitionKind::Vm,
            Self::Container => PartitionKind::Container,
        }
    }
}

impl StateRecord {
    pub(super) fn restore(self) -> PartitionState {
        match self {
            Self::Defined => PartitionState::Defined,
            Self::Connected => PartitionState::Connected,
            Self::Running => PartitionState::Running,
            Self::Paused => PartitionState::Paused,
            Self::Off => PartitionState::Off,
            Self::Unknown => PartitionState::Unknown,
            Self::Exited => PartitionState::Exited,
        }
    }
}

impl ListenerRecord {
    fn new(id: ListenerId, listener: &Listener) -> Self {
        let Listener {
            partition,
            vm,
            service,
            principal,
            backlog,
            // Follow from the address and the connections.
            binding: _,
            waiting: _,
            owners: _,
        } = listener;
        let Principal {
            uid,
            user,
            groups,
            partition_uid,
        } = principal;
        Self {
            id: id.as_u64(),
            partition: (*partition).into(),
            vm: *vm,
            service: *service,
            principal: PrincipalRecord {
                uid: *uid,
                user: user.clone(),
                groups: groups.clone(),
                partition_uid: *partition_uid,
            },
            backlog: *backlog,
        }
    }
}

impl PrincipalRecord {
    pub(super) fn restore(self) -> Principal {
        Principal {
            uid: self.uid,
            user: self.user,
            groups: self.groups,
            partition_uid: self.partition_uid,
        }
    }
}

impl ConnectionRecord {
    fn new(id: ConnectionId, connection: &Connection) -> Self {
        let Connection {
            source,
            target,
            destination,
            service,
            // Follows from the ends.
            registry: _,
            waiting,
            suspended,
            client_connected_suspend,
            server_connected_suspend,
            weight,
        } = *connection;
        Self {
            id: id.as_u64(),
            source: source.into(),
            target: target.into(),
            listener: destination.listener().map(ListenerId::as_u64),
            service,
            waiting,
            suspended,
            client_connected_suspend,
            server_connected_suspend,
            weight,
        }
    }

    pub(super) fn destination(&self) -> Destination {
        let listener = self.listener.map(ListenerId::from_u64);
        listener.map_or(Destination::Guest, Destination::Listener)
    }
}

impl EffectRecord {
    fn new(effect: &Effect) -> Self {
        match effect {
            Effect::ResetConnection { id, refusal } => Self::ResetConnection {
                id: id.as_u64(),
                refusal: RefusalRecord::new(refusal),
            },
            Effect::CloseListener { id, refusal } => Self::CloseListener {
                id: id.as_u64(),
                refusal: RefusalRecord::new(refusal),
            },
            Effect::Suspend { id } => Self::Suspend { id: id.as_u64() },
            Effect::Resume { id } => Self::Resume { id: id.as_u64() },
        }
    }

    pub(super) fn restore(self) -> Effect {
        match self {
            Self::ResetConnection { id, refusal } => Effect::ResetConnection {
                id: ConnectionId::from_u64(id),
                refusal: refusal.restore(),
            },
            Self::CloseListener { id, refusal } => Effect::CloseListener {
                id: ListenerId::from_u64(id),
                refusal: refusal.restore(),
            },
            Self::Suspend { id } => Effect::Suspend {
                id: ConnectionId::from_u64(id),
            },
            Self::Resume { id } => Effect::Resume {
                id: ConnectionId::from_u64(id),
            },
        }
    }
}

impl RefusalRecord {
    fn new(refusal: &Refusal) -> Self {
        Self {
            code: refusal.code(),
            detail: refusal.detail().to_owned(),
        }
    }

    fn restore(self) -> Refusal {
        Refusal::from_wire(self.code, &self.detail)
    }
}

impl From<PartitionKey> for PartitionKeySnapshot {
    fn from(PartitionKey { slot, generation }: PartitionKey) -> Self {
        Self { slot, generation }
    }
}

impl From<PartitionKeySnapshot> for PartitionKey {
    fn from(PartitionKeySnapshot { slot, generation }: PartitionKeySnapshot) -> Self {
        Self { slot, generation }
    }
}
