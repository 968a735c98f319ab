//! Registrations of the broker's own partition: of operators, files and leases.

use hvsock_address::ServiceId;
use hvsock_fabric::{Refusal, RegisterError};
use hvsock_registry::store::{Change, Entry};
use hvsock_registry::{Clash, Defaults, Registration, Registry};

use super::labels::service_label;
use super::state::Core;
use crate::model::EventKind;

impl Core {
    /// Adds a registration to the broker's own partition.
    pub(crate) fn register(&mut self, registration: Registration) -> Result<(), RegisterError> {
        let (root, service) = (self.fabric.root(), registration.name.to_string());
        self.fabric.register(root, registration)?;
        self.apply_effects();
        self.telemetry
            .publish(|| EventKind::ServiceRegistered { service });
        Ok(())
    }

    /// Replaces a registration.
    pub(crate) fn update(&mut self, registration: Registration) -> Result<(), RegisterError> {
        let (root, enabled) = (self.fabric.root(), registration.enabled);
        let service = registration.name.to_string();
        self.fabric.update(root, registration)?;
        self.apply_effects();
        self.telemetry
            .publish(|| EventKind::ServiceChanged { service, enabled });
        Ok(())
    }

    /// Removes a registration and resets its listeners and connections.
    pub(crate) fn unregister(&mut self, id: ServiceId) {
        let service = service_label(&self.fabric, id);
        let root = self.fabric.root();
        if self.fabric.unregister(root, id).is_none() {
            return;
        }
        let lease = self.leases.end(id);
        if let Some(lease) = lease {
            self.reset_session(lease.session, &Refusal::Unregistered);
        }
        self.apply_effects();
        self.telemetry.retire(id);
        self.telemetry
            .publish(|| EventKind::ServiceUnregistered { service });
        if lease.is_some() {
            self.apply_blocked();
        }
    }

    /// Retries the registrations from files that a lease blocked.
    fn apply_blocked(&mut self) {
        for blocked in self.leases.take_blocked() {
            let change = match self.fabric.registry(self.fabric.root()) {
                Some(registry) if registry.get(blocked.registration.id).is_some() => {
                    Change::Updated
                }
                _ => Change::Added,
            };
            self.apply(change(blocked));
        }
    }

    /// The clash that keeps a registration from being added, if there is one.
    pub(crate) fn would_clash(&self, registration: &Registration) -> Option<Clash> {
        self.fabric
            .registry(self.fabric.root())?
            .check(registration)
            .err()
    }

    /// Applies changes of registration files in order. Returns the error of the change to `own`, the
    /// service whose file a request changed.
    pub(crate) fn apply_own(
        &mut self,
        changes: Vec<Change>,
        own: ServiceId,
    ) -> Result<(), RegisterError> {
        let mut applied = Ok(());
        for change in changes {
            match change {
                Change::Added(new) if new.registration.id == own => {
                    applied = self.register(new.registration);
                }
                Change::Updated(new) if new.registration.id == own => {
                    applied = self.update(new.registration);
                }
                other => self.apply(other),
            }
        }
        applied
    }

    /// Those of `registrations` that are not registered yet. Fails if any of them clashes.
    pub(crate) fn select_new(
        &self,
        registrations: Vec<Registration>,
    ) -> Result<Vec<Registration>, Clash> {
        // They may also clash with each other.
        let mut wanted = Registry::new();
        for new in registrations {
            let known = self.fabric.registry(self.fabric.root());
            let known = known.and_then(|registry| registry.get(new.id));
            if known.is_some_and(|known| known.name.folded() == new.name.folded()) {
                continue;
            }
            if let Some(clash) = self.would_clash(&new) {
                return Err(clash);
            }
            wanted.insert(new)?;
        }
        Ok(wanted.iter().cloned().collect())
    }

    /// Applies one change of a registration file.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Added(new) => self.apply_registration(new, Self::register),
            Change::Updated(new) => self.apply_registration(new, Self::update),
            Change::Removed(id) => {
                self.leases.unblock(id);
                if !self.leases.contains(id) {
                    self.unregister(id);
                }
            }
            Change::Defaults(defaults) => self.set_defaults(defaults),
            Change::Broken(problem) => self.config_problem(problem.to_string()),
            Change::Repaired(path) => tracing::info!("{} has no errors any more", path.display()),
        }
    }

    /// Adds or updates a registration from a file. If a lease blocks it, it waits until the lease ends.
    /// The store ensures that files do not clash with each other.
    fn apply_registration(
        &mut self,
        new: Box<Entry>,
        apply: impl FnOnce(&mut Self, Registration) -> Result<(), RegisterError>,
    ) {
        let id = new.registration.id;
        self.leases.unblock(id);
        let leased = self.leases.contains(id);
        let clash = leased
            .then(|| self.would_clash(&new.registration))
            .flatten();
        let applied = match clash {
            Some(clash) => Err(clash.into()),
            None => apply(self, new.registration.clone()),
        };
        if let Err(error) = applied {
            self.leases.block(new);
            self.config_problem(error.to_string());
        }
    }

    fn config_problem(&mut self, problem: String) {
        tracing::warn!("{problem}");
        self.telemetry
            .publish(|| EventKind::ConfigProblem { problem });
    }

    /// Changes the defaults of registrations.
    pub(crate) fn set_defaults(&mut self, defaults: Defaults) {
        let root = self.fabric.root();
        // The call cannot fail: the root has a registry.
        let _ = self.fabric.set_defaults(root, defaults);
        self.apply_effects();
    }
}
