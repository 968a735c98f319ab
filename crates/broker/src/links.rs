//! The kinds of link that the broker has built in.

use std::path::PathBuf;

use hvsock_control::LinkSpec;

use crate::StartError;
use crate::guest_link::LinkFactory;
use crate::kernel_vsock::{KernelHosts, KernelVsock};
use crate::stores::VmEntry;
use crate::vhost_user::{SocketOwner, VhostUser};

/// The link of a VM with these settings. `socket` is the path for its VMM.
pub(crate) fn built_in(
    vm: &VmEntry,
    socket: PathBuf,
    kernel: &KernelHosts,
) -> Result<Box<dyn LinkFactory>, StartError> {
    let owner = vm.user.as_ref().map(|user| SocketOwner {
        uid: user.uid,
        name: user.name.clone(),
    });
    match &vm.spec.link {
        LinkSpec::VhostUser => Ok(Box::new(VhostUser {
            socket,
            owner,
            unsealed_memory: vm.spec.unsealed_memory,
        })),
        LinkSpec::Kernel { netns, manager: _ } => Ok(Box::new(KernelVsock {
            netns: netns.clone(),
            hosts: kernel.clone(),
        })),
        link @ LinkSpec::Hybrid { .. } => {
            let error = std::io::Error::from(hvsock_fabric::Refusal::NotSupported);
            Err(StartError::io(format!("open a {} link", link.kind()))(
                error,
            ))
        }
    }
}
