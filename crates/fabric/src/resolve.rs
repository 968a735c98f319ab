//! What a VmId means where it is given: DESIGN's table, one function per column.

use hvsock_address::VmId;

use crate::explain::{Audience, Note, Trace};
use crate::partition::{Partition, PartitionKind};
use crate::tables::Bound;
use crate::tree::{Relation, Tree};
use crate::{PartitionKey, Refusal};

/// Why a VmId means nothing where it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nowhere {
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
    Stranger,
    NoSharedGroup,
}

/// A partition with its key, as the judge passes it around.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) key: PartitionKey,
    pub(crate) partition: &'a Partition,
}

impl Tree {
    pub(crate) fn place(&self, key: PartitionKey) -> Option<Place<'_>> {
        let partition = self.get(key)?;
        Some(Place { key, partition })
    }

    /// The partition that a connect from `from` to `vm` goes to.
    pub(crate) fn resolve_connect<'a, T: Trace>(
        &'a self,
        from: Place<'a>,
        vm: VmId,
        trace: &mut T,
    ) -> Result<(Place<'a>, Relation), Refusal> {
        let parent = |or: Nowhere| {
            let parent = from.partition.parent.and_then(|key| self.place(key));
            parent.map(|place| (place, Relation::Parent)).ok_or(or)
        };
        let found = match vm {
            VmId::WILDCARD => parent(Nowhere::ConnectToWildcardInRoot),
            VmId::PARENT => parent(Nowhere::RootHasNoParent),
            VmId::CHILDREN => Err(Nowhere::ConnectToChildren),
            VmId::LOOPBACK => Ok((from, Relation::Itself)),
            VmId::BROADCAST => Err(Nowhere::Broadcast),
            VmId::SILOHOST if from.partition.kind == PartitionKind::Container => {
                parent(Nowhere::RootHasNoParent)
            }
            VmId::SILOHOST => Err(Nowhere::NotInContainer),
            id => self.resolve_id(from, id),
        };
        self.note(trace, from, vm, &found, |(place, relation)| {
            format!("{}{}", place.partition.name, relation_words(*relation))
        });
        found.map_err(|nowhere| nowhere.refusal(from))
    }

    /// Whom a listen in `from` at `vm` accepts from.
    pub(crate) fn resolve_listen<T: Trace>(
        &self,
        from: Place<'_>,
        vm: VmId,
        trace: &mut T,
    ) -> Result<Bound, Refusal> {
        let parent = match from.partition.parent {
            Some(_) => Ok(Bound::Parent),
            None => Err(Nowhere::RootHasNoParent),
        };
        let container = from.partition.kind == PartitionKind::Container;
        let found = match vm {
            VmId::WILDCARD => Ok(Bound::Wildcard),
            VmId::PARENT => parent,
            VmId::CHILDREN if container => Err(Nowhere::ContainerHasNoChildren),
            VmId::CHILDREN => Ok(Bound::Children),
            VmId::LOOPBACK => Ok(Bound::Loopback),
            VmId::BROADCAST => Err(Nowhere::Broadcast),
            VmId::SILOHOST if container => parent,
            VmId::SILOHOST => Err(Nowhere::NotInContainer),
            id => self
                .resolve_id(from, id)
                .map(|(place, _)| Bound::Partition(place.key)),
        };
        self.note(trace, from, vm, &found, |bound| self.whom(from, *bound));
        found.map_err(|nowhere| nowhere.refusal(from))
    }

    /// The child, or sibling in one group, with this id.
    fn resolve_id(&self, from: Place<'_>, id: VmId) -> Result<(Place<'_>, Relation), Nowhere> {
        let key = self.by_vm_id(id).ok_or(Nowhere::Unknown)?;
        let place = self.place(key).ok_or(Nowhere::Unknown)?;
        match self.relation(from.key, key) {
            Some(Relation::Itself) => Err(Nowhere::OwnId),
            Some(Relation::Parent) => Err(Nowhere::ParentsId),
            Some(Relation::Child) => Ok((place, Relation::Child)),
            Some(Relation::Sibling) if from.partition.shares_group(place.partition) => {
                Ok((place, Relation::Sibling))
            }
            Some(Relation::Sibling) => Err(Nowhere::NoSharedGroup),
            None => Err(Nowhere::Stranger),
        }
    }

    fn note<T: Trace, R>(
        &self,
        trace: &mut T,
        from: Place<'_>,
        vm: VmId,
        found: &Result<R, Nowhere>,
        words: impl FnOnce(&R) -> String,
    ) {
        trace.note(|audience| {
            let word = match vm.well_known_name() {
                Some(word) => word.to_uppercase(),
                None => vm.to_string(),
            };
            let question = format!("What is {word} in {}?", from.partition.name);
            match found {
                Ok(found) => Note::new(true, question, words(found)),
                Err(nowhere) => {
                    let nowhere = nowhere.as_told_to(audience, from);
                    let note = Note::new(false, question, nowhere.words());
                    match nowhere.fix() {
                        Some(fix) => note.fix(fix),
                        None => note,
                    }
                }
            }
        });
    }

    /// Whom a listener accepts from, in words.
    pub(crate) fn whom(&self, from: Place<'_>, bound: Bound) -> String {
        let parent = || from.partition.parent.and_then(|key| self.get(key));
        match bound {
            Bound::Wildcard => "every partition that may reach it".to_owned(),
            Bound::Parent => match parent() {
                Some(parent) => format!("its parent {}", parent.name),
                None => "its parent".to_owned(),
            },
            Bound::Children => "its children".to_owned(),
            Bound::Loopback => "itself".to_owned(),
            Bound::Partition(key) => match self.get(key) {
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
    }
}

impl Nowhere {
    fn refusal(self, from: Place<'_>) -> Refusal {
        match self {
            Nowhere::RootHasNoParent | Nowhere::ContainerHasNoChildren => Refusal::NotSupported,
            Nowhere::NotInContainer
            | Nowhere::Broadcast
            | Nowhere::ConnectToChildren
            | Nowhere::ConnectToWildcardInRoot => Refusal::AddressNotAvailable,
            // Only the root partition may know which ids there are.
            Nowhere::Unknown if from.partition.parent.is_none() => Refusal::PartitionUnknown,
            Nowhere::OwnId
            | Nowhere::ParentsId
            | Nowhere::Unknown
            | Nowhere::Stranger
            | Nowhere::NoSharedGroup => Refusal::NotReachable,
        }
    }

    /// The same as far as this reader may know it: to an asker outside of the root partition all
    /// ids that it may not reach are one.
    fn as_told_to(self, audience: Audience, from: Place<'_>) -> Nowhere {
        let outside = audience == Audience::Asker && from.partition.parent.is_some();
        match self {
            Nowhere::ParentsId | Nowhere::Unknown | Nowhere::NoSharedGroup if outside => {
                Nowhere::Stranger
            }
            other => other,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Nowhere::RootHasNoParent => "nothing: the root partition has no parent",
            Nowhere::ContainerHasNoChildren => "nothing: a container has no children",
            Nowhere::NotInContainer => "nothing: only a container has a container's host",
            Nowhere::Broadcast => "nothing: this address is reserved",
            Nowhere::ConnectToChildren => {
                "nothing to connect to: children are many; give the name or id of one"
            }
            Nowhere::ConnectToWildcardInRoot => {
                "nothing to connect to: the root partition has no parent"
            }
            Nowhere::OwnId => "its own id, and a partition reaches itself as LOOPBACK",
            Nowhere::ParentsId => "its parent's id, and a parent is reached as PARENT",
            Nowhere::Unknown => "no partition has this id",
            Nowhere::Stranger => "no partition that it may reach",
            Nowhere::NoSharedGroup => "a sibling, and no sibling group has both in it",
        }
    }

    fn fix(self) -> Option<&'static str> {
        match self {
            Nowhere::OwnId => Some("use LOOPBACK in place of the partition's own id"),
            Nowhere::ParentsId => Some("use PARENT in place of the parent's id"),
            Nowhere::Unknown => Some("hvsock status"),
            Nowhere::NoSharedGroup => Some("put both partitions into one sibling group"),
            _ => None,
        }
    }
}
