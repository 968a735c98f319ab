//! The kind of this machine, from the Windows registry.

use windows_registry::{Key, LOCAL_MACHINE};

use crate::{Guest, Machine};

/// The key with the values of the host's data exchange service: see [`Guest`].
const GUEST: &str = r"SOFTWARE\Microsoft\Virtual Machine\Guest\Parameters";
/// The key with the name of this machine.
const NAME: &str = r"SYSTEM\CurrentControlSet\Control\ComputerName\ActiveComputerName";
/// The key with the firmware's description of the machine. Hyper-V's virtual machines have these
/// values in any case (Linux, `drivers/ata/ata_piix.c`, `piix_ignore_devices_quirk`).
const FIRMWARE: &str = r"HARDWARE\DESCRIPTION\System\BIOS";
const HYPER_V: [(&str, &str); 2] = [
    ("SystemManufacturer", "Microsoft Corporation"),
    ("SystemProductName", "Virtual Machine"),
];
/// The services that run virtual machines: Hyper-V's management service and the host compute service.
const HOST_SERVICES: [&str; 2] = [
    r"SYSTEM\CurrentControlSet\Services\vmms",
    r"SYSTEM\CurrentControlSet\Services\vmcompute",
];

/// The kind of this machine. Reads the registry only.
pub fn machine() -> Machine {
    let root = LOCAL_MACHINE;
    Machine {
        name: root
            .open(NAME)
            .ok()
            .and_then(|key| text(&key, "ComputerName")),
        is_host: HOST_SERVICES.iter().any(|path| root.open(path).is_ok()),
        guest: guest(root, GUEST).or_else(|| nameless_guest(root, FIRMWARE)),
    }
}

fn guest(root: &Key, path: &str) -> Option<Guest> {
    let key = root.open(path).ok()?;
    let guest = Guest {
        id: text(&key, "VirtualMachineId").and_then(|id| id.parse().ok()),
        name: text(&key, "VirtualMachineName"),
        host: text(&key, "PhysicalHostName"),
    };
    // Without any of these values there is no data exchange service.
    (guest != Guest::default()).then_some(guest)
}

/// A guest without the data exchange service.
fn nameless_guest(root: &Key, path: &str) -> Option<Guest> {
    let key = root.open(path).ok()?;
    let is = |(value, want): &(&str, &str)| text(&key, value).is_some_and(|found| found == *want);
    HYPER_V.iter().all(is).then(Guest::default)
}

fn text(key: &Key, value: &str) -> Option<String> {
    key.get_string(value).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use hvsock_address::ServiceId;
    use windows_registry::CURRENT_USER;

    use super::*;

    #[test]
    fn a_guest_reads_its_identity_from_the_registry() {
        let path = format!(r"Software\hvsock-test-{}", ServiceId::random());
        assert_eq!(guest(CURRENT_USER, &path), None);
        let key = CURRENT_USER.create(&path).unwrap();
        assert_eq!(guest(CURRENT_USER, &path), None);
        let id = "ad289d34-3da4-479f-af67-7dba64bc6eaf";
        key.set_string("VirtualMachineId", id.to_uppercase())
            .unwrap();
        key.set_string("VirtualMachineName", "Büro 2").unwrap();
        key.set_string("PhysicalHostName", "").unwrap();
        let found = guest(CURRENT_USER, &path);
        drop(key);
        CURRENT_USER.remove_tree(&path).unwrap();
        let want = Guest {
            id: Some(id.parse().unwrap()),
            name: Some("Büro 2".to_owned()),
            host: None,
        };
        assert_eq!(found, Some(want));
    }

    #[test]
    fn a_guest_without_data_exchange_is_detected_by_its_firmware() {
        let path = format!(r"Software\hvsock-test-{}", ServiceId::random());
        let key = CURRENT_USER.create(&path).unwrap();
        key.set_string("SystemManufacturer", "Microsoft Corporation")
            .unwrap();
        // A Surface has the same manufacturer.
        key.set_string("SystemProductName", "Surface Laptop")
            .unwrap();
        assert_eq!(nameless_guest(CURRENT_USER, &path), None);
        key.set_string("SystemProductName", "Virtual Machine")
            .unwrap();
        let found = nameless_guest(CURRENT_USER, &path);
        drop(key);
        CURRENT_USER.remove_tree(&path).unwrap();
        assert_eq!(found, Some(Guest::default()));
    }

    #[test]
    fn a_machine_has_a_name() {
        let machine = machine();
        assert!(machine.name.is_some_and(|name| !name.is_empty()));
    }
}
