//! The kinds of link that the broker has built in.

use std::path::PathBuf;

use hvsock_control::LinkSpec;

use crate::guest_link::LinkFactory;
use crate::hybrid::Hybrid;
use crate::kernel_vsock::{KernelHosts, KernelVsock};
use crate::stores::VmEntry;
use crate::vhost_user::{SocketOwner, VhostUser};

/// The link of a VM with these settings. `socket` is the path for its VMM.
pub(crate) fn built_in(
    vm: &VmEntry,
    socket: PathBuf,
    kernel: &KernelHosts,
) -> Box<dyn LinkFactory> {
    let owner = vm.user.as_ref().map(|user| SocketOwner {
        uid: user.uid,
        name: user.name.clone(),
    });
    match &vm.spec.link {
        LinkSpec::VhostUser => Box::new(VhostUser {
            socket,
            owner,
            unsealed_memory: vm.spec.unsealed_memory,
        }),
        LinkSpec::Hybrid { path, style } => Box::new(Hybrid {
            path: path.clone(),
            style: *style,
            user: vm.user.as_ref().map(|user| user.uid),
        }),
        LinkSpec::Kernel { netns, manager } => Box::new(KernelVsock {
            netns: netns.clone(),
            manager: manager.clone(),
            hosts: kernel.clone(),
        }),
    }
}
