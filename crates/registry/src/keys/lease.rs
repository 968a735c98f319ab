//! A registration that lives as long as its process.

use hvsock_address::ServiceId;

use super::{KeyError, Keys, Store};
use crate::Registration;

/// A registration of this process, which ends when this is dropped.
///
/// If the process ends without that, Windows goes on to know the service until the next change to
/// any registration, or until it starts again; hvsock no longer lists it, and anyone may register
/// it anew.
#[derive(Debug)]
pub struct Lease<K: Keys> {
    store: Store<K>,
    id: ServiceId,
}

impl<K: Keys> Store<K> {
    /// Registers a service for as long as what this gives is kept.
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

impl<K: Keys> Lease<K> {
    /// The service.
    pub fn id(&self) -> ServiceId {
        self.id
    }

    /// Whether the registration still stands and is this process's.
    pub fn check(&self) -> Result<(), KeyError> {
        match self.store.is_mine(self.id)? {
            true => Ok(()),
            false => Err(KeyError::NotRegistered(self.id)),
        }
    }
}

impl<K: Keys> Drop for Lease<K> {
    fn drop(&mut self) {
        // Nobody is left to tell; once the process is gone, the lease is, too.
        let _ = self.store.end_lease(self.id);
    }
}
