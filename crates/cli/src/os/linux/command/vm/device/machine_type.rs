//! QEMU's machine types: which bus takes the device. Source: QEMU's `docs/system/targets.rst` and `hw/*/Kconfig`.

use std::str::FromStr;

/// A machine type as it follows `-machine`, which may have options of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineType {
    /// The text for QEMU.
    pub text: String,
    /// How it takes the device.
    pub layout: Layout,
}

/// How a machine type takes the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Behind a root port. The PCI bus of `pc` takes one, too, but hot-plugs nothing below it.
    RootPort,
    /// On the PCI bus, where ACPI hot-plugs.
    Pci,
    /// Without PCI, as a virtio-mmio device.
    Mmio,
}

impl Layout {
    /// The error says why there is none.
    fn of(text: &str) -> Result<Self, String> {
        let (kind, options) = text.split_once(',').unwrap_or((text, ""));
        let kind = kind.strip_prefix("type=").unwrap_or(kind);
        // The machine type itself or one with a version, such as `virt-9.2` and `pc-q35-jammy`.
        let is = |name: &str| {
            let rest = kind.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let any = |names: &[&str]| names.iter().any(|name| is(name));
        if is("microvm") {
            let pcie = ["pcie=on", "pcie=yes", "pcie=true", "pcie=y"];
            let last = options.split(',').rfind(|one| one.starts_with("pcie="));
            return Ok(match last.is_some_and(|one| pcie.contains(&one)) {
                true => Self::RootPort,
                false => Self::Mmio,
            });
        }
        if any(&["q35", "pc-q35", "ubuntu-q35", "virt", "sbsa-ref"]) {
            return Ok(Self::RootPort);
        }
        if any(&["pc", "ubuntu", "pseries", "malta"]) {
            return Ok(Self::Pci);
        }
        if any(&["vexpress-a9", "vexpress-a15"]) {
            return Ok(Self::Mmio);
        }
        if is("s390-ccw-virtio") {
            let text = "QEMU has no vhost-user-vsock device for the channels of s390; use its \
                        vhost-vsock-ccw and `hvsock vm add NAME --kernel-cid N`";
            return Err(text.to_owned());
        }
        if any(&["xenfv", "xenpv", "xenpvh"]) {
            return Err("Xen owns the memory of this machine, which the broker cannot map".into());
        }
        if any(&["none", "isapc"]) || kind.starts_with("raspi") {
            return Err("this machine has neither PCI nor virtio-mmio for the device".into());
        }
        let text = "hvsock does not know the buses of this machine; give a type that has the same, \
                    such as q35 or virt (PCI Express), pc (PCI) or microvm (virtio-mmio)";
        Err(text.to_owned())
    }
}

impl FromStr for MachineType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,=".contains(c);
        if text.is_empty() || !text.chars().all(plain) || text.starts_with(['-', ',']) {
            return Err("expected a machine type of QEMU, such as q35 or pc".into());
        }
        Ok(Self {
            text: text.to_owned(),
            layout: Layout::of(text)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_type_without_pci_express_gets_the_device_on_the_bus_that_it_has() {
        for (machine, layout) in [
            ("q35", Layout::RootPort),
            ("type=q35,accel=kvm", Layout::RootPort),
            ("pc-q35-7.2", Layout::RootPort),
            ("pc-q35-rhel9.2.0", Layout::RootPort),
            ("virt", Layout::RootPort),
            ("virt-9.1,gic-version=3", Layout::RootPort),
            ("microvm,pcie=on", Layout::RootPort),
            ("pc", Layout::Pci),
            ("pc,accel=kvm", Layout::Pci),
            ("pc-i440fx-7.2", Layout::Pci),
            ("pseries-8.0", Layout::Pci),
            ("microvm", Layout::Mmio),
            ("microvm,rtc=on", Layout::Mmio),
            ("microvm,pcie=on,pcie=off", Layout::Mmio),
            ("vexpress-a15", Layout::Mmio),
        ] {
            let parsed = machine.parse::<MachineType>();
            assert_eq!(parsed.map(|one| one.layout), Ok(layout), "{machine}");
        }
    }

    #[test]
    fn a_machine_type_that_cannot_have_the_device_is_refused_with_the_reason() {
        for (machine, why) in [
            ("none", "neither PCI nor virtio-mmio"),
            ("isapc", "neither PCI nor virtio-mmio"),
            ("raspi3b", "neither PCI nor virtio-mmio"),
            ("raspi4b,accel=tcg", "neither PCI nor virtio-mmio"),
            ("s390-ccw-virtio", "no vhost-user-vsock device"),
            ("s390-ccw-virtio-8.2", "no vhost-user-vsock device"),
            ("xenfv", "Xen owns the memory"),
            ("xenfv-4.2", "Xen owns the memory"),
            ("x-remote", "does not know the buses"),
            ("nonesuch", "does not know the buses"),
            ("type=none", "neither PCI nor virtio-mmio"),
            ("", "expected a machine type"),
            ("pc;id", "expected a machine type"),
        ] {
            let error = machine.parse::<MachineType>().unwrap_err();
            assert!(error.contains(why), "{machine}: {error}");
        }
    }
}
