//! The locked store of registrations.

use std::sync::{Mutex, MutexGuard};

use hvsock_registry::store::RegistrationStore;
use hvsock_sys::sync;

/// The locked store of registrations.
pub(crate) type ServiceStoreGuard<'a> = MutexGuard<'a, Box<dyn RegistrationStore>>;

/// The store of registrations.
#[derive(Debug)]
pub(crate) struct ServiceStore(Mutex<Box<dyn RegistrationStore>>);

impl ServiceStore {
    pub(crate) fn new(store: Box<dyn RegistrationStore>) -> Self {
        Self(Mutex::new(store))
    }

    /// Locks the store. A poisoned lock is safe to use: the store still matches its storage.
    pub(crate) fn lock(&self) -> ServiceStoreGuard<'_> {
        sync::lock(&self.0)
    }
}
