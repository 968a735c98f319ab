//! Partitions with their endpoints, registrations, and what the fabric wants done about either.

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

/// Clients that may wait for the broker at one endpoint.
const ENDPOINT_BACKLOG: u32 = 4096;

impl Core {
    /// Opens an endpoint socket: whoever can connect to it is in `partition`.
    pub(super) fn open_endpoint(
        &mut self,
        partition: PartitionKey,
        path: PathBuf,
    ) -> Result<(), StartError> {
        // Every process of the partition may connect; what it may do is decided by the rules.
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

    /// Removes the endpoint sockets, when the broker stops.
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

    /// Removes a partition, its endpoint, and all that its processes have open.
    pub(crate) fn remove_partition(&mut self, key: PartitionKey) {
        let name = partition_label(&self.fabric, key);
        // Connections and listeners first, so that their ends learn why.
        // It is no root, and it is there.
        let _ = self.fabric.set_state(key, PartitionState::Off);
        self.carry_out();
        self.end_sessions_of(key, &Refusal::PartitionOff);
        let of_it: Vec<usize> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.partition == key)
            .map(|(index, _)| index)
            .collect();
        for index in of_it {
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
        self.carry_out();
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
        self.carry_out();
        self.liveness.set_state(key, state.into(), Instant::now());
        self.events.publish(|| EventKind::PartitionState {
            partition: partition_label(&self.fabric, key),
            state: model::PartitionState::from(state),
        });
        Ok(())
    }

    /// Changes the sibling groups that a partition is in.
    pub(crate) fn set_groups(
        &mut self,
        key: PartitionKey,
        groups: Vec<String>,
    ) -> Result<(), PartitionError> {
        self.fabric.set_groups(key, groups)?;
        self.carry_out();
        Ok(())
    }

    /// Takes a new registration of the broker's own partition in.
    pub(crate) fn register(&mut self, registration: Registration) -> Result<(), RegisterError> {
        let (root, service) = (self.fabric.root(), registration.name.to_string());
        self.fabric.register(root, registration)?;
        self.carry_out();
        self.events
            .publish(|| EventKind::ServiceRegistered { service });
        Ok(())
    }

    /// Takes a changed registration in.
    pub(crate) fn update(&mut self, registration: Registration) -> Result<(), RegisterError> {
        let (root, enabled) = (self.fabric.root(), registration.enabled);
        let service = registration.name.to_string();
        self.fabric.update(root, registration)?;
        self.carry_out();
        self.events
            .publish(|| EventKind::ServiceChanged { service, enabled });
        Ok(())
    }

    /// Takes a registration out; its listeners and connections are cut.
    pub(crate) fn unregister(&mut self, id: ServiceId) {
        let service = service_label(&self.fabric, id);
        let root = self.fabric.root();
        if self.fabric.unregister(root, id).is_none() {
            return;
        }
        let lease = self.leases.remove(&id);
        if let Some(lease) = lease {
            self.cut_lease(lease, &Refusal::Unregistered);
        }
        self.carry_out();
        self.tally.retire(id);
        self.events
            .publish(|| EventKind::ServiceUnregistered { service });
        if lease.is_some() {
            self.take_in_held_back();
        }
    }

    /// Takes in what files say and a lease that has ended was in the way of.
    fn take_in_held_back(&mut self) {
        for (id, held_back) in std::mem::take(&mut self.held_back) {
            let change = match self.fabric.registry(self.fabric.root()) {
                Some(registry) if registry.get(id).is_some() => Change::Updated,
                _ => Change::Added,
            };
            self.apply(change(held_back));
        }
    }

    /// Whether a registration would be taken in, and if not, why.
    pub(crate) fn would_clash(&self, registration: &Registration) -> Option<Clash> {
        self.fabric
            .registry(self.fabric.root())?
            .check(registration)
            .err()
    }

    /// Takes in what files say now, in order; says why not, if it is about `own`, the service
    /// whose file was changed on somebody's request.
    pub(crate) fn apply_own(
        &mut self,
        changes: Vec<Change>,
        own: ServiceId,
    ) -> Result<(), RegisterError> {
        let mut taken = Ok(());
        for change in changes {
            match change {
                Change::Added(new) if new.id == own => taken = self.register(*new),
                Change::Updated(new) if new.id == own => taken = self.update(*new),
                other => self.apply(other),
            }
        }
        taken
    }

    /// Those of `registrations` that are not here already, if all of them could be taken in.
    pub(crate) fn sift(
        &self,
        registrations: Vec<Registration>,
    ) -> Result<Vec<Registration>, Clash> {
        // Among themselves they may clash as well.
        let mut wanted = Registry::new();
        for new in registrations {
            let known = self.fabric.registry(self.fabric.root());
            let there = known.and_then(|registry| registry.get(new.id));
            if there.is_some_and(|there| there.name.folded() == new.name.folded()) {
                continue;
            }
            if let Some(clash) = self.would_clash(&new) {
                return Err(clash);
            }
            wanted.insert(new)?;
        }
        Ok(wanted.iter().cloned().collect())
    }

    /// Takes in what a file says now.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Added(new) => self.take_in(new, Self::register),
            Change::Updated(new) => self.take_in(new, Self::update),
            Change::Removed(id) => {
                self.held_back.remove(&id);
                if !self.leases.contains_key(&id) {
                    self.unregister(id);
                }
            }
            Change::Defaults(defaults) => self.set_defaults(defaults),
            Change::Broken(problem) => self.config_problem(problem.to_string()),
            Change::Repaired(path) => tracing::info!("{} is in order again", path.display()),
        }
    }

    /// Takes in a registration from a file, or holds it back until the lease has ended that is in
    /// its way. (Files do not clash among themselves: the store sees to that.)
    fn take_in(
        &mut self,
        new: Box<Registration>,
        how: impl FnOnce(&mut Self, Registration) -> Result<(), RegisterError>,
    ) {
        self.held_back.remove(&new.id);
        let leased = self.leases.contains_key(&new.id);
        let clash = leased.then(|| self.would_clash(&new)).flatten();
        let taken = match clash {
            Some(clash) => Err(clash.into()),
            None => how(self, (*new).clone()),
        };
        if let Err(error) = taken {
            self.held_back.insert(new.id, new);
            self.config_problem(error.to_string());
        }
    }

    fn config_problem(&mut self, problem: String) {
        tracing::warn!("{problem}");
        self.events.publish(|| EventKind::ConfigProblem { problem });
    }

    /// Changes what holds where registrations say nothing.
    pub(crate) fn set_defaults(&mut self, defaults: Defaults) {
        let root = self.fabric.root();
        // The root has a registry.
        let _ = self.fabric.set_defaults(root, defaults);
        self.carry_out();
    }

    /// Does what the fabric wants done.
    pub(super) fn carry_out(&mut self) {
        while let Some(effect) = self.fabric.poll_effect() {
            match effect {
                Effect::CutConnection { id, refusal } => self.cut_connection(id, refusal),
                Effect::Suspend { id } => self.suspend_connection(id, true),
                Effect::Resume { id } => self.suspend_connection(id, false),
                Effect::CutListener { id, refusal } => self.cut_listener(id, &refusal),
            }
        }
    }
}

/// Why a partition was not added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error(transparent)]
    Fabric(#[from] AddPartitionError),
    #[error(transparent)]
    Endpoint(#[from] StartError),
    #[error("the VM {name} has the CID {cid} already; choose another, or let the broker choose")]
    CidTaken { cid: GuestCid, name: String },
}
