//! Registrations: listing, registering, changing and unregistering services.
//!
//! The store's lock is held from a write until the core has applied it, so that the core applies the
//! changes of all writers in the order of the store. The store is written first: what the core has
//! applied is durable, and closing connections cannot be undone. If the core refuses what was written
//! (a lease has the name, or a limit is reached), the write is undone. If that fails too, the
//! entry waits in the core like one that was written by hand.

use std::sync::Arc;

use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef};
use hvsock_fabric::{Fix, RegisterError};
use hvsock_registry::store::{Change, StoreError};
use hvsock_registry::{Edit, EditError, Registration};

use super::access::check_accounts;
use super::{ControlError, Handle};
use crate::core::{Core, Watched};
use crate::model::{NewService, Service, ServiceChange, TransportChange};
use crate::stores::ServiceStoreGuard;

impl Handle {
    /// The registrations sorted by friendly name, each with its number of listeners and connections.
    ///
    /// `all` adds the unchanged built-in ones and the services that ship with Windows.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    pub fn services(&self, all: bool) -> Result<Vec<Service>, ControlError> {
        let listed = self.call(move |core| core.services(all))?;
        let mut services: Vec<Service> = listed.into_iter().map(Service::from).collect();
        if all {
            services.extend(Service::in_box());
        }
        services.sort_by_cached_key(|service| service.name.folded());
        Ok(services)
    }

    /// One registration.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] if there is no such registration.
    pub fn service(&self, service: &ServiceRef) -> Result<Service, ControlError> {
        let wanted = service.clone();
        self.call(move |core| core.service(&wanted))?
            .ok_or_else(|| ControlError::unknown_service(service))
    }

    /// Registers a service persistently, with `owner` as its owner.
    ///
    /// # Errors
    ///
    /// [`ControlError::Invalid`] if `new` is invalid or names an unknown user or group, [`ControlError::Clash`] if its GUID, port or
    /// name is in use, and [`ControlError::Register`] if the limit of registrations is reached.
    pub fn register(&self, new: NewService, owner: String) -> Result<Service, ControlError> {
        check_accounts(&new)?;
        let registration = new
            .registration(Some(owner))
            .map_err(|error| ControlError::Invalid(error.to_string()))?;
        let id = registration.id;
        let mut store = self.services.lock();
        let written = store.put(registration);
        let changes = self.written(&mut store, written)?;
        let added = self.apply_new(&mut store, changes, vec![id])?;
        added.into_iter().next().ok_or_else(|| gone(id))
    }

    /// Registers exported services: all of them, or none if one clashes or cannot be written.
    ///
    /// Skips services that are registered with the same GUID and name. Returns the added ones.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    pub fn import(&self, new: Vec<Registration>) -> Result<Vec<Service>, ControlError> {
        let mut store = self.services.lock();
        let wanted = self.call(move |core| core.select_new(new))??;
        let (mut ids, mut changes) = (Vec::new(), Vec::new());
        for registration in wanted {
            let id = registration.id;
            match store.put(registration) {
                Ok(more) => {
                    ids.push(id);
                    changes.extend(more);
                }
                Err(error) => {
                    // The core has not seen the written ones, and need not.
                    let undone = undo(&mut store, &ids, &mut changes);
                    changes.extend(store.changes());
                    self.apply(changes)?;
                    undone?;
                    return Err(error.into());
                }
            }
        }
        let mut added = self.apply_new(&mut store, changes, ids)?;
        added.sort_by_cached_key(|service| service.name.folded());
        Ok(added)
    }

    /// Every registration that is stored, sorted by friendly name, for an export.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    pub fn export(&self) -> Result<Vec<Registration>, ControlError> {
        let stored = self.call(|core| core.stored_registrations())?;
        let mut registrations: Vec<Registration> =
            stored.into_iter().map(Arc::unwrap_or_clone).collect();
        registrations.sort_by_cached_key(|registration| registration.name.folded());
        Ok(registrations)
    }

    /// Enables or disables a service, for all partitions or for one child partition.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown service or partition, [`ControlError::Invalid`] if
    /// the service is a lease.
    pub fn set_enabled(
        &self,
        service: &ServiceRef,
        enabled: bool,
        partition: Option<&PartitionRef>,
    ) -> Result<Service, ControlError> {
        let change = ServiceChange {
            enabled,
            vm: partition.cloned(),
            ..ServiceChange::default()
        };
        self.change_service(service, &change)
    }

    /// Enables or disables a service as [`set_enabled`](Self::set_enabled) does, also as an exception
    /// for one child partition, or for those that are exceptions.
    ///
    /// # Errors
    ///
    /// As [`set_enabled`](Self::set_enabled), and [`ControlError::NotNow`] if the service is disabled
    /// for all partitions and the child partition is to follow that.
    pub fn change_service(
        &self,
        service: &ServiceRef,
        change: &ServiceChange,
    ) -> Result<Service, ControlError> {
        let ServiceChange {
            enabled,
            exception,
            everywhere,
            ..
        } = *change;
        if everywhere && change.vm.is_some() || exception && (change.vm.is_none() || !enabled) {
            let what = "`everywhere` is for all partitions, and `exception` enables one";
            return Err(ControlError::Invalid(what.into()));
        }
        let mut store = self.services.lock();
        let (found, child) = self.find_to_edit(service, change.vm.as_ref())?;
        let edit = match child {
            None => Edit::SetEnabled {
                enabled,
                everywhere,
            },
            Some(child) => Edit::SetEnabledFor {
                child,
                enabled,
                exception,
            },
        };
        self.edit(&mut store, &found, &edit)
    }

    /// Sets how the bytes of a service's new connections travel, for all partitions or for one child
    /// partition. Established connections stay as they are.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown service or partition, [`ControlError::Invalid`] for a
    /// lease.
    pub fn set_transport(
        &self,
        service: &ServiceRef,
        change: &TransportChange,
    ) -> Result<Service, ControlError> {
        let mut store = self.services.lock();
        let (found, child) = self.find_to_edit(service, change.vm.as_ref())?;
        let edit = Edit::SetTransport {
            child,
            transport: change.transport.map(Into::into),
        };
        self.edit(&mut store, &found, &edit)
    }

    /// The registration to edit, and the child partition to edit it for: an existing one, one for which
    /// the registration has an override, or a container that its virtual machine may announce.
    pub(super) fn find_to_edit(
        &self,
        service: &ServiceRef,
        partition: Option<&PartitionRef>,
    ) -> Result<(Registration, Option<PartitionName>), ControlError> {
        let (wanted, child) = (service.clone(), partition.cloned());
        let (found, name) = self.call(move |core| {
            let found = core.registration(&wanted).cloned();
            let key = child.as_ref().and_then(|child| core.find(child));
            let key = key.filter(|key| *key != core.fabric.root());
            let name = key.and_then(|key| Some(core.fabric.partition(key)?.name().clone()));
            let overridden = match (child, &found) {
                (Some(PartitionRef::Name(name)), Some(found)) => {
                    Some(name).filter(|name| found.vm.contains_key(name) || core.may_announce(name))
                }
                _ => None,
            };
            (found, name.or(overridden))
        })?;
        let found = found.ok_or_else(|| ControlError::unknown_service(service))?;
        if let (Some(partition), None) = (partition, &name) {
            return Err(ControlError::unknown_partition(partition));
        }
        if found.lease {
            let what = "a lease belongs to the process that made it and cannot be changed; stop \
                        the process instead";
            return Err(ControlError::Invalid(what.into()));
        }
        Ok((found, name))
    }

    /// Changes the settings of a registration.
    pub(super) fn edit(
        &self,
        store: &mut ServiceStoreGuard<'_>,
        found: &Registration,
        edit: &Edit,
    ) -> Result<Service, ControlError> {
        let id = found.id;
        let written = store.edit(id, edit);
        let changes = self.written(store, written).map_err(|error| match error {
            ControlError::Store(StoreError::Edit(
                error @ (EditError::DisabledForAll { .. } | EditError::DisabledForVm { .. }),
            )) => {
                let service = ServiceRef::Name(found.name.clone());
                let (of, child) = match error {
                    EditError::DisabledForVm { vm, child } => (vm.to_string(), child),
                    EditError::DisabledForAll { child } => ("all partitions".to_owned(), child),
                    other => return ControlError::Invalid(other.to_string()),
                };
                ControlError::NotNow {
                    what: format!(
                        "\"{service}\" is disabled for {of}, so it stays disabled for {child}"
                    ),
                    fix: Box::new(Fix::EnableServiceAsException {
                        service,
                        partition: child,
                    }),
                }
            }
            ControlError::Store(StoreError::Edit(error)) => {
                ControlError::Invalid(error.to_string())
            }
            error => error,
        })?;
        let changed = self.call(move |core| core.apply_own(changes, &[id]))?;
        let changed = changed.map_err(refused)?;
        changed.into_iter().next().ok_or_else(|| gone(id))
    }

    /// Unregisters a service and resets its listeners and connections. A built-in registration
    /// returns to its built-in state instead.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] if there is no such registration.
    pub fn unregister(&self, service: &ServiceRef) -> Result<Service, ControlError> {
        let mut store = self.services.lock();
        let removed = self.service(service)?;
        let id = removed.id;
        if removed.lease {
            self.call(move |core| core.unregister(id))?;
            return Ok(removed);
        }
        let written = store.remove(id);
        let changes = self.written(&mut store, written)?;
        self.apply(changes)?;
        Ok(removed)
    }

    /// Applies what changed in the store since the last call.
    pub(crate) fn follow_services(&self) {
        // The store stays locked until the core has applied the changes. Otherwise they could be
        // reordered with an operator's.
        let mut store = self.services.lock();
        let changes = store.changes();
        self.apply_found(changes);
        let fault = store.watch_fault();
        self.post(move |core| core.set_watch_fault(Watched::Services, fault));
    }

    /// Brings the registrations of a core that was taken over in line with the store, which may have changed since
    /// it was read.
    pub(crate) fn reconcile_services(&self) {
        let mut store = self.services.lock();
        let mut changes = store.retry();
        changes.retain(|change| matches!(change, Change::Broken(_) | Change::Repaired(_)));
        let reconciled = store.load().map_err(ControlError::from);
        let reconciled = reconciled.and_then(|loaded| {
            self.call(move |core| {
                core.reconcile(loaded);
                changes.into_iter().for_each(|change| core.apply(change));
            })
        });
        if let Err(error) = reconciled {
            tracing::error!("cannot compare the registrations: {error}");
        }
    }

    /// Reads again the registrations that could not be read, and tries those again that are not in
    /// force.
    pub(crate) fn retry_services(&self) {
        let mut store = self.services.lock();
        let changes = store.retry();
        self.apply_found(changes);
        self.post(Core::apply_blocked);
    }

    fn apply_found(&self, changes: Vec<Change>) {
        if !changes.is_empty()
            && let Err(error) = self.apply_edits(changes)
        {
            // The core applies them when it gets to them.
            tracing::warn!("changed registrations are not applied yet: {error}");
        }
    }

    /// Applies changes by others of the store to the core, and records them.
    fn apply_edits(&self, changes: Vec<Change>) -> Result<(), ControlError> {
        self.call(move |core| {
            core.audit_edits(&changes);
            for change in changes {
                core.apply(change);
            }
        })
    }

    /// Applies changes of the store to the core.
    fn apply(&self, changes: Vec<Change>) -> Result<(), ControlError> {
        self.call(move |core| {
            for change in changes {
                core.apply(change);
            }
        })
    }

    /// The changes of a write. If it failed, applies what it found: changes by others, or its own one
    /// that is in force without being durable.
    fn written(
        &self,
        store: &mut ServiceStoreGuard<'_>,
        result: Result<Vec<Change>, StoreError>,
    ) -> Result<Vec<Change>, ControlError> {
        let error = match result {
            Ok(changes) => return Ok(changes),
            Err(error) => error,
        };
        let found = store.changes();
        if !found.is_empty() {
            self.apply_edits(found)?;
        }
        Err(match error {
            StoreError::Clash(clash) => ControlError::Clash(clash),
            error => error.into(),
        })
    }

    /// Applies changes that add `ids`, and returns these. Removes them from the store if the core
    /// refuses one.
    fn apply_new(
        &self,
        store: &mut ServiceStoreGuard<'_>,
        changes: Vec<Change>,
        ids: Vec<ServiceId>,
    ) -> Result<Vec<Service>, ControlError> {
        let own = ids.clone();
        let applied = self.call(move |core| core.apply_own(changes, &own))?;
        let error = match applied {
            Ok(services) => return Ok(services),
            Err(error) => error,
        };
        let mut kept = Vec::new();
        for id in ids {
            match store.remove(id) {
                Ok(changes) => self.apply(changes)?,
                // The entry waits in the core.
                Err(why) => {
                    tracing::warn!("cannot undo a registration that is refused: {why}");
                    kept.push(id);
                }
            }
        }
        let error = self.call(move |core| {
            kept.iter().for_each(|id| core.report_blocked(*id, &error));
            error
        })?;
        Err(refused(error))
    }
}

/// Removes entries that the core has not seen from the store, and from `changes`.
fn undo(
    store: &mut ServiceStoreGuard<'_>,
    ids: &[ServiceId],
    changes: &mut Vec<Change>,
) -> Result<(), StoreError> {
    for id in ids {
        changes.extend(store.remove(*id)?);
        changes.retain(|change| match change {
            Change::Added(entry) | Change::Updated(entry) => entry.registration.id != *id,
            Change::Removed(removed) => removed != id,
            _ => true,
        });
    }
    Ok(())
}

fn refused(error: RegisterError) -> ControlError {
    match error {
        RegisterError::Clash(clash) => ControlError::Clash(clash),
        error => error.into(),
    }
}

/// A service that was removed in another way while it was changed.
fn gone(id: ServiceId) -> ControlError {
    ControlError::unknown_service(&ServiceRef::Id(id))
}
