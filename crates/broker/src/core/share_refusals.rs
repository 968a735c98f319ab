//! The refusals for shares that are used up.

use hvsock_fabric::{Fabric, PartitionKey, Refusal};

use super::labels::partition_label;
use super::state::Core;
use crate::budget::{Owner, Shortage};

impl Core {
    /// The refusal for a descriptor that the owner's share does not allow. If operators are refused, no
    /// descriptor is free at all, which is a problem.
    pub(super) fn descriptor_share(&mut self, shortage: Shortage) -> Refusal {
        let Shortage { owner, used, limit } = shortage;
        if owner == Owner::Operator {
            let error = format!("all {limit} are in use");
            self.endpoints.note_shortage(error);
        }
        let of = owner_label(&self.fabric, owner);
        Refusal::LimitReached {
            which: format!("broker descriptors{of} ({used} of {limit} are in use)"),
        }
    }
}

/// The refusal for a message with descriptors that the share of the process's owner does not allow.
/// Processes in another partition than `asking` learn of no owner.
pub(super) fn in_flight_share(
    fabric: &Fabric,
    asking: PartitionKey,
    of_own: bool,
    shortage: Shortage,
) -> Refusal {
    let Shortage { owner, used, limit } = shortage;
    let may_know = of_own || asking == fabric.root();
    let which = match may_know {
        true => format!(
            "descriptors in flight{} ({used} of {limit} messages are unread)",
            owner_label(fabric, owner)
        ),
        false => "descriptors in flight to the listener's process".to_owned(),
    };
    Refusal::LimitReached { which }
}

/// ` of OWNER`, or nothing for operators, who have all that is free.
fn owner_label(fabric: &Fabric, owner: Owner) -> String {
    match owner {
        Owner::Operator => String::new(),
        Owner::User(uid) => format!(" of the user {uid}"),
        Owner::Partition(key) => format!(" of the partition {}", partition_label(fabric, key)),
    }
}
