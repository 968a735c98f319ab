//! The life of a VM, as its device sees it: what the VMM's requests, the guest's memory and its loss mean for the
//! VM's phase and for its connections.

use std::time::Instant;

use hvsock_fabric::Refusal;

use super::command::Phase;
use super::pause_check::PauseCheck;
use super::queues::{EVENT, QueueCommand, QueueReply};
use super::transport_reset::Progress;
use super::worker::{KICKS, Worker};
use crate::guest_link::LinkEvent;

/// What a request of the VMM means for the VM's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Connected,
    Reset,
    Disconnected,
    /// The guest's memory is another.
    Memory,
    /// Nothing, except for what it does to the rings.
    Rings,
}

impl Change {
    fn of(command: &QueueCommand) -> Self {
        match command {
            QueueCommand::Connected => Self::Connected,
            QueueCommand::Reset => Self::Reset,
            QueueCommand::Disconnected => Self::Disconnected,
            QueueCommand::SetMemory(_) | QueueCommand::Load => Self::Memory,
            QueueCommand::Start { .. }
            | QueueCommand::SetCall { .. }
            | QueueCommand::SetEnabled { .. }
            | QueueCommand::Stop { .. } => Self::Rings,
        }
    }
}

/// The phase after a change, with the rings running or not.
fn next_phase(phase: Phase, change: Change, running: bool) -> Phase {
    match (change, phase) {
        (Change::Disconnected, Phase::Defined) => Phase::Defined,
        (Change::Disconnected, _) => Phase::Off,
        (Change::Connected | Change::Reset, _) => Phase::Connected,
        _ if running => Phase::Running,
        (_, Phase::Running) => Phase::Paused,
        (_, phase) => phase,
    }
}

impl Worker {
    /// Applies a request of the VMM, and what follows from it.
    pub(super) fn handle_vmm(&mut self, command: QueueCommand, now: Instant) -> QueueReply {
        let change = Change::of(&command);
        if change == Change::Disconnected {
            // Before the driver counts as gone, whose reason would be that the guest has restarted.
            self.reset_all(&Refusal::PartitionOff);
        }
        let running = self.traffic.queues.running();
        let registry = self.poll.registry();
        let result = self.traffic.queues.handle(command, registry, KICKS);
        self.apply(change, running, now);
        result
    }

    fn apply(&mut self, change: Change, running_before: usize, now: Instant) {
        if self.traffic.queues.take_driver_restarted() {
            self.traffic.mux.forget_all();
            self.traffic.process_events();
            self.traffic.transport_reset.cancel();
        }
        let running = self.traffic.queues.are_running();
        if running && self.traffic.queues.take_taken_over() {
            self.traffic.transport_reset.begin(now);
        }
        self.phase = next_phase(self.phase, change, running);
        if self.phase != Phase::Paused {
            self.pause_check = None;
            self.report_phase();
            return;
        }
        // The device writes to rings that still run.
        let is_outdated =
            self.traffic.queues.running() != running_before || change == Change::Memory;
        if self.pause_check.is_none() || is_outdated {
            self.pause_check = Some(PauseCheck::new(&self.traffic.queues, now));
        }
    }

    /// The rings continue without connections. The driver, if there is one, has to learn of that.
    pub(super) fn queues_have_begun_again(&mut self, has_driver: bool, now: Instant) {
        if has_driver {
            self.traffic.transport_reset.begin(now);
        }
        let running = self.traffic.queues.running();
        self.apply(Change::Rings, running, now);
    }

    fn report_phase(&mut self) {
        let (old, new) = (self.state.phase(), self.phase);
        if new == old {
            return;
        }
        self.state.set_phase(new);
        let state = new.partition_state();
        if state != old.partition_state() {
            // The core ends all connections of a guest without a driver when it reads the event, perhaps when the
            // next driver has long begun: that must find nothing to which the data thread may add by itself.
            if let Some(refusal) = state.down_refusal() {
                self.traffic.close_arenas(&refusal);
            }
            self.traffic.send(LinkEvent::State(state));
        }
    }

    /// Looks whether a VM that counts as paused is, when that is due. It is reported as paused only after the
    /// first look, so that a driver that goes away does not look like a pause even for a moment.
    pub(super) fn check_pause(&mut self, now: Instant) {
        let queues = &self.traffic.queues;
        let Some(check) = self.pause_check.as_mut() else {
            return;
        };
        if check.next() > now {
            return;
        }
        let is_changed = check.has_changed(queues, now) && queues.running() == 0;
        // A VMM first sends what starts the rings, and lets the guest run then. So requests that were sent before
        // the memory changed are known only if there are none after it was looked at.
        if is_changed && self.state.has_requests() {
            if check.put_off(now) {
                self.report_phase();
            }
            return;
        }
        if is_changed {
            // The driver is gone, and the guest has forgotten its connections.
            self.traffic.queues.forget_stops();
            self.apply(Change::Reset, 0, now);
        } else {
            self.report_phase();
        }
    }

    /// Gives up the guest's memory if its VMM has taken some away. Returns whether that was so.
    pub(super) fn check_memory(&mut self, now: Instant) -> bool {
        if !self.traffic.queues.ram.is_lost() {
            return false;
        }
        let cause = "the VMM has taken away memory that it shares with the broker";
        self.reset_all(&Refusal::Reset {
            cause: cause.into(),
        });
        self.traffic.send(LinkEvent::Fault(format!(
            "{cause} (its file was truncated, or the system had no page for it); the VMM is disconnected"
        )));
        let _ = self.handle_vmm(QueueCommand::Disconnected, now);
        // Its thread sees the end of the connection, and accepts the next one.
        self.state.disconnect();
        true
    }

    /// Resets all connections and ends all arenas.
    pub(super) fn reset_all(&mut self, refusal: &Refusal) {
        for slot in self.traffic.links.slots() {
            self.traffic.reset(slot, refusal);
        }
        self.traffic.close_arenas(refusal);
    }

    /// Continues with the event that resets the guest's connections. Returns whether packets that waited for
    /// it may be sent.
    pub(super) fn process_transport_reset(&mut self, now: Instant) -> bool {
        let traffic = &mut self.traffic;
        match traffic.transport_reset.process(&mut traffic.queues, now) {
            Ok(Progress::Waits) => false,
            Ok(Progress::Released) => true,
            Ok(Progress::Handled) => {
                // Answers to what the guest sent before.
                traffic.mux.forget_strays();
                true
            }
            Ok(Progress::HandledLate) => {
                let cause = "the guest has reset its connections, as after a restore".into();
                traffic.reset_established(&Refusal::Reset { cause });
                true
            }
            Err(fault) => {
                traffic.transport_reset.cancel();
                traffic.fault(EVENT, fault);
                true
            }
        }
    }

    /// Requests a kick for the event. Returns whether it can continue now.
    pub(super) fn arm_transport_reset(&mut self) -> bool {
        let traffic = &mut self.traffic;
        match traffic.transport_reset.arm(&mut traffic.queues) {
            Ok(waits) => !waits,
            Err(fault) => {
                traffic.transport_reset.cancel();
                traffic.fault(EVENT, fault);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_connected_running_paused_and_off_as_its_vmm_and_driver_are() {
        let mut phase = Phase::default();
        assert_eq!(phase, Phase::Defined);
        for (change, running, expected) in [
            (Change::Connected, false, Phase::Connected),
            // A reset before the driver starts, and each ring on its own.
            (Change::Reset, false, Phase::Connected),
            (Change::Memory, false, Phase::Connected),
            (Change::Rings, false, Phase::Connected),
            (Change::Rings, true, Phase::Running),
            (Change::Memory, true, Phase::Running),
            // A pause: the first ring stops, then the second.
            (Change::Rings, false, Phase::Paused),
            (Change::Rings, false, Phase::Paused),
            (Change::Rings, true, Phase::Running),
            // The driver goes away.
            (Change::Rings, false, Phase::Paused),
            (Change::Reset, false, Phase::Connected),
            (Change::Rings, true, Phase::Running),
            (Change::Disconnected, false, Phase::Off),
            (Change::Connected, false, Phase::Connected),
            (Change::Disconnected, false, Phase::Off),
        ] {
            phase = next_phase(phase, change, running);
            assert_eq!(phase, expected, "{change:?}");
        }
    }
}
