//! The registry of Windows, below a key of the test.

use hvsock_registry::key_store::{KeyRegistrationStore, KeyStore};
use hvsock_registry::store::RegistrationStore;
use hvsock_testkit::registration_store::{Capabilities, Storage};
use uuid::Uuid;
use windows_registry::LOCAL_MACHINE;

/// Temporary keys that Windows itself does not read.
pub struct ScratchKeys(String);

impl ScratchKeys {
    pub fn new() -> Self {
        Self(format!(r"SOFTWARE\hvsock-test-{}", Uuid::new_v4()))
    }
}

impl Storage for ScratchKeys {
    fn open(&self) -> Box<dyn RegistrationStore> {
        let at = |name| format!(r"{}\{name}", self.0);
        let store = KeyStore::open_at(&at("Services"), &at("Disabled")).expect("a store");
        Box::new(KeyRegistrationStore::new(store))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            rules: false,
            leases: true,
        }
    }
}

impl Drop for ScratchKeys {
    fn drop(&mut self) {
        let _ = LOCAL_MACHINE.remove_tree(&self.0);
    }
}
