//! One case of the suite.

use hvsock_registry::store::{Loaded, RegistrationStore};

use super::storage::{Capabilities, Storage};

/// A case of the suite.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) needs: fn(Capabilities) -> bool,
    pub(super) body: fn(&dyn Storage),
}

/// Opens a store that has no entries and no problems.
pub(super) fn open_empty(storage: &dyn Storage) -> Box<dyn RegistrationStore> {
    let mut store = storage.open();
    let loaded = store.load().expect("the store");
    assert_eq!(loaded, Loaded::default());
    store
}
