//! The kinds of link that the broker has built in.

use std::path::PathBuf;

use crate::guest_link::LinkFactory;
use crate::stores::VmEntry;
use crate::vhost_user::{SocketOwner, VhostUser};

/// The link of a VM with these settings. `socket` is the path for its VMM.
pub(crate) fn built_in(vm: &VmEntry, socket: PathBuf) -> Box<dyn LinkFactory> {
    Box::new(VhostUser {
        socket,
        owner: vm.user.as_ref().map(|user| SocketOwner {
            uid: user.uid,
            name: user.name.clone(),
        }),
        unsealed_memory: vm.spec.unsealed_memory,
    })
}
