//! Names for shell completion and for similar names in errors, from the registry and Hyper-V.

use anyhow::Result;
use hvsock_control::PartitionKind;

use super::broker_args::BrokerArgs;
use super::local;
use super::vm::Shown;
use crate::complete::Name;

/// The integration services, which Hyper-V manages on Windows.
pub fn integration_keys() -> Vec<&'static str> {
    Vec::new()
}

/// The virtual machines, by their names as partitions.
pub fn guests(_broker: &BrokerArgs, _kind: Option<PartitionKind>) -> Result<Vec<Name>> {
    let (vms, _missing) = hvsock_hyperv::virtual_machines();
    let names = Shown::all(vms).into_iter().map(|vm| Name {
        name: vm.partition.to_string(),
        about: format!("{}, {}", vm.kind, vm.state),
    });
    Ok(names.collect())
}

/// The registered services.
pub fn services(_broker: &BrokerArgs) -> Result<Vec<Name>> {
    let registry = local::registry()?;
    let names = registry.iter().map(|registration| Name {
        name: registration.name.to_string(),
        about: registration
            .purpose
            .clone()
            .unwrap_or_else(|| registration.id.to_string()),
    });
    Ok(names.collect())
}

/// Windows does not list connections.
pub fn connections(_broker: &BrokerArgs) -> Result<Vec<Name>> {
    Ok(Vec::new())
}

/// The only broker on Windows, the system.
pub fn typed_broker() -> BrokerArgs {
    BrokerArgs {}
}
