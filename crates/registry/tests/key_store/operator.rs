//! All operations of an operator, on the key that Windows reads.

use std::process::Command;

use hvsock_registry::key_store::{DISABLED, KeyError, KeyStore, SERVICES};
use hvsock_registry::reg_file::{self, Entry};
use hvsock_registry::{Clash, Registration};

use super::*;

/// Unregisters a service when the test is over.
struct Cleanup(ServiceId);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = KeyStore::open().and_then(|mut store| store.remove(self.0));
    }
}

#[test]
fn a_service_is_registered_disabled_enabled_changed_and_unregistered() {
    let mut store = KeyStore::open().unwrap();
    let unique = Uuid::new_v4();
    let mut service = new_service(&format!("Sauvegarde à chaud 🔌 {unique}"));
    let id = service.id;
    let _cleanup = Cleanup(id);
    let key = |parent: &str| open(&format!(r"{parent}\{id}"));
    let listed = |store: &KeyStore| store.read().unwrap().registry.get(id).cloned();

    store.put(&service).unwrap();
    assert_eq!(listed(&store).as_ref(), Some(&service));
    let name = key(SERVICES).unwrap().get_string("ElementName").unwrap();
    assert_eq!(name, service.name.as_str());
    assert!(key(DISABLED).is_none());

    let mut taken = new_service(&service.name.as_str().to_uppercase());
    let clash = store.put(&taken).unwrap_err();
    assert!(matches!(clash, KeyError::Clash(Clash::Name { .. })));
    let message = clash.to_string();
    assert!(
        message.contains(r"(owner CORP\alice, creator hvsock)"),
        "{message}"
    );
    taken.id = id;
    assert!(matches!(
        store.put(&taken),
        Err(KeyError::Clash(Clash::Id { .. }))
    ));
    taken.id = ServiceId::from_port(id.vsock_alias().unwrap());
    assert!(matches!(
        store.put(&taken),
        Err(KeyError::Clash(Clash::Port { .. }))
    ));

    store.set_enabled(id, false).unwrap();
    assert!(key(SERVICES).is_none());
    let parked = key(DISABLED).unwrap();
    assert_eq!(
        parked.get_string("ElementName").unwrap(),
        service.name.as_str()
    );
    service.enabled = false;
    assert_eq!(listed(&store).as_ref(), Some(&service));
    assert!(matches!(
        store.put(&service),
        Err(KeyError::Clash(Clash::Id { .. }))
    ));
    store.set_enabled(id, true).unwrap();
    assert!(key(DISABLED).is_none());
    service.enabled = true;
    assert_eq!(listed(&store).as_ref(), Some(&service));

    service.name = ElementName::new(format!("Renamed {unique}")).unwrap();
    service.purpose = None;
    store.replace(&service).unwrap();
    assert_eq!(listed(&store).as_ref(), Some(&service));
    let values: Vec<String> = key(SERVICES)
        .unwrap()
        .values()
        .unwrap()
        .map(|(n, _)| n)
        .collect();
    assert_eq!(values.len(), 3, "{values:?}");

    store.remove(id).unwrap();
    assert!(key(SERVICES).is_none());
    assert_eq!(listed(&store), None);
    assert!(matches!(store.remove(id), Err(KeyError::NotRegistered(_))));
}

#[test]
fn the_store_and_reg_files_use_the_same_keys() {
    let hklm = r"HKEY_LOCAL_MACHINE";
    assert_eq!(format!(r"{hklm}\{SERVICES}"), reg_file::KEY);
    assert_eq!(format!(r"{hklm}\{DISABLED}"), reg_file::DISABLED_KEY);
}

#[test]
fn an_exported_file_is_imported_by_windows_and_by_hvsock() {
    let unique = Uuid::new_v4();
    let mut services =
        ["Écho \"é\"", r"C:\back", "日本語"].map(|name| new_service(&format!("{name} {unique}")));
    services[2].enabled = false;
    let _cleanup: Vec<Cleanup> = services.iter().map(|one| Cleanup(one.id)).collect();
    let file = tempfile::Builder::new().suffix(".reg").tempfile().unwrap();
    let path = file.into_temp_path();
    std::fs::write(&path, reg_file::export(&services)).unwrap();
    let mut import = Command::new("reg.exe");
    let status = import.arg("import").arg(&path).status().unwrap();
    assert!(status.success(), "{status}");

    let listing = KeyStore::open().unwrap().read().unwrap();
    for service in &services {
        assert_eq!(listing.registry.get(service.id), Some(service));
    }
    // The listing exports to a file that imports as the same registrations.
    let of_this_test = |one: &&Registration| services.iter().any(|service| service.id == one.id);
    let file = reg_file::export(listing.registry.iter().filter(of_this_test));
    let scratch = Scratch::new();
    for entry in reg_file::import(&file).unwrap().entries {
        let Entry::Register { registration, .. } = entry else {
            panic!("{entry:?}");
        };
        scratch.store().put(&registration).unwrap();
    }
    let copied = scratch.read();
    assert_eq!(copied.registry.len(), services.len());
    for service in &services {
        assert_eq!(copied.registry.get(service.id), Some(service));
    }
}

#[test]
fn the_first_registration_creates_the_missing_keys() {
    let scratch = Scratch::new();
    assert_eq!(scratch.read(), Listing::default());
    let service = new_service("First");
    assert!(matches!(
        scratch.store().remove(service.id),
        Err(KeyError::NotRegistered(_))
    ));
    assert!(open(&scratch.path).is_none(), "reading created a key");
    scratch.store().put(&service).unwrap();
    assert_eq!(scratch.read().registry.get(service.id), Some(&service));
    let off = Registration {
        enabled: false,
        ..new_service("Second")
    };
    scratch.store().put(&off).unwrap();
    assert_eq!(scratch.read().registry.get(off.id), Some(&off));
}
