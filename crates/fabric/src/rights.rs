//! What a child may do with a service of its parent's registry, without a request.

use hvsock_address::ServiceId;

use crate::tree::Relation;
use crate::{Fabric, PartitionKey};

/// What a child may do with a service of its parent's registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildRights {
    /// The service is enabled for the child.
    pub enabled: bool,
    /// Its processes may connect.
    pub may_connect: bool,
    /// Its root may listen.
    pub root_listens: bool,
    /// Every user in it may listen.
    pub any_user_listens: bool,
    /// Listeners at the wildcard are allowed.
    pub wildcard: bool,
}

impl Fabric {
    /// What a child may do with a service of its parent's registry, by the checks of a connect and of a
    /// listen. `None` if the service is not registered there, or the partition has no parent.
    pub fn rights_of_child(&self, child: PartitionKey, service: ServiceId) -> Option<ChildRights> {
        let child = self.tree.node(child)?;
        let parent = self.tree.node(child.partition.parent?)?;
        let boundary = self.tree.boundary(child, parent, Relation::Parent)?;
        let policy = boundary.policy(service, &self.operators)?;
        let [user, root] =
            [false, true].map(|is_root| self.tree.requester(child.partition, is_root));
        Some(ChildRights {
            enabled: policy.enabled().is_ok(),
            may_connect: policy.connect(&user).is_ok(),
            root_listens: policy.bind(&root, false).is_ok(),
            any_user_listens: policy.bind(&user, false).is_ok(),
            wildcard: policy.allows_wildcard(),
        })
    }
}
