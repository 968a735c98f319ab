//! The outer partition: the host of the virtual machine in which the broker runs.
//!
//! It is the root's parent. This fabric knows it by what a connection to the host's broker, the *uplink*,
//! says, and decides nothing for it: a connect to it leads to [`Destination::Guest`](crate::Destination),
//! and the host judges by its own registry. Its registry here is a *mirror* of that one. It says whether
//! a listener of the root could accept connections from the host, and how services are named there.

use hvsock_registry::Registry;

use crate::{AddPartitionError, Fabric, OuterSpec, PartitionKey, Refusal};

impl Fabric {
    /// The outer partition: the root's parent, if one was [set](Self::set_outer).
    pub fn outer(&self) -> Option<PartitionKey> {
        self.tree.outer()
    }

    /// Sets the root's parent, or its new name and id. Its key stays the same. If another partition has
    /// the name, it gets a similar one.
    ///
    /// Its registry is the mirror: fill it as any other, and then call
    /// [`set_outer_mirrored`](Self::set_outer_mirrored). With a new id it is another host, so what the old
    /// one said is forgotten, and its connections and the listeners bound to its id are closed.
    ///
    /// # Errors
    /// [`AddPartitionError::Kind`] unless the root is a virtual machine. [`AddPartitionError::IdTaken`]
    /// or [`IdReserved`](AddPartitionError::IdReserved) for the id, [`Nesting`](AddPartitionError::Nesting)
    /// for a nested name. Nothing is changed.
    pub fn set_outer(&mut self, new: OuterSpec) -> Result<PartitionKey, AddPartitionError> {
        let before = self.tree.outer();
        let is_another = self.tree.set_outer(new)?;
        let key = self.tree.outer().ok_or(AddPartitionError::NoParent)?;
        self.anything_changed();
        if before.is_none() {
            self.reindex_root_listeners();
        } else {
            self.outer_changed(key, is_another);
        }
        Ok(key)
    }

    /// Closes what the outer partition's new name or id no longer allows.
    fn outer_changed(&mut self, key: PartitionKey, is_another: bool) {
        let Some(outer) = self.tree.get_mut(key) else {
            return;
        };
        let mut listeners = outer.watchers.clone();
        let connections = outer.connections.clone();
        if is_another {
            outer.registry = Some(Registry::new());
            self.outer_is_mirrored = false;
            for id in &connections {
                self.reset_connection(*id, &Refusal::PartitionOff);
            }
        }
        let root = self.tree.get(self.root());
        listeners.extend(root.iter().flat_map(|root| &root.listeners));
        // Overrides for its name apply to its connections.
        self.reevaluate_connections(connections);
        self.reevaluate_listeners(listeners);
    }

    /// Sets whether the registry of the outer partition is what the host says at present. While it is
    /// not, as after the loss of the uplink, the mirror refuses nothing and names nothing.
    pub fn set_outer_mirrored(&mut self, is_mirrored: bool) {
        let Some(outer) = self.tree.outer() else {
            return;
        };
        if self.outer_is_mirrored != is_mirrored {
            self.outer_is_mirrored = is_mirrored;
            self.all_entries_changed(outer);
        }
    }

    /// Whether the registry of the outer partition is what the host says at present.
    pub fn outer_is_mirrored(&self) -> bool {
        self.outer_is_mirrored
    }

    /// Enters the listeners of the root under the registries that they depend on now that it has a
    /// parent.
    fn reindex_root_listeners(&mut self) {
        let root = self.root();
        let listeners = self.tree.get(root).map(|root| root.listeners.clone());
        for id in listeners.unwrap_or_default() {
            let Some(listener) = self.listeners.get(&id) else {
                continue;
            };
            let owners = self.owners_of(root, listener.binding);
            let service = listener.service;
            for owner in owners.into_iter().flatten() {
                if let Some(owner) = self.tree.get_mut(owner) {
                    let dependents = owner.dependents.entry(service).or_default();
                    dependents.listeners.insert(id);
                }
            }
            if let Some(listener) = self.listeners.get_mut(&id) {
                listener.owners = owners;
            }
        }
    }
}
