//! Changes by operators, and the connections and listeners that they close.
//!
//! Each change re-evaluates its dependents only: a registration the listeners and connections of its
//! service, a partition those with an end in it.

use std::collections::BTreeSet;

use hvsock_address::ServiceId;
use hvsock_registry::{Clash, Defaults, Registration, Registry};

use crate::boundary::Denial;
use crate::partition::{PartitionSpec, PartitionState};
use crate::trace::NoTrace;
use crate::tree::AddPartitionError;
use crate::{ConnectionId, Effect, Fabric, ListenerId, PartitionKey, Refusal};

/// Why a partition cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// The partition does not exist.
    #[error("the partition is gone")]
    Gone,
    /// The root partition always exists and always runs.
    #[error("the root partition cannot be removed, paused or switched off")]
    Root,
    /// The outer partition is not the fabric's to change.
    #[error("the host of this virtual machine cannot be removed, paused or switched off from here")]
    Outer,
    /// A table is full.
    #[error("the limit on {which} is reached")]
    LimitReached {
        /// The limit's name.
        which: &'static str,
    },
}

/// Why a registration cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The partition does not exist, or is a container.
    #[error("this partition has no registry")]
    NoRegistry,
    /// The id, name or port is taken.
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
    ///
    /// # Errors
    /// [`AddPartitionError`] if the parent does not exist or cannot contain this kind, if the name or
    /// id is taken or reserved, or if a table is full.
    pub fn add_partition(
        &mut self,
        parent: PartitionKey,
        spec: PartitionSpec,
    ) -> Result<PartitionKey, AddPartitionError> {
        let added = self.tree.add(parent, spec, &self.limits)?;
        self.anything_changed();
        Ok(added)
    }

    /// Removes a partition and its descendants, as if each were switched off first.
    ///
    /// # Errors
    /// [`PartitionError::Gone`] if it does not exist, [`PartitionError::Root`] for the root,
    /// [`PartitionError::Outer`] for the outer partition.
    pub fn remove_partition(&mut self, key: PartitionKey) -> Result<(), PartitionError> {
        self.check_inside(key)?;
        self.anything_changed();
        let inside = self.tree.subtree(key);
        self.switch_off(&inside, &Refusal::PartitionOff);
        let mut watchers = BTreeSet::new();
        for key in inside.into_iter().rev() {
            if let Some(removed) = self.tree.remove(key) {
                watchers.extend(removed.watchers);
            }
        }
        self.reevaluate_listeners(watchers);
        Ok(())
    }

    /// Sets a partition's own state, which also limits the state of its descendants.
    ///
    /// - Off, defined, connected, exited: all connections and listeners in it are closed.
    /// - Paused: connections with both ends in it are suspended, and so are those where either end set
    ///   [`HVSOCKET_CONNECTED_SUSPEND`](Self::set_connected_suspend). Others are reset. Listeners stay.
    /// - Running, unknown: suspended connections whose ends both run are resumed.
    ///
    /// # Errors
    /// [`PartitionError::Gone`] if it does not exist, [`PartitionError::Root`] for the root,
    /// [`PartitionError::Outer`] for the outer partition.
    pub fn set_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Result<(), PartitionError> {
        if state != PartitionState::Running {
            self.check_inside(key)?;
        }
        let partition = self.tree.get_mut(key).ok_or(PartitionError::Gone)?;
        if partition.state == state {
            return Ok(());
        }
        partition.state = state;
        self.anything_changed();
        let inside = self.tree.subtree(key);
        match (state, state.down_refusal()) {
            (_, Some(refusal)) => self.switch_off(&inside, &refusal),
            (PartitionState::Paused, None) => self.pause(&inside),
            (_, None) => self.resume(&inside),
        }
        Ok(())
    }

    /// Sets the sibling groups of a partition. Established connections stay; listeners that can no
    /// longer accept any connection are closed.
    ///
    /// # Errors
    /// [`PartitionError::Gone`] if it does not exist, [`PartitionError::LimitReached`] for too many
    /// groups.
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
        self.anything_changed();
        self.reevaluate_listeners(listeners);
        Ok(())
    }

    /// Adds a registration.
    ///
    /// # Errors
    /// [`RegisterError`] if the partition has no registry, if the id, name or port is taken, or if the
    /// registry is full.
    pub fn register(&mut self, key: PartitionKey, new: Registration) -> Result<(), RegisterError> {
        let service = new.id;
        self.registry_with_capacity(key, 1)?.insert(new)?;
        self.entry_changed(key, service);
        Ok(())
    }

    /// Replaces the registration with the same id and returns the old one, or adds a new one.
    ///
    /// # Errors
    /// As [`register`](Self::register). The registry is then unchanged.
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
            .registry_with_capacity(key, usize::from(!known))?
            .replace(new)?;
        self.entry_changed(key, service);
        Ok(old)
    }

    /// Removes and returns a registration.
    pub fn unregister(&mut self, key: PartitionKey, service: ServiceId) -> Option<Registration> {
        let old = self.tree.get_mut(key)?.registry.as_mut()?.remove(service);
        self.entry_changed(key, service);
        old
    }

    /// Sets the settings for what a registration leaves out.
    ///
    /// # Errors
    /// [`RegisterError::NoRegistry`] if the partition has no registry.
    pub fn set_defaults(
        &mut self,
        key: PartitionKey,
        defaults: Defaults,
    ) -> Result<(), RegisterError> {
        self.registry_with_capacity(key, 0)?.set_defaults(defaults);
        self.all_entries_changed(key);
        Ok(())
    }

    /// Replaces a partition's whole registry.
    ///
    /// # Errors
    /// [`RegisterError::NoRegistry`] if the partition has no registry,
    /// [`RegisterError::LimitReached`] if the new one is too large.
    pub fn set_registry(
        &mut self,
        key: PartitionKey,
        registry: Registry,
    ) -> Result<(), RegisterError> {
        if registry.len() > self.limits.registrations {
            let which = "registrations";
            return Err(RegisterError::LimitReached { which });
        }
        *self.registry_with_capacity(key, 0)? = registry;
        self.all_entries_changed(key);
        Ok(())
    }

    /// Checks that this is a partition below the root.
    fn check_inside(&self, key: PartitionKey) -> Result<(), PartitionError> {
        if key == self.tree.root() {
            return Err(PartitionError::Root);
        }
        if Some(key) == self.tree.outer() {
            return Err(PartitionError::Outer);
        }
        self.tree.get(key).map(drop).ok_or(PartitionError::Gone)
    }

    fn registry_with_capacity(
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

    /// Re-evaluates the dependents of one registry entry.
    fn entry_changed(&mut self, owner: PartitionKey, service: ServiceId) {
        self.service_changed(service);
        let Some(dependents) = self
            .tree
            .get(owner)
            .and_then(|owner| owner.dependents.get(&service))
        else {
            return;
        };
        let (connections, listeners) =
            (dependents.connections.clone(), dependents.listeners.clone());
        self.reevaluate_connections(connections);
        self.reevaluate_listeners(listeners);
    }

    pub(crate) fn all_entries_changed(&mut self, owner: PartitionKey) {
        self.anything_changed();
        let Some(owner_partition) = self.tree.get(owner) else {
            return;
        };
        let services: BTreeSet<_> = owner_partition.dependents.keys().copied().collect();
        for service in services {
            self.entry_changed(owner, service);
        }
    }

    pub(crate) fn reevaluate_listeners(&mut self, listeners: BTreeSet<ListenerId>) {
        for id in listeners {
            let Some(listener) = self.listeners.get(&id) else {
                continue;
            };
            if let Err(refusal) = self.reevaluate_listener(listener) {
                self.terminate_listener(id, refusal);
            }
        }
    }

    pub(crate) fn reevaluate_connections(&mut self, connections: BTreeSet<ConnectionId>) {
        for id in connections {
            if let Err(refusal) = self.reevaluate_connection(id) {
                self.reset_connection(id, &refusal);
            }
        }
    }

    /// Checks that an established connection may continue: its service must be registered and enabled.
    /// Access rules apply only when a connection is made.
    fn reevaluate_connection(&self, id: ConnectionId) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get(&id) else {
            return Ok(());
        };
        let ends = [connection.source, connection.target].map(|key| self.tree.node(key));
        let [Some(source), Some(target)] = ends else {
            return Ok(());
        };
        let Some(relation) = self.tree.relation(source.key, target.key) else {
            return Ok(());
        };
        if self.host_judges(source.key, target.key) {
            return Ok(());
        }
        let service = connection.service;
        let Some(boundary) = self.tree.boundary(source, target, relation) else {
            return self.check_local(source, service, &mut NoTrace);
        };
        let policy = boundary.policy(service, &self.operators);
        let policy = policy.ok_or(Denial::Unregistered);
        let enabled = policy.and_then(|policy| policy.enabled());
        enabled.map(drop).map_err(|denial| denial.refusal(false))
    }

    /// The connections with an end in any of these partitions.
    fn connections_in(&self, inside: &[PartitionKey]) -> BTreeSet<ConnectionId> {
        let partitions = inside.iter().filter_map(|key| self.tree.get(*key));
        partitions
            .flat_map(|partition| &partition.connections)
            .copied()
            .collect()
    }

    fn switch_off(&mut self, inside: &[PartitionKey], refusal: &Refusal) {
        for id in self.connections_in(inside) {
            self.reset_connection(id, refusal);
        }
        let partitions = inside.iter().filter_map(|key| self.tree.get(*key));
        let listeners: BTreeSet<_> = partitions
            .flat_map(|partition| &partition.listeners)
            .copied()
            .collect();
        for id in listeners {
            self.terminate_listener(id, refusal.clone());
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
            if !(whole
                || connection.client_connected_suspend
                || connection.server_connected_suspend)
            {
                self.reset_connection(id, &Refusal::PartitionPaused);
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
            let run = ends.iter().all(|end| self.tree.state(*end).is_up());
            if connection.suspended && run {
                connection.suspended = false;
                self.effects.push_back(Effect::Resume { id });
            }
        }
    }
}
