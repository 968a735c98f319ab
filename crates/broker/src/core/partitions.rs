//! Partitions, as operators and VMMs change them: containers with their endpoints, and VMs with their
//! devices.

use std::os::unix::net::UnixListener;
use std::time::Instant;

use hvsock_fabric::{
    AddPartitionError, PartitionError, PartitionKey, PartitionSpec, PartitionState, Refusal,
};
use hvsock_sys::stream;
use hvsock_virtio::GuestCid;

use super::labels::partition_label;
use super::state::Core;
use crate::model::{self, EventKind};
use crate::stores::VmEntry;
use crate::vhost_user::{VmSettings, VmThreads};
use crate::{StartError, folders};

/// Listen backlog of a VM's socket. One VMM is served at a time, and its successor may be waiting.
const VMM_BACKLOG: u32 = 128;

impl Core {
    /// Adds a container and opens its endpoint.
    pub(crate) fn add_container(&mut self, spec: PartitionSpec) -> Result<(), AddError> {
        let name = spec.name.clone();
        let root = self.fabric.root();
        let key = self.fabric.add_partition(root, spec)?;
        let opened = folders::make_container(&self.dirs, name.as_str()).and_then(|()| {
            self.endpoints
                .open(key, self.dirs.container(name.as_str()).join("endpoint"))
        });
        if let Err(error) = opened {
            let _ = self.fabric.remove_partition(key);
            return Err(error.into());
        }
        self.telemetry.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        Ok(())
    }

    /// Adds a VM and opens the socket for its VMM. It is off until the VMM connects.
    pub(crate) fn add_vm(&mut self, spec: PartitionSpec, vm: VmEntry) -> Result<(), AddError> {
        if let Some(key) = self.vms.by_cid(vm.cid) {
            let name = partition_label(&self.fabric, key);
            return Err(AddError::CidTaken { cid: vm.cid, name });
        }
        let name = spec.name.clone();
        let socket = self.dirs.vm_socket(name.as_str());
        folders::check_socket(&socket)?;
        let root = self.fabric.root();
        let key = self.fabric.add_partition(root, spec)?;
        self.vms.insert(key, vm, socket);
        if let Err(error) = self.open_vm(key) {
            self.close_vm(key);
            let _ = self.fabric.remove_partition(key);
            return Err(error.into());
        }
        self.telemetry.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        Ok(())
    }

    /// Opens the socket of a new VM and starts its threads.
    fn open_vm(&mut self, key: PartitionKey) -> Result<(), StartError> {
        let Some(record) = self.vms.get(key) else {
            return Ok(());
        };
        let (path, vm) = (record.socket(), record.settings());
        let owner = vm.user.as_ref();
        let for_user =
            owner.map_or_else(String::new, |user| format!(" for the user {}", user.name));
        let listener =
            stream::listen(path, 0o600, owner.map(|user| user.uid), VMM_BACKLOG).map_err(
                StartError::io(format!("listen at {}{for_user}", path.display())),
            )?;
        let listener = UnixListener::from(listener);
        let settings = VmSettings {
            cid: vm.cid,
            unsealed_memory: vm.unsealed_memory,
            max_connections: self.fabric.limits().connections_per_partition,
        };
        let reports = self.reports.of_vm(key);
        let threads = VmThreads::start(settings, listener, reports);
        let threads = threads.map_err(StartError::io("start a VM's threads"))?;
        self.vms.set_threads(key, threads);
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
        self.endpoints.close_of(key);
        self.close_vm(key);
        self.liveness
            .set_state(key, model::PartitionState::Off, Instant::now());
        let _ = self.fabric.remove_partition(key);
        self.apply_effects();
        self.telemetry
            .publish(|| EventKind::PartitionRemoved { partition: name });
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
        self.telemetry.publish(|| EventKind::PartitionState {
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

    /// Stops the device of a VM that is being removed, and removes its socket.
    fn close_vm(&mut self, key: PartitionKey) {
        if let Some(record) = self.vms.remove(key) {
            let _ = std::fs::remove_file(record.socket());
        }
    }

    /// The lowest CID that no VM has.
    pub(crate) fn free_cid(&self) -> Option<GuestCid> {
        self.vms.free_cid()
    }

    /// Records the state that a VMM reports.
    pub(super) fn vmm_state(&mut self, key: PartitionKey, state: PartitionState) {
        if let Some(state) = self.vms.set_vmm_state(key, state) {
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
    #[error("the VM {name} has the CID {cid} already; choose another, or let the broker choose")]
    CidTaken { cid: GuestCid, name: String },
}
