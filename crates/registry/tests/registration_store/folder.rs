//! The folder of TOML files.

use hvsock_registry::store::{FolderStore, RegistrationStore};
use hvsock_testkit::registration_store::{Capabilities, Storage};

/// A temporary configuration directory.
pub struct TomlFolder(tempfile::TempDir);

impl TomlFolder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }
}

impl Storage for TomlFolder {
    fn open(&self) -> Box<dyn RegistrationStore> {
        let (store, _) = FolderStore::open(self.0.path()).expect("a store");
        Box::new(store)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            rules: true,
            leases: false,
        }
    }
}
