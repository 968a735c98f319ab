//! Tells links which of the host's services their guests can reach.
//!
//! A link of hybrid sockets, or of the kernel's vhost-vsock, cannot refuse a guest's connect: the VMM or
//! the kernel has answered it before the broker knows of it. The only refusal is that there is no
//! socket. So such a link has sockets only for what would be accepted, by the same verdict as a connect.

use std::collections::BTreeSet;

use hvsock_address::{ServiceId, VmId};
use hvsock_fabric::{Changes, ConnectRequest, Destination, PartitionKey, Refusal};

use super::guests::principal_of;
use super::state::Core;
use crate::callers::Caller;
use crate::guest_link::OfferedService;
use crate::uplink;

impl Core {
    /// Judges again what has changed, and tells the links that take services.
    pub(super) fn update_offered_services(&mut self, changes: &Changes) {
        if *changes == Changes::None {
            return;
        }
        for vm in self.vms_with_services() {
            if self.judge_services(vm, changes) {
                self.offer_services(vm);
            }
        }
    }

    /// Judges everything, and tells all links that take services: those of a broker before this one may
    /// have services that are offered no more.
    pub(super) fn offer_services_again(&mut self) {
        for vm in self.vms_with_services() {
            self.judge_services(vm, &Changes::All);
            self.offer_services(vm);
        }
    }

    /// The VMs whose links take services.
    fn vms_with_services(&self) -> Vec<PartitionKey> {
        let takes_services = |key: &PartitionKey| {
            let link = self.vms.link(*key);
            link.is_some_and(|link| link.takes_services())
        };
        self.vms.keys().filter(takes_services).collect()
    }

    /// Judges a VM's services again. Returns whether any has changed.
    fn judge_services(&mut self, vm: PartitionKey, changes: &Changes) -> bool {
        let mut has_changed = false;
        for service in self.concerned_services(vm, changes) {
            let offered = self.offered_to(vm, service);
            has_changed |= self.vms.set_offered(vm, service, offered);
        }
        has_changed
    }

    fn offer_services(&mut self, vm: PartitionKey) {
        if let Some(link) = self.vms.link(vm) {
            let offered = self.vms.offered(vm);
            let descriptors = link.descriptors_for(&offered);
            link.set_services(offered);
            self.charge_vm(vm, descriptors);
        }
    }

    /// The services whose verdict may have changed: those that the link knows and those that are
    /// registered.
    fn concerned_services(&self, vm: PartitionKey, changes: &Changes) -> BTreeSet<ServiceId> {
        match changes {
            Changes::None => BTreeSet::new(),
            Changes::Services(services) => services.clone(),
            Changes::All => {
                let known = self.vms.offered(vm).into_iter().map(|one| one.service);
                let registry = self.fabric.registry(self.fabric.root());
                let registered = registry.into_iter().flat_map(|registry| {
                    let own = registry.iter().map(|one| one.id);
                    own.chain(registry.all_built_in().map(|one| one.id))
                });
                let own = [uplink::offered().service];
                known.chain(registered).chain(own).collect()
            }
        }
    }

    /// Whether an operator has registered a service. Those that are built in count by their verdict: a guest
    /// offers some of them, not the host.
    fn is_registered(&self, service: ServiceId) -> bool {
        let registry = self.fabric.registry(self.fabric.root());
        registry.is_some_and(|registry| registry.get(service).is_some())
    }

    /// What the host offers a VM of a service. A link keeps the port of a registered service from others even
    /// while the VM may not connect, as when it is paused. `None` for any other service for which a connect
    /// would be refused for another reason than that nobody listens.
    fn offered_to(&self, vm: PartitionKey, service: ServiceId) -> Option<OfferedService> {
        if service == uplink::offered().service {
            return Some(uplink::offered());
        }
        let request = ConnectRequest {
            from: vm,
            principal: &principal_of(Caller::UNKNOWN),
            vm: VmId::PARENT,
            service,
        };
        let listening = match self.fabric.judge(&request) {
            Ok(Destination::Listener(_)) => true,
            Err(Refusal::NoListener) => false,
            Err(_) if self.is_registered(service) => false,
            Ok(Destination::Guest) | Err(_) => return None,
        };
        let port = service.port_for_guests();
        Some(OfferedService {
            service,
            // Another service may be registered for the port.
            port: port.filter(|port| self.fabric.service_for_port(vm, *port) == service),
            listening,
        })
    }
}
