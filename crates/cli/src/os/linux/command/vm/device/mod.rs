//! The options that give a virtual machine the broker's vhost-user device, for each VMM.
//!
//! [`Vmm`] is the seam: a further VMM is a file that implements it and a line of [`VMMS`]. Each file names the
//! source of its syntax.

mod cloud_hypervisor;
mod crosvm;
mod libkrun;
mod libvirt;
mod machine_type;
mod memory;
mod openvmm;
mod qemu;
mod uml;
mod vmm;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde_json::{Map, Value, json};

pub use machine_type::MachineType;
pub use memory::Memory;
pub use vmm::{Machine, Options, Vmm};

/// All VMMs that the device was made for.
static VMMS: [&dyn Vmm; 7] = [
    &qemu::Qemu,
    &libvirt::Libvirt,
    &cloud_hypervisor::CloudHypervisor,
    &crosvm::Crosvm,
    &libkrun::Libkrun,
    &openvmm::OpenVmm,
    &uml::UserModeLinux,
];

/// QEMU, the VMM whose options are printed by default.
pub fn default() -> &'static dyn Vmm {
    &qemu::Qemu
}

/// libvirt, for the older option of its own.
pub fn libvirt() -> &'static dyn Vmm {
    &libvirt::Libvirt
}

/// The VMM with this name on the command line.
fn named(name: &str) -> Option<&'static dyn Vmm> {
    VMMS.into_iter().find(|vmm| vmm.name() == name)
}

/// Parses the value of `--vmm`.
pub fn parser() -> impl TypedValueParser<Value = &'static dyn Vmm> {
    let values = VMMS.map(|vmm| PossibleValue::new(vmm.name()).help(vmm.title()));
    PossibleValuesParser::new(values).map(|name| named(&name).unwrap_or_else(default))
}

/// The options of every VMM as JSON: arguments as an array, other text as a string, and null for a VMM whose
/// syntax cannot express the socket's path.
pub fn all(machine: &Machine<'_>) -> Map<String, Value> {
    let entry = |vmm: &dyn Vmm| {
        let value = match vmm.options(machine) {
            Ok(Options::Arguments(lines)) => json!(lines.concat()),
            Ok(Options::Text(text)) => json!(text),
            Err(_) => Value::Null,
        };
        (vmm.name().replace('-', "_"), value)
    };
    VMMS.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::vmm::tests::of;
    use super::*;

    #[test]
    fn each_vmm_has_a_name_of_its_own_and_prints_the_socket() {
        for vmm in VMMS {
            assert_eq!(named(vmm.name()).map(Vmm::name), Some(vmm.name()));
            let text = of(vmm, "/run/hvsock/vm/web.sock", None);
            assert!(text.contains("/run/hvsock/vm/web.sock"), "{text}");
        }
        let names: std::collections::HashSet<_> = VMMS.iter().map(|vmm| vmm.name()).collect();
        assert_eq!(names.len(), VMMS.len());
    }
}
