//! Resolves the VmId of a request. The table in `docs/tutorial.md` ("reaches", "accepts from") lists
//! the meaning of each well-known id; there is one function per column.

use hvsock_address::VmId;

use crate::partition::{Partition, PartitionKind};
use crate::tables::Binding;
use crate::trace::{Audience, Trace, TraceEntry};
use crate::tree::{Relation, Tree};
use crate::{Check, Fix, PartitionKey, Refusal};

/// Why a VmId has no meaning in the requester's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResolveError {
    RootHasNoParent,
    ContainerHasNoChildren,
    NotInContainer,
    Broadcast,
    ConnectToChildren,
    ConnectToWildcardInRoot,
    OwnId,
    ParentsId,
    Unknown,
    /// Neither child nor sibling.
    Unreachable,
    NoSharedGroup,
    /// A request that is said to come from the outer partition, and is not for a partition of this one.
    InOuter,
}

/// A partition with its key.
#[derive(Clone, Copy)]
pub(crate) struct PartitionNode<'a> {
    pub(crate) key: PartitionKey,
    pub(crate) partition: &'a Partition,
}

impl Tree {
    pub(crate) fn node(&self, key: PartitionKey) -> Option<PartitionNode<'_>> {
        let partition = self.get(key)?;
        Some(PartitionNode { key, partition })
    }

    /// The target partition of a connect from `from` to `vm`.
    pub(crate) fn resolve_connect<'a, T: Trace>(
        &'a self,
        from: PartitionNode<'a>,
        vm: VmId,
        trace: &mut T,
    ) -> Result<(PartitionNode<'a>, Relation), Refusal> {
        let parent = |or: ResolveError| {
            let parent = from.partition.parent.and_then(|key| self.node(key));
            parent.map(|node| (node, Relation::Parent)).ok_or(or)
        };
        let found = match vm {
            VmId::WILDCARD => parent(ResolveError::ConnectToWildcardInRoot),
            VmId::PARENT => parent(ResolveError::RootHasNoParent),
            VmId::CHILDREN => Err(ResolveError::ConnectToChildren),
            VmId::LOOPBACK if self.outer() == Some(from.key) => Err(ResolveError::InOuter),
            VmId::LOOPBACK => Ok((from, Relation::Itself)),
            VmId::BROADCAST => Err(ResolveError::Broadcast),
            VmId::SILOHOST if from.partition.kind == PartitionKind::Container => {
                parent(ResolveError::RootHasNoParent)
            }
            VmId::SILOHOST => Err(ResolveError::NotInContainer),
            id if self.is_outer_id(from, id) => parent(ResolveError::ParentsId),
            id => self.resolve_id(from, id),
        };
        self.note(trace, from, vm, &found, |(node, relation)| {
            format!("{}{}", node.partition.name, relation_words(*relation))
        });
        found.map_err(|error| error.refusal(from))
    }

    /// The partitions that a listener in `from` bound to `vm` accepts from.
    pub(crate) fn resolve_listen<T: Trace>(
        &self,
        from: PartitionNode<'_>,
        vm: VmId,
        trace: &mut T,
    ) -> Result<Binding, Refusal> {
        let parent = match from.partition.parent {
            Some(_) => Ok(Binding::Parent),
            None => Err(ResolveError::RootHasNoParent),
        };
        let container = from.partition.kind == PartitionKind::Container;
        let found = match vm {
            _ if self.outer() == Some(from.key) => Err(ResolveError::InOuter),
            VmId::WILDCARD => Ok(Binding::Wildcard),
            VmId::PARENT => parent,
            VmId::CHILDREN if container => Err(ResolveError::ContainerHasNoChildren),
            VmId::CHILDREN => Ok(Binding::Children),
            VmId::LOOPBACK => Ok(Binding::Loopback),
            VmId::BROADCAST => Err(ResolveError::Broadcast),
            VmId::SILOHOST if container => parent,
            VmId::SILOHOST => Err(ResolveError::NotInContainer),
            id if self.is_outer_id(from, id) => parent,
            id => self
                .resolve_id(from, id)
                .map(|(node, _)| Binding::Partition(node.key)),
        };
        self.note(trace, from, vm, &found, |binding| {
            self.accepts_from(from, *binding)
        });
        found.map_err(|error| error.refusal(from))
    }

    /// Whether this is the id of the outer partition, in a request of the root. It is the one parent whose
    /// id a child knows, and means PARENT there.
    fn is_outer_id(&self, from: PartitionNode<'_>, id: VmId) -> bool {
        let outer = self.outer().and_then(|key| self.get(key));
        from.key == self.root() && outer.is_some_and(|outer| outer.vm_id == id)
    }

    /// The child, child's child, parent's parent, or sibling in a common group, with this id.
    fn resolve_id(
        &self,
        from: PartitionNode<'_>,
        id: VmId,
    ) -> Result<(PartitionNode<'_>, Relation), ResolveError> {
        let key = self.by_vm_id(id).ok_or(ResolveError::Unknown)?;
        let node = self.node(key).ok_or(ResolveError::Unknown)?;
        match self.relation(from.key, key) {
            Some(Relation::Itself) => Err(ResolveError::OwnId),
            Some(Relation::Parent) => Err(ResolveError::ParentsId),
            Some(relation @ (Relation::Child | Relation::Grandparent | Relation::Grandchild)) => {
                Ok((node, relation))
            }
            Some(Relation::Sibling) if from.partition.shares_group(node.partition) => {
                Ok((node, Relation::Sibling))
            }
            Some(Relation::Sibling) => Err(ResolveError::NoSharedGroup),
            None => Err(ResolveError::Unreachable),
        }
    }

    fn note<T: Trace, R>(
        &self,
        trace: &mut T,
        from: PartitionNode<'_>,
        vm: VmId,
        found: &Result<R, ResolveError>,
        words: impl FnOnce(&R) -> String,
    ) {
        trace.record(|audience| {
            let word = match vm.well_known_name() {
                Some(word) => word.to_uppercase(),
                None => vm.to_string(),
            };
            let question = format!("What is {word} in {}?", from.partition.name);
            let entry = match found {
                Ok(found) => TraceEntry::new(Check::Address, true, question, words(found)),
                Err(error) => {
                    let error = error.visible_to(audience, from.key == self.root());
                    TraceEntry::new(Check::Address, false, question, error.answer())
                        .fix(self.fix(error, from, vm))
                }
            };
            entry.about(word)
        });
    }

    /// What would help after `error`, as the reader may see it.
    fn fix(&self, error: ResolveError, from: PartitionNode<'_>, vm: VmId) -> Option<Fix> {
        match error {
            ResolveError::OwnId => Some(Fix::UseAddress {
                address: VmId::LOOPBACK,
            }),
            ResolveError::ParentsId => Some(Fix::UseAddress {
                address: VmId::PARENT,
            }),
            ResolveError::Unknown => Some(Fix::ListPartitions),
            ResolveError::NoSharedGroup => {
                let sibling = self.get(self.by_vm_id(vm)?)?;
                Some(Fix::JoinGroup {
                    partition: from.partition.name.clone(),
                    other: sibling.name.clone(),
                })
            }
            _ => None,
        }
    }

    /// The partitions that a listener accepts from, as text.
    pub(crate) fn accepts_from(&self, from: PartitionNode<'_>, binding: Binding) -> String {
        let parent = || from.partition.parent.and_then(|key| self.get(key));
        match binding {
            Binding::Wildcard => "every partition that can reach it".to_owned(),
            Binding::Parent => match parent() {
                Some(parent) => format!("its parent {}", parent.name),
                None => "its parent".to_owned(),
            },
            Binding::Children => "its children".to_owned(),
            Binding::Loopback => "itself".to_owned(),
            Binding::Partition(key) => match self.get(key) {
                Some(partition) => format!("the partition {}", partition.name),
                None => "a partition that is gone".to_owned(),
            },
        }
    }
}

fn relation_words(relation: Relation) -> &'static str {
    match relation {
        Relation::Itself => ", itself",
        Relation::Parent => ", its parent",
        Relation::Child => ", its child",
        Relation::Sibling => ", its sibling",
        Relation::Grandparent => ", its parent's parent",
        Relation::Grandchild => ", a container in its child",
    }
}

impl ResolveError {
    fn refusal(self, from: PartitionNode<'_>) -> Refusal {
        match self {
            ResolveError::RootHasNoParent | ResolveError::ContainerHasNoChildren => {
                Refusal::NotSupported
            }
            ResolveError::NotInContainer
            | ResolveError::Broadcast
            | ResolveError::ConnectToChildren
            | ResolveError::ConnectToWildcardInRoot => Refusal::AddressNotAvailable,
            // Only the root partition may learn which ids exist.
            ResolveError::Unknown if from.partition.parent.is_none() => Refusal::PartitionUnknown,
            ResolveError::OwnId
            | ResolveError::ParentsId
            | ResolveError::Unknown
            | ResolveError::Unreachable
            | ResolveError::NoSharedGroup
            | ResolveError::InOuter => Refusal::NotReachable,
        }
    }

    /// The same error as this reader may see it. A requester outside the root partition cannot
    /// distinguish unreachable ids from unknown ones.
    fn visible_to(self, audience: Audience, is_root: bool) -> ResolveError {
        let outside = audience == Audience::Requester && !is_root;
        match self {
            ResolveError::ParentsId | ResolveError::Unknown | ResolveError::NoSharedGroup
                if outside =>
            {
                ResolveError::Unreachable
            }
            other => other,
        }
    }

    fn answer(self) -> &'static str {
        match self {
            ResolveError::RootHasNoParent => "nothing: the root partition has no parent",
            ResolveError::ContainerHasNoChildren => "nothing: a container has no children",
            ResolveError::NotInContainer => "nothing: only a container has a container host",
            ResolveError::Broadcast => "nothing: this address is reserved",
            ResolveError::ConnectToChildren => {
                "nothing to connect to: give the name or id of one child"
            }
            ResolveError::ConnectToWildcardInRoot => {
                "nothing to connect to: the root partition has no parent"
            }
            ResolveError::OwnId => "its own id; a partition reaches itself as LOOPBACK",
            ResolveError::ParentsId => "its parent's id; a child reaches its parent as PARENT",
            ResolveError::Unknown => "no partition has this id",
            ResolveError::Unreachable => "no partition that it can reach",
            ResolveError::NoSharedGroup => "a sibling without a common sibling group",
            ResolveError::InOuter => {
                "nothing here: the host of this virtual machine knows what it is there"
            }
        }
    }
}
