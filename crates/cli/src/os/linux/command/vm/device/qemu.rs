//! QEMU. As observed with QEMU 7.2: the device reads the context id from its back-end, so there is no option
//! for it. It rejects a socket with `reconnect`, because it starts before such a socket is connected.
//!
//! The device is behind a PCI Express root port of its own, so that it can be exchanged while the guest runs.
//! Source of the syntax: `docs/qdev-device-use.txt` and `util/keyval.c`; a comma ends a value and a doubled
//! one is literal.

use super::machine_type::Layout;
use super::vmm::{Inexpressible, Machine, Options, Vmm, words};

#[derive(Debug)]
pub struct Qemu;

/// The root port's chassis number. Two ports must not have both chassis and slot in common: QEMU's default is
/// chassis 0, and libvirt counts from 1.
const CHASSIS: u8 = 240;

/// How the machine takes the device. Without a type it has PCI Express.
fn layout(machine: &Machine<'_>) -> Layout {
    machine.machine.map_or(Layout::RootPort, |one| one.layout)
}

/// The arguments for the device alone.
pub fn device(machine: &Machine<'_>) -> Vec<String> {
    let (name, path) = (machine.name, machine.socket.replace(',', ",,"));
    let chardev = format!("socket,id=hvsock-{name},path={path}");
    let chardev = ["-chardev".to_owned(), chardev];
    let mut arguments = Vec::new();
    let device = match layout(machine) {
        Layout::RootPort => {
            let port = format!("pcie-root-port,id=hvsock-port-{name},chassis={CHASSIS}");
            arguments.extend(["-device".to_owned(), port]);
            format!("vhost-user-vsock-pci,id=hvsock-device,bus=hvsock-port-{name}")
        }
        Layout::Pci => "vhost-user-vsock-pci,id=hvsock-device".to_owned(),
        Layout::Mmio => "vhost-user-vsock-device,id=hvsock-device".to_owned(),
    };
    arguments.extend(chardev);
    arguments.extend([
        "-device".to_owned(),
        format!("{device},chardev=hvsock-{name}"),
    ]);
    arguments
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn title(&self) -> &'static str {
        "QEMU"
    }

    /// One line for memory, one for the device. `SIZE` is a placeholder for unknown memory.
    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible> {
        let size = machine.memory.map_or("SIZE", |memory| memory.qemu());
        let mut memory = match machine.memory {
            Some(memory) => words(["-m", memory.qemu()]),
            None => Vec::new(),
        };
        let kind = machine.machine.map(|kind| format!("{},", kind.text));
        memory.extend([
            "-object".to_owned(),
            format!("memory-backend-memfd,id=hvsock-mem,size={size},share=on"),
            "-machine".to_owned(),
            kind.unwrap_or_default() + "memory-backend=hvsock-mem",
        ]);
        Ok(Options::Arguments(vec![memory, device(machine)]))
    }

    fn place(&self) -> String {
        "Add both lines to QEMU's command line".to_owned()
    }

    fn notes(&self, machine: &Machine<'_>) -> Vec<String> {
        exchange(machine)
    }
}

/// Whether the device can be exchanged in this layout.
pub fn exchange(machine: &Machine<'_>) -> Vec<String> {
    let text = match (layout(machine), machine.machine) {
        (Layout::RootPort, None) => {
            "For a machine type without PCI Express (`pc`, `microvm`), print it with --machine TYPE"
        }
        (Layout::Mmio, _) => {
            "This machine type has no PCI, so `hvsock vm reconnect` cannot exchange the device: \
             after a restart of the broker, restart QEMU, too"
        }
        (Layout::RootPort | Layout::Pci, _) => return Vec::new(),
    };
    vec![text.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::super::vmm::tests::of;
    use super::*;

    #[test]
    fn the_memory_of_a_vm_is_a_placeholder_or_given() {
        assert_eq!(
            of(&Qemu, "/run/hvsock/vm/web.sock", None),
            "-object memory-backend-memfd,id=hvsock-mem,size=SIZE,share=on \
             -machine memory-backend=hvsock-mem\n\
             -device pcie-root-port,id=hvsock-port-web,chassis=240 \
             -chardev socket,id=hvsock-web,path=/run/hvsock/vm/web.sock \
             -device vhost-user-vsock-pci,id=hvsock-device,bus=hvsock-port-web,chardev=hvsock-web\n"
        );
        for (text, size) in [("2G", "2G"), ("512", "512M"), ("64m", "64m")] {
            let given = of(&Qemu, "/s", Some(text));
            let start =
                format!("-m {size} -object memory-backend-memfd,id=hvsock-mem,size={size},");
            assert!(given.starts_with(&start), "{given}");
        }
    }

    #[test]
    fn a_path_with_special_characters_stays_one_value() {
        let options = of(&Qemu, "/tmp/a,b's <&/web.sock", None);
        let value = r"'socket,id=hvsock-web,path=/tmp/a,,b'\''s <&/web.sock'";
        assert!(options.contains(value), "{options}");
    }
}
