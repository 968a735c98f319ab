//! Resolves addresses on Windows.

use std::io;

use hvsock_address::{
    ElementName, HVSOCKET_ADDRESS_FLAG_PASSTHRU, PartitionName, PartitionRef, ServiceId,
    ServiceRef, SockAddrHv, VmId,
};
use hvsock_fabric::{Fix, Refusal};
use hvsock_hyperv::{FindVmError, Missing};

use super::endpoint::require_no_endpoint;
use crate::error::refused_with_fix;
use crate::{Endpoint, HvAddr};

/// An address as Windows takes it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    address: SockAddrHv,
    /// The address as it was written.
    shown: String,
}

impl Target {
    /// The address of a connect. The zero id means the parent if there is one.
    pub(super) fn of_connect(address: &HvAddr) -> io::Result<Self> {
        let mut target = Self::of_listen(address)?;
        if target.address.vm == VmId::ZERO && hvsock_hyperv::machine().guest.is_some() {
            target.address.vm = VmId::PARENT;
        }
        Ok(target)
    }

    /// The address of a listener.
    pub(super) fn of_listen(address: &HvAddr) -> io::Result<Self> {
        let vm = match address.partition() {
            PartitionRef::Id(id) => *id,
            PartitionRef::Name(name) => partition(name)?,
        };
        let service = match address.service() {
            ServiceRef::Id(id) => *id,
            ServiceRef::Name(name) => service(name)?,
        };
        let mut resolved = SockAddrHv::new(vm, service);
        if address.passthru() {
            resolved.flags = HVSOCKET_ADDRESS_FLAG_PASSTHRU;
        }
        Ok(Self {
            address: resolved,
            shown: address.to_string(),
        })
    }

    pub(super) fn address(&self) -> SockAddrHv {
        self.address
    }

    /// The address as it was written.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}

/// The id of the service with this friendly name.
pub(crate) fn service_id(endpoint: &Endpoint, name: &ElementName) -> io::Result<ServiceId> {
    require_no_endpoint(endpoint)?;
    service(name)
}

/// The id of the virtual machine with this name.
pub(crate) fn vm_id(endpoint: &Endpoint, name: &PartitionName) -> io::Result<VmId> {
    require_no_endpoint(endpoint)?;
    partition(name)
}

/// Windows has no address for the host of a container's virtual machine.
pub(crate) fn host_id(endpoint: &Endpoint) -> io::Result<VmId> {
    require_no_endpoint(endpoint)?;
    let text = "no partition above the parent has an address on Windows";
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// Resolves a name in the registry of this machine. In a virtual machine the host may have services
/// that this registry does not contain.
fn service(name: &ElementName) -> io::Result<ServiceId> {
    let facts = hvsock_hyperv::registry_facts();
    if let Some(registration) = facts.registry.by_name(name) {
        return Ok(registration.id);
    }
    let fix = match facts.machine.guest {
        Some(_) => Fix::UseServiceId {
            service: name.to_string(),
        },
        None => Fix::ListServices,
    };
    let text = format!("no service is registered as `{name}` on this machine");
    Err(refused_with_fix(Refusal::Unregistered, text, fix))
}

fn partition(name: &PartitionName) -> io::Result<VmId> {
    let (vms, missing) = hvsock_hyperv::virtual_machines();
    match hvsock_hyperv::find_vm(&vms, name.as_str()) {
        Ok(vm) => Ok(vm.id),
        Err(FindVmError::Unknown(unknown)) => {
            // The list may be incomplete for this user. The error says so.
            let more: String = missing
                .iter()
                .filter(|missing| !matches!(missing, Missing::HyperV) || vms.is_empty())
                .map(|missing| format!("; {missing}"))
                .collect();
            let fix = match missing.contains(&Missing::HyperV) && vms.is_empty() {
                true => Fix::EnableHyperV,
                false => Fix::ListPartitions,
            };
            let text = format!("{unknown}{more}");
            Err(refused_with_fix(Refusal::PartitionUnknown, text, fix))
        }
        Err(ambiguous) => Err(io::Error::new(io::ErrorKind::InvalidInput, ambiguous)),
    }
}
