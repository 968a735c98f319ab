//! Liveness of guests: heartbeats of their agents, and notices of their service managers.
//!
//! Reports go in through [`Liveness::heartbeat`] and [`Liveness::notice`], time through
//! [`Liveness::expire`]. Each returns the [`LivenessEvent`]s that result. The caller passes the
//! time, no clock is read here.

pub(super) mod snapshot;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::time::{Duration, Instant};

use hvsock_fabric::PartitionKey;

use crate::model::{
    AgentState, Guest, GuestCommand, GuestNotice, GuestReport, Health, PartitionState,
};

/// A guest without a heartbeat for this long is lost. Agents send one per second.
pub(super) const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(3500);

/// The timeout after a pause. The pause reset the agent's connection, and its reconnect backoff
/// can be up to four seconds.
const RESUME_TIMEOUT: Duration = Duration::from_secs(9);

/// Queues a command for a guest's agent; `false` if its queue is full.
pub(crate) type CommandHandler = Box<dyn Fn(GuestCommand) -> bool + Send>;

/// A change in a guest's liveness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LivenessEvent {
    /// The agent's first heartbeat, or the first after it was lost.
    Connected,
    /// No heartbeat within the timeout. Contains the time since the last one.
    Lost(Duration),
    /// The guest has finished booting.
    Ready,
}

/// The liveness of all guests that have reported since they started.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    guests: HashMap<PartitionKey, GuestLiveness>,
    /// A lower bound of all heartbeat deadlines.
    next_check: Option<Instant>,
}

#[derive(Default)]
struct GuestLiveness {
    heartbeat: Option<Heartbeat>,
    report: Option<GuestReport>,
    notice: Option<GuestNotice>,
    /// [`LivenessEvent::Ready`] was returned.
    ready_reported: bool,
    handler: Option<CommandHandler>,
}

/// A guest's last heartbeat, and the deadline of its next one.
#[derive(Clone, Copy, Debug)]
struct Heartbeat {
    agent: AgentState,
    last_seen: Instant,
    /// `None` while the partition is paused, and after the guest was lost.
    deadline: Option<Instant>,
}

impl fmt::Debug for GuestLiveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestLiveness")
            .field("heartbeat", &self.heartbeat)
            .finish_non_exhaustive()
    }
}

impl Liveness {
    /// Records a heartbeat of a guest's agent, whose partition is in `state`.
    pub(super) fn heartbeat(
        &mut self,
        guest: PartitionKey,
        state: PartitionState,
        report: GuestReport,
        now: Instant,
    ) -> Vec<LivenessEvent> {
        // A report that arrives after the partition went off belongs to the previous boot.
        if state.is_down() {
            return Vec::new();
        }
        let entry = self.guests.entry(guest).or_default();
        let before = entry.heartbeat.map(|heartbeat| heartbeat.agent);
        let paused = state == PartitionState::Paused;
        let heartbeat = Heartbeat {
            agent: if paused {
                AgentState::Paused
            } else {
                AgentState::Connected
            },
            last_seen: now,
            deadline: (!paused).then(|| now + HEARTBEAT_TIMEOUT),
        };
        entry.heartbeat = Some(heartbeat);
        entry.report = Some(report);
        let mut events = Vec::new();
        if !paused && !matches!(before, Some(AgentState::Connected | AgentState::Paused)) {
            events.push(LivenessEvent::Connected);
        }
        events.extend(entry.newly_ready());
        self.check_by(heartbeat.deadline);
        events
    }

    /// Records a notice of a guest's service manager: `update` changes the accumulated notice.
    pub(super) fn notice(
        &mut self,
        guest: PartitionKey,
        state: PartitionState,
        update: impl FnOnce(&mut GuestNotice),
    ) -> Option<LivenessEvent> {
        if state.is_down() {
            return None;
        }
        let entry = self.guests.entry(guest).or_default();
        update(entry.notice.get_or_insert_default());
        entry.newly_ready()
    }

    /// Sets the handler for commands to a guest's agent.
    pub(super) fn set_handler(&mut self, guest: PartitionKey, handler: CommandHandler) {
        self.guests.entry(guest).or_default().handler = Some(handler);
    }

    /// Queues a command for a guest's agent. `false` if the agent is not live, has no handler, or
    /// its queue is full.
    pub(super) fn send_command(&self, guest: PartitionKey, command: GuestCommand) -> bool {
        let handler = self.guests.get(&guest).and_then(|entry| {
            let live = entry.heartbeat?.agent == AgentState::Connected;
            entry.handler.as_ref().filter(|_| live)
        });
        handler.is_some_and(|handler| handler(command))
    }

    /// Records a change of a partition's state. A partition that is down has no guest.
    pub(super) fn set_state(&mut self, guest: PartitionKey, state: PartitionState, now: Instant) {
        let Entry::Occupied(mut entry) = self.guests.entry(guest) else {
            return;
        };
        if state.is_down() {
            entry.remove();
            return;
        }
        let Some(heartbeat) = &mut entry.get_mut().heartbeat else {
            return;
        };
        match (state, heartbeat.agent) {
            (PartitionState::Paused, AgentState::Connected) => {
                heartbeat.agent = AgentState::Paused;
                heartbeat.deadline = None;
            }
            (PartitionState::Running | PartitionState::Unknown, AgentState::Paused) => {
                let deadline = now + RESUME_TIMEOUT;
                heartbeat.deadline = Some(deadline);
                self.check_by(Some(deadline));
            }
            (PartitionState::Paused, AgentState::Paused) => heartbeat.deadline = None,
            _ => {}
        }
    }

    /// When to call [`Liveness::expire`] next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_check
    }

    /// Marks the guests whose deadline has passed as lost, and returns them.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(PartitionKey, LivenessEvent)> {
        if self.next_check.is_none_or(|check| check > now) {
            return Vec::new();
        }
        let mut lost = Vec::new();
        for (guest, entry) in &mut self.guests {
            if let Some(heartbeat) = &mut entry.heartbeat
                && heartbeat.deadline.is_some_and(|deadline| deadline <= now)
            {
                heartbeat.agent = AgentState::Lost;
                heartbeat.deadline = None;
                let silent = now.saturating_duration_since(heartbeat.last_seen);
                lost.push((*guest, LivenessEvent::Lost(silent)));
            }
        }
        let deadlines = self.guests.values();
        let deadlines = deadlines.filter_map(|entry| entry.heartbeat?.deadline);
        self.next_check = deadlines.min();
        lost
    }

    /// A snapshot of a guest's reports and liveness.
    pub(super) fn guest(&self, guest: PartitionKey, now: Instant) -> Option<Guest> {
        let entry = self.guests.get(&guest)?;
        let age = |beat: Heartbeat| now.saturating_duration_since(beat.last_seen).as_secs_f64();
        Some(Guest {
            agent: entry.agent(),
            last_seen_seconds: entry.heartbeat.map(age),
            ready: entry.ready(),
            report: entry.report.clone(),
            notice: entry.notice.clone(),
        })
    }

    fn check_by(&mut self, deadline: Option<Instant>) {
        self.next_check = [self.next_check, deadline].into_iter().flatten().min();
    }
}

impl GuestLiveness {
    fn agent(&self) -> AgentState {
        self.heartbeat
            .map_or(AgentState::None, |heartbeat| heartbeat.agent)
    }

    /// Whether the guest has booted and is not shutting down, according to its service manager or
    /// its live agent.
    fn ready(&self) -> bool {
        let notice = self.notice.as_ref();
        let health = self.report.as_ref().map(|report| report.health);
        if notice.is_some_and(|notice| notice.stopping) || health == Some(Health::Stopping) {
            return false;
        }
        let started = matches!(health, Some(Health::Ok | Health::Critical));
        let live = self.agent() == AgentState::Connected;
        notice.is_some_and(|notice| notice.ready) || (live && started)
    }

    fn newly_ready(&mut self) -> Option<LivenessEvent> {
        let newly = self.ready() && !self.ready_reported;
        self.ready_reported |= newly;
        newly.then_some(LivenessEvent::Ready)
    }
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
