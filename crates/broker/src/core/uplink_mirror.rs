//! What the brokers in guests know of the host's services.
//!
//! A process of a container may look up every name in the registry of its parent, and so may the guest of a VM. What
//! the guest may do with a service is what the host would answer. It is for explanations and for the
//! guest's own listeners: the host judges each connect.

use std::collections::BTreeSet;

use hvsock_address::ServiceId;
use hvsock_endpoint::uplink::{BindScope, MAX_SERVICES, Service, ServiceFlags};
use hvsock_fabric::{Changes, PartitionKey};
use hvsock_registry::Registry;

use super::state::Core;

impl Core {
    /// Tells the brokers in guests what has changed.
    pub(super) fn update_mirrors(&mut self, changes: &Changes) {
        if *changes == Changes::None {
            return;
        }
        for vm in self.uplinks.vms() {
            match changes {
                // Beyond the limit, which services a guest knows depends on all of them.
                Changes::Services(services) if self.mirrors_all() => {
                    for service in services {
                        self.mirror(vm, *service);
                    }
                }
                Changes::None | Changes::Services(_) | Changes::All => self.mirror_all(vm),
            }
            self.pump_uplink(vm);
        }
    }

    /// Whether guests know of all services.
    fn mirrors_all(&self) -> bool {
        let registry = self.registry();
        registry.is_none_or(|registry| registry.len() <= MAX_SERVICES)
    }

    /// Tells the broker in a VM of the services, in the order of their names as far as it may know them.
    pub(super) fn mirror_all(&mut self, vm: PartitionKey) {
        let registry = self.registry();
        let registered = registry.into_iter().flat_map(Registry::iter);
        let wanted: Vec<ServiceId> = registered.map(|one| one.id).take(MAX_SERVICES).collect();
        let Some(uplink) = self.uplinks.get(vm) else {
            return;
        };
        let known: Vec<ServiceId> = uplink.session.mirror.ids().collect();
        let wanted_set: BTreeSet<_> = wanted.iter().copied().collect();
        if let Some(uplink) = self.uplinks.get_mut(vm) {
            // First, so that there is room for the others.
            for gone in known.iter().filter(|id| !wanted_set.contains(id)) {
                uplink.session.mirror.set(*gone, None);
            }
        }
        for service in wanted {
            self.mirror(vm, service);
        }
    }

    /// Tells the broker in a VM of one service.
    fn mirror(&mut self, vm: PartitionKey, service: ServiceId) {
        let settings = self.service_for_guest(vm, service);
        if let Some(uplink) = self.uplinks.get_mut(vm) {
            uplink.session.mirror.set(service, settings);
        }
    }

    /// A service as the guest of a VM may know it; `None` if it is not registered.
    fn service_for_guest(&self, vm: PartitionKey, service: ServiceId) -> Option<Service> {
        let rights = self.fabric.rights_of_child(vm, service)?;
        let name = &self.registry()?.get(service)?.name;
        Some(Service {
            service,
            flags: ServiceFlags {
                enabled: rights.enabled,
                may_connect: rights.may_connect,
                bind: match rights {
                    rights if rights.any_user_listens => BindScope::Everyone,
                    rights if rights.root_listens => BindScope::Root,
                    _ => BindScope::Nobody,
                },
                wildcard: rights.wildcard,
            },
            name: name.to_string(),
        })
    }
}
