//! A registration that ends with its process.

use hvsock_address::ServiceId;

use super::{KeyBackend, KeyError, Store};
use crate::Registration;

/// A registration of this process. Dropping it unregisters the service.
///
/// If the process ends without dropping it, hvsock no longer lists the service and anyone may register
/// it again. Windows itself keeps the service until the next change to any registration, or until the
/// next boot (the key is volatile).
#[derive(Debug)]
pub struct Lease<K: KeyBackend> {
    store: Store<K>,
    id: ServiceId,
}

impl<K: KeyBackend> Store<K> {
    /// Registers a service until the returned [`Lease`] is dropped.
    ///
    /// # Errors
    /// As [`put`](Store::put).
    pub fn lease(mut self, registration: &Registration) -> Result<Lease<K>, KeyError> {
        let leased = Registration {
            lease: true,
            ..registration.clone()
        };
        self.put(&leased)?;
        Ok(Lease {
            store: self,
            id: registration.id,
        })
    }
}

impl<K: KeyBackend> Lease<K> {
    /// The service.
    pub fn id(&self) -> ServiceId {
        self.id
    }

    /// Checks that the registration still exists and belongs to this process.
    ///
    /// # Errors
    /// [`KeyError::NotRegistered`] if it does not; another [`KeyError`] if the keys cannot be read.
    pub fn check(&self) -> Result<(), KeyError> {
        match self.store.is_held(self.id)? {
            true => Ok(()),
            false => Err(KeyError::NotRegistered(self.id)),
        }
    }
}

impl<K: KeyBackend> Drop for Lease<K> {
    fn drop(&mut self) {
        // Drop cannot report an error. The lease expires with the process anyway.
        let _ = self.store.end_lease(self.id);
    }
}
