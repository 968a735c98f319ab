//! Which link reaches a partition.

use hvsock_fabric::PartitionKey;

use super::state::Core;
use crate::guest_link::GuestLink;

impl Core {
    /// The link that reaches a partition. `None` if its processes are reached by endpoints, or it is gone.
    pub(super) fn link_of(&self, partition: PartitionKey) -> Option<&dyn GuestLink> {
        self.vms.link(partition).map(|link| &**link)
    }
}
