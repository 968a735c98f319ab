//! A brute-force model of the fabric: plain lists, searched linearly.
//!
//! It shares only the request and result types with the fabric. The fabric re-evaluates only the
//! dependents of a change; the model rechecks everything after every change.

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_fabric::{ConnectionEnd, Limits, PartitionKind, PartitionState, Refusal};
use hvsock_registry::{Defaults, Principal, Registration};

mod changes;
mod requests;
mod rules;
mod table;

/// All present and past objects. Numbers are indexes of these lists.
pub struct Model {
    pub partitions: Vec<ModelPartition>,
    pub listeners: Vec<ModelListener>,
    pub connections: Vec<ModelConnection>,
    pub limits: Limits,
    /// The root's parent.
    pub outer: Option<usize>,
    /// Whether the registry of that one is known.
    pub mirrored: bool,
    /// The effects of the last change.
    pub effects: Vec<ModelEffect>,
}

pub struct ModelPartition {
    pub exists: bool,
    pub kind: PartitionKind,
    pub name: PartitionName,
    pub id: VmId,
    pub groups: Vec<String>,
    pub state: PartitionState,
    pub parent: Option<usize>,
    pub services: Vec<Registration>,
    /// What registrations of the same services inherit: the last one of an id counts.
    pub built_in: Vec<Registration>,
    pub defaults: Defaults,
}

pub struct ModelListener {
    pub exists: bool,
    pub partition: usize,
    pub who: Principal,
    pub vm: VmId,
    pub service: ServiceId,
    pub backlog: usize,
}

pub struct ModelConnection {
    pub exists: bool,
    pub from: usize,
    pub to: usize,
    /// The accepting listener; `None` for a guest.
    pub listener: Option<usize>,
    pub service: ServiceId,
    pub waiting: bool,
    pub suspended: bool,
    pub connected_suspend: [bool; 2],
    pub weight: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelEffect {
    ResetConnection(usize, String),
    CloseListener(usize, String),
    Suspend(usize),
    Resume(usize),
}

impl Model {
    pub fn new(kind: PartitionKind, name: PartitionName, id: VmId, limits: Limits) -> Self {
        let root = ModelPartition {
            exists: true,
            kind,
            name,
            id,
            groups: vec![],
            state: PartitionState::Running,
            parent: None,
            services: vec![],
            built_in: vec![],
            defaults: Defaults::default(),
        };
        Model {
            partitions: vec![root],
            listeners: vec![],
            connections: vec![],
            limits,
            outer: None,
            mirrored: false,
            effects: vec![],
        }
    }

    pub(super) fn state(&self, p: usize) -> PartitionState {
        let mut all = vec![self.partitions[p].state];
        let mut next = self.partitions[p].parent;
        while let Some(q) = next {
            all.push(self.partitions[q].state);
            next = self.partitions[q].parent;
        }
        use PartitionState::{Connected, Defined, Exited, Off, Paused, Running, Unknown};
        // By how little each allows.
        let order = [Off, Exited, Defined, Connected, Paused, Unknown, Running];
        order.into_iter().find(|state| all.contains(state)).unwrap()
    }

    /// The parent's parent. The host outside knows the containers of the root, and not its virtual machines.
    pub fn grandparent(&self, p: usize) -> Option<usize> {
        let above = self.partitions[self.partitions[p].parent?].parent?;
        let is_vm = self.partitions[p].kind == PartitionKind::Vm;
        (self.outer != Some(above) || !is_vm).then_some(above)
    }

    /// The virtual machine that a container is in, as its host sees it.
    pub fn vm_of(&self, p: &ModelPartition) -> Option<&ModelPartition> {
        let parent = p.parent.filter(|parent| *parent != 0)?;
        (p.kind == PartitionKind::Container).then(|| &self.partitions[parent])
    }

    pub(super) fn runs(&self, p: usize) -> Result<(), Refusal> {
        match self.state(p) {
            PartitionState::Running | PartitionState::Unknown => Ok(()),
            PartitionState::Paused => Err(Refusal::PartitionPaused),
            PartitionState::Off | PartitionState::Defined => Err(Refusal::PartitionOff),
            PartitionState::Connected => Err(Refusal::NoDriver),
            PartitionState::Exited => Err(Refusal::PartitionExited),
        }
    }

    pub(super) fn is_in(&self, p: usize, outer: usize) -> bool {
        let mut next = Some(p);
        while let Some(q) = next {
            if q == outer {
                return true;
            }
            next = self.partitions[q].parent;
        }
        false
    }

    pub fn set_weight(&mut self, n: usize, weight: usize) -> Result<(), Refusal> {
        let c = &self.connections[n];
        if !c.exists {
            return Err(Refusal::NoListener);
        }
        if weight > c.weight {
            self.check_weight(&[c.from, c.to], weight - c.weight)?;
        }
        self.connections[n].weight = weight;
        Ok(())
    }

    /// Checks that this weight fits in all and in these partitions.
    pub(super) fn check_weight(&self, ends: &[usize], more: usize) -> Result<(), Refusal> {
        let weight = |fits: &dyn Fn(&ModelConnection) -> bool| {
            let open = self.connections.iter().filter(|c| c.exists && fits(c));
            open.map(|c| c.weight).sum::<usize>()
        };
        let check = |which: &str, used: usize, limit: usize| match used + more > limit {
            true => Err(Refusal::LimitReached {
                which: which.to_owned(),
            }),
            false => Ok(()),
        };
        check("connections", weight(&|_| true), self.limits.connections)?;
        for q in ends {
            check(
                "connections_per_partition",
                weight(&|c| c.from == *q || c.to == *q),
                self.limits.connections_per_partition,
            )?;
        }
        Ok(())
    }

    pub fn accept(&mut self, n: usize) {
        self.connections[n].waiting = false;
    }

    pub fn set_connected_suspend(&mut self, n: usize, end: ConnectionEnd, keep: bool) {
        self.connections[n].connected_suspend[usize::from(end == ConnectionEnd::Server)] = keep;
    }

    pub fn close_connection(&mut self, n: usize) {
        self.connections[n].exists = false;
    }

    pub fn close_listener(&mut self, n: usize) {
        if self.listeners[n].exists {
            self.listeners[n].exists = false;
            self.reset_pending(n, &Refusal::NoListener);
        }
    }

    pub(super) fn reset_pending(&mut self, listener: usize, refusal: &Refusal) {
        for n in 0..self.connections.len() {
            if self.connections[n].waiting && self.connections[n].listener == Some(listener) {
                self.reset_connection(n, refusal);
            }
        }
    }

    pub(super) fn reset_connection(&mut self, n: usize, refusal: &Refusal) {
        if self.connections[n].exists {
            self.connections[n].exists = false;
            self.effects
                .push(ModelEffect::ResetConnection(n, format!("{refusal:?}")));
        }
    }

    pub(super) fn terminate_listener(&mut self, n: usize, refusal: &Refusal) {
        if self.listeners[n].exists {
            self.listeners[n].exists = false;
            self.effects
                .push(ModelEffect::CloseListener(n, format!("{refusal:?}")));
            self.reset_pending(n, refusal);
        }
    }
}

fn same(one: Option<&PartitionName>, other: Option<&PartitionName>) -> bool {
    let folded = |name: &PartitionName| name.as_str().to_lowercase();
    one.map(folded) == other.map(folded)
}
