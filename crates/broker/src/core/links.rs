//! Which link reaches a partition.

use hvsock_address::VmId;
use hvsock_fabric::{Partition, PartitionKey};

use super::state::Core;
use crate::guest_link::GuestLink;

impl Core {
    /// The VM whose link carries the connections of a partition: the VM itself, or the VM that a container
    /// is in. The partition itself if no VM does.
    pub(super) fn carrier(&self, partition: PartitionKey) -> PartitionKey {
        let parent = self.fabric.partition(partition).and_then(Partition::parent);
        parent
            .filter(|parent| self.vms.contains(*parent))
            .unwrap_or(partition)
    }

    /// Whether a partition is a container in a VM.
    pub(super) fn is_nested(&self, partition: PartitionKey) -> bool {
        self.carrier(partition) != partition
    }

    /// The link that reaches a partition. `None` if its processes are reached by endpoints, or it is gone.
    pub(super) fn link_of(&self, partition: PartitionKey) -> Option<&dyn GuestLink> {
        let outer = self.outer.as_ref().filter(|outer| outer.key == partition);
        match outer {
            Some(outer) => Some(&outer.client),
            None => self.vms.link(self.carrier(partition)).map(|link| &**link),
        }
    }

    /// The id of the container that a process is in. `None` in the broker's own partition.
    pub(super) fn container_id(&self, partition: PartitionKey) -> Option<VmId> {
        let partition =
            (partition != self.fabric.root()).then(|| self.fabric.partition(partition))?;
        Some(partition?.vm_id())
    }
}
