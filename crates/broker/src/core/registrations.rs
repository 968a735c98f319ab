//! Registrations of the broker's own partition: of operators, files and leases.

use std::collections::HashSet;
use std::path::Path;

use hvsock_address::ServiceId;
use hvsock_fabric::{Refusal, RegisterError};
use hvsock_registry::store::{Change, Entry, Loaded, Problem};
use hvsock_registry::{Clash, Defaults, Registration, Registry};

use super::labels::service_label;
use super::problems::object_of;
use super::state::Core;
use crate::model::{EventKind, ProblemKind, Service};

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

    /// Retries the registrations from files that a lease or a limit has blocked.
    pub(crate) fn apply_blocked(&mut self) {
        for blocked in self.leases.take_blocked() {
            self.apply(Change::Added(blocked));
        }
    }

    /// The clash that keeps a registration from being added, if there is one.
    pub(crate) fn would_clash(&self, registration: &Registration) -> Option<Clash> {
        self.registry()?.check(registration).err()
    }

    /// Applies changes of the store in order. `own` are the services that a request changed. Returns
    /// them, or the first error of a change to one of them, which the request reports instead of an
    /// event.
    ///
    /// A change that is refused waits as if it came from elsewhere, until the request has undone it.
    pub(crate) fn apply_own(
        &mut self,
        changes: Vec<Change>,
        own: &[ServiceId],
    ) -> Result<Vec<Service>, RegisterError> {
        let mut applied = Ok(());
        for change in changes {
            match change {
                Change::Added(entry) | Change::Updated(entry)
                    if own.contains(&entry.registration.id) =>
                {
                    applied = applied.and(self.apply_entry(entry));
                }
                other => {
                    self.audit_edits(std::slice::from_ref(&other));
                    self.apply(other);
                }
            }
        }
        applied?;
        let services = own.iter().filter_map(|id| self.service(&(*id).into()));
        Ok(services.collect())
    }

    /// Those of `registrations` that are not registered yet. Fails if any of them clashes.
    pub(crate) fn select_new(
        &self,
        registrations: Vec<Registration>,
    ) -> Result<Vec<Registration>, Clash> {
        // They may also clash with each other.
        let mut wanted = Registry::new();
        for new in registrations {
            let known = self.registry();
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

    /// Brings the registry of another process in line with what this one has read: files that changed meanwhile, and
    /// built-in registrations of another release.
    pub(crate) fn reconcile(&mut self, loaded: Loaded) {
        let Loaded {
            entries,
            defaults,
            problems: _,
        } = loaded;
        let Some(registry) = self.registry() else {
            return;
        };
        let (mut changes, mut same) = (Vec::new(), Vec::new());
        if *registry.defaults() != defaults {
            changes.push(Change::Defaults(defaults));
        }
        let wanted: HashSet<ServiceId> =
            entries.iter().map(|entry| entry.registration.id).collect();
        let known = registry.iter().filter(|known| !known.lease);
        let gone = known.filter(|known| !wanted.contains(&known.id));
        changes.extend(gone.map(|gone| Change::Removed(gone.id)));
        for entry in entries {
            match registry.get(entry.registration.id) {
                Some(known) if *known == entry.registration => same.push(entry),
                Some(_) => changes.push(Change::Updated(Box::new(entry))),
                None => changes.push(Change::Added(Box::new(entry))),
            }
        }
        same.iter().for_each(|entry| self.stored.set_origin(entry));
        for change in changes {
            self.apply(change);
        }
    }

    /// Applies one change of the store.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Added(entry) | Change::Updated(entry) => {
                let id = entry.registration.id;
                if let Err(error) = self.apply_entry(entry) {
                    self.report_blocked(id, &error);
                }
            }
            Change::Removed(id) => {
                self.leases.unblock(id);
                self.clear(ProblemKind::ConfigRefused, &id.to_string());
                if !self.leases.contains(id) {
                    self.stored.remove(id);
                    self.unregister(id);
                }
            }
            Change::Defaults(defaults) => self.set_defaults(defaults),
            Change::Broken(problem) => self.report_problem(&problem),
            Change::Repaired(path) => self.repair_problem(&path),
        }
    }

    /// Adds or updates a registration of the store. If a lease blocks it, it waits until the lease
    /// ends. The store ensures that its entries do not clash with each other.
    fn apply_entry(&mut self, entry: Box<Entry>) -> Result<(), RegisterError> {
        let new = &entry.registration;
        self.leases.unblock(new.id);
        let applied = match self.registry().and_then(|registry| registry.get(new.id)) {
            None => self.register(new.clone()),
            Some(_) if self.leases.contains(new.id) => match self.would_clash(new) {
                Some(clash) => Err(clash.into()),
                None => Ok(()),
            },
            Some(_) => self.update(new.clone()),
        };
        match applied {
            Ok(()) => {
                self.stored.set_origin(&entry);
                let object = entry.registration.id.to_string();
                self.clear(ProblemKind::ConfigRefused, &object);
            }
            Err(_) => self.leases.block(entry),
        }
        applied
    }

    /// Records a problem of an entry, and reports it if it is new.
    pub(super) fn report_problem(&mut self, problem: &Problem) {
        let object = object_of(&problem.path);
        self.raise(ProblemKind::ConfigFile, object, problem.to_string(), None);
    }

    /// Records that the core has refused an entry, and reports it if that is new.
    pub(super) fn report_refused(&mut self, problem: &Problem) {
        let object = object_of(&problem.path);
        self.raise(
            ProblemKind::ConfigRefused,
            object,
            problem.to_string(),
            None,
        );
    }

    /// Records that an entry has no problem any more.
    pub(super) fn repair_problem(&mut self, path: &Path) {
        self.clear(ProblemKind::ConfigFile, &object_of(path));
    }

    /// Records that the core does not refuse an entry any more.
    pub(super) fn repair_refused(&mut self, path: &Path) {
        self.clear(ProblemKind::ConfigRefused, &object_of(path));
    }

    /// Records that a stored registration is not in force, for what the core has found.
    pub(crate) fn report_blocked(&mut self, id: ServiceId, error: &RegisterError) {
        let text = format!("the registration {id} is stored, and not in force: {error}");
        self.raise(ProblemKind::ConfigRefused, id.to_string(), text, None);
    }

    /// The registry of the broker's own partition.
    pub(super) fn registry(&self) -> Option<&Registry> {
        self.fabric.registry(self.fabric.root())
    }

    /// Changes the defaults of registrations.
    pub(crate) fn set_defaults(&mut self, defaults: Defaults) {
        let root = self.fabric.root();
        // The call cannot fail: the root has a registry.
        let _ = self.fabric.set_defaults(root, defaults);
        self.apply_effects();
    }
}
