//! What became of the CDI devices of containers.

use hvsock_fabric::{Partition, PartitionKind};

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

    pub(super) fn forget_device(&mut self, container: &str) {
        self.devices.remove(container);
        self.clear(ProblemKind::CdiDevice, container);
    }

    /// What only a container has.
    pub(super) fn container(&self, partition: &Partition) -> Option<Container> {
        let is_container = partition.kind() == PartitionKind::Container;
        is_container.then(|| Container {
            cdi: self.devices.get(partition.name().as_str()).cloned(),
        })
    }
}
