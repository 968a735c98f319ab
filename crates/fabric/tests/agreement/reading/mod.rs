//! DESIGN's rules, read a second time: plain lists, searched from end to end for every question.
//!
//! This shares nothing with the fabric but the types in which it is asked and answers. Where the
//! fabric looks again only at what a change touches, this looks at everything after every change.

use hvsock_address::{PartitionName, ServiceId, VmId};
use hvsock_fabric::{End, Limits, PartitionKind, PartitionState, Refusal};
use hvsock_registry::{Defaults, Principal, Registration};

mod changes;
mod requests;
mod rules;
mod table;

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
    /// The listener that it went to; none if it went to a guest.
    pub listener: Option<usize>,
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

    pub(super) fn state(&self, p: usize) -> PartitionState {
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

    pub(super) fn runs(&self, p: usize) -> Result<(), Refusal> {
        match self.state(p) {
            PartitionState::Running => Ok(()),
            PartitionState::Paused => Err(Refusal::PartitionPaused),
            PartitionState::Off => Err(Refusal::PartitionOff),
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

    pub(super) fn cut_waiting(&mut self, listener: usize, refusal: &Refusal) {
        for n in 0..self.connections.len() {
            if self.connections[n].waiting && self.connections[n].listener == Some(listener) {
                self.cut_connection(n, refusal);
            }
        }
    }

    pub(super) fn cut_connection(&mut self, n: usize, refusal: &Refusal) {
        if self.connections[n].there {
            self.connections[n].there = false;
            self.effects
                .push(Did::CutConnection(n, format!("{refusal:?}")));
        }
    }

    pub(super) fn cut_listener(&mut self, n: usize, refusal: &Refusal) {
        if self.listeners[n].there {
            self.listeners[n].there = false;
            self.effects
                .push(Did::CutListener(n, format!("{refusal:?}")));
            self.cut_waiting(n, refusal);
        }
    }
}

fn same(one: Option<&PartitionName>, other: Option<&PartitionName>) -> bool {
    let folded = |name: &PartitionName| name.as_str().to_lowercase();
    one.map(folded) == other.map(folded)
}
