//! Partitions with their endpoints, registrations, and the fabric's effects of changing either.

use std::path::PathBuf;
use std::time::Instant;

use hvsock_address::ServiceId;
use hvsock_fabric::{
    AddPartitionError, Effect, PartitionError, PartitionKey, PartitionSpec, PartitionState,
    Refusal, RegisterError,
};
use hvsock_registry::store::Change;
use hvsock_registry::{Clash, Defaults, Registration, Registry};
use hvsock_sys::seqpacket;
use hvsock_virtio::GuestCid;

use super::labels::{partition_label, service_label};
use super::{Core, Endpoint};
use crate::model::{self, EventKind};
use crate::{StartError, folders};

/// Listen backlog of an endpoint socket.
const ENDPOINT_BACKLOG: u32 = 4096;

impl Core {
    /// Opens an endpoint socket. Every process that connects to it belongs to `partition`.
    pub(super) fn open_endpoint(
        &mut self,
        partition: PartitionKey,
        path: PathBuf,
    ) -> Result<(), StartError> {
        // Every process of the partition may connect. Access rules decide what it may do.
        let socket = seqpacket::listen(&path, 0o666, ENDPOINT_BACKLOG)
            .map_err(StartError::io(format!("listen at {}", path.display())))?;
        let endpoint = Endpoint {
            socket,
            partition,
            path,
            busy: false,
        };
        let index = self.endpoints.insert(endpoint);
        let watched = self.watch_endpoint(index);
        if watched.is_err() {
            let endpoint = self.endpoints.remove(index);
            let _ = std::fs::remove_file(&endpoint.path);
        }
        watched.map_err(StartError::io("watch an endpoint"))
    }

    /// Removes the endpoint sockets when the broker stops.
    pub(super) fn close_endpoints(&mut self) {
        for endpoint in self.endpoints.drain() {
            let _ = std::fs::remove_file(&endpoint.path);
        }
    }

    /// Adds a container and opens its endpoint.
    pub(crate) fn add_container(&mut self, spec: PartitionSpec) -> Result<(), AddError> {
        let name = spec.name.clone();
        let root = self.fabric.root();
        let key = self.fabric.add_partition(root, spec)?;
        let opened = folders::make_container(&self.dirs, name.as_str()).and_then(|()| {
            self.open_endpoint(key, self.dirs.container(name.as_str()).join("endpoint"))
        });
        if let Err(error) = opened {
            let _ = self.fabric.remove_partition(key);
            return Err(error.into());
        }
        self.events.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        Ok(())
    }

    /// Removes a partition and its endpoint, and resets its listeners and connections.
    pub(crate) fn remove_partition(&mut self, key: PartitionKey) {
        let name = partition_label(&self.fabric, key);
        // Close connections and listeners first, so that their ends receive the reason. The call
        // cannot fail: the partition exists and is not the root.
        let _ = self.fabric.set_state(key, PartitionState::Off);
        self.apply_effects();
        self.close_sessions_of(key, &Refusal::PartitionOff);
        let indexes: Vec<usize> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.partition == key)
            .map(|(index, _)| index)
            .collect();
        for index in indexes {
            let endpoint = self.endpoints.remove(index);
            let _ = std::fs::remove_file(&endpoint.path);
            if let Some(folder) = endpoint.path.parent() {
                let _ = std::fs::remove_dir(folder);
            }
        }
        self.close_vm(key);
        self.liveness
            .set_state(key, model::PartitionState::Off, Instant::now());
        let _ = self.fabric.remove_partition(key);
        self.apply_effects();
        self.events
            .publish(|| EventKind::PartitionRemoved { partition: name });
    }

    /// Pauses or resumes a partition for an operator.
    pub(crate) fn set_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Result<(), PartitionError> {
        if self.vms.contains_key(&key) {
            return self.pause_vm(key, state == PartitionState::Paused);
        }
        self.change_state(key, state)
    }

    pub(super) fn change_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Result<(), PartitionError> {
        self.fabric.set_state(key, state)?;
        self.apply_effects();
        self.liveness.set_state(key, state.into(), Instant::now());
        self.events.publish(|| EventKind::PartitionState {
            partition: partition_label(&self.fabric, key),
            state: model::PartitionState::from(state),
        });
        Ok(())
    }

    /// Replaces the sibling groups of a partition.
    pub(crate) fn set_groups(
        &mut self,
        key: PartitionKey,
        groups: Vec<String>,
    ) -> Result<(), PartitionError> {
        self.fabric.set_groups(key, groups)?;
        self.apply_effects();
        Ok(())
    }

    /// Adds a registration to the broker's own partition.
    pub(crate) fn register(&mut self, registration: Registration) -> Result<(), RegisterError> {
        let (root, service) = (self.fabric.root(), registration.name.to_string());
        self.fabric.register(root, registration)?;
        self.apply_effects();
        self.events
            .publish(|| EventKind::ServiceRegistered { service });
        Ok(())
    }

    /// Replaces a registration.
    pub(crate) fn update(&mut self, registration: Registration) -> Result<(), RegisterError> {
        let (root, enabled) = (self.fabric.root(), registration.enabled);
        let service = registration.name.to_string();
        self.fabric.update(root, registration)?;
        self.apply_effects();
        self.events
            .publish(|| EventKind::ServiceChanged { service, enabled });
        Ok(())
    }

    /// Removes a registration and resets its listeners and connections.
    pub(crate) fn unregister(&mut self, id: ServiceId) {
        let service = service_label(&self.fabric, id);
        let root = self.fabric.root();
        if self.fabric.unregister(root, id).is_none() {
            return;
        }
        let lease = self.leases.remove(&id);
        if let Some(lease) = lease {
            self.reset_lease(lease, &Refusal::Unregistered);
        }
        self.apply_effects();
        self.counters.retire(id);
        self.events
            .publish(|| EventKind::ServiceUnregistered { service });
        if lease.is_some() {
            self.apply_blocked();
        }
    }

    /// Retries the registrations from files that a lease blocked.
    fn apply_blocked(&mut self) {
        for (id, blocked) in std::mem::take(&mut self.blocked_by_lease) {
            let change = match self.fabric.registry(self.fabric.root()) {
                Some(registry) if registry.get(id).is_some() => Change::Updated,
                _ => Change::Added,
            };
            self.apply(change(blocked));
        }
    }

    /// The clash that keeps a registration from being added, if there is one.
    pub(crate) fn would_clash(&self, registration: &Registration) -> Option<Clash> {
        self.fabric
            .registry(self.fabric.root())?
            .check(registration)
            .err()
    }

    /// Applies changes of registration files in order. Returns the error of the change to `own`, the
    /// service whose file a request changed.
    pub(crate) fn apply_own(
        &mut self,
        changes: Vec<Change>,
        own: ServiceId,
    ) -> Result<(), RegisterError> {
        let mut applied = Ok(());
        for change in changes {
            match change {
                Change::Added(new) if new.id == own => applied = self.register(*new),
                Change::Updated(new) if new.id == own => applied = self.update(*new),
                other => self.apply(other),
            }
        }
        applied
    }

    /// Those of `registrations` that are not registered yet. Fails if any of them clashes.
    pub(crate) fn select_new(
        &self,
        registrations: Vec<Registration>,
    ) -> Result<Vec<Registration>, Clash> {
        // They may also clash with each other.
        let mut wanted = Registry::new();
        for new in registrations {
            let known = self.fabric.registry(self.fabric.root());
            let known = known.and_then(|registry| registry.get(new.id));
            if known.is_some_and(|known| known.name.folded() == new.name.folded()) {
                continue;
            }
            if let Some(clash) = self.would_clash(&new) {
                return Err(clash);
            }
            wanted.insert(new)?;
        }
        Ok(wanted.iter().cloned().collect())
    }

    /// Applies one change of a registration file.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Added(new) => self.apply_registration(new, Self::register),
            Change::Updated(new) => self.apply_registration(new, Self::update),
            Change::Removed(id) => {
                self.blocked_by_lease.remove(&id);
                if !self.leases.contains_key(&id) {
                    self.unregister(id);
                }
            }
            Change::Defaults(defaults) => self.set_defaults(defaults),
            Change::Broken(problem) => self.config_problem(problem.to_string()),
            Change::Repaired(path) => tracing::info!("{} has no errors any more", path.display()),
        }
    }

    /// Adds or updates a registration from a file. If a lease blocks it, it waits until the lease ends.
    /// The store ensures that files do not clash with each other.
    fn apply_registration(
        &mut self,
        new: Box<Registration>,
        apply: impl FnOnce(&mut Self, Registration) -> Result<(), RegisterError>,
    ) {
        self.blocked_by_lease.remove(&new.id);
        let leased = self.leases.contains_key(&new.id);
        let clash = leased.then(|| self.would_clash(&new)).flatten();
        let applied = match clash {
            Some(clash) => Err(clash.into()),
            None => apply(self, (*new).clone()),
        };
        if let Err(error) = applied {
            self.blocked_by_lease.insert(new.id, new);
            self.config_problem(error.to_string());
        }
    }

    fn config_problem(&mut self, problem: String) {
        tracing::warn!("{problem}");
        self.events.publish(|| EventKind::ConfigProblem { problem });
    }

    /// Changes the defaults of registrations.
    pub(crate) fn set_defaults(&mut self, defaults: Defaults) {
        let root = self.fabric.root();
        // The call cannot fail: the root has a registry.
        let _ = self.fabric.set_defaults(root, defaults);
        self.apply_effects();
    }

    /// Applies the fabric's pending effects.
    pub(super) fn apply_effects(&mut self) {
        while let Some(effect) = self.fabric.poll_effect() {
            match effect {
                Effect::ResetConnection { id, refusal } => self.reset_connection(id, refusal),
                Effect::Suspend { id } => self.suspend_connection(id, true),
                Effect::Resume { id } => self.suspend_connection(id, false),
                Effect::CloseListener { id, refusal } => self.reset_listener(id, &refusal),
            }
        }
    }
}

/// The error of adding a partition.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error(transparent)]
    Fabric(#[from] AddPartitionError),
    #[error(transparent)]
    Endpoint(#[from] StartError),
    #[error("the VM {name} has the CID {cid} already; choose another, or let the broker choose")]
    CidTaken { cid: GuestCid, name: String },
}
