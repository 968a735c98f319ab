//! The operations on the registrations of a machine.

use hvsock_address::ServiceId;

use super::inventory::Inventory;
use super::{KeyBackend, KeyError, KeyStep, Listing};
use crate::Registration;

/// The registrations of this machine. Nothing is cached: each call reads the keys again.
///
/// [`put`](Self::put), [`replace`](Self::replace), [`set_enabled`](Self::set_enabled) and
/// [`remove`](Self::remove) hold a lock that excludes other processes. Each also cleans up expired
/// leases and the leftovers of crashed writers.
#[derive(Debug)]
pub struct Store<K> {
    pub(super) backend: K,
}

impl<K: KeyBackend> Store<K> {
    /// A store over this backend.
    pub fn new(backend: K) -> Self {
        Self { backend }
    }

    /// Lists all registrations, enabled or disabled. Needs no privilege.
    ///
    /// # Errors
    /// [`KeyError::Denied`] or [`KeyError::System`] if the keys cannot be read.
    pub fn read(&self) -> Result<Listing, KeyError> {
        Ok(self.inventory()?.listing)
    }

    /// Adds a registration. If it is a lease, this process holds it.
    ///
    /// # Errors
    /// [`KeyError::Clash`] if its GUID, name or port is taken; [`KeyError::Unstorable`] if Windows
    /// cannot represent it; [`KeyError::Limit`] if there are too many; [`KeyError::Denied`],
    /// [`KeyError::Busy`] or [`KeyError::System`] if the keys cannot be read or written.
    pub fn put(&mut self, registration: &Registration) -> Result<(), KeyError> {
        let holder = registration
            .lease
            .then(|| self.backend.current_process())
            .transpose()?;
        self.change(|inventory| inventory.put(registration, holder))
    }

    /// Replaces the registration with the same id. Other values of its key are kept.
    ///
    /// # Errors
    /// As [`put`](Self::put), and [`KeyError::NotRegistered`] if there is no such registration.
    pub fn replace(&mut self, registration: &Registration) -> Result<(), KeyError> {
        self.change(|inventory| inventory.replace(registration))
    }

    /// Enables or disables a service for all partitions, by moving its key.
    ///
    /// # Errors
    /// [`KeyError::NotRegistered`] if there is no such service; [`KeyError::InBox`] for one of
    /// Windows; [`KeyError::Unstorable`] for a lease; [`KeyError::Broken`] if the key cannot be copied
    /// completely; else as [`put`](Self::put).
    pub fn set_enabled(&mut self, id: ServiceId, enabled: bool) -> Result<(), KeyError> {
        self.change(|inventory| inventory.set_enabled(id, enabled))
    }

    /// Deletes a service's key in every spelling, with its values and subkeys.
    ///
    /// # Errors
    /// [`KeyError::NotRegistered`] if there is no such service; [`KeyError::InBox`] for one of
    /// Windows; else as [`put`](Self::put).
    pub fn remove(&mut self, id: ServiceId) -> Result<(), KeyError> {
        self.change(|inventory| inventory.remove(id))
    }

    /// Whether this process holds the service as a lease.
    pub(super) fn is_held(&self, id: ServiceId) -> Result<bool, KeyError> {
        Ok(self
            .inventory()?
            .is_leased_by(id, self.backend.current_process()?))
    }

    /// Removes the service if this process holds it as a lease.
    pub(super) fn end_lease(&mut self, id: ServiceId) -> Result<(), KeyError> {
        let myself = self.backend.current_process()?;
        self.change(|inventory| match inventory.is_leased_by(id, myself) {
            true => inventory.remove(id),
            false => Ok(Vec::new()),
        })
    }

    pub(super) fn inventory(&self) -> Result<Inventory, KeyError> {
        let process_state = |process| self.backend.process_state(process);
        Ok(Inventory::new(self.backend.read()?, process_state))
    }

    fn change(
        &mut self,
        plan: impl Fn(&Inventory) -> Result<Vec<KeyStep>, KeyError>,
    ) -> Result<(), KeyError> {
        // An invalid change is reported before a lack of privilege.
        if plan(&self.inventory()?)?.is_empty() {
            return Ok(());
        }
        let _guard = self.backend.lock()?;
        for step in plan(&self.inventory()?)? {
            if let Err(error) = self.backend.apply(&step) {
                self.clean_up();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes the leftovers of a failed change. If this fails, the next change does it.
    fn clean_up(&mut self) {
        let cleanup = self.inventory().map(|inventory| inventory.cleanup);
        for step in cleanup.unwrap_or_default() {
            let _ = self.backend.apply(&step);
        }
    }
}
