//! The connects to the host that have no stream yet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::uplink::MAX_PENDING;
use hvsock_fabric::{ConnectionId, Refusal};

/// A connect to the host.
#[derive(Clone, Debug)]
pub(super) struct Upward {
    /// The container that connects; `None` is the machine itself.
    pub(super) child: Option<VmId>,
    pub(super) service: ServiceId,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
}

/// How far a connect has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for the uplink, or for its turn there.
    Waiting,
    /// The host has been asked.
    Asked,
    /// Its stream is being connected, to a port that the host has given, or without having asked the host.
    Connecting {
        /// The host counts it.
        asked: bool,
    },
    /// Its stream has failed, for this reason, if the host gives no other one.
    Broken(Refusal),
}

/// The connects by their connection.
#[derive(Debug, Default)]
pub(super) struct Upwards {
    table: BTreeMap<ConnectionId, Upward>,
    /// Those that wait. Later connections have larger ids.
    waiting: BTreeSet<ConnectionId>,
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    /// Those that the host counts.
    counted: usize,
}

impl Upwards {
    /// Adds one that waits.
    pub(super) fn add(&mut self, id: ConnectionId, upward: Upward) {
        self.deadlines.insert((upward.deadline, id));
        self.waiting.insert(id);
        self.table.insert(id, upward);
    }

    /// Takes the next that waits, if the host accepts one more.
    pub(super) fn next_for_host(&mut self) -> Option<(ConnectionId, Upward)> {
        if self.counted >= MAX_PENDING {
            return None;
        }
        self.next_waiting()
    }

    /// Takes the next that waits. It stays in the table.
    pub(super) fn next_waiting(&mut self) -> Option<(ConnectionId, Upward)> {
        let id = self.waiting.pop_first()?;
        Some((id, self.table.get(&id)?.clone()))
    }

    /// Whether any waits.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// One.
    pub(super) fn get(&self, id: ConnectionId) -> Option<&Upward> {
        self.table.get(&id)
    }

    /// Sets how far one has come.
    pub(super) fn set_stage(&mut self, id: ConnectionId, stage: Stage) {
        if let Some(upward) = self.table.get_mut(&id) {
            self.counted += usize::from(is_counted(&stage));
            let before = std::mem::replace(&mut upward.stage, stage);
            self.counted -= usize::from(is_counted(&before));
        }
    }

    /// Has one wait again.
    pub(super) fn waits_again(&mut self, id: ConnectionId) {
        self.set_stage(id, Stage::Waiting);
        self.waiting.insert(id);
    }

    /// Records that the stream of one has failed. The host's reason is waited for until then.
    pub(super) fn broken(&mut self, id: ConnectionId, refusal: Refusal, until: Instant) {
        self.set_stage(id, Stage::Broken(refusal));
        if let Some(upward) = self.table.get_mut(&id) {
            self.deadlines.remove(&(upward.deadline, id));
            upward.deadline = upward.deadline.min(until);
            self.deadlines.insert((upward.deadline, id));
        }
    }

    /// Removes one.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Upward> {
        let upward = self.table.remove(&id)?;
        self.deadlines.remove(&(upward.deadline, id));
        self.waiting.remove(&id);
        self.counted -= usize::from(is_counted(&upward.stage));
        Some(upward)
    }

    /// Those of which the host has been asked and has not answered.
    pub(super) fn asked(&self) -> Vec<ConnectionId> {
        let asked = self.table.iter();
        let asked = asked.filter(|(_, upward)| upward.stage == Stage::Asked);
        asked.map(|(id, _)| *id).collect()
    }

    /// The host knows none any more.
    pub(super) fn forget_counted(&mut self) {
        for upward in self.table.values_mut() {
            if let Stage::Connecting { asked } = &mut upward.stage {
                *asked = false;
            }
        }
        let counted = |upward: &&Upward| is_counted(&upward.stage);
        self.counted = self.table.values().filter(counted).count();
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Removes one whose deadline has passed.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<(ConnectionId, Upward)> {
        let (at, id) = self.deadlines.first().copied()?;
        let expired = (at <= now).then(|| self.remove(id))?;
        Some((id, expired?))
    }

    /// Why one whose deadline has passed has failed.
    pub(super) fn reason(upward: &Upward) -> Refusal {
        match &upward.stage {
            Stage::Broken(refusal) => refusal.clone(),
            _ => Refusal::TimedOut,
        }
    }

    #[cfg(test)]
    pub(super) fn counted(&self) -> usize {
        self.counted
    }
}

fn is_counted(stage: &Stage) -> bool {
    match stage {
        Stage::Waiting | Stage::Broken(_) => false,
        Stage::Asked => true,
        Stage::Connecting { asked } => *asked,
    }
}
