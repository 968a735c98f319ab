//! DESIGN's rules, read a second time: plain lists, searched from end to end for every question.
//!
//! This shares nothing with the fabric but the types in which it is asked and answers. Where the
//! fabric looks again only at what a change touches, this looks at everything after every change.

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_fabric::{End, Limits, PartitionKind, PartitionState, Refusal};
use hvsock_registry::{AccessRule, Defaults, Principal, Registration};

use crate::ops::{AddPartition, BROKER_UID};

/// Everything there is or was; numbers are places in these lists.
pub struct Reading {
    pub partitions: Vec<Part>,
    pub listeners: Vec<Listening>,
    pub connections: Vec<Connected>,
    pub limits: Limits,
    /// What the last change did to others.
    pub effects: Vec<Did>,
}

pub struct Part {
    pub there: bool,
    pub kind: PartitionKind,
    pub name: PartitionName,
    pub id: VmId,
    pub groups: Vec<String>,
    pub state: PartitionState,
    pub parent: Option<usize>,
    pub services: Vec<Registration>,
    pub defaults: Defaults,
}

pub struct Listening {
    pub there: bool,
    pub partition: usize,
    pub who: Principal,
    pub vm: VmId,
    pub service: ServiceId,
    pub backlog: usize,
}

pub struct Connected {
    pub there: bool,
    pub from: usize,
    pub to: usize,
    pub listener: usize,
    pub service: ServiceId,
    pub waiting: bool,
    pub suspended: bool,
    pub keeps: [bool; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Did {
    CutConnection(usize, String),
    CutListener(usize, String),
    Suspend(usize),
    Resume(usize),
}

/// Who asks for access.
#[derive(Clone, Copy)]
enum Who<'a> {
    Process(&'a Principal),
    Child(&'a Part),
}

/// How an access rule is spelled for a reader of the registry, and for others.
struct No {
    full: String,
    brief: String,
}

impl Reading {
    pub fn new(kind: PartitionKind, name: PartitionName, id: VmId, limits: Limits) -> Self {
        let root = Part {
            there: true,
            kind,
            name,
            id,
            groups: vec![],
            state: PartitionState::Running,
            parent: None,
            services: vec![],
            defaults: Defaults::default(),
        };
        Reading {
            partitions: vec![root],
            listeners: vec![],
            connections: vec![],
            limits,
            effects: vec![],
        }
    }

    // The table.

    pub fn connect_goes_to(&self, p: usize, vm: VmId) -> Result<usize, Refusal> {
        let me = &self.partitions[p];
        if vm == VmId::ZERO {
            return me.parent.ok_or(Refusal::AddressNotAvailable);
        }
        if vm == VmId::PARENT {
            return me.parent.ok_or(Refusal::NotSupported);
        }
        if vm == VmId::CHILDREN || vm == VmId::BROADCAST {
            return Err(Refusal::AddressNotAvailable);
        }
        if vm == VmId::LOOPBACK {
            return Ok(p);
        }
        if vm == VmId::SILOHOST {
            if me.kind != PartitionKind::Container {
                return Err(Refusal::AddressNotAvailable);
            }
            return me.parent.ok_or(Refusal::NotSupported);
        }
        self.partition_by_id(p, vm)
    }

    fn partition_by_id(&self, p: usize, id: VmId) -> Result<usize, Refusal> {
        for (q, other) in self.partitions.iter().enumerate() {
            if other.there && other.id == id {
                if other.parent == Some(p) || (p != q && self.in_one_group(p, q)) {
                    return Ok(q);
                }
                return Err(Refusal::NotReachable);
            }
        }
        if self.partitions[p].parent.is_none() {
            Err(Refusal::PartitionUnknown)
        } else {
            Err(Refusal::NotReachable)
        }
    }

    /// Whether the two are siblings in one sibling group.
    pub fn in_one_group(&self, p: usize, q: usize) -> bool {
        let (one, other) = (&self.partitions[p], &self.partitions[q]);
        if one.parent.is_none() || one.parent != other.parent {
            return false;
        }
        for group in &one.groups {
            for its in &other.groups {
                if group == its {
                    return true;
                }
            }
        }
        false
    }

    fn check_listen_address(&self, p: usize, vm: VmId) -> Result<(), Refusal> {
        let me = &self.partitions[p];
        let container = me.kind == PartitionKind::Container;
        if vm == VmId::WILDCARD || vm == VmId::LOOPBACK {
            Ok(())
        } else if vm == VmId::PARENT {
            me.parent.map(drop).ok_or(Refusal::NotSupported)
        } else if vm == VmId::CHILDREN {
            if container {
                Err(Refusal::NotSupported)
            } else {
                Ok(())
            }
        } else if vm == VmId::BROADCAST {
            Err(Refusal::AddressNotAvailable)
        } else if vm == VmId::SILOHOST {
            if !container {
                return Err(Refusal::AddressNotAvailable);
            }
            me.parent.map(drop).ok_or(Refusal::NotSupported)
        } else {
            self.partition_by_id(p, vm).map(drop)
        }
    }

    /// Whether a listener of `p` at `vm` hears a connect from `q`, and how particular it is.
    fn hears(&self, p: usize, vm: VmId, q: usize) -> Option<u8> {
        if vm == VmId::WILDCARD {
            return Some(2);
        }
        let hears = if vm == VmId::LOOPBACK {
            p == q
        } else if vm == VmId::PARENT || vm == VmId::SILOHOST {
            self.partitions[p].parent == Some(q)
        } else if vm == VmId::CHILDREN {
            self.partitions[q].parent == Some(p)
        } else {
            return (self.partitions[q].id == vm).then_some(0);
        };
        hears.then_some(1)
    }

    // The registry.

    /// The partition whose registry decides between two, and which of them are its children.
    fn registry_between(&self, p: usize, q: usize) -> (usize, Vec<&Part>) {
        let (one, other) = (&self.partitions[p], &self.partitions[q]);
        if one.parent == Some(q) {
            (q, vec![one])
        } else if other.parent == Some(p) {
            (p, vec![other])
        } else {
            (
                one.parent.expect("siblings have a parent"),
                vec![one, other],
            )
        }
    }

    fn registered(&self, owner: usize, service: ServiceId) -> Option<&Registration> {
        let owner = &self.partitions[owner];
        if owner.kind == PartitionKind::Container {
            return None;
        }
        owner.services.iter().find(|entry| entry.id == service)
    }

    /// The names under which overrides apply; `None` where there is no particular child.
    fn names<'a>(children: &[&'a Part]) -> Vec<Option<&'a PartitionName>> {
        if children.is_empty() {
            vec![None]
        } else {
            children.iter().map(|child| Some(&child.name)).collect()
        }
    }

    fn enabled(entry: &Registration, names: &[Option<&PartitionName>]) -> Result<(), Refusal> {
        for name in names {
            let mut enabled = entry.enabled;
            let mut by = format!("enabled = {enabled}");
            for (child, over) in &entry.vm {
                if let (true, Some(its)) = (same(Some(child), *name), over.enabled) {
                    enabled = its;
                    by = format!("vm.{}.enabled = {enabled}", key(child));
                }
            }
            if !enabled {
                return Err(Refusal::Disabled { by });
            }
        }
        Ok(())
    }

    fn wildcard(
        &self,
        owner: usize,
        entry: &Registration,
        names: &[Option<&PartitionName>],
    ) -> Result<(), Refusal> {
        for name in names {
            let mut allowed = self.partitions[owner].defaults.allow_wildcard_binds;
            if let Some(own) = entry.allow_wildcard_binds {
                allowed = own;
            }
            for (child, over) in &entry.vm {
                if let (true, Some(its)) = (same(Some(child), *name), over.allow_wildcard_binds) {
                    allowed = its;
                }
            }
            if !allowed {
                return Err(Refusal::WildcardNotAllowed);
            }
        }
        Ok(())
    }

    /// Whether a bind (or else a connect) is allowed to `who` by every override that applies.
    fn access(
        &self,
        owner: usize,
        entry: &Registration,
        bind: bool,
        who: Who<'_>,
        names: &[Option<&PartitionName>],
    ) -> Result<(), No> {
        for name in names {
            let defaults = &self.partitions[owner].defaults;
            let mut rules: Vec<(String, &AccessRule)> = vec![];
            for (child, over) in &entry.vm {
                if same(Some(child), *name) {
                    let rule = if bind { &over.bind } else { &over.connect };
                    rules.push((format!("vm.{}.", key(child)), rule));
                }
            }
            rules.push((
                String::new(),
                if bind { &entry.bind } else { &entry.connect },
            ));
            let rule = if bind {
                &defaults.bind
            } else {
                &defaults.connect
            };
            rules.push(("defaults: ".to_owned(), rule));
            match who {
                Who::Process(process) => process_may(entry, bind, process, &rules)?,
                Who::Child(child) => child_may(bind, child, &rules)?,
            }
        }
        Ok(())
    }

    // Requests.

    pub fn connect(
        &mut self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(usize, usize), Refusal> {
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

    fn judge_connect(
        &self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(usize, usize), Refusal> {
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
        for (at, (_, n)) in hearing.into_iter().enumerate() {
            let listener = &self.listeners[n];
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
                    answer = Ok(n);
                    break;
                }
                Err(refusal) if at == 0 => answer = Err(refusal),
                Err(_) => {}
            }
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
        let waiting = open
            .clone()
            .filter(|c| c.waiting && c.listener == listener)
            .count();
        if waiting >= self.listeners[listener].backlog {
            return Err(Refusal::BacklogFull);
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

    /// Whether a listener could ever hear anybody, by the registries.
    fn may_receive(
        &self,
        p: usize,
        who: &Principal,
        vm: VmId,
        service: ServiceId,
    ) -> Result<(), Refusal> {
        if vm == VmId::LOOPBACK {
            return Ok(());
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

    // States.

    fn state(&self, p: usize) -> PartitionState {
        let mut all = vec![self.partitions[p].state];
        let mut next = self.partitions[p].parent;
        while let Some(q) = next {
            all.push(self.partitions[q].state);
            next = self.partitions[q].parent;
        }
        if all.contains(&PartitionState::Off) {
            PartitionState::Off
        } else if all.contains(&PartitionState::Paused) {
            PartitionState::Paused
        } else {
            PartitionState::Running
        }
    }

    fn runs(&self, p: usize) -> Result<(), Refusal> {
        match self.state(p) {
            PartitionState::Running => Ok(()),
            PartitionState::Paused => Err(Refusal::PartitionPaused),
            PartitionState::Off => Err(Refusal::PartitionOff),
        }
    }

    fn is_in(&self, p: usize, outer: usize) -> bool {
        let mut next = Some(p);
        while let Some(q) = next {
            if q == outer {
                return true;
            }
            next = self.partitions[q].parent;
        }
        false
    }

    // Changes.

    pub fn add_partition(&mut self, new: AddPartition, parent: usize) -> Result<(), &'static str> {
        let outer = &self.partitions[parent];
        if !outer.there {
            return Err("NoParent");
        }
        let fits = match outer.kind {
            PartitionKind::Host => new.kind != PartitionKind::Host,
            PartitionKind::Vm => new.kind == PartitionKind::Container,
            PartitionKind::Container => false,
        };
        if !fits {
            return Err("Kind");
        }
        if new.id.is_well_known() {
            return Err("IdReserved");
        }
        let there = self.partitions.iter().filter(|p| p.there);
        if there.clone().any(|p| same(Some(&p.name), Some(&new.name))) {
            return Err("NameTaken");
        }
        if there.clone().any(|p| p.id == new.id) {
            return Err("IdTaken");
        }
        if there.count() >= self.limits.partitions
            || new.groups.len() > self.limits.groups_per_partition
        {
            return Err("LimitReached");
        }
        self.partitions.push(Part {
            there: true,
            kind: new.kind,
            name: new.name,
            id: new.id,
            groups: new.groups,
            state: new.state,
            parent: Some(parent),
            services: vec![],
            defaults: Defaults::default(),
        });
        Ok(())
    }

    pub fn remove_partition(&mut self, p: usize) -> Result<(), &'static str> {
        if p == 0 {
            return Err("Root");
        }
        if !self.partitions[p].there {
            return Err("Gone");
        }
        self.switch_off(p);
        for q in 0..self.partitions.len() {
            if self.is_in(q, p) {
                self.partitions[q].there = false;
            }
        }
        self.look_at_everything();
        Ok(())
    }

    pub fn set_state(&mut self, p: usize, state: PartitionState) -> Result<(), &'static str> {
        if p == 0 && state != PartitionState::Running {
            return Err("Root");
        }
        if !self.partitions[p].there {
            return Err("Gone");
        }
        if self.partitions[p].state == state {
            return Ok(());
        }
        self.partitions[p].state = state;
        match state {
            PartitionState::Off => self.switch_off(p),
            PartitionState::Paused => {
                for n in 0..self.connections.len() {
                    let c = &self.connections[n];
                    let (from_in, to_in) = (self.is_in(c.from, p), self.is_in(c.to, p));
                    if !c.there || !(from_in || to_in) {
                        continue;
                    }
                    let kept = c.keeps[0] || c.keeps[1] || from_in && to_in;
                    if !kept {
                        self.cut_connection(n, &Refusal::PartitionPaused);
                    } else if !c.suspended {
                        self.connections[n].suspended = true;
                        self.effects.push(Did::Suspend(n));
                    }
                }
            }
            PartitionState::Running => {
                for n in 0..self.connections.len() {
                    let c = &self.connections[n];
                    if c.there
                        && c.suspended
                        && self.runs(c.from).is_ok()
                        && self.runs(c.to).is_ok()
                    {
                        self.connections[n].suspended = false;
                        self.effects.push(Did::Resume(n));
                    }
                }
            }
        }
        Ok(())
    }

    fn switch_off(&mut self, p: usize) {
        for n in 0..self.connections.len() {
            let c = &self.connections[n];
            if self.is_in(c.from, p) || self.is_in(c.to, p) {
                self.cut_connection(n, &Refusal::PartitionOff);
            }
        }
        for n in 0..self.listeners.len() {
            if self.is_in(self.listeners[n].partition, p) {
                self.cut_listener(n, &Refusal::PartitionOff);
            }
        }
    }

    pub fn set_groups(&mut self, p: usize, groups: Vec<String>) -> Result<(), &'static str> {
        if groups.len() > self.limits.groups_per_partition {
            return Err("LimitReached");
        }
        if !self.partitions[p].there {
            return Err("Gone");
        }
        self.partitions[p].groups = groups;
        self.look_at_everything();
        Ok(())
    }

    /// Adds an entry, or puts it in place of another if `replace`.
    pub fn register(
        &mut self,
        p: usize,
        new: Registration,
        replace: bool,
    ) -> Result<(), &'static str> {
        let limit = self.limits.registrations;
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
        if services
            .iter()
            .filter(same_name)
            .any(|entry| entry.id != new.id)
        {
            return Err("Name");
        }
        services.retain(|entry| entry.id != new.id);
        services.push(new);
        self.look_at_everything();
        Ok(())
    }

    pub fn unregister(&mut self, p: usize, service: ServiceId) -> bool {
        let Some(services) = self.services(p) else {
            return false;
        };
        let before = services.len();
        services.retain(|entry| entry.id != service);
        let removed = services.len() < before;
        self.look_at_everything();
        removed
    }

    pub fn set_defaults(&mut self, p: usize, defaults: Defaults) -> Result<(), &'static str> {
        self.services(p).ok_or("NoRegistry")?;
        self.partitions[p].defaults = defaults;
        self.look_at_everything();
        Ok(())
    }

    pub fn set_registry(&mut self, p: usize, all: Vec<Registration>) -> Result<(), &'static str> {
        if all.len() > self.limits.registrations {
            return Err("LimitReached");
        }
        *self.services(p).ok_or("NoRegistry")? = all;
        self.partitions[p].defaults = Defaults::default();
        self.look_at_everything();
        Ok(())
    }

    fn services(&mut self, p: usize) -> Option<&mut Vec<Registration>> {
        let owner = &mut self.partitions[p];
        let has = owner.there && owner.kind != PartitionKind::Container;
        has.then_some(&mut owner.services)
    }

    /// Cuts every connection whose service is no longer registered and enabled, then every
    /// listener that could no longer receive.
    fn look_at_everything(&mut self) {
        for n in 0..self.connections.len() {
            let c = &self.connections[n];
            if !c.there || c.from == c.to {
                continue;
            }
            let (owner, children) = self.registry_between(c.from, c.to);
            let still = match self.registered(owner, c.service) {
                None => Err(Refusal::Unregistered),
                Some(entry) => Self::enabled(entry, &Self::names(&children)),
            };
            if let Err(refusal) = still {
                self.cut_connection(n, &refusal);
            }
        }
        for n in 0..self.listeners.len() {
            let l = &self.listeners[n];
            if !l.there {
                continue;
            }
            let still = self
                .check_listen_address(l.partition, l.vm)
                .and_then(|()| self.may_receive(l.partition, &l.who, l.vm, l.service));
            if let Err(refusal) = still {
                self.cut_listener(n, &refusal);
            }
        }
    }

    // News.

    pub fn accept(&mut self, n: usize) {
        self.connections[n].waiting = false;
    }

    pub fn set_connected_suspend(&mut self, n: usize, end: End, keep: bool) {
        self.connections[n].keeps[usize::from(end == End::Server)] = keep;
    }

    pub fn close_connection(&mut self, n: usize) {
        self.connections[n].there = false;
    }

    pub fn close_listener(&mut self, n: usize) {
        if self.listeners[n].there {
            self.listeners[n].there = false;
            self.cut_waiting(n, &Refusal::NoListener);
        }
    }

    fn cut_waiting(&mut self, listener: usize, refusal: &Refusal) {
        for n in 0..self.connections.len() {
            if self.connections[n].waiting && self.connections[n].listener == listener {
                self.cut_connection(n, refusal);
            }
        }
    }

    fn cut_connection(&mut self, n: usize, refusal: &Refusal) {
        if self.connections[n].there {
            self.connections[n].there = false;
            self.effects
                .push(Did::CutConnection(n, format!("{refusal:?}")));
        }
    }

    fn cut_listener(&mut self, n: usize, refusal: &Refusal) {
        if self.listeners[n].there {
            self.listeners[n].there = false;
            self.effects
                .push(Did::CutListener(n, format!("{refusal:?}")));
            self.cut_waiting(n, refusal);
        }
    }
}

impl No {
    fn refusal(self, reads_registry: bool) -> Refusal {
        let rule = if reads_registry {
            self.full
        } else {
            self.brief
        };
        Refusal::Denied { rule }
    }
}

fn same(one: Option<&PartitionName>, other: Option<&PartitionName>) -> bool {
    let folded = |name: &PartitionName| name.as_str().to_lowercase();
    one.map(folded) == other.map(folded)
}

/// A partition's name as a part of a TOML key.
fn key(name: &PartitionName) -> String {
    let text = name.as_str();
    if text.contains('.') {
        format!("{text:?}")
    } else {
        text.to_owned()
    }
}

fn room(which: &str, used: usize, limit: usize) -> Result<(), Refusal> {
    if used >= limit {
        let which = which.to_owned();
        return Err(Refusal::LimitReached { which });
    }
    Ok(())
}

fn process_may(
    entry: &Registration,
    bind: bool,
    process: &Principal,
    rules: &[(String, &AccessRule)],
) -> Result<(), No> {
    if process.uid == 0 || process.uid == BROKER_UID {
        return Ok(());
    }
    let is_user = |text: &String| {
        let is_number = text.chars().all(|c| c.is_ascii_digit());
        if is_number {
            *text == process.uid.to_string()
        } else {
            Some(text) == process.user.as_ref()
        }
    };
    let action = if bind { "bind" } else { "connect" };
    for (place, rule) in rules {
        if rule.users.is_none() && rule.groups.is_none() {
            continue;
        }
        let mut full = vec![];
        let mut brief = vec![];
        if let Some(users) = &rule.users {
            if users.iter().any(|text| text == "*" || is_user(text)) {
                return Ok(());
            }
            full.push(format!("{place}{action}.users = {users:?}"));
            brief.push(format!("{place}{action}.users"));
        }
        if let Some(groups) = &rule.groups {
            for text in groups {
                if text == "*" {
                    return Ok(());
                }
                for (id, name) in &process.groups {
                    if *text == id.to_string() || Some(text) == name.as_ref() {
                        return Ok(());
                    }
                }
            }
            full.push(format!("{place}{action}.groups = {groups:?}"));
            brief.push(format!("{place}{action}.groups"));
        }
        let (full, brief) = (full.join(", "), brief.join(", "));
        return Err(No { full, brief });
    }
    if !bind || entry.owner.as_ref().is_some_and(is_user) {
        return Ok(());
    }
    Err(No {
        full: match &entry.owner {
            Some(owner) => format!("defaults: bind allows the owner {owner}"),
            None => "defaults: bind allows the owner, and none is recorded".to_owned(),
        },
        brief: "defaults: bind".to_owned(),
    })
}

fn child_may(bind: bool, child: &Part, rules: &[(String, &AccessRule)]) -> Result<(), No> {
    let action = if bind { "bind" } else { "connect" };
    for (place, rule) in rules {
        let Some(partitions) = &rule.partitions else {
            continue;
        };
        for text in partitions {
            let by_group = child
                .groups
                .iter()
                .any(|group| *text == format!("@{group}"));
            let by_name = text.to_lowercase() == child.name.as_str().to_lowercase();
            let by_id = text.to_lowercase() == child.id.to_string();
            if text == "*" || by_group || by_name || by_id {
                return Ok(());
            }
        }
        return Err(No {
            full: format!("{place}{action}.partitions = {partitions:?}"),
            brief: format!("{place}{action}.partitions"),
        });
    }
    Ok(())
}
