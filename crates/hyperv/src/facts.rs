//! The state of a Windows machine.

use hvsock_address::{ServiceId, VmId};
use hvsock_registry::Registry;

use crate::missing::Missing;
use crate::name::{FindVmError, find_vm};
use crate::{Machine, ServicePolicy, Vm};

/// The state of a Windows machine, as visible to this user.
///
/// [`missing`](Self::missing) lists what this user cannot see. Explanations take it into account and
/// make no claim about it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The services registered here, without those of Windows itself.
    pub registry: Registry,
    /// Problems with invalid entries of the Windows registry.
    pub problems: Vec<String>,
    /// The kind of this machine.
    pub machine: Machine,
    /// The visible virtual machines.
    pub vms: Vec<Vm>,
    /// The policies that enable or disable services for them.
    pub policies: Vec<ServicePolicy>,
    /// The information that could not be obtained.
    pub missing: Vec<Missing>,
}

/// A connect or listen to explain.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) vm: VmId,
    pub(crate) service: ServiceId,
    pub(crate) listening: bool,
}

impl Facts {
    /// The virtual machine with this id.
    pub fn vm(&self, id: VmId) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.id == id)
    }

    /// Finds the virtual machine that user input names: see [`find_vm`].
    ///
    /// # Errors
    ///
    /// [`FindVmError`] if no machine, or more than one, has this name.
    pub fn find_vm(&self, text: &str) -> Result<&Vm, FindVmError> {
        find_vm(&self.vms, text)
    }

    /// Whether virtual machines may exist that are not visible.
    pub(crate) fn may_hide_vms(&self) -> bool {
        self.missing.iter().any(Missing::hides_vms)
    }

    /// Whether it is a virtual machine and not a host.
    pub(crate) fn is_guest_only(&self) -> bool {
        self.machine.guest.is_some() && !self.machine.is_host
    }

    /// Whether this machine's own host decides the request.
    pub(crate) fn host_decides(&self, question: Question) -> bool {
        let to_host = match question.vm {
            VmId::PARENT => true,
            VmId::WILDCARD => !question.listening,
            _ => false,
        };
        self.is_guest_only() || self.machine.guest.is_some() && to_host
    }
}
