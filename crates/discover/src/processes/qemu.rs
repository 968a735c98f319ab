//! QEMU, also as libvirt, Incus, Proxmox and systemd-vmspawn start it.

use std::path::PathBuf;
use std::time::Instant;

use super::description::Description;
use super::options::{cid, value, value_or_first};
use super::process::Process;
use crate::machine::Reach;

pub fn describe(process: &Process, _deadline: Instant) -> Option<Description> {
    let program = &process.program;
    // Fedora's qemu-kvm and Debian's kvm are names of the same program.
    if !program.starts_with("qemu-system-") && program != "qemu-kvm" && program != "kvm" {
        return None;
    }
    let name = process.option(&["-name", "--name"]);
    let uuid = process.option(&["-uuid", "--uuid"]);
    let mut reach = reach(&process.arguments, &|path| process.path(path));
    for way in &mut reach {
        if let Reach::Kernel { netns, .. } = way {
            *netns = process.netns();
        }
    }
    Some(Description {
        name: name.and_then(|name| value_or_first(name, "guest")),
        uuid: uuid.map(str::to_ascii_lowercase),
        state: None,
        reach,
    })
}

/// The ways that QEMU's arguments open. `resolve` makes a path absolute.
pub fn reach(arguments: &[String], resolve: &dyn Fn(&str) -> PathBuf) -> Vec<Reach> {
    let values = |option: &str| {
        let pairs = arguments.windows(2);
        pairs
            .filter(|pair| pair[0].trim_start_matches('-') == option && pair[0].starts_with('-'))
            .map(|pair| pair[1].clone())
            .collect::<Vec<_>>()
    };
    let mut ways = Vec::new();
    for device in values("device") {
        let driver = value_or_first(&device, "driver").unwrap_or_default();
        if driver.starts_with("vhost-vsock-") {
            let cid = value(&device, "guest-cid").and_then(|text| cid(&text));
            ways.extend(cid.map(|cid| Reach::Kernel { cid, netns: None }));
        } else if driver.starts_with("vhost-user-vsock-") {
            let id = value(&device, "chardev");
            let chardevs = values("chardev");
            let chardev = chardevs
                .iter()
                .find(|one| value(one, "id") == id && id.is_some());
            let path = chardev.and_then(|one| value(one, "path"));
            ways.extend(path.map(|path| Reach::VhostUser {
                socket: resolve(&path),
            }));
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_device_and_the_vhost_user_device_are_found_in_both_forms() {
        let arguments = [
            "-device",
            "pcie-root-port,id=hvsock-port,chassis=240",
            "-chardev",
            "socket,id=other,path=/no",
            "-chardev",
            "socket,id=hvsock-web,path=/run/a,,b/web.sock",
            "-device",
            "vhost-user-vsock-pci,id=hvsock-device,bus=hvsock-port,chardev=hvsock-web",
            "-device",
            r#"{"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":42,"vhostfd":"30"}"#,
            "--device",
            "vhost-vsock-pci-non-transitional,guest-cid=0x2b",
            "-device",
            "vhost-vsock-pci,guest-cid=1",
            "-device",
        ]
        .map(str::to_owned);
        let kernel = |cid| Reach::Kernel { cid, netns: None };
        let socket = "/run/a,b/web.sock".into();
        assert_eq!(
            reach(&arguments, &|path| path.into()),
            [Reach::VhostUser { socket }, kernel(42), kernel(43)]
        );
    }
}
