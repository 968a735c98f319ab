//! Services and virtual machines of this machine, in the words of a broker's control API.

use anstyle::AnsiColor;
use anyhow::{Context as _, Result};
use hvsock_address::{PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_control::{Import, Imported, NewService, Service, ServiceOverride};
use hvsock_hyperv::{FindVmError, Missing, Switch, Vm, find_vm, partition_names};
use hvsock_registry::key_store::{KeyStore, Listing, user};
use hvsock_registry::{Registration, Registry, reg_file};

use crate::failure::{Failure, say};

/// This machine. Everything is looked up anew by each call, since others change it as well.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl Local {
    /// Every service that is registered; with `all` also those that ship with Windows. Keys that
    /// are none are told of.
    pub fn services(&self, all: bool) -> Result<Vec<Service>> {
        let Listing { registry, problems } = KeyStore::open()?.read()?;
        for problem in problems {
            say(AnsiColor::Yellow.on_default().bold(), "warning", &problem);
        }
        let mut services: Vec<_> = registry.iter().cloned().map(of).collect();
        if all {
            services.extend(Service::in_box());
            services.sort_by_cached_key(|service| service.name.folded());
        }
        Ok(services)
    }

    /// One service, with what Hyper-V's policies say of it.
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
            let mut named = facts.vms.iter().zip(&names);
            let name = named.find(|(vm, _)| vm.id == policy.vm);
            let name = name.map_or_else(|| policy.vm.to_string(), |(_, name)| name.to_string());
            let only = ServiceOverride {
                enabled: Some(enabled),
                ..ServiceOverride::default()
            };
            Some((name, only))
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

    /// Enables or disables a service, everywhere or for one virtual machine.
    pub fn set_enabled(
        &self,
        service: &ServiceRef,
        enabled: bool,
        vm: Option<PartitionRef>,
    ) -> Result<Service> {
        let mut store = KeyStore::open()?;
        let registration = store.read()?.registry.resolve(service)?.clone();
        match vm {
            None => store.set_enabled(registration.id, enabled)?,
            Some(vm) => {
                let switch = if enabled {
                    Switch::Enabled
                } else {
                    Switch::Disabled
                };
                hvsock_hyperv::set_policy(vm_id(&vm)?, registration.id, switch)?;
                return Ok(of(registration));
            }
        }
        Ok(of(Registration {
            enabled,
            ..registration
        }))
    }

    /// Removes a registration.
    pub fn unregister(&self, service: &ServiceRef) -> Result<Service> {
        let mut store = KeyStore::open()?;
        let registration = store.read()?.registry.resolve(service)?.clone();
        store.remove(registration.id)?;
        Ok(of(registration))
    }

    /// All registrations, as JSON that [`import_json`](Self::import_json) takes.
    pub fn export_json(&self) -> Result<Vec<NewService>> {
        let registrations = kept()?.into_iter();
        Ok(registrations.map(NewService::from).collect())
    }

    /// All registrations, as a `.reg` file.
    pub fn export_reg(&self) -> Result<Vec<u8>> {
        Ok(reg_file::export(&kept()?))
    }

    /// Registers all of `services`, or none if one cannot be.
    pub fn import_json(&self, services: &[NewService]) -> Result<Imported> {
        take_in(Import::of_list(services.to_vec(), &user())?)
    }

    /// Registers all of a `.reg` file's services, or none if one cannot be.
    pub fn import_reg(&self, file: &[u8]) -> Result<Imported> {
        take_in(Import::of_reg_file(file, &user())?)
    }
}

/// What is registered.
fn registry() -> Result<Registry> {
    Ok(KeyStore::open()?.read()?.registry)
}

/// What is registered for good.
fn kept() -> Result<Vec<Registration>> {
    let registry = registry()?;
    Ok(registry.iter().filter(|one| !one.lease).cloned().collect())
}

fn of(registration: Registration) -> Service {
    Service::new(registration, 0, 0)
}

fn take_in(import: Import) -> Result<Imported> {
    let mut store = KeyStore::open()?;
    let Listing { mut registry, .. } = store.read()?;
    let mut removed = Vec::new();
    for id in import.gone {
        if let Some(gone) = registry.remove(id) {
            store.remove(id)?;
            removed.push(of(gone));
        }
    }
    // All of them are asked about before one is written.
    let mut wanted = Vec::new();
    for new in import.registrations {
        let there = registry.get(new.id);
        if there.is_some_and(|there| there.name.folded() == new.name.folded()) {
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
            return Err(error).context(format!("`{}` cannot be registered", new.name));
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

/// The virtual machine that is called so, or has this id.
pub fn vm(text: &str) -> Result<Vm> {
    let (vms, missing) = hvsock_hyperv::virtual_machines();
    find(&vms, &missing, text).cloned()
}

/// The one among these; what is missing may be why it is not.
pub fn find<'a>(vms: &'a [Vm], missing: &[Missing], text: &str) -> Result<&'a Vm> {
    find_vm(vms, text).map_err(|error| {
        let failure = Failure::new(error.to_string());
        match (error, missing) {
            (FindVmError::Unknown(_), [first, ..]) => failure.help(first.to_string()).into(),
            _ => failure.into(),
        }
    })
}

/// The id of a virtual machine, which is not looked for if it is given.
fn vm_id(vm: &PartitionRef) -> Result<VmId> {
    match vm {
        PartitionRef::Id(id) => Ok(*id),
        PartitionRef::Name(name) => Ok(self::vm(name.as_str())?.id),
    }
}
