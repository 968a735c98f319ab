//! The run state of containers: what their runtimes' hooks and the observer of their processes say.

use std::sync::Arc;

use hvsock_address::{PartitionName, VmId};
use hvsock_fabric::{Partition, PartitionError, PartitionKey, PartitionKind, Refusal};
use hvsock_sys::pidfd::{Process, ProcessId};

use super::containers::{BindError, Binding, BindingNumber, ContainerRecord};
use super::labels::partition_label;
use super::state::Core;

/// The descriptors of a container: its endpoint's socket.
pub(super) const CONTAINER: u64 = 1;
/// And of one that is bound: its process, the state of its cgroup, and what they are waited for with.
pub(super) const BOUND: u64 = CONTAINER + 3;

/// The container of a runtime that is to be bound.
#[derive(Debug)]
pub(crate) struct ToBind {
    pub(crate) oci_id: String,
    pub(crate) process: Arc<Process>,
    /// Which process it is, if its number is known.
    pub(crate) id: Option<ProcessId>,
}

/// A container that is bound to a partition and runs.
#[derive(Debug)]
pub(crate) struct BoundContainer {
    pub(crate) key: PartitionKey,
    pub(crate) number: BindingNumber,
    pub(crate) process: Arc<Process>,
    /// Which process it is, if its number is known.
    pub(crate) id: Option<ProcessId>,
    pub(crate) frozen: bool,
}

/// A container of which no runtime has said anything.
#[derive(Debug)]
pub(crate) struct UnboundContainer {
    pub(crate) key: PartitionKey,
    pub(crate) name: PartitionName,
    pub(crate) id: VmId,
    pub(crate) is_ephemeral: bool,
}

/// Why a container of a runtime cannot be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindFailure {
    #[error(
        "the {kind} {name} is no container of this broker, to which a runtime's could be bound"
    )]
    Kind { kind: PartitionKind, name: String },
    #[error("cannot bind the container {oci_id} to {name}: {cause}")]
    Taken {
        oci_id: String,
        name: String,
        cause: String,
    },
    /// The partition is being removed.
    #[error("{name} is removed with the container that was bound to it, which has ended")]
    Removed { name: String },
}

impl Core {
    /// Binds a container of a runtime to a partition. Returns the number of the binding, and whether it is new.
    pub(crate) fn bind_container(
        &mut self,
        key: PartitionKey,
        new: &ToBind,
    ) -> Result<(BindingNumber, bool), BindFailure> {
        let name = partition_label(&self.fabric, key);
        if !self.containers.contains(key) {
            let kind = self.fabric.partition(key).map(Partition::kind);
            let kind = kind.unwrap_or(PartitionKind::Container);
            return Err(BindFailure::Kind { kind, name });
        }
        self.notice_end(key);
        let record = self.containers.get(key);
        if record.is_some_and(|record| {
            record.is_ephemeral() && record.binding().is_some_and(|bound| bound.ended)
        }) {
            return Err(BindFailure::Removed { name });
        }
        let before = self.binding_number(key);
        let number = match self.containers.bind(key, &new.oci_id, new.id) {
            Ok(Some(number)) => number,
            Ok(None) => return Err(BindFailure::Removed { name }),
            Err(error) => {
                let oci_id = new.oci_id.clone();
                let cause = match error {
                    BindError::Elsewhere(other) => {
                        let other = partition_label(&self.fabric, other);
                        format!("it is bound to {other}")
                    }
                    BindError::Taken { .. } => error.to_string(),
                };
                return Err(BindFailure::Taken {
                    oci_id,
                    name,
                    cause,
                });
            }
        };
        let is_new = before != Some(number);
        if is_new {
            let process = Arc::clone(&new.process);
            self.container_processes.insert(key, (number, process));
            self.charge_partition(key, BOUND);
            self.apply_container_state(key);
        }
        Ok((number, is_new))
    }

    /// Records a container that was bound before this broker started, and has ended.
    pub(crate) fn restore_ended(&mut self, key: PartitionKey, oci_id: &str, process: ProcessId) {
        if let Ok(Some(number)) = self.containers.bind(key, oci_id, Some(process)) {
            self.containers.ended(key, number);
            self.apply_container_state(key);
        }
    }

    /// Records that a container was bound before this broker started, and that none is now.
    pub(crate) fn restore_released(&mut self, key: PartitionKey) {
        self.containers.set_defined(key);
        self.apply_container_state(key);
    }

    /// Undoes a binding that cannot be kept.
    pub(crate) fn forget_binding(&mut self, key: PartitionKey, number: BindingNumber) {
        self.containers.forget(key, number);
        self.drop_process(key);
        self.apply_container_state(key);
    }

    /// Records that a runtime has removed a container. Returns the binding that it had; `None` if another one
    /// is bound, or none.
    pub(crate) fn release_container(
        &mut self,
        key: PartitionKey,
        oci_id: &str,
    ) -> Option<BindingNumber> {
        let released = self.containers.release(key, oci_id)?;
        self.drop_process(key);
        self.apply_container_state(key);
        Some(released.number)
    }

    /// Records that the first process of a container has ended.
    pub(crate) fn container_ended(&mut self, key: PartitionKey, number: BindingNumber) {
        if self.containers.ended(key, number) {
            self.drop_process(key);
            self.apply_container_state(key);
            self.close_sessions_of(key, &Refusal::PartitionExited);
        }
    }

    /// Records whether a container's cgroup is frozen.
    pub(crate) fn container_frozen(
        &mut self,
        key: PartitionKey,
        number: BindingNumber,
        frozen: bool,
    ) {
        if self.containers.frozen(key, number, frozen) {
            self.apply_container_state(key);
        }
    }

    /// Whether a partition is to be removed, since the container with this binding has ended.
    pub(crate) fn is_removed_with(&self, key: PartitionKey, number: BindingNumber) -> bool {
        let record = self.containers.get(key);
        record.is_some_and(|record| {
            let bound = record.binding();
            let has_ended = bound.is_some_and(|bound| bound.number == number && bound.ended);
            record.is_ephemeral() && has_ended
        })
    }

    /// Whether a partition is removed with the container of its runtime.
    pub(crate) fn is_ephemeral(&self, key: PartitionKey) -> bool {
        let record = self.containers.get(key);
        record.is_some_and(ContainerRecord::is_ephemeral)
    }

    /// Those of these partitions that are containers of which no runtime has said anything.
    pub(crate) fn unbound_containers(&self, names: &[PartitionName]) -> Vec<UnboundContainer> {
        let found = names.iter().filter_map(|name| {
            let key = self.fabric.by_name(name)?;
            let record = self.containers.get(key)?;
            let id = self.fabric.partition(key)?.vm_id();
            record.is_unknown().then(|| UnboundContainer {
                key,
                name: name.clone(),
                id,
                is_ephemeral: record.is_ephemeral(),
            })
        });
        found.collect()
    }

    /// The containers that are bound, as they are to be observed; and those that are to be removed, since they
    /// have ended.
    pub(crate) fn bound_containers(
        &self,
    ) -> (Vec<BoundContainer>, Vec<(PartitionKey, BindingNumber)>) {
        let all = self.fabric.partitions();
        let bound = all.filter_map(|(key, _)| Some((key, self.containers.get(key)?.binding()?)));
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        for (key, binding) in bound {
            let Binding { number, .. } = *binding;
            match self.container_processes.get(&key) {
                Some((_, process)) => running.push(BoundContainer {
                    key,
                    number,
                    process: Arc::clone(process),
                    id: binding.process,
                    frozen: binding.is_frozen(),
                }),
                None if self.is_removed_with(key, number) => ended.push((key, number)),
                None => {}
            }
        }
        (running, ended)
    }

    /// Pauses or resumes a container for an operator. A resumed one stays paused while its runtime has paused
    /// it.
    pub(super) fn pause_container(
        &mut self,
        key: PartitionKey,
        paused: bool,
    ) -> Result<(), PartitionError> {
        self.containers.set_paused(key, paused);
        self.apply_container_state(key);
        Ok(())
    }

    /// Records the end of a container's first process, if that has ended and was not reported yet.
    fn notice_end(&mut self, key: PartitionKey) {
        if let Some((number, process)) = self.container_processes.get(&key)
            && process.has_ended().unwrap_or(false)
        {
            self.container_ended(key, *number);
        }
    }

    /// The number of a partition's present binding.
    pub(crate) fn binding_number(&self, key: PartitionKey) -> Option<BindingNumber> {
        Some(self.containers.get(key)?.binding()?.number)
    }

    pub(super) fn drop_process(&mut self, key: PartitionKey) {
        if self.container_processes.remove(&key).is_some() {
            self.charge_partition(key, CONTAINER);
        }
    }

    fn apply_container_state(&mut self, key: PartitionKey) {
        let Some(state) = self.containers.state(key) else {
            return;
        };
        let partition = self.fabric.partition(key);
        if partition.is_some_and(|partition| partition.state() != state) {
            // The call cannot fail: the partition exists and is not the root.
            let _ = self.change_state(key, state);
        }
    }
}
