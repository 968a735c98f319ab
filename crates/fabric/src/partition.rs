//! What a partition is.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_registry::{Requester, Registry};

use crate::{ConnectionId, ListenerId, PartitionKey};

/// What a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionKind {
    /// A physical machine.
    Host,
    /// A virtual machine.
    Vm,
    /// A container.
    Container,
}

/// Whether a partition takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionState {
    /// Known, and not there.
    Off,
    /// There.
    Running,
    /// There, and standing still.
    Paused,
}

/// The partition that a fabric begins with. It is always running.
#[derive(Clone, Debug)]
pub struct RootSpec {
    /// What it is.
    pub kind: PartitionKind,
    /// Its name.
    pub name: PartitionName,
    /// Its id, which only other fabrics use.
    pub vm_id: VmId,
}

/// A partition to add.
#[derive(Clone, Debug)]
pub struct PartitionSpec {
    /// What it is.
    pub kind: PartitionKind,
    /// Its name, which no other partition of the fabric may have.
    pub name: PartitionName,
    /// Its id, which no other partition of the fabric may have.
    pub vm_id: VmId,
    /// The sibling groups that it is in: children of one parent that share a group reach each
    /// other.
    pub groups: Vec<String>,
    /// Whether it takes part.
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
    /// Listeners elsewhere that accept from this partition by its id.
    pub(crate) watchers: BTreeSet<ListenerId>,
    /// What depends on this partition's registry, so that a change of one entry touches no more.
    pub(crate) uses: HashMap<ServiceId, Uses>,
}

/// What depends on one entry of a registry, or on its absence.
#[derive(Debug, Default)]
pub(crate) struct Uses {
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
            watchers: BTreeSet::new(),
            uses: HashMap::new(),
        }
    }

    /// What it is.
    pub fn kind(&self) -> PartitionKind {
        self.kind
    }

    /// Its name.
    pub fn name(&self) -> &PartitionName {
        &self.name
    }

    /// Its id.
    pub fn vm_id(&self) -> VmId {
        self.vm_id
    }

    /// The sibling groups that it is in.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// Its own state. Whatever it is, a partition takes part only where everything around it does:
    /// see [`Fabric::state`](crate::Fabric::state).
    pub fn state(&self) -> PartitionState {
        self.state
    }

    /// The partition around it; the root has none.
    pub fn parent(&self) -> Option<PartitionKey> {
        self.parent
    }

    /// The partitions in it.
    pub fn children(&self) -> impl ExactSizeIterator<Item = PartitionKey> {
        self.children.iter().copied()
    }

    /// The services that its owner allows; a container has no children and no registry.
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    /// The listeners in it, in the order in which they began.
    pub fn listeners(&self) -> impl ExactSizeIterator<Item = ListenerId> {
        self.listeners.iter().copied()
    }

    /// The connections with an end in it, each once, in the order in which they began.
    pub fn connections(&self) -> impl ExactSizeIterator<Item = ConnectionId> {
        self.connections.iter().copied()
    }

    /// Itself as its parent's registry sees it.
    pub(crate) fn as_child(&self) -> Requester<'_> {
        Requester::Child {
            name: &self.name,
            id: self.vm_id,
            groups: &self.groups,
        }
    }

    /// Takes something out of what depends on an entry, and forgets an entry that nothing does.
    pub(crate) fn release(&mut self, service: ServiceId, take: impl FnOnce(&mut Uses) -> bool) {
        if let Some(uses) = self.uses.get_mut(&service) {
            take(uses);
            if uses.listeners.is_empty() && uses.connections.is_empty() {
                self.uses.remove(&service);
            }
        }
    }

    pub(crate) fn shares_group(&self, other: &Partition) -> bool {
        self.groups.iter().any(|group| other.groups.contains(group))
    }
}

impl PartitionState {
    /// The state of something in this state inside of something in the `outer` one.
    pub(crate) fn inside(self, outer: PartitionState) -> PartitionState {
        match (self, outer) {
            (PartitionState::Off, _) | (_, PartitionState::Off) => PartitionState::Off,
            (PartitionState::Paused, _) | (_, PartitionState::Paused) => PartitionState::Paused,
            (PartitionState::Running, PartitionState::Running) => PartitionState::Running,
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
        f.pad(match self {
            PartitionState::Off => "off",
            PartitionState::Running => "running",
            PartitionState::Paused => "paused",
        })
    }
}
