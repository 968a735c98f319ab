//! Partitions, as operators and VMMs change them: containers with their endpoints, and VMs with their
//! devices.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use hvsock_fabric::{
    AddPartitionError, Changes, PartitionError, PartitionKey, PartitionKind, PartitionSpec,
    PartitionState, Refusal,
};
use hvsock_virtio::GuestCid;

use super::connections::ConnectionOwner;
use super::container_states::CONTAINER;
use super::endpoints::EndpointKind;
use super::labels::partition_label;
use super::left_folders::{ExistingFolder, LeftFolders};
use super::state::Core;
use crate::budget::Owner;
use crate::guest_link::{LinkFactory, LinkSettings};
use crate::model::{self, EventKind, ProblemKind};
use crate::stores::{CidKey, VmEntry, hybrid_path};
use crate::{StartError, folders, links};

/// The descriptors of a VM's link: its socket and its VMM's connection, the eventfds of its queues, what
/// its threads wait with, and the VM's hybrid vsock socket.
const LINK: u64 = 17;
/// Most connections of one guest: the broker has buffers for each.
const MAX_GUEST_CONNECTIONS: usize = 16_384;

impl Core {
    /// Adds a container and opens its endpoint.
    pub(crate) fn add_container(
        &mut self,
        spec: PartitionSpec,
        ephemeral: bool,
    ) -> Result<(), AddError> {
        let (name, id) = (spec.name.clone(), spec.vm_id);
        let root = self.fabric.root();
        let key = self.fabric.add_partition(root, spec)?;
        let emptied = match self.left_folders.find(name.as_str(), id) {
            ExistingFolder::Keep => Ok(()),
            ExistingFolder::Replace => {
                self.has_replaced_folder = true;
                folders::remove_container(&self.dirs, name.as_str())
            }
        };
        let opened = emptied
            .and_then(|()| folders::make_container(&self.dirs, name.as_str(), id))
            .and_then(|is_gone| {
                self.has_replaced_folder |= is_gone;
                self.left_folders.take(name.as_str());
                let folder = self.dirs.container(name.as_str());
                let (endpoint, text) = (folder.join("endpoint"), folder.join("text"));
                self.endpoints.open(EndpointKind::Endpoint, key, endpoint)?;
                self.endpoints.open(EndpointKind::Text, key, text)
            });
        if let Err(error) = opened {
            self.endpoints.close_of(key);
            let _ = self.fabric.remove_partition(key);
            return Err(error.into());
        }
        self.containers.insert(key, ephemeral);
        self.assign_cid(key);
        self.charge_partition(key, CONTAINER);
        self.announce(key);
        self.telemetry.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        Ok(())
    }

    /// Makes the folder and the socket of a container's endpoint again, if somebody has removed one.
    pub(crate) fn repair_endpoint(&mut self, key: PartitionKey) -> Result<(), AddError> {
        let Some(partition) = self.fabric.partition(key) else {
            return Ok(());
        };
        let (name, id) = (partition.name().clone(), partition.vm_id());
        let is_gone = folders::make_container(&self.dirs, name.as_str(), id)?;
        self.has_replaced_folder |= is_gone;
        for kind in [EndpointKind::Endpoint, EndpointKind::Text] {
            self.endpoints.repair(kind, key)?;
        }
        Ok(())
    }

    /// Adds a VM and opens its link: `link`, or else one of the built-in ones.
    pub(crate) fn add_vm(
        &mut self,
        spec: PartitionSpec,
        vm: VmEntry,
        link: Option<Box<dyn LinkFactory>>,
    ) -> Result<(), AddError> {
        if let Some(taken) = vm.cid_key()
            && let Some(key) = self.vms.by_cid(&taken)
        {
            let name = partition_label(&self.fabric, key);
            return Err(AddError::CidTaken { taken, name });
        }
        if let Some(path) = hybrid_path(&vm.spec.link) {
            if folders::is_own(&self.dirs, &path) {
                return Err(AddError::OwnSocket(path));
            }
            if let Some(key) = self.vms.by_hybrid_path(&path) {
                let name = partition_label(&self.fabric, key);
                return Err(AddError::HybridPathTaken { path, name });
            }
        }
        let name = spec.name.clone();
        let socket = self.dirs.vm_socket(name.as_str());
        let factory = match link {
            Some(factory) => factory,
            None => links::built_in(&vm, socket, &self.kernel_hosts),
        };
        let root = self.fabric.root();
        let key = self.fabric.add_partition(root, spec)?;
        let settings = self.link_settings(&vm);
        self.vms.insert(key, vm);
        let hybrid = self.dirs.vm_hybrid_socket(name.as_str());
        let opened = folders::check_socket(&hybrid)
            .and_then(|()| self.endpoints.open(EndpointKind::Hybrid, key, hybrid))
            .and_then(|()| factory.open(settings, self.reports.of_link(key, name.as_str())));
        let link = match opened {
            Ok(link) => link,
            Err(error) => {
                self.endpoints.close_of(key);
                self.close_vm(key);
                let _ = self.fabric.remove_partition(key);
                return Err(error.into());
            }
        };
        self.charge_partition(key, LINK);
        let (state, capabilities) = (link.state(), link.capabilities());
        self.vms.set_link(key, link);
        self.assign_cid(key);
        for what in capabilities.missing() {
            tracing::debug!(vm = %name, "the link to the guest has no {what}");
        }
        self.telemetry.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        self.link_state(key, state);
        self.update_offered_services(&Changes::All);
        Ok(())
    }

    /// The settings of a VM's link.
    pub(super) fn link_settings(&self, vm: &VmEntry) -> LinkSettings {
        let limit = self.fabric.limits().connections_per_partition;
        LinkSettings {
            cid: vm.cid.map(GuestCid::get),
            max_connections: MAX_GUEST_CONNECTIONS.min(limit),
        }
    }

    /// Removes a partition and its endpoint, and resets its listeners and connections.
    pub(crate) fn remove_partition(&mut self, key: PartitionKey) {
        // Its containers are withdrawn by their broker, which the end of the uplink tells them.
        self.uplink_state(key, PartitionState::Off);
        let name = partition_label(&self.fabric, key);
        // Close connections and listeners first, so that their ends receive the reason. The call
        // cannot fail: the partition exists and is not the root.
        let _ = self.fabric.set_state(key, PartitionState::Off);
        self.apply_effects();
        self.withdraw(key);
        self.close_sessions_of(key, &Refusal::PartitionOff);
        self.endpoints.close_of(key);
        self.leave_folder(key);
        self.close_vm(key);
        self.container_processes.remove(&key);
        self.containers.remove(key);
        self.liveness
            .set_state(key, model::PartitionState::Off, Instant::now());
        let _ = self.fabric.remove_partition(key);
        self.forget_device(&name);
        self.cids.remove(key);
        self.partition_charges.remove(&key);
        self.apply_effects();
        self.telemetry
            .publish(|| EventKind::PartitionRemoved { partition: name });
    }

    /// Charges a VM for its link, and for what that has for the host's services.
    pub(super) fn charge_vm(&mut self, key: PartitionKey, for_services: usize) {
        let for_services = u64::try_from(for_services).unwrap_or(u64::MAX);
        self.charge_partition(key, LINK.saturating_add(for_services));
    }

    /// Charges a partition for what an operator has opened for it.
    pub(super) fn charge_partition(&mut self, key: PartitionKey, descriptors: u64) {
        let owner = Owner::Partition(key);
        let charge = self.descriptors.charge_beyond(owner, descriptors);
        self.partition_charges.insert(key, charge);
    }

    /// Pauses or resumes a partition for an operator.
    pub(crate) fn set_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Result<(), PartitionError> {
        if self.vms.contains(key) {
            return self.pause_vm(key, state == PartitionState::Paused);
        }
        if self.containers.contains(key) {
            return self.pause_container(key, state == PartitionState::Paused);
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
        self.announce_state(key);
        self.liveness.set_state(key, state.into(), Instant::now());
        self.telemetry.publish(|| EventKind::PartitionState {
            partition: partition_label(&self.fabric, key),
            state: model::PartitionState::from(state),
        });
        self.uplink_state(key, state);
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

    /// Finds the folders of removed containers when the broker starts.
    pub(super) fn find_left_folders(&mut self) {
        let (left_folders, surplus) = LeftFolders::restore(folders::records(&self.dirs));
        self.left_folders = left_folders;
        for name in surplus {
            let _ = folders::remove_container(&self.dirs, &name);
        }
    }

    /// Keeps the folder of a container that is being removed: the container may run and be added again.
    fn leave_folder(&mut self, key: PartitionKey) {
        let container = self
            .fabric
            .partition(key)
            .filter(|partition| partition.kind() == PartitionKind::Container)
            .map(|partition| (partition.name().to_string(), partition.vm_id()));
        if let Some((name, id)) = container
            && let Some(oldest) = self.left_folders.leave(name, id)
        {
            let _ = folders::remove_container(&self.dirs, &oldest);
        }
    }

    /// Closes the link of a VM that is being removed, and removes its socket.
    fn close_vm(&mut self, key: PartitionKey) {
        let removed = self.vms.remove(key);
        if let Some(socket) = removed.as_ref().and_then(|vm| vm.link()?.socket()) {
            let _ = std::fs::remove_file(socket);
        }
        drop(removed);
        self.forget_port_problems(key);
        self.drop_uplink_clients_of(key);
        let name = partition_label(&self.fabric, key);
        self.clear(ProblemKind::VmLink, &name);
        self.forget_guest_arenas(key);
        // A link that is dropped resets its connections without events. Those that it did report are
        // still in the queue, and then name connections that are gone.
        for id in self.connections.owned_by(ConnectionOwner::Link(key)) {
            self.closed(id, Some(&Refusal::PartitionOff));
        }
    }

    /// The lowest CID that no VM has and that is not reserved.
    pub(crate) fn free_cid(&self, reserved: &BTreeSet<GuestCid>) -> Option<GuestCid> {
        self.vms.free_cid(reserved)
    }

    /// Records the state that a VM's link reports.
    pub(super) fn link_state(&mut self, key: PartitionKey, state: PartitionState) {
        if let Some(state) = self.vms.set_link_state(key, state) {
            // The call cannot fail: a VM has a partition.
            let _ = self.apply_vm_state(key, state);
        }
    }

    /// Pauses or resumes a VM for an operator. A resumed VM stays paused while its VMM has paused it.
    fn pause_vm(&mut self, key: PartitionKey, paused: bool) -> Result<(), PartitionError> {
        let state = self.vms.set_paused(key, paused);
        self.apply_vm_state(key, state.ok_or(PartitionError::Gone)?)
    }

    fn apply_vm_state(
        &mut self,
        key: PartitionKey,
        state: PartitionState,
    ) -> Result<(), PartitionError> {
        let partition = self.fabric.partition(key);
        if partition.is_some_and(|partition| partition.state() == state) {
            return Ok(());
        }
        self.change_state(key, state)
    }
}

/// The error of adding a partition.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    #[error(transparent)]
    Fabric(#[from] AddPartitionError),
    #[error(transparent)]
    Endpoint(#[from] StartError),
    #[error(transparent)]
    Change(#[from] PartitionError),
    #[error("the VM {name} has the CID {} already; {}", taken.cid, taken.space.advice())]
    CidTaken { taken: CidKey, name: String },
    /// A file would have the broker connect to itself.
    #[error("{} is the broker's own; give the path of the VMM's socket", .0.display())]
    OwnSocket(PathBuf),
    #[error("the VM {name} has the hybrid socket {} already", path.display())]
    HybridPathTaken { path: PathBuf, name: String },
}
