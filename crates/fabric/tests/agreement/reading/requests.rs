//! Connect and listen, question by question.

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_fabric::{PartitionKind, Refusal};
use hvsock_registry::Principal;

use super::rules::Who;
use super::{Connected, Listening, Part, Reading};

impl Reading {
    pub fn connect(
        &mut self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(Option<usize>, usize), Refusal> {
        let (listener, to) = self.judge_connect(p, who, vm, service)?;
        self.connections.push(Connected {
            there: true,
            from: p,
            to,
            listener,
            service,
            waiting: true,
            suspended: false,
            keeps: [false; 2],
        });
        Ok((listener, to))
    }

    pub(super) fn judge_connect(
        &self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(Option<usize>, usize), Refusal> {
        if service == ServiceId::ZERO {
            return Err(Refusal::AddressNotAvailable);
        }
        if !self.partitions[p].there {
            return Err(Refusal::PartitionOff);
        }
        let to = self.connect_goes_to(p, vm)?;
        self.runs(p)?;
        self.runs(to)?;
        let mut border = None;
        if to != p {
            let (owner, children) = self.registry_between(p, to);
            let names = Self::names(&children);
            let entry = self
                .registered(owner, service)
                .ok_or(Refusal::Unregistered)?;
            Self::enabled(entry, &names)?;
            let asker = if owner == p {
                Who::Process(who)
            } else {
                Who::Child(&self.partitions[p])
            };
            self.access(owner, entry, false, asker, &names)
                .map_err(|no| no.refusal(owner == p))?;
            border = Some((owner, entry, names));
        } else {
            self.not_switched_off(p, service)?;
        }
        let mut hearing = vec![];
        for (n, listener) in self.listeners.iter().enumerate() {
            if listener.there
                && listener.partition == to
                && listener.service == service
                && let Some(rank) = self.hears(to, listener.vm, p)
            {
                hearing.push((rank, n));
            }
        }
        hearing.sort();
        let mut answer = Err(Refusal::NoListener);
        for (at, (_, n)) in hearing.iter().enumerate() {
            let listener = &self.listeners[*n];
            let mut may = Ok(());
            if let Some((owner, entry, names)) = &border {
                let asker = if *owner == to {
                    Who::Process(&listener.who)
                } else {
                    Who::Child(&self.partitions[to])
                };
                may = self
                    .access(*owner, entry, true, asker, names)
                    .map_err(|no| no.refusal(*owner == p));
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
        let heard = !hearing.is_empty();
        let to_guest = self.partitions[to].kind == PartitionKind::Vm
            && to != p
            && self.partitions[p].parent != Some(to);
        if !heard
            && to_guest
            && let Some((owner, entry, names)) = &border
        {
            // The guest is whoever listens in it, and must be allowed to.
            let guest = Who::Child(&self.partitions[to]);
            self.access(*owner, entry, true, guest, names)
                .map_err(|no| no.refusal(*owner == p))?;
            answer = Ok(None);
        }
        let listener = answer?;
        let open = self.connections.iter().filter(|c| c.there);
        let ends_in = |q: usize| open.clone().filter(|c| c.from == q || c.to == q).count();
        room("connections", open.clone().count(), self.limits.connections)?;
        room(
            "connections_per_partition",
            ends_in(p),
            self.limits.connections_per_partition,
        )?;
        room(
            "connections_per_partition",
            ends_in(to),
            self.limits.connections_per_partition,
        )?;
        if let Some(n) = listener {
            let waits = |c: &&Connected| c.waiting && c.listener == listener;
            if open.clone().filter(waits).count() >= self.listeners[n].backlog {
                return Err(Refusal::BacklogFull);
            }
        }
        Ok((listener, to))
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
        if !self.partitions[p].there {
            return Err(Refusal::PartitionOff);
        }
        self.check_listen_address(p, vm)?;
        self.runs(p)?;
        self.may_receive(p, who, vm, service)?;
        let there = self.listeners.iter().filter(|l| l.there);
        for other in there.clone() {
            let one_host = |vm| vm == VmId::PARENT || vm == VmId::SILOHOST;
            let same = other.vm == vm || one_host(other.vm) && one_host(vm);
            if other.partition == p && other.service == service && same {
                return Err(Refusal::AddressInUse);
            }
        }
        let here = there.clone().filter(|l| l.partition == p).count();
        room("listeners", there.count(), self.limits.listeners)?;
        room(
            "listeners_per_partition",
            here,
            self.limits.listeners_per_partition,
        )?;
        let backlog = backlog.min(self.limits.backlog_max).max(1) as usize;
        self.listeners.push(Listening {
            there: true,
            partition: p,
            who: who.clone(),
            vm,
            service,
            backlog,
        });
        Ok(())
    }

    /// Inside a partition nothing has to be registered, and what its registry switches off is off.
    pub(super) fn not_switched_off(&self, p: usize, service: ServiceId) -> Result<(), Refusal> {
        match self.registered(p, service) {
            Some(entry) => Self::enabled(entry, &[None]),
            None => Ok(()),
        }
    }

    /// Whether a listener could ever hear anybody, by the registries.
    pub(super) fn may_receive(
        &self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(), Refusal> {
        if vm == VmId::LOOPBACK {
            return self.not_switched_off(p, service);
        }
        let me = &self.partitions[p];
        // Each way that connections may come: whose registry, and the ends that are its children.
        let mut ways: Vec<(usize, Vec<&Part>)> = vec![];
        if (vm == VmId::WILDCARD || vm == VmId::PARENT || vm == VmId::SILOHOST)
            && let Some(parent) = me.parent
        {
            ways.push((parent, vec![me]));
        }
        if vm == VmId::WILDCARD || vm == VmId::CHILDREN {
            ways.push((p, vec![]));
        }
        for (q, other) in self.partitions.iter().enumerate() {
            if other.there && other.id == vm {
                ways.push(self.registry_between(p, q));
            }
        }
        let mut answer = Err(Refusal::Unregistered);
        for (owner, children) in ways {
            let Some(entry) = self.registered(owner, service) else {
                continue;
            };
            let way = |names: &[Option<&PartitionName>]| {
                Self::enabled(entry, names)?;
                let asker = if owner == p {
                    Who::Process(who)
                } else {
                    Who::Child(me)
                };
                self.access(owner, entry, true, asker, names)
                    .map_err(|no| no.refusal(owner == p))?;
                if vm == VmId::WILDCARD {
                    self.wildcard(owner, entry, names)?;
                }
                Ok(())
            };
            let mut may = way(&Self::names(&children));
            if children.is_empty() {
                for child in entry.vm.keys() {
                    if way(&[Some(child)]).is_ok() {
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

fn room(which: &str, used: usize, limit: usize) -> Result<(), Refusal> {
    if used >= limit {
        let which = which.to_owned();
        return Err(Refusal::LimitReached { which });
    }
    Ok(())
}
