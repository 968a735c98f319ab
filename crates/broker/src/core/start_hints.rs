//! How a VM is started that is off: that depends on its link, which the fabric does not know.

use hvsock_control::LinkSpec;
use hvsock_fabric::{Explanation, Fix, PartitionKind};

use super::state::Core;

impl Core {
    /// Replaces the advice to start a VM by what fits its link. Paths and managers of the host are for readers
    /// on the host (`on_host`) alone.
    pub(super) fn fit_start_to_link(&self, explanation: &mut Explanation, on_host: bool) {
        let Some(Fix::StartPartition {
            partition,
            kind: PartitionKind::Vm,
            id,
        }) = &explanation.fix
        else {
            return;
        };
        let key = self.fabric.find(&(*id).into());
        let Some(vm) = key.and_then(|key| self.vms.get(key)) else {
            return;
        };
        let partition = partition.clone();
        let fix = match &vm.settings().spec.link {
            LinkSpec::VhostUser => return,
            LinkSpec::Hybrid { path, .. } => Fix::StartVmm {
                partition,
                path: on_host.then(|| path.display().to_string()),
            },
            LinkSpec::Kernel {
                manager: Some(known),
                ..
            } if on_host => Fix::StartInManager {
                partition,
                manager: known.manager.clone(),
                vm: known.vm.clone(),
            },
            LinkSpec::Kernel { .. } => Fix::StartWithItsManager,
        };
        explanation.fix = Some(fix);
    }
}
