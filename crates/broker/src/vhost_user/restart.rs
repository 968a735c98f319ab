//! What becomes of a VM whose data thread panics: a fault in this program, which must harm no other VM.
//!
//! What the thread knew may be inconsistent, so none of it is used again, but for what the VMM has set up: memory and
//! queues. The device returns buffers in order and keeps none, so the used index in guest memory says where each
//! queue continues. The guest learns by the event TRANSPORT_RESET that its connections are gone. The core learns it as
//! after a restart of the guest's driver. Should the guest or the VMM cause the panic again and again, the VMM is
//! disconnected.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use hvsock_fabric::Refusal;
use hvsock_virtio::Muxer;

use super::arenas::Arenas;
use super::command::Phase;
use super::links::Links;
use super::queues::QueueCommand;
use super::restarts::Restarts;
use super::worker::Worker;
use crate::guest_link::LinkEvent;

/// What both ends of the connections are told.
const CAUSE: &str = "the data thread of the VM has failed";

impl Worker {
    /// Goes on after a panic. `None` if that fails, too: the thread ends.
    pub(super) fn restart(mut self: Box<Self>, restarts: &mut Restarts) -> Option<Box<Self>> {
        let now = Instant::now();
        let keeps_vmm = restarts.may_restart(now);
        self.events().watch().count_panic();
        let has_driver = self.has_driver();
        let restarted = catch_unwind(AssertUnwindSafe(|| {
            self.give_up_connections();
            self.begin_again(keeps_vmm, has_driver, now)
        }));
        let error = match restarted {
            Ok(Ok(())) => return Some(self),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it has panicked again".into(),
        };
        let fault = format!("{CAUSE}, and cannot go on: {error}; remove the VM and add it again");
        self.events().send(LinkEvent::Problem(Some(fault)));
        self.events()
            .send(LinkEvent::State(Phase::Off.partition_state()));
        self.state.set_phase(Phase::Off);
        self.state.disconnect();
        None
    }

    /// Tells all connections that they have ended, as far as the tables still allow it. The core ends the others.
    fn give_up_connections(&mut self) {
        let told = catch_unwind(AssertUnwindSafe(|| {
            self.reset_all(&Refusal::Reset {
                cause: CAUSE.into(),
            });
            self.traffic.process_events();
            self.traffic.report();
        }));
        if told.is_err() {
            tracing::warn!("connections of a VM end without a reason: {CAUSE}");
        }
        self.pause_check = None;
        if self.has_driver() {
            // As if the driver were gone: the core ends what it knows of the connections.
            self.phase = Phase::Connected;
            self.state.set_phase(Phase::Connected);
            let state = Phase::Connected.partition_state();
            self.events().send(LinkEvent::State(state));
        }
    }

    fn has_driver(&self) -> bool {
        matches!(self.state.phase(), Phase::Running | Phase::Paused)
    }

    fn begin_again(&mut self, keeps_vmm: bool, has_driver: bool, now: Instant) -> io::Result<()> {
        let registry = || self.poll.registry().try_clone();
        let arenas = Arenas::new(registry()?);
        let links = Links::new(registry()?, self.wake_queue(), arenas);
        let mux = Muxer::new(self.traffic.mux.config().clone());
        self.traffic.begin_again(mux, links);
        let what = match keeps_vmm {
            true => "all connections of the VM are reset",
            false => "it has failed too often within a minute, so the VMM is disconnected",
        };
        self.traffic
            .send(LinkEvent::Fault(format!("{CAUSE}; {what}")));
        if keeps_vmm {
            self.traffic.queues.begin_again();
            self.queues_have_begun_again(has_driver, now);
        } else {
            // An error leaves nothing behind: the VMM's queues are gone in any case.
            let _ = self.handle_vmm(QueueCommand::Disconnected, now);
            self.state.disconnect();
        }
        Ok(())
    }
}
