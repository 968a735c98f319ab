//! Services and virtual machines of this machine, with the interface of a broker's control API.

use anstyle::AnsiColor;
use anyhow::{Context as _, Result};
use hvsock_address::{PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_control::{
    AccessChange, AccessChanged, Import, Imported, NewService, Service, ServiceChange,
    ServiceOverride, TransportChange,
};
use hvsock_hyperv::{FindVmError, Missing, Switch, Vm, find_vm, partition_names};
use hvsock_registry::key_store::{KeyStore, Listing, user};
use hvsock_registry::{Registration, Registry, reg_file};

use super::missing;
use crate::failure::{Failure, print};
use crate::format::shell_word;

/// This machine. Each call reads the state again, because other programs change it.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl Local {
    /// All registered services, and with `all` those of Windows. Prints a warning for each invalid
    /// key.
    pub fn services(&self, all: bool) -> Result<Vec<Service>> {
        let Listing { registry, problems } = KeyStore::open()?.read()?;
        for problem in problems {
            print(AnsiColor::Yellow.on_default().bold(), "warning", &problem);
        }
        let mut services: Vec<_> = registry.iter().cloned().map(of).collect();
        if all {
            services.extend(Service::in_box());
            services.sort_by_cached_key(|service| service.name.folded());
        }
        Ok(services)
    }

    /// One service with Hyper-V's policies for it.
    pub fn service(&self, service: &ServiceRef) -> Result<Service> {
        let registration = registry()?.resolve(service)?.clone();
        let id = registration.id;
        let facts = hvsock_hyperv::facts();
        let names = partition_names(&facts.vms);
        let policies = facts.policies.iter().filter(|one| one.service == Some(id));
        let vm = policies.filter_map(|policy| {
            let enabled = match policy.switch {
                Switch::Enabled => true,
                Switch::Disabled => false,
                Switch::Deferred => return None,
            };
            let mut with_names = facts.vms.iter().zip(&names);
            let name = with_names.find(|(vm, _)| vm.id == policy.vm);
            let name = name.map_or_else(|| policy.vm.to_string(), |(_, name)| name.to_string());
            let settings = ServiceOverride {
                enabled: Some(enabled),
                ..ServiceOverride::default()
            };
            Some((name, settings))
        });
        Ok(Service {
            vm: vm.collect(),
            ..of(registration)
        })
    }

    /// Registers a service.
    pub fn register(&self, service: &NewService) -> Result<Service> {
        let registration = service.clone().registration(Some(user()))?;
        KeyStore::open()?.put(&registration)?;
        Ok(of(registration))
    }

    /// Enables or disables a service, for all or for one virtual machine. Enabled for one, it has no
    /// policy of its own any more, unless it is an exception.
    pub fn change_service(&self, service: &ServiceRef, change: &ServiceChange) -> Result<Service> {
        let ServiceChange {
            enabled,
            ref vm,
            exception,
            everywhere,
        } = *change;
        let mut store = KeyStore::open()?;
        let registration = store.read()?.registry.resolve(service)?.clone();
        match vm {
            None => {
                store.set_enabled(registration.id, enabled)?;
                if everywhere {
                    let other = if enabled {
                        Switch::Disabled
                    } else {
                        Switch::Enabled
                    };
                    let policies = hvsock_hyperv::facts().policies.into_iter();
                    let own = policies.filter(|one| one.service == Some(registration.id));
                    for policy in own.filter(|one| one.switch == other) {
                        hvsock_hyperv::set_policy(policy.vm, registration.id, Switch::Deferred)?;
                    }
                }
            }
            Some(vm) => {
                let name = &registration.name;
                if enabled && !registration.enabled {
                    // Windows does not know a service that is disabled for all.
                    let what = format!(
                        "`{name}` is disabled for all virtual machines, so it stays disabled for {vm}"
                    );
                    let name = shell_word(name.as_str());
                    return Err(Failure::new(what)
                        .help(format!("hvsock service enable {name}"))
                        .into());
                }
                let switch = match (enabled, exception) {
                    (false, _) => Switch::Disabled,
                    (true, true) => Switch::Enabled,
                    (true, false) => Switch::Deferred,
                };
                hvsock_hyperv::set_policy(vm_id(vm)?, registration.id, switch)?;
            }
        }
        self.service(service)
    }

    /// Refuses: Windows keeps access rules elsewhere.
    pub fn change_access(&self, service: &ServiceRef, _: &AccessChange) -> Result<AccessChanged> {
        registry()?.resolve(service)?;
        Err(no_access_rules())
    }

    /// Refuses, as [`change_access`](Self::change_access) does.
    pub fn reset_access(&self, service: &ServiceRef, _: Option<PartitionRef>) -> Result<Service> {
        registry()?.resolve(service)?;
        Err(no_access_rules())
    }

    /// Refuses: Windows has one transport.
    pub fn set_transport(&self, service: &ServiceRef, _: &TransportChange) -> Result<Service> {
        registry()?.resolve(service)?;
        anyhow::bail!("Windows chooses the transport of every connection")
    }

    /// Removes a registration.
    pub fn unregister(&self, service: &ServiceRef) -> Result<Service> {
        let mut store = KeyStore::open()?;
        let registration = store.read()?.registry.resolve(service)?.clone();
        store.remove(registration.id)?;
        Ok(of(registration))
    }

    /// All registrations, in the form of [`import_json`](Self::import_json).
    pub fn export_json(&self) -> Result<Vec<NewService>> {
        let registrations = permanent()?.into_iter();
        Ok(registrations.map(NewService::from).collect())
    }

    /// All registrations, as a `.reg` file.
    pub fn export_reg(&self) -> Result<Vec<u8>> {
        Ok(reg_file::export(&permanent()?))
    }

    /// Registers all of `services`, or none if one fails.
    pub fn import_json(&self, services: &[NewService]) -> Result<Imported> {
        apply(Import::of_list(services.to_vec(), &user())?)
    }

    /// Registers all services of a `.reg` file, or none if one fails.
    pub fn import_reg(&self, file: &[u8]) -> Result<Imported> {
        apply(Import::of_reg_file(file, &user())?)
    }
}

fn no_access_rules() -> anyhow::Error {
    let what = "Windows keeps access rules with each virtual machine, as security descriptors of \
                Hyper-V, which hvsock does not change";
    let help = "hvsock service disable SERVICE --vm NAME closes a service for one virtual machine";
    Failure::new(what).help(help).into()
}

/// All registrations.
pub fn registry() -> Result<Registry> {
    Ok(KeyStore::open()?.read()?.registry)
}

/// All registrations that are not leases.
fn permanent() -> Result<Vec<Registration>> {
    let registry = registry()?;
    Ok(registry.iter().filter(|one| !one.lease).cloned().collect())
}

fn of(registration: Registration) -> Service {
    Service::new(registration, 0, 0)
}

/// Applies an import to the registry. Removes what it has added if one registration fails.
fn apply(import: Import) -> Result<Imported> {
    let mut store = KeyStore::open()?;
    let Listing { mut registry, .. } = store.read()?;
    let mut removed = Vec::new();
    for id in import.removed {
        if let Some(gone) = registry.remove(id) {
            store.remove(id)?;
            removed.push(of(gone));
        }
    }
    // All are checked before the first one is written.
    let mut wanted = Vec::new();
    for new in import.registrations {
        let existing = registry.get(new.id);
        if existing.is_some_and(|existing| existing.name.folded() == new.name.folded()) {
            continue;
        }
        registry.insert(new.clone())?;
        wanted.push(new);
    }
    let mut written: Vec<ServiceId> = Vec::new();
    for new in &wanted {
        if let Err(error) = store.put(new) {
            for id in written {
                store.remove(id)?;
            }
            return Err(error).context(format!("cannot register `{}`", new.name));
        }
        written.push(new.id);
    }
    wanted.sort_by_cached_key(|one| one.name.folded());
    Ok(Imported {
        added: wanted.into_iter().map(of).collect(),
        removed,
        notes: import.notes,
    })
}

/// The virtual machine with this name or GUID.
pub fn vm(text: &str) -> Result<Vm> {
    let (vms, missing) = hvsock_hyperv::virtual_machines();
    find(&vms, &missing, text).cloned()
}

/// The virtual machine with this name or GUID among `vms`. If it is not found, the first of `hidden`
/// may be the reason.
pub fn find<'a>(vms: &'a [Vm], hidden: &[Missing], text: &str) -> Result<&'a Vm> {
    find_vm(vms, text).map_err(|error| {
        let failure = Failure::new(error.to_string());
        match (error, hidden) {
            (FindVmError::Unknown(_), [first, ..]) => failure.help(missing::text(first)).into(),
            (FindVmError::Unknown(_), []) => {
                failure.help("`hvsock vm list` shows all names").into()
            }
            _ => failure.into(),
        }
    })
}

/// The GUID of a virtual machine. A GUID is not looked up.
fn vm_id(vm: &PartitionRef) -> Result<VmId> {
    match vm {
        PartitionRef::Id(id) => Ok(*id),
        PartitionRef::Name(name) => Ok(self::vm(name.as_str())?.id),
    }
}
