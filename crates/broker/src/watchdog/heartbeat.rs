//! A thread's heartbeat: which turn it is in, and at which step of it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// What a thread does in a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// It begins, or does what has no step of its own.
    #[default]
    Turn,
    /// Events of sockets.
    Events,
    /// Reports of other threads.
    Reports,
    /// New clients, and messages of those that are there.
    Clients,
    /// Connections whose bytes it copies.
    Connections,
    /// What is due now.
    Timers,
    /// Calls of the control API.
    Calls,
    /// Commands of the core.
    Commands,
    /// Packets from the guest.
    FromGuest,
    /// Packets to the guest.
    ToGuest,
    /// A request of the VMM.
    VmmRequest,
    /// Files and sockets of the file system.
    Files,
    /// A request to the control API.
    Request,
    /// A handover.
    Handover,
}

impl Step {
    const ALL: [Self; 14] = [
        Self::Turn,
        Self::Events,
        Self::Reports,
        Self::Clients,
        Self::Connections,
        Self::Timers,
        Self::Calls,
        Self::Commands,
        Self::FromGuest,
        Self::ToGuest,
        Self::VmmRequest,
        Self::Files,
        Self::Request,
        Self::Handover,
    ];

    /// As operators read it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Turn => "turn",
            Self::Events => "events of sockets",
            Self::Reports => "reports of threads",
            Self::Clients => "clients",
            Self::Connections => "connections",
            Self::Timers => "timers",
            Self::Calls => "calls of the control API",
            Self::Commands => "commands of the core",
            Self::FromGuest => "packets from the guest",
            Self::ToGuest => "packets to the guest",
            Self::VmmRequest => "a request of the VMM",
            Self::Files => "files",
            Self::Request => "a request to the control API",
            Self::Handover => "a handover",
        }
    }
}

/// What one thread stores and the supervisor reads. In a cache line of its own, so that a store costs nothing.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Heartbeat {
    /// The number of turns, twice; odd during a turn.
    turn: AtomicU64,
    step: AtomicU8,
    /// The limit of this turn in milliseconds; 0 for the thread's own.
    limit: AtomicU64,
}

impl Heartbeat {
    // Only the thread itself stores, so none of these needs an atomic read-modify-write.

    pub(super) fn begin(&self, step: Step) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.step.store(step as u8, Ordering::Relaxed);
        self.turn.store((turn + 1) | 1, Ordering::Release);
    }

    pub(super) fn limit(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(super) fn wait(&self) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store((turn + 1) & !1, Ordering::Release);
    }

    pub(super) fn step(&self, step: Step) {
        self.step.store(step as u8, Ordering::Relaxed);
    }

    /// The turn, whether the thread is in it, and the turn's own limit.
    pub(super) fn read(&self) -> (u64, bool, Option<Duration>) {
        let turn = self.turn.load(Ordering::Acquire);
        let limit = match self.limit.load(Ordering::Relaxed) {
            0 => None,
            limit => Some(Duration::from_millis(limit)),
        };
        (turn, turn & 1 == 1, limit)
    }

    pub(super) fn last_step(&self) -> Step {
        let index = usize::from(self.step.load(Ordering::Relaxed));
        Step::ALL.get(index).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beginning_is_another_turn_and_waiting_ends_it() {
        let heartbeat = Heartbeat::default();
        assert_eq!(heartbeat.read(), (0, false, None));
        heartbeat.begin(Step::Events);
        assert_eq!(heartbeat.read(), (1, true, None));
        heartbeat.step(Step::Calls);
        assert_eq!(heartbeat.last_step(), Step::Calls);
        heartbeat.begin(Step::Timers);
        assert_eq!(heartbeat.read(), (3, true, None));
        heartbeat.wait();
        heartbeat.wait();
        assert_eq!(heartbeat.read(), (4, false, None));
        heartbeat.limit(Duration::from_secs(1));
        heartbeat.begin(Step::Turn);
        assert_eq!(heartbeat.read(), (5, true, Some(Duration::from_secs(1))));
    }

    #[test]
    fn every_step_is_read_as_it_was_stored() {
        let heartbeat = Heartbeat::default();
        for step in Step::ALL {
            heartbeat.step(step);
            assert_eq!(heartbeat.last_step(), step);
        }
    }
}
