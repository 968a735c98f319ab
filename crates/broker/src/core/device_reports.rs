//! What became of the CDI devices of containers.

use std::collections::BTreeMap;

use hvsock_fabric::{Partition, PartitionKey, PartitionKind};

use super::containers::ContainerRecord;
use super::state::Core;
use crate::cdi::CdiChange;
use crate::model::{Container, ProblemKind};

impl Core {
    /// Records what became of devices. One that cannot be written is a problem.
    pub(crate) fn set_devices(&mut self, changes: Vec<CdiChange>) {
        let kind = ProblemKind::CdiDevice;
        for CdiChange { container, device } in changes {
            match device {
                Some(Ok(device)) => {
                    self.clear(kind, &container);
                    self.devices.insert(container, device);
                }
                Some(Err(error)) => {
                    self.devices.remove(&container);
                    let text = format!("the container {container} has no CDI device: {error}");
                    self.raise(kind, container, text, None);
                }
                None => self.forget_device(&container),
            }
        }
    }

    /// Whether a container got another folder than before since the last call.
    pub(crate) fn take_replaced_folders(&mut self) -> bool {
        std::mem::take(&mut self.has_replaced_folder)
    }

    /// Records the containers whose mounts lead to a removed folder, with a process that has such a mount.
    pub(crate) fn set_stale_mounts(&mut self, stale: &BTreeMap<String, String>) {
        let kind = ProblemKind::StaleMount;
        for name in self.problems.objects(kind) {
            if !stale.contains_key(&name) {
                self.clear(kind, &name);
            }
        }
        for (name, process) in stale {
            let text = format!(
                "the container {name} must be started again: its process {process} has the mount of a folder \
                 that was removed since, and does not reach the broker"
            );
            self.raise(kind, name, text, None);
        }
    }

    pub(super) fn forget_device(&mut self, container: &str) {
        self.devices.remove(container);
        self.clear(ProblemKind::CdiDevice, container);
    }

    /// What only a container has.
    pub(super) fn container(&self, key: PartitionKey, partition: &Partition) -> Option<Container> {
        let is_container = partition.kind() == PartitionKind::Container;
        let record = self.containers.get(key);
        let bound = record.and_then(|record| record.binding());
        let runs = bound.filter(|bound| !bound.ended);
        is_container.then(|| Container {
            oci_id: bound.map(|bound| bound.oci_id.clone()),
            pid: runs.and_then(|bound| Some(bound.process?.pid)),
            ephemeral: record.is_some_and(ContainerRecord::is_ephemeral),
            cdi: self.devices.get(partition.name().as_str()).cloned(),
        })
    }
}
