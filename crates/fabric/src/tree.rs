//! The tree of partitions, indexed by key, by id and by name.

use std::collections::HashMap;

use hvsock_address::{PartitionName, VmId};
use hvsock_registry::Requester;

use crate::partition::{
    OuterSpec, Partition, PartitionKind, PartitionSpec, PartitionState, RootSpec,
};
use crate::{Limits, PartitionKey};

/// The partitions of a fabric.
#[derive(Debug)]
pub(crate) struct Tree {
    slots: Vec<Slot>,
    /// Free slots. Each reuse increments the generation.
    free: Vec<u32>,
    root: PartitionKey,
    /// The root's parent, if it has one.
    outer: Option<PartitionKey>,
    by_vm_id: HashMap<VmId, PartitionKey>,
    by_name: HashMap<PartitionName, PartitionKey>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    partition: Option<Partition>,
}

/// Why a partition cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddPartitionError {
    /// The parent does not exist.
    #[error("the parent partition is gone")]
    NoParent,
    /// The parent cannot have such a child: a host has VMs and containers, and so has a VM with a broker; another
    /// VM has containers.
    #[error("a {parent} cannot contain a {kind}")]
    Kind {
        /// The parent's kind.
        parent: PartitionKind,
        /// The new partition's kind.
        kind: PartitionKind,
    },
    /// The parent is the outer partition, whose other children are not known here.
    #[error("only the host itself adds partitions beside this virtual machine")]
    Outer,
    /// A container in a virtual machine has a nested name, with that of the virtual machine, and no other
    /// partition has one.
    #[error("the name {name} does not fit: {rule}")]
    Nesting {
        /// The name.
        name: PartitionName,
        /// What it must be, as a clause.
        rule: String,
    },
    /// Another partition has the name.
    #[error("a partition named {name} already exists; choose another name")]
    NameTaken {
        /// The name, as the other partition spells it.
        name: PartitionName,
    },
    /// Another partition has the id.
    #[error("the partition {name} already has the id {id}; choose another id")]
    IdTaken {
        /// The id.
        id: VmId,
        /// The other partition.
        name: PartitionName,
    },
    /// The id is reserved: a wildcard or another well-known id.
    #[error("the id {id} is reserved ({word}); choose another id")]
    IdReserved {
        /// The id.
        id: VmId,
        /// The name of the reserved id.
        word: &'static str,
    },
    /// A table is full.
    #[error("the limit on {which} is reached")]
    LimitReached {
        /// The limit's name.
        which: &'static str,
    },
}

/// The relation of one partition to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Relation {
    Itself,
    Parent,
    Child,
    /// A child of the same parent, in the same sibling group or not.
    Sibling,
    /// The parent's parent. The registry of the root partition decides: of the one itself, or of the
    /// parent between the two.
    Grandparent,
    /// A child of a child. The same registry decides.
    Grandchild,
}

impl Tree {
    pub(crate) fn new(root: RootSpec) -> Self {
        let key = PartitionKey {
            slot: 0,
            generation: 0,
        };
        let spec = PartitionSpec {
            kind: root.kind,
            name: root.name,
            vm_id: root.vm_id,
            groups: Vec::new(),
            state: PartitionState::Running,
        };
        let mut tree = Self {
            slots: Vec::new(),
            free: Vec::new(),
            root: key,
            outer: None,
            by_vm_id: HashMap::from([(spec.vm_id, key)]),
            by_name: HashMap::from([(spec.name.clone(), key)]),
        };
        tree.slots.push(Slot {
            generation: 0,
            partition: Some(Partition::new(spec, None)),
        });
        tree
    }

    /// A tree of these partitions, without listeners or connections. `free` has the keys for the next
    /// partitions, the first one to use last. The slots `retired` have used up their generations.
    ///
    /// # Errors
    /// What is wrong, as a clause.
    pub(crate) fn restore(
        partitions: Vec<(PartitionKey, Partition)>,
        outer: Option<PartitionKey>,
        free: &[PartitionKey],
        retired: &[u32],
    ) -> Result<Self, &'static str> {
        let mut slots = Vec::new();
        let len = partitions.len() + free.len() + retired.len();
        slots.resize_with(len, || None);
        let mut occupy = |slot: u32, generation, partition| match slots.get_mut(slot as usize) {
            Some(entry @ None) => {
                *entry = Some(Slot {
                    generation,
                    partition,
                });
                Ok(())
            }
            _ => Err("its slots are not numbered from 0 on, each once"),
        };
        let (mut by_vm_id, mut by_name) = (HashMap::new(), HashMap::new());
        let mut children = Vec::new();
        let mut tops = Vec::new();
        for (key, partition) in partitions {
            if by_vm_id.insert(partition.vm_id, key).is_some() {
                return Err("two partitions have one id");
            }
            if by_name.insert(partition.name.clone(), key).is_some() {
                return Err("two partitions have one name");
            }
            match partition.parent {
                Some(parent) => children.push((parent, key)),
                None => tops.push(key),
            }
            occupy(key.slot, key.generation, Some(partition))?;
        }
        for key in free {
            occupy(key.slot, key.generation, None)?;
        }
        for slot in retired {
            occupy(*slot, u32::MAX, None)?;
        }
        let [top] = *tops else {
            return Err("it has not one root");
        };
        if outer.is_some_and(|outer| outer != top) {
            return Err("its outer partition has a parent");
        }
        let root = PartitionKey {
            slot: 0,
            generation: 0,
        };
        let mut tree = Self {
            slots: slots.into_iter().flatten().collect(),
            free: free.iter().map(|key| key.slot).collect(),
            root,
            outer,
            by_vm_id,
            by_name,
        };
        let is_under = match outer {
            None => root == top,
            Some(outer) => tree.is_outer_of_root(outer),
        };
        let runs = |key| tree.state(key) == PartitionState::Running;
        if !is_under || !runs(root) || !runs(top) {
            return Err("its root does not run, or is not the first partition");
        }
        for (parent, key) in children {
            tree.restore_child(parent, key)?;
        }
        Ok(tree)
    }

    /// Whether a restored tree has this outer partition around its root.
    fn is_outer_of_root(&self, outer: PartitionKey) -> bool {
        let (Some(host), Some(root)) = (self.get(outer), self.get(self.root)) else {
            return false;
        };
        host.kind == PartitionKind::Host
            && root.kind == PartitionKind::Vm
            && root.parent == Some(outer)
            && !host.vm_id.is_well_known()
    }

    fn restore_child(
        &mut self,
        parent: PartitionKey,
        key: PartitionKey,
    ) -> Result<(), &'static str> {
        let child = self.get(key).ok_or("a partition is missing")?;
        let (kind, vm_id) = (child.kind, child.vm_id);
        // The root has no id of its own here.
        if vm_id.well_known_name().is_some() && key != self.root {
            return Err("a partition has a reserved id");
        }
        let (outer, root, parent_key) = (self.outer, self.root, parent);
        let parent = self.get_mut(parent).ok_or("a partition has no parent")?;
        if !may_contain(parent.kind, parent_key == root, kind) {
            return Err("a partition contains another of a wrong kind");
        }
        if outer == Some(parent_key) && key != root {
            return Err("its outer partition has other children");
        }
        parent.children.insert(key);
        Ok(())
    }

    /// The keys of the next partitions in slots that were used before, the first one to use last.
    pub(crate) fn free(&self) -> impl Iterator<Item = PartitionKey> {
        self.free.iter().filter_map(|slot| {
            let generation = self.slots.get(*slot as usize)?.generation;
            Some(PartitionKey {
                slot: *slot,
                generation,
            })
        })
    }

    /// The slots that are not used again, because they have used up their generations.
    pub(crate) fn retired(&self) -> impl Iterator<Item = u32> {
        let is_retired = |(slot, entry): (usize, &Slot)| {
            let is_vacant = entry.partition.is_none() && entry.generation == u32::MAX;
            (is_vacant && !self.free.contains(&(slot as u32))).then_some(slot as u32)
        };
        self.slots.iter().enumerate().filter_map(is_retired)
    }

    pub(crate) fn root(&self) -> PartitionKey {
        self.root
    }

    pub(crate) fn outer(&self) -> Option<PartitionKey> {
        self.outer
    }

    /// Whether what happens in a partition is known here only as far as another broker or kernel says
    /// it: in a virtual machine, in a container in one, and in the outer partition.
    pub(crate) fn is_remote(&self, key: PartitionKey) -> bool {
        let is_vm = |key: PartitionKey| {
            let is_vm = |partition: &Partition| partition.kind == PartitionKind::Vm;
            key != self.root && self.get(key).is_some_and(is_vm)
        };
        let parent = || self.get(key)?.parent;
        Some(key) == self.outer || is_vm(key) || parent().is_some_and(is_vm)
    }

    /// Whether a connect to a partition with this relation to the source leads to a guest, where no
    /// listener of this fabric accepts it.
    pub(crate) fn leads_to_guest(&self, target: PartitionKey, relation: Relation) -> bool {
        let is_vm = || {
            self.get(target)
                .is_some_and(|it| it.kind == PartitionKind::Vm)
        };
        match relation {
            Relation::Itself | Relation::Parent | Relation::Grandparent => {
                Some(target) == self.outer
            }
            Relation::Child | Relation::Sibling => target != self.root && is_vm(),
            Relation::Grandchild => self.is_remote(target),
        }
    }

    /// A process of a partition as a requester towards the registry of another. Whether it is root
    /// there matters to a listener only.
    pub(crate) fn requester<'a>(
        &'a self,
        partition: &'a Partition,
        is_root: bool,
    ) -> Requester<'a> {
        let vm = partition
            .parent
            .filter(|parent| *parent != self.root && partition.kind == PartitionKind::Container)
            .and_then(|parent| self.get(parent));
        Requester::Partition {
            own: partition.identity(),
            vm: vm.map(Partition::identity),
            is_root,
        }
    }

    pub(crate) fn get(&self, key: PartitionKey) -> Option<&Partition> {
        let slot = self.slots.get(key.slot as usize)?;
        slot.partition
            .as_ref()
            .filter(|_| slot.generation == key.generation)
    }

    pub(crate) fn get_mut(&mut self, key: PartitionKey) -> Option<&mut Partition> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.partition
            .as_mut()
            .filter(|_| slot.generation == key.generation)
    }

    pub(crate) fn by_vm_id(&self, id: VmId) -> Option<PartitionKey> {
        self.by_vm_id.get(&id).copied()
    }

    pub(crate) fn by_name(&self, name: &PartitionName) -> Option<PartitionKey> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartitionKey, &Partition)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| {
            let key = PartitionKey {
                slot: slot as u32,
                generation: entry.generation,
            };
            Some((key, entry.partition.as_ref()?))
        })
    }

    pub(crate) fn add(
        &mut self,
        parent: PartitionKey,
        spec: PartitionSpec,
        limits: &Limits,
    ) -> Result<PartitionKey, AddPartitionError> {
        self.check_free(parent, &spec)?;
        let used = self.by_vm_id.len() - usize::from(self.outer.is_some());
        check_limits(&spec, used, limits)?;
        Ok(self.insert(Some(parent), spec))
    }

    fn insert(&mut self, parent: Option<PartitionKey>, spec: PartitionSpec) -> PartitionKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                partition: None,
            });
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        let key = PartitionKey {
            slot,
            generation: entry.generation,
        };
        self.by_vm_id.insert(spec.vm_id, key);
        self.by_name.insert(spec.name.clone(), key);
        entry.partition = Some(Partition::new(spec, parent));
        if let Some(parent) = parent.and_then(|parent| self.get_mut(parent)) {
            parent.children.insert(key);
        }
        key
    }

    /// Sets the root's parent, or its name and id. Whether the id has changed.
    pub(crate) fn set_outer(&mut self, new: OuterSpec) -> Result<bool, AddPartitionError> {
        let OuterSpec { name, vm_id: id } = new;
        let root = self.get(self.root).ok_or(AddPartitionError::NoParent)?;
        if root.kind != PartitionKind::Vm {
            let (parent, kind) = (PartitionKind::Host, root.kind);
            return Err(AddPartitionError::Kind { parent, kind });
        }
        if name.is_nested() {
            return Err(nesting(&name, "a host has a name without /".to_owned()));
        }
        let owner = self.by_vm_id(id);
        if let Some(word) = id.well_known_name() {
            return Err(AddPartitionError::IdReserved { id, word });
        }
        if let Some(owner) = owner.filter(|owner| Some(*owner) != self.outer)
            && let Some(partition) = self.get(owner)
        {
            let name = partition.name.clone();
            return Err(AddPartitionError::IdTaken { id, name });
        }
        let name = self.free_outer_name(&name);
        let Some(key) = self.outer else {
            let key = self.insert(
                None,
                PartitionSpec {
                    kind: PartitionKind::Host,
                    name,
                    vm_id: id,
                    groups: Vec::new(),
                    state: PartitionState::Running,
                },
            );
            self.outer = Some(key);
            let root = self.root;
            if let Some(outer) = self.get_mut(key) {
                outer.children.insert(root);
            }
            if let Some(root) = self.get_mut(root) {
                root.parent = Some(key);
            }
            return Ok(true);
        };
        let Some(outer) = self.get_mut(key) else {
            return Err(AddPartitionError::NoParent);
        };
        let old_name = std::mem::replace(&mut outer.name, name.clone());
        let old_id = std::mem::replace(&mut outer.vm_id, id);
        self.by_name.remove(&old_name);
        self.by_name.insert(name, key);
        self.by_vm_id.remove(&old_id);
        self.by_vm_id.insert(id, key);
        Ok(old_id != id)
    }

    /// The name, or one like it if another partition has it: the host knows nothing of the names here.
    fn free_outer_name(&self, wanted: &PartitionName) -> PartitionName {
        let is_free = |name: &PartitionName| {
            let owner = self.by_name(name);
            owner.is_none() || owner == self.outer
        };
        let numbered = (1..).map(|n| match n {
            1 => "-host".to_owned(),
            n => format!("-host-{n}"),
        });
        let others = numbered.filter_map(|tail| {
            let room = PartitionName::MAX_LEN.saturating_sub(tail.len());
            let head = wanted.as_str().get(..room).unwrap_or(wanted.as_str());
            PartitionName::unnested(format!("{head}{tail}")).ok()
        });
        let mut names = std::iter::once(wanted.clone()).chain(others);
        // There are more numbers than partitions.
        names.find(is_free).unwrap_or_else(|| wanted.clone())
    }

    fn check_free(
        &self,
        parent: PartitionKey,
        new: &PartitionSpec,
    ) -> Result<(), AddPartitionError> {
        let parent_key = parent;
        let parent = self.get(parent).ok_or(AddPartitionError::NoParent)?;
        if Some(parent_key) == self.outer {
            return Err(AddPartitionError::Outer);
        }
        if !may_contain(parent.kind, parent_key == self.root, new.kind) {
            let (parent, kind) = (parent.kind, new.kind);
            return Err(AddPartitionError::Kind { parent, kind });
        }
        if let Some(word) = new.vm_id.well_known_name() {
            let id = new.vm_id;
            return Err(AddPartitionError::IdReserved { id, word });
        }
        self.check_nesting(parent_key, parent, &new.name)?;
        let taken = |key: Option<PartitionKey>| Some(self.get(key?)?.name.clone());
        if let Some(name) = taken(self.by_name(&new.name)) {
            return Err(AddPartitionError::NameTaken { name });
        }
        if let Some(name) = taken(self.by_vm_id(new.vm_id)) {
            let id = new.vm_id;
            return Err(AddPartitionError::IdTaken { id, name });
        }
        Ok(())
    }

    /// Checks that the name of a child of this parent is nested if it must be, and only then.
    fn check_nesting(
        &self,
        key: PartitionKey,
        parent: &Partition,
        name: &PartitionName,
    ) -> Result<(), AddPartitionError> {
        let vm = name.vm();
        match key == self.root {
            true if vm.is_none() => Ok(()),
            false if vm.as_ref() == Some(&parent.name) => Ok(()),
            true => {
                let rule = "only a container in a virtual machine has a name with /";
                Err(nesting(name, rule.to_owned()))
            }
            false => {
                let rule = format!("a container in {} has a name like {0}/NAME", parent.name);
                Err(nesting(name, rule))
            }
        }
    }

    /// Removes a partition without children.
    pub(crate) fn remove(&mut self, key: PartitionKey) -> Option<Partition> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let partition = slot.partition.take()?;
        debug_assert!(partition.children.is_empty());
        if let Some(generation) = slot.generation.checked_add(1) {
            slot.generation = generation;
            self.free.push(key.slot);
        }
        self.by_vm_id.remove(&partition.vm_id);
        self.by_name.remove(&partition.name);
        if let Some(parent) = partition.parent.and_then(|parent| self.get_mut(parent)) {
            parent.children.remove(&key);
        }
        Some(partition)
    }

    /// A partition and all its descendants, parents before children.
    pub(crate) fn subtree(&self, key: PartitionKey) -> Vec<PartitionKey> {
        let mut found = vec![key];
        let mut next = 0;
        while let Some(key) = found.get(next) {
            found.extend(self.get(*key).iter().flat_map(|p| p.children.iter()));
            next += 1;
        }
        found
    }

    /// The effective state of a partition, limited by its ancestors.
    pub(crate) fn state(&self, key: PartitionKey) -> PartitionState {
        let mut state = PartitionState::Running;
        let mut next = Some(key);
        while let Some(key) = next {
            let Some(partition) = self.get(key) else {
                return PartitionState::Off;
            };
            state = state.limited_by(partition.state);
            next = partition.parent;
        }
        state
    }

    /// The relation of `other` to the partition `key`. `None` if they cannot communicate.
    pub(crate) fn relation(&self, key: PartitionKey, other: PartitionKey) -> Option<Relation> {
        let (own, its) = (self.get(key)?.parent, self.get(other)?.parent);
        if key == other {
            Some(Relation::Itself)
        } else if own == Some(other) {
            Some(Relation::Parent)
        } else if its == Some(key) {
            Some(Relation::Child)
        } else if own.is_some() && own == its {
            Some(Relation::Sibling)
        } else {
            let above = |key: Option<PartitionKey>| self.get(key?)?.parent;
            // The outer host knows the containers of the root, and none of the root's virtual machines.
            let is_outer = |it: PartitionKey| Some(it) == self.outer;
            let is_vm =
                |it: PartitionKey| self.get(it).is_some_and(|it| it.kind == PartitionKind::Vm);
            if is_outer(key) && is_vm(other) || is_outer(other) && is_vm(key) {
                None
            } else if above(own) == Some(other) {
                Some(Relation::Grandparent)
            } else if above(its) == Some(key) {
                Some(Relation::Grandchild)
            } else {
                None
            }
        }
    }
}

fn nesting(name: &PartitionName, rule: String) -> AddPartitionError {
    let name = name.clone();
    AddPartitionError::Nesting { name, rule }
}

/// Whether a partition may have such a child. A root may be a virtual machine that is the host of others,
/// as a machine of a cloud is. So no tree is deeper than four, and none has a cycle.
fn may_contain(parent: PartitionKind, is_root: bool, child: PartitionKind) -> bool {
    match parent {
        PartitionKind::Host => child != PartitionKind::Host,
        PartitionKind::Vm if is_root => child != PartitionKind::Host,
        PartitionKind::Vm => child == PartitionKind::Container,
        PartitionKind::Container => false,
    }
}

fn check_limits(
    new: &PartitionSpec,
    used: usize,
    limits: &Limits,
) -> Result<(), AddPartitionError> {
    let which = if used >= limits.partitions {
        "partitions"
    } else if new.groups.len() > limits.groups_per_partition {
        "groups_per_partition"
    } else {
        return Ok(());
    };
    Err(AddPartitionError::LimitReached { which })
}
