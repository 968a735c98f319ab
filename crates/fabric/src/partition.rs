//! Partitions: hosts, virtual machines and containers.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_registry::{PartitionIdentity, Registry};

use crate::{ConnectionId, ListenerId, PartitionKey, Refusal};

/// The kind of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionKind {
    /// A physical machine.
    Host,
    /// A virtual machine.
    Vm,
    /// A container.
    Container,
}

/// The run state of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionState {
    /// A VM whose VMM has not been seen since the broker started, or a container that its runtime has
    /// announced before and has not now.
    Defined,
    /// A VM whose VMM is there, and whose guest has not started its vsock driver.
    Connected,
    /// Running.
    Running,
    /// Running, but its traffic is suspended.
    Paused,
    /// Not running.
    Off,
    /// A VM or container of which nobody says whether it runs. It may have connections, as one that
    /// runs.
    Unknown,
    /// A container whose first process has ended.
    Exited,
}

/// The root partition of a fabric. It is always running.
#[derive(Clone, Debug)]
pub struct RootSpec {
    /// The kind.
    pub kind: PartitionKind,
    /// The name.
    pub name: PartitionName,
    /// The id. Only other fabrics use it.
    pub vm_id: VmId,
}

/// The parent of the root partition: the host of the virtual machine in which the broker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OuterSpec {
    /// The name that the host has there. Another one is chosen if a partition of this fabric has it.
    pub name: PartitionName,
    /// The id that the host has there.
    pub vm_id: VmId,
}

/// A partition to add.
#[derive(Clone, Debug)]
pub struct PartitionSpec {
    /// The kind.
    pub kind: PartitionKind,
    /// The name, unique in the fabric. That of a container in a virtual machine is
    /// [nested](PartitionName::is_nested), with the name of the virtual machine; any other is not.
    pub name: PartitionName,
    /// The id, unique in the fabric.
    pub vm_id: VmId,
    /// The sibling groups. Children of one parent that share a group reach each other.
    pub groups: Vec<String>,
    /// The initial state.
    pub state: PartitionState,
}

/// A partition of a fabric.
#[derive(Debug)]
pub struct Partition {
    pub(crate) kind: PartitionKind,
    pub(crate) name: PartitionName,
    pub(crate) vm_id: VmId,
    pub(crate) groups: Vec<String>,
    pub(crate) state: PartitionState,
    pub(crate) parent: Option<PartitionKey>,
    pub(crate) children: BTreeSet<PartitionKey>,
    pub(crate) registry: Option<Registry>,
    pub(crate) listeners: BTreeSet<ListenerId>,
    pub(crate) connections: BTreeSet<ConnectionId>,
    /// The weight of those connections.
    pub(crate) weight: usize,
    /// Listeners in other partitions that are bound to this partition's id.
    pub(crate) watchers: BTreeSet<ListenerId>,
    /// The dependents of each registry entry, so that a change of one entry checks only those.
    pub(crate) dependents: HashMap<ServiceId, Dependents>,
}

/// The sockets that depend on one registry entry, or on its absence.
#[derive(Debug, Default)]
pub(crate) struct Dependents {
    pub(crate) listeners: BTreeSet<ListenerId>,
    pub(crate) connections: BTreeSet<ConnectionId>,
}

impl Partition {
    pub(crate) fn new(spec: PartitionSpec, parent: Option<PartitionKey>) -> Self {
        let may_have_children = spec.kind != PartitionKind::Container;
        Self {
            kind: spec.kind,
            name: spec.name,
            vm_id: spec.vm_id,
            groups: spec.groups,
            state: spec.state,
            parent,
            children: BTreeSet::new(),
            registry: may_have_children.then(Registry::new),
            listeners: BTreeSet::new(),
            connections: BTreeSet::new(),
            weight: 0,
            watchers: BTreeSet::new(),
            dependents: HashMap::new(),
        }
    }

    /// The kind.
    pub fn kind(&self) -> PartitionKind {
        self.kind
    }

    /// The name.
    pub fn name(&self) -> &PartitionName {
        &self.name
    }

    /// The id.
    pub fn vm_id(&self) -> VmId {
        self.vm_id
    }

    /// The sibling groups.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The partition's own state. The effective state also depends on its ancestors: see
    /// [`Fabric::state`](crate::Fabric::state).
    pub fn state(&self) -> PartitionState {
        self.state
    }

    /// The parent partition; `None` for the root, or for the outer partition if there is one.
    pub fn parent(&self) -> Option<PartitionKey> {
        self.parent
    }

    /// The child partitions.
    pub fn children(&self) -> impl ExactSizeIterator<Item = PartitionKey> {
        self.children.iter().copied()
    }

    /// The service registry. A container has no children and no registry.
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    /// The listeners in this partition, the oldest first.
    pub fn listeners(&self) -> impl ExactSizeIterator<Item = ListenerId> {
        self.listeners.iter().copied()
    }

    /// The connections with an end in this partition, each once, the oldest first.
    pub fn connections(&self) -> impl ExactSizeIterator<Item = ConnectionId> {
        self.connections.iter().copied()
    }

    /// The partition as the entries of lists name it.
    pub(crate) fn identity(&self) -> PartitionIdentity<'_> {
        PartitionIdentity {
            name: &self.name,
            id: self.vm_id,
            groups: &self.groups,
            // A host that makes a request of another partition is that partition's parent.
            is_parent: self.kind == PartitionKind::Host,
        }
    }

    /// Removes a dependent of a registry entry, and the set when it is empty.
    pub(crate) fn release(
        &mut self,
        service: ServiceId,
        remove: impl FnOnce(&mut Dependents) -> bool,
    ) {
        if let Some(dependents) = self.dependents.get_mut(&service) {
            remove(dependents);
            if dependents.listeners.is_empty() && dependents.connections.is_empty() {
                self.dependents.remove(&service);
            }
        }
    }

    pub(crate) fn shares_group(&self, other: &Partition) -> bool {
        self.groups.iter().any(|group| other.groups.contains(group))
    }
}

impl PartitionState {
    /// The effective state of a partition in this state whose parent is in the state `outer`.
    pub(crate) fn limited_by(self, outer: PartitionState) -> PartitionState {
        // The state that allows least.
        [
            PartitionState::Off,
            PartitionState::Exited,
            PartitionState::Defined,
            PartitionState::Connected,
            PartitionState::Paused,
            PartitionState::Unknown,
        ]
        .into_iter()
        .find(|state| [self, outer].contains(state))
        .unwrap_or(PartitionState::Running)
    }

    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Defined,
        Self::Connected,
        Self::Running,
        Self::Paused,
        Self::Off,
        Self::Unknown,
        Self::Exited,
    ];

    /// Whether a partition in this state can have connections that carry data: it runs, as far as is
    /// known.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Unknown)
    }

    /// Whether a partition in this state has neither connections nor listeners.
    pub fn is_down(self) -> bool {
        self.down_refusal().is_some()
    }

    /// Why a partition in this state can have no connection, if it cannot.
    pub fn down_refusal(self) -> Option<Refusal> {
        match self {
            Self::Off | Self::Defined => Some(Refusal::PartitionOff),
            Self::Connected => Some(Refusal::NoDriver),
            Self::Exited => Some(Refusal::PartitionExited),
            Self::Running | Self::Paused | Self::Unknown => None,
        }
    }

    /// The state in one word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Defined => "defined",
            Self::Connected => "connected",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Off => "off",
            Self::Unknown => "unknown",
            Self::Exited => "exited",
        }
    }
}

impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PartitionKind::Host => "host",
            PartitionKind::Vm => "vm",
            PartitionKind::Container => "container",
        })
    }
}

impl fmt::Display for PartitionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}
