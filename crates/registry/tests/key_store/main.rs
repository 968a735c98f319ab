//! The key store on a real Windows registry: operators, other programs, crashes and hostile content.
//!
//! Needs administrator rights. Every test uses new GUIDs or its own parent keys, and deletes them.

#![cfg(windows)]

mod crashes;
mod foreign;
mod hostile;
mod leases;
mod operator;
mod rights;
mod writers;

use hvsock_address::{ElementName, ServiceId};
use hvsock_registry::Registration;
use hvsock_registry::key_store::{KeyStore, Listing, LocalMachineBackend};
use uuid::Uuid;
use windows_registry::{Key, LOCAL_MACHINE};

/// `KEY_WOW64_64KEY`.
const VIEW: u32 = 0x100;

/// Two parent keys that Windows does not read.
struct Scratch {
    path: String,
}

impl Scratch {
    fn new() -> Self {
        let path = format!(r"SOFTWARE\hvsock-test-{}", Uuid::new_v4());
        Self { path }
    }

    fn services(&self) -> String {
        format!(r"{}\Services", self.path)
    }

    fn disabled(&self) -> String {
        format!(r"{}\Disabled", self.path)
    }

    fn backend(&self) -> LocalMachineBackend {
        LocalMachineBackend::new(&self.services(), &self.disabled())
    }

    fn store(&self) -> KeyStore {
        KeyStore::open_at(&self.services(), &self.disabled()).unwrap()
    }

    fn read(&self) -> Listing {
        self.store().read().unwrap()
    }

    /// The key names of enabled and of disabled services.
    fn keys(&self) -> [Vec<String>; 2] {
        [self.services(), self.disabled()].map(|path| match open(&path) {
            Some(key) => key.keys().unwrap().collect(),
            None => Vec::new(),
        })
    }

    /// Creates a key as another program would.
    fn foreign(&self, name: &str, values: &[(&str, &str)]) -> Key {
        let key = create(&format!(r"{}\{name}", self.services()));
        for (name, value) in values {
            key.set_string(name, value).unwrap();
        }
        key
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = LOCAL_MACHINE.remove_tree(&self.path);
        let left = open(&self.path).is_some();
        assert!(!left || std::thread::panicking(), "{} is left", self.path);
    }
}

fn open(path: &str) -> Option<Key> {
    LOCAL_MACHINE.options().read().access(VIEW).open(path).ok()
}

fn create(path: &str) -> Key {
    let mut options = LOCAL_MACHINE.options();
    let options = options.read().write().access(VIEW).create();
    options.open(path).unwrap()
}

/// A service with a new GUID.
fn new_service(name: &str) -> Registration {
    let id = ServiceId::from_uuid(Uuid::new_v4());
    Registration {
        owner: Some(r"CORP\alice".to_owned()),
        creator: Some("hvsock".to_owned()),
        purpose: Some("a test".to_owned()),
        ..Registration::new(id, ElementName::new(name).unwrap())
    }
}

fn names(listing: &Listing) -> Vec<&str> {
    listing
        .registry
        .iter()
        .map(|one| one.name.as_str())
        .collect()
}
