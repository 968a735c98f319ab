//! Changes by operators. Each rechecks everything.

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_fabric::{PartitionKind, PartitionState, Refusal};
use hvsock_registry::{Defaults, Registration};

use super::super::ops::{AddPartition, partition_name};
use super::{Model, ModelEffect, ModelPartition, same};

impl Model {
    pub fn add_partition(&mut self, new: AddPartition, parent: usize) -> Result<(), &'static str> {
        let outer = &self.partitions[parent];
        if !outer.exists {
            return Err("NoParent");
        }
        if self.outer == Some(parent) {
            return Err("Outer");
        }
        let fits = match outer.kind {
            PartitionKind::Host => new.kind != PartitionKind::Host,
            // The broker's own machine may be virtual and the host of others.
            PartitionKind::Vm if parent == 0 => new.kind != PartitionKind::Host,
            PartitionKind::Vm => new.kind == PartitionKind::Container,
            PartitionKind::Container => false,
        };
        if !fits {
            return Err("Kind");
        }
        if new.id.is_well_known() {
            return Err("IdReserved");
        }
        let fits = match new.name.as_str().split_once('/') {
            None => parent == 0,
            Some((vm, _)) => parent != 0 && vm.to_lowercase() == outer.name.as_str().to_lowercase(),
        };
        if !fits {
            return Err("Nesting");
        }
        let existing = self.partitions.iter().filter(|p| p.exists);
        if existing
            .clone()
            .any(|p| same(Some(&p.name), Some(&new.name)))
        {
            return Err("NameTaken");
        }
        if existing.clone().any(|p| p.id == new.id) {
            return Err("IdTaken");
        }
        if existing.count() - usize::from(self.outer.is_some()) >= self.limits.partitions
            || new.groups.len() > self.limits.groups_per_partition
        {
            return Err("LimitReached");
        }
        self.partitions.push(ModelPartition {
            exists: true,
            kind: new.kind,
            name: new.name,
            id: new.id,
            groups: new.groups,
            state: new.state,
            parent: Some(parent),
            services: vec![],
            built_in: vec![],
            defaults: Defaults::default(),
        });
        Ok(())
    }

    pub fn set_outer(&mut self, name: &PartitionName, id: VmId) -> Result<(), &'static str> {
        if self.partitions[0].kind != PartitionKind::Vm {
            return Err("Kind");
        }
        if name.as_str().contains('/') {
            return Err("Nesting");
        }
        if id.is_well_known() {
            return Err("IdReserved");
        }
        let others = |n: usize| self.partitions[n].exists && self.outer != Some(n);
        let others: Vec<_> = (0..self.partitions.len()).filter(|n| others(*n)).collect();
        if others.iter().any(|n| self.partitions[*n].id == id) {
            return Err("IdTaken");
        }
        let mut free = name.clone();
        let mut tries = 0;
        while others
            .iter()
            .any(|n| same(Some(&self.partitions[*n].name), Some(&free)))
        {
            tries += 1;
            free = match tries {
                1 => partition_name(&format!("{name}-host")),
                _ => partition_name(&format!("{name}-host-{tries}")),
            };
        }
        let outer = self.outer.unwrap_or(self.partitions.len());
        if self.outer.is_none() {
            self.partitions.push(ModelPartition {
                exists: true,
                kind: PartitionKind::Host,
                name: free.clone(),
                id,
                groups: vec![],
                state: PartitionState::Running,
                parent: None,
                services: vec![],
                built_in: vec![],
                defaults: Defaults::default(),
            });
            self.outer = Some(outer);
            self.partitions[0].parent = Some(outer);
        }
        let host = &mut self.partitions[outer];
        host.name = free;
        if host.id != id {
            host.id = id;
            (host.services, host.built_in) = (vec![], vec![]);
            host.defaults = Defaults::default();
            self.mirrored = false;
            for n in 0..self.connections.len() {
                if self.connections[n].from == outer || self.connections[n].to == outer {
                    self.reset_connection(n, &Refusal::PartitionOff);
                }
            }
        }
        self.recheck_everything();
        Ok(())
    }

    pub fn set_mirrored(&mut self, mirrored: bool) {
        if self.outer.is_some() {
            self.mirrored = mirrored;
            self.recheck_everything();
        }
    }

    pub fn remove_partition(&mut self, p: usize) -> Result<(), &'static str> {
        if p == 0 {
            return Err("Root");
        }
        if self.outer == Some(p) {
            return Err("Outer");
        }
        if !self.partitions[p].exists {
            return Err("Gone");
        }
        self.switch_off(p, &Refusal::PartitionOff);
        for q in 0..self.partitions.len() {
            if self.is_in(q, p) {
                self.partitions[q].exists = false;
            }
        }
        self.recheck_everything();
        Ok(())
    }

    pub fn set_state(&mut self, p: usize, state: PartitionState) -> Result<(), &'static str> {
        if p == 0 && state != PartitionState::Running {
            return Err("Root");
        }
        if self.outer == Some(p) && state != PartitionState::Running {
            return Err("Outer");
        }
        if !self.partitions[p].exists {
            return Err("Gone");
        }
        if self.partitions[p].state == state {
            return Ok(());
        }
        self.partitions[p].state = state;
        match state {
            PartitionState::Off | PartitionState::Defined => {
                self.switch_off(p, &Refusal::PartitionOff);
            }
            PartitionState::Connected => self.switch_off(p, &Refusal::NoDriver),
            PartitionState::Exited => self.switch_off(p, &Refusal::PartitionExited),
            PartitionState::Paused => {
                for n in 0..self.connections.len() {
                    let c = &self.connections[n];
                    let (from_in, to_in) = (self.is_in(c.from, p), self.is_in(c.to, p));
                    if !c.exists || !(from_in || to_in) {
                        continue;
                    }
                    let kept = c.connected_suspend[0] || c.connected_suspend[1] || from_in && to_in;
                    if !kept {
                        self.reset_connection(n, &Refusal::PartitionPaused);
                    } else if !c.suspended {
                        self.connections[n].suspended = true;
                        self.effects.push(ModelEffect::Suspend(n));
                    }
                }
            }
            PartitionState::Running | PartitionState::Unknown => {
                for n in 0..self.connections.len() {
                    let c = &self.connections[n];
                    if c.exists
                        && c.suspended
                        && self.runs(c.from).is_ok()
                        && self.runs(c.to).is_ok()
                    {
                        self.connections[n].suspended = false;
                        self.effects.push(ModelEffect::Resume(n));
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn switch_off(&mut self, p: usize, refusal: &Refusal) {
        for n in 0..self.connections.len() {
            let c = &self.connections[n];
            if self.is_in(c.from, p) || self.is_in(c.to, p) {
                self.reset_connection(n, refusal);
            }
        }
        for n in 0..self.listeners.len() {
            if self.is_in(self.listeners[n].partition, p) {
                self.terminate_listener(n, refusal);
            }
        }
    }

    pub fn set_groups(&mut self, p: usize, groups: Vec<String>) -> Result<(), &'static str> {
        if groups.len() > self.limits.groups_per_partition {
            return Err("LimitReached");
        }
        if !self.partitions[p].exists {
            return Err("Gone");
        }
        self.partitions[p].groups = groups;
        self.recheck_everything();
        Ok(())
    }

    /// Adds a registration, or replaces one if `replace`.
    pub fn register(
        &mut self,
        p: usize,
        new: Registration,
        replace: bool,
    ) -> Result<(), &'static str> {
        let limit = self.limits.registrations;
        let built_in = self.partitions[p].built_in.clone();
        let Some(services) = self.services(p) else {
            return Err("NoRegistry");
        };
        let known = services.iter().any(|entry| entry.id == new.id);
        if services.len() >= limit && !(replace && known) {
            return Err("LimitReached");
        }
        if known && !replace {
            return Err(if new.id.port().is_some() {
                "Port"
            } else {
                "Id"
            });
        }
        if new.id == ServiceId::ZERO {
            return Err("Zero");
        }
        let same_name = |entry: &&Registration| {
            entry.name.as_str().to_lowercase() == new.name.as_str().to_lowercase()
        };
        // A built-in service's name is reserved.
        if services
            .iter()
            .chain(&built_in)
            .filter(same_name)
            .any(|entry| entry.id != new.id)
        {
            return Err("Name");
        }
        services.retain(|entry| entry.id != new.id);
        services.push(new);
        self.recheck_everything();
        Ok(())
    }

    pub fn unregister(&mut self, p: usize, service: ServiceId) -> bool {
        let Some(services) = self.services(p) else {
            return false;
        };
        let before = services.len();
        services.retain(|entry| entry.id != service);
        let removed = services.len() < before;
        self.recheck_everything();
        removed
    }

    pub fn set_defaults(&mut self, p: usize, defaults: Defaults) -> Result<(), &'static str> {
        self.services(p).ok_or("NoRegistry")?;
        self.partitions[p].defaults = defaults;
        self.recheck_everything();
        Ok(())
    }

    pub fn set_registry(
        &mut self,
        p: usize,
        all: Vec<Registration>,
        built_in: Vec<Registration>,
    ) -> Result<(), &'static str> {
        if all.len() > self.limits.registrations {
            return Err("LimitReached");
        }
        *self.services(p).ok_or("NoRegistry")? = all;
        // Of two with one id, the last counts.
        let mut lasting: Vec<Registration> = vec![];
        for one in built_in {
            lasting.retain(|earlier| earlier.id != one.id);
            lasting.push(one);
        }
        self.partitions[p].built_in = lasting;
        self.partitions[p].defaults = Defaults::default();
        self.recheck_everything();
        Ok(())
    }

    pub(super) fn services(&mut self, p: usize) -> Option<&mut Vec<Registration>> {
        let owner = &mut self.partitions[p];
        let has = owner.exists && owner.kind != PartitionKind::Container;
        has.then_some(&mut owner.services)
    }

    /// Resets every connection whose service is no longer registered and enabled, then closes every
    /// listener that can no longer accept connections.
    pub(super) fn recheck_everything(&mut self) {
        for n in 0..self.connections.len() {
            let c = &self.connections[n];
            if !c.exists {
                continue;
            }
            let still = if c.from == c.to {
                self.not_disabled(c.from, c.service)
            } else if self.host_judges(c.from, c.to) {
                Ok(())
            } else {
                let (owner, children) = self.registry_between(c.from, c.to);
                match self.registered(owner, c.service) {
                    None => Err(Refusal::Unregistered),
                    Some(entry) => self.enabled(owner, entry, &Self::names(&children)),
                }
            };
            if let Err(refusal) = still {
                self.reset_connection(n, &refusal);
            }
        }
        for n in 0..self.listeners.len() {
            let l = &self.listeners[n];
            if !l.exists {
                continue;
            }
            let still = self
                .check_listen_address(l.partition, l.vm)
                .and_then(|()| self.may_accept(l.partition, &l.who, l.vm, l.service));
            if let Err(refusal) = still {
                self.terminate_listener(n, &refusal);
            }
        }
    }
}
