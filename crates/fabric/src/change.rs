//! What operators change, and what that cuts.
//!
//! Every change looks again at what depends on it and at nothing else: a registration at the
//! listeners and connections of its service, a partition at those with an end in it.

use std::collections::BTreeSet;

use hvsock_address::ServiceId;
use hvsock_registry::{Clash, Defaults, Registration, Registry};

use crate::explain::Silent;
use crate::partition::{PartitionSpec, PartitionState};
use crate::terms::Barrier;
use crate::tree::AddPartitionError;
use crate::{ConnectionId, Effect, Fabric, ListenerId, PartitionKey, Refusal};

/// Why a partition cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// It is not there.
    #[error("the partition is gone")]
    Gone,
    /// The root partition is always there and always running.
    #[error("the root partition can be neither removed, paused nor switched off")]
    Root,
    /// A table is full.
    #[error("the limit on {which} is reached")]
    LimitReached {
        /// The limit's name.
        which: &'static str,
    },
}

/// Why a registration cannot be taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The partition is gone, or a container.
    #[error("this partition has no registry")]
    NoRegistry,
    /// Something that must be unique is not.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// A table is full.
    #[error("the limit on {which} is reached")]
    LimitReached {
        /// The limit's name.
        which: &'static str,
    },
}

impl Fabric {
    /// Adds a partition.
    pub fn add_partition(
        &mut self,
        parent: PartitionKey,
        spec: PartitionSpec,
    ) -> Result<PartitionKey, AddPartitionError> {
        self.tree.add(parent, spec, &self.limits)
    }

    /// Removes a partition with everything in it, as if each of them were switched off first.
    pub fn remove_partition(&mut self, key: PartitionKey) -> Result<(), PartitionError> {
        self.check_not_root(key)?;
        let inside = self.tree.with_everything_in(key);
        self.switch_off(&inside);
        let mut watchers = BTreeSet::new();
        for key in inside.into_iter().rev() {
            if let Some(removed) = self.tree.remove(key) {
                watchers.extend(removed.watchers);
            }
        }
        self.judge_all_again(watchers);
        Ok(())
    }

    /// Sets a partition's own state; what is in it follows.
    ///
    /// - Off: everything in it is cut.
    /// - Paused: connections with both ends in it stand still with it, and so do those of which
    ///   either end asked for it; others are cut. Listeners stay.
    /// - Running: connections whose ends both run go on.
    pub fn set_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Result<(), PartitionError> {
        if state != PartitionState::Running {
            self.check_not_root(key)?;
        }
        let partition = self.tree.get_mut(key).ok_or(PartitionError::Gone)?;
        if partition.state == state {
            return Ok(());
        }
        partition.state = state;
        let inside = self.tree.with_everything_in(key);
        match state {
            PartitionState::Off => self.switch_off(&inside),
            PartitionState::Paused => self.pause(&inside),
            PartitionState::Running => self.resume(&inside),
        }
        Ok(())
    }

    /// Sets the sibling groups that a partition is in. Established connections stay; listeners that
    /// can no longer receive are cut.
    pub fn set_groups(
        &mut self,
        key: PartitionKey,
        groups: Vec<String>,
    ) -> Result<(), PartitionError> {
        if groups.len() > self.limits.groups_per_partition {
            let which = "groups_per_partition";
            return Err(PartitionError::LimitReached { which });
        }
        let partition = self.tree.get_mut(key).ok_or(PartitionError::Gone)?;
        partition.groups = groups;
        let listeners = partition.listeners.union(&partition.watchers).copied();
        let listeners: BTreeSet<_> = listeners.collect();
        self.judge_all_again(listeners);
        Ok(())
    }

    /// Adds a registration.
    pub fn register(&mut self, key: PartitionKey, new: Registration) -> Result<(), RegisterError> {
        let service = new.id;
        self.registry_with_room(key, 1)?.insert(new)?;
        self.entry_changed(key, service);
        Ok(())
    }

    /// Puts a registration in place of the one with its id, and returns that one; or adds it.
    pub fn update(
        &mut self,
        key: PartitionKey,
        new: Registration,
    ) -> Result<Option<Registration>, RegisterError> {
        let service = new.id;
        let known = self
            .registry(key)
            .is_some_and(|registry| registry.get(service).is_some());
        let old = self
            .registry_with_room(key, usize::from(!known))?
            .replace(new)?;
        self.entry_changed(key, service);
        Ok(old)
    }

    /// Takes a registration out.
    pub fn unregister(&mut self, key: PartitionKey, service: ServiceId) -> Option<Registration> {
        let old = self.tree.get_mut(key)?.registry.as_mut()?.remove(service);
        self.entry_changed(key, service);
        old
    }

    /// Sets what holds where a registration says nothing.
    pub fn set_defaults(
        &mut self,
        key: PartitionKey,
        defaults: Defaults,
    ) -> Result<(), RegisterError> {
        self.registry_with_room(key, 0)?.set_defaults(defaults);
        self.all_entries_changed(key);
        Ok(())
    }

    /// Puts a whole registry in place of a partition's.
    pub fn set_registry(
        &mut self,
        key: PartitionKey,
        registry: Registry,
    ) -> Result<(), RegisterError> {
        if registry.len() > self.limits.registrations {
            let which = "registrations";
            return Err(RegisterError::LimitReached { which });
        }
        *self.registry_with_room(key, 0)? = registry;
        self.all_entries_changed(key);
        Ok(())
    }

    fn check_not_root(&self, key: PartitionKey) -> Result<(), PartitionError> {
        if key == self.tree.root() {
            return Err(PartitionError::Root);
        }
        self.tree.get(key).map(drop).ok_or(PartitionError::Gone)
    }

    fn registry_with_room(
        &mut self,
        key: PartitionKey,
        more: usize,
    ) -> Result<&mut Registry, RegisterError> {
        let limit = self.limits.registrations;
        let partition = self.tree.get_mut(key).ok_or(RegisterError::NoRegistry)?;
        let registry = partition
            .registry
            .as_mut()
            .ok_or(RegisterError::NoRegistry)?;
        if more > 0 && registry.len() + more > limit {
            let which = "registrations";
            return Err(RegisterError::LimitReached { which });
        }
        Ok(registry)
    }

    /// Looks again at what one entry of a registry allows.
    fn entry_changed(&mut self, owner: PartitionKey, service: ServiceId) {
        let Some(uses) = self
            .tree
            .get(owner)
            .and_then(|owner| owner.uses.get(&service))
        else {
            return;
        };
        let (connections, listeners) = (uses.connections.clone(), uses.listeners.clone());
        for id in connections {
            if let Err(refusal) = self.judge_connection_again(id) {
                self.cut_connection(id, &refusal);
            }
        }
        self.judge_all_again(listeners);
    }

    fn all_entries_changed(&mut self, owner: PartitionKey) {
        let Some(owner_partition) = self.tree.get(owner) else {
            return;
        };
        let services: BTreeSet<_> = owner_partition.uses.keys().copied().collect();
        for service in services {
            self.entry_changed(owner, service);
        }
    }

    fn judge_all_again(&mut self, listeners: BTreeSet<ListenerId>) {
        for id in listeners {
            let Some(listener) = self.listeners.get(&id) else {
                continue;
            };
            if let Err(refusal) = self.judge_again(listener) {
                self.cut_listener(id, refusal);
            }
        }
    }

    /// Whether an established connection may go on: its service must be registered and enabled.
    /// Who may connect was decided when it began.
    fn judge_connection_again(&self, id: ConnectionId) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get(&id) else {
            return Ok(());
        };
        let ends = [connection.source, connection.target].map(|key| self.tree.place(key));
        let [Some(source), Some(target)] = ends else {
            return Ok(());
        };
        let Some(relation) = self.tree.relation(source.key, target.key) else {
            return Ok(());
        };
        let service = connection.service;
        let Some(border) = self.tree.border(source, target, relation) else {
            return self.check_inside(source, service, &mut Silent);
        };
        let terms = border.terms(service, self.broker_uid);
        let terms = terms.ok_or(Barrier::Unregistered);
        let enabled = terms.and_then(|terms| terms.enabled());
        enabled.map(drop).map_err(|barrier| barrier.refusal(false))
    }

    /// The connections with an end in any of these partitions.
    fn connections_in(&self, inside: &[PartitionKey]) -> BTreeSet<ConnectionId> {
        let partitions = inside.iter().filter_map(|key| self.tree.get(*key));
        partitions
            .flat_map(|partition| &partition.connections)
            .copied()
            .collect()
    }

    fn switch_off(&mut self, inside: &[PartitionKey]) {
        for id in self.connections_in(inside) {
            self.cut_connection(id, &Refusal::PartitionOff);
        }
        let partitions = inside.iter().filter_map(|key| self.tree.get(*key));
        let listeners: BTreeSet<_> = partitions
            .flat_map(|partition| &partition.listeners)
            .copied()
            .collect();
        for id in listeners {
            self.cut_listener(id, Refusal::PartitionOff);
        }
    }

    fn pause(&mut self, inside: &[PartitionKey]) {
        let inside_set: BTreeSet<_> = inside.iter().copied().collect();
        for id in self.connections_in(inside) {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let ends = [connection.source, connection.target];
            let whole = ends.iter().all(|end| inside_set.contains(end));
            if !(whole || connection.client_keeps || connection.server_keeps) {
                self.cut_connection(id, &Refusal::PartitionPaused);
            } else if !connection.suspended {
                connection.suspended = true;
                self.effects.push_back(Effect::Suspend { id });
            }
        }
    }

    fn resume(&mut self, inside: &[PartitionKey]) {
        for id in self.connections_in(inside) {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let ends = [connection.source, connection.target];
            let run = ends
                .iter()
                .all(|end| self.tree.state(*end) == PartitionState::Running);
            if connection.suspended && run {
                connection.suspended = false;
                self.effects.push_back(Effect::Resume { id });
            }
        }
    }
}
