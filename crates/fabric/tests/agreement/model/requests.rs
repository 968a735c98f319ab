//! The checks of connect and listen, in order.

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_fabric::{PartitionKind, Refusal};
use hvsock_registry::Principal;

use super::rules::Who;
use super::{Model, ModelConnection, ModelListener, ModelPartition};

impl Model {
    pub fn connect(
        &mut self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
        weight: usize,
    ) -> Result<(Option<usize>, usize), Refusal> {
        let (listener, to) = self.judge(p, who, vm, service)?;
        self.check_weight(&[p, to], weight)?;
        if let Some(n) = listener {
            let waits = |c: &&ModelConnection| c.exists && c.waiting && c.listener == listener;
            if self.connections.iter().filter(waits).count() >= self.listeners[n].backlog {
                return Err(Refusal::BacklogFull);
            }
        }
        self.connections.push(ModelConnection {
            exists: true,
            from: p,
            to,
            listener,
            service,
            waiting: true,
            suspended: false,
            connected_suspend: [false; 2],
            weight,
        });
        Ok((listener, to))
    }

    /// The listener or guest that a connect reaches, and its partition. Capacity does not matter.
    pub fn judge(
        &self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(Option<usize>, usize), Refusal> {
        if service == ServiceId::ZERO {
            return Err(Refusal::AddressNotAvailable);
        }
        if !self.partitions[p].exists {
            return Err(Refusal::PartitionOff);
        }
        let to = self.connect_goes_to(p, vm)?;
        self.runs(p)?;
        self.runs(to)?;
        let mut boundary = None;
        if self.host_judges(p, to) {
            // From the host: it has judged, but the mirror knows who may listen.
            let names = vec![Some(&self.partitions[0].name)];
            if let Some(outer) = self.outer.filter(|_| self.mirrored)
                && let Some(entry) = self.registered(outer, service)
            {
                boundary = Some((outer, entry, names));
            }
        } else if to != p {
            let (owner, children) = self.registry_between(p, to);
            let names = Self::names(&children);
            let entry = self
                .registered(owner, service)
                .ok_or(Refusal::Unregistered)?;
            self.enabled(owner, entry, &names)?;
            let requester = if owner == p {
                Who::Process(who)
            } else {
                Who::Child(&self.partitions[p], false)
            };
            self.access(owner, entry, false, requester, &names)
                .map_err(|denial| denial.refusal(owner == p))?;
            boundary = Some((owner, entry, names));
        } else {
            self.not_disabled(p, service)?;
        }
        if self.outer == Some(to) {
            return Ok((None, to));
        }
        let mut accepting = vec![];
        for (n, listener) in self.listeners.iter().enumerate() {
            if listener.exists
                && listener.partition == to
                && listener.service == service
                && let Some(rank) = self.accepts(to, listener.vm, p)
            {
                accepting.push((rank, n));
            }
        }
        accepting.sort();
        let mut answer = Err(Refusal::NoListener);
        for (at, (_, n)) in accepting.iter().enumerate() {
            let listener = &self.listeners[*n];
            let mut may = Ok(());
            if let Some((owner, entry, names)) = &boundary {
                let requester = if *owner == to {
                    Who::Process(&listener.who)
                } else {
                    Who::Child(&self.partitions[to], listener.who.partition_uid == Some(0))
                };
                may = self
                    .access(*owner, entry, true, requester, names)
                    .map_err(|denial| denial.refusal(*owner == p));
                if may.is_ok() && listener.vm == VmId::WILDCARD {
                    may = self.wildcard(*owner, entry, names);
                }
            }
            match may {
                Ok(()) => {
                    answer = Ok(Some(*n));
                    break;
                }
                Err(refusal) if at == 0 => answer = Err(refusal),
                Err(_) => {}
            }
        }
        let any_listener = !accepting.is_empty();
        let in_vm = self.vm_of(&self.partitions[to]).is_some();
        let to_vm = self.partitions[to].kind == PartitionKind::Vm
            && to != 0
            && to != p
            && self.partitions[p].parent != Some(to);
        let to_guest = to_vm || in_vm && self.grandparent(to) == Some(p);
        if !any_listener
            && to_guest
            && let Some((owner, entry, names)) = &boundary
        {
            // The guest as a whole acts as the listener, and must be allowed to bind.
            // In a guest only root listens on a port below 1024.
            let port = service.port_for_guests();
            // Who is root in a container there, its broker knows.
            let is_root = in_vm || port.is_some_and(|port| port < 1024);
            let guest = Who::Child(&self.partitions[to], is_root);
            self.access(*owner, entry, true, guest, names)
                .map_err(|denial| denial.refusal(*owner == p))?;
            answer = Ok(None);
        }
        Ok((answer?, to))
    }

    pub fn listen(
        &mut self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
        backlog: u32,
    ) -> Result<(), Refusal> {
        if service == ServiceId::ZERO {
            return Err(Refusal::AddressNotAvailable);
        }
        if !self.partitions[p].exists {
            return Err(Refusal::PartitionOff);
        }
        self.check_listen_address(p, vm)?;
        self.runs(p)?;
        self.may_accept(p, who, vm, service)?;
        let existing = self.listeners.iter().filter(|l| l.exists);
        for other in existing.clone() {
            let one_host = |vm| {
                vm == VmId::PARENT || vm == VmId::SILOHOST || self.outer_with_id(p, vm).is_some()
            };
            let same = other.vm == vm || one_host(other.vm) && one_host(vm);
            if other.partition == p && other.service == service && same {
                return Err(Refusal::AddressInUse);
            }
        }
        let here = existing.clone().filter(|l| l.partition == p).count();
        check_limit("listeners", existing.count(), self.limits.listeners)?;
        check_limit(
            "listeners_per_partition",
            here,
            self.limits.listeners_per_partition,
        )?;
        let backlog = backlog.min(self.limits.backlog_max).max(1) as usize;
        self.listeners.push(ModelListener {
            exists: true,
            partition: p,
            who: who.clone(),
            vm,
            service,
            backlog,
        });
        Ok(())
    }

    /// Within a partition, a service need not be registered, but it must not be disabled.
    pub(super) fn not_disabled(&self, p: usize, service: ServiceId) -> Result<(), Refusal> {
        match self.registered(p, service) {
            Some(entry) => self.enabled(p, entry, &[None]),
            None => Ok(()),
        }
    }

    /// Whether the registries allow a listener to accept any connection.
    pub(super) fn may_accept(
        &self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(), Refusal> {
        if vm == VmId::LOOPBACK {
            return self.not_disabled(p, service);
        }
        let me = &self.partitions[p];
        // Each path of a connection: the owner of the registry, and the ends that are its children.
        let mut paths: Vec<(usize, Vec<&ModelPartition>)> = vec![];
        let from_outer = self.outer_with_id(p, vm).is_some();
        if (vm == VmId::WILDCARD || vm == VmId::PARENT || vm == VmId::SILOHOST || from_outer)
            && let Some(parent) = me.parent
        {
            if self.outer == Some(parent) && !self.mirrored {
                return Ok(());
            }
            paths.push((parent, vec![me]));
        }
        if vm == VmId::WILDCARD || vm == VmId::CHILDREN {
            paths.push((p, vec![]));
        }
        if vm == VmId::WILDCARD && self.vm_of(me).is_some() {
            paths.push((0, vec![me]));
        }
        for (q, other) in self.partitions.iter().enumerate() {
            if other.exists && other.id == vm && !from_outer {
                paths.push(self.registry_between(p, q));
            }
        }
        let mut answer = Err(Refusal::Unregistered);
        for (owner, children) in paths {
            let Some(entry) = self.registered(owner, service) else {
                continue;
            };
            let path_allows = |names: &[Option<&PartitionName>]| {
                self.enabled(owner, entry, names)?;
                let requester = if owner == p {
                    Who::Process(who)
                } else {
                    Who::Child(me, who.partition_uid == Some(0))
                };
                self.access(owner, entry, true, requester, names)
                    .map_err(|denial| denial.refusal(owner == p))?;
                if vm == VmId::WILDCARD {
                    self.wildcard(owner, entry, names)?;
                }
                Ok(())
            };
            let mut may = path_allows(&Self::names(&children));
            if children.is_empty() {
                for child in entry.vm.keys() {
                    // A container in a VM is no child.
                    let is_child = !child.as_str().contains('/') || vm == VmId::WILDCARD;
                    if is_child && path_allows(&[Some(child)]).is_ok() {
                        may = Ok(());
                    }
                }
            }
            match may {
                Ok(()) => return Ok(()),
                Err(refusal) if answer == Err(Refusal::Unregistered) => answer = Err(refusal),
                Err(_) => {}
            }
        }
        answer
    }
}

fn check_limit(which: &str, used: usize, limit: usize) -> Result<(), Refusal> {
    if used >= limit {
        let which = which.to_owned();
        return Err(Refusal::LimitReached { which });
    }
    Ok(())
}
