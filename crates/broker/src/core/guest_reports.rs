//! Entry points for reports of guests, and the events and log lines that result.

use std::time::Instant;

use hvsock_fabric::PartitionKey;

use super::labels::partition_label;
use super::liveness::{CommandHandler, LivenessEvent};
use super::state::Core;
use crate::model::{EventKind, GuestCommand, GuestNotice, GuestReport, PartitionState};

impl Core {
    /// Records a heartbeat of a guest's agent.
    pub(crate) fn guest_heartbeat(&mut self, guest: PartitionKey, report: GuestReport) {
        let Some(state) = self.state_of(guest) else {
            return;
        };
        let events = self
            .liveness
            .heartbeat(guest, state, report, Instant::now());
        for event in events {
            self.publish_liveness(guest, event);
        }
    }

    /// Records a notice of a guest's service manager.
    pub(crate) fn guest_notice(
        &mut self,
        guest: PartitionKey,
        update: impl FnOnce(&mut GuestNotice),
    ) {
        let Some(state) = self.state_of(guest) else {
            return;
        };
        if let Some(event) = self.liveness.notice(guest, state, update) {
            self.publish_liveness(guest, event);
        }
    }

    /// Sets the handler for commands to a guest's agent.
    pub(crate) fn set_guest_handler(&mut self, guest: PartitionKey, handler: CommandHandler) {
        if self.state_of(guest).is_none_or(|state| !state.is_down()) {
            self.liveness.set_handler(guest, handler);
        }
    }

    /// Queues a command for a guest's agent; `false` if no live agent accepts it.
    pub(crate) fn send_guest_command(&self, guest: PartitionKey, command: GuestCommand) -> bool {
        self.liveness.send_command(guest, command)
    }

    /// Reports the guests whose heartbeat is overdue as lost.
    pub(super) fn expire_liveness(&mut self, now: Instant) {
        for (guest, event) in self.liveness.expire(now) {
            self.publish_liveness(guest, event);
        }
    }

    fn state_of(&self, guest: PartitionKey) -> Option<PartitionState> {
        Some(self.fabric.partition(guest)?.state().into())
    }

    fn publish_liveness(&mut self, guest: PartitionKey, event: LivenessEvent) {
        let partition = partition_label(&self.fabric, guest);
        let event = match event {
            LivenessEvent::Connected => EventKind::GuestAgentConnected { partition },
            LivenessEvent::Ready => EventKind::GuestReady { partition },
            LivenessEvent::Lost(silent) => {
                tracing::warn!(
                    %partition,
                    "agent lost: no heartbeat for {:.1} s",
                    silent.as_secs_f64()
                );
                let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
                EventKind::GuestAgentLost {
                    partition,
                    silent_ms,
                }
            }
        };
        self.telemetry.publish(|| event);
    }
}
