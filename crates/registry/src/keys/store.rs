//! The operations.

use hvsock_address::ServiceId;

use super::survey::Survey;
use super::{KeyError, Keys, Listing, Step};
use crate::Registration;

/// The registrations of this machine. Nothing is kept in memory: each call reads the keys anew.
///
/// [`put`](Self::put), [`replace`](Self::replace), [`set_enabled`](Self::set_enabled) and
/// [`remove`](Self::remove) change them, one process at a time. Each also clears what nobody needs
/// any more: leases whose process is gone, and what a crashed writer left.
#[derive(Debug)]
pub struct Store<K> {
    pub(super) keys: K,
}

impl<K: Keys> Store<K> {
    /// The registrations that are in these keys.
    pub fn new(keys: K) -> Self {
        Self { keys }
    }

    /// What is registered, in force or not. Needs no rights.
    pub fn read(&self) -> Result<Listing, KeyError> {
        Ok(self.survey()?.listing)
    }

    /// Registers a service, unless its GUID, its name or its port is taken. A lease is held by
    /// this process.
    pub fn put(&mut self, registration: &Registration) -> Result<(), KeyError> {
        let holder = registration.lease.then(|| self.keys.myself()).transpose()?;
        self.change(|survey| survey.put(registration, holder))
    }

    /// Writes a registration in place of the one with its id. What else is in its key stays.
    pub fn replace(&mut self, registration: &Registration) -> Result<(), KeyError> {
        self.change(|survey| survey.replace(registration))
    }

    /// Switches a service on or off, for everybody: its key moves.
    pub fn set_enabled(&mut self, id: ServiceId, enabled: bool) -> Result<(), KeyError> {
        self.change(|survey| survey.set_enabled(id, enabled))
    }

    /// Removes a service's key, however it is spelled, with all that is in it.
    pub fn remove(&mut self, id: ServiceId) -> Result<(), KeyError> {
        self.change(|survey| survey.remove(id))
    }

    /// Whether this process has the service as a lease.
    pub(super) fn is_mine(&self, id: ServiceId) -> Result<bool, KeyError> {
        Ok(self.survey()?.is_leased_by(id, self.keys.myself()?))
    }

    /// Removes the service if this process has it as a lease.
    pub(super) fn end_lease(&mut self, id: ServiceId) -> Result<(), KeyError> {
        let myself = self.keys.myself()?;
        self.change(|survey| match survey.is_leased_by(id, myself) {
            true => survey.remove(id),
            false => Ok(Vec::new()),
        })
    }

    fn survey(&self) -> Result<Survey, KeyError> {
        let life = |process| self.keys.life(process);
        Ok(Survey::of(self.keys.read()?, life))
    }

    fn change(
        &mut self,
        plan: impl Fn(&Survey) -> Result<Vec<Step>, KeyError>,
    ) -> Result<(), KeyError> {
        // What is wrong with the change itself is said before anything about rights.
        if plan(&self.survey()?)?.is_empty() {
            return Ok(());
        }
        let _turn = self.keys.turn()?;
        for step in plan(&self.survey()?)? {
            if let Err(error) = self.keys.apply(&step) {
                self.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes away what a change left that was not made; the next one does if this cannot.
    fn clear(&mut self) {
        let sweep = self.survey().map(|survey| survey.sweep);
        for step in sweep.unwrap_or_default() {
            let _ = self.keys.apply(&step);
        }
    }
}
