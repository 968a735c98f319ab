//! Asks the brokers in guests what they would say about a connect.
//!
//! A call of the control API waits for the answer on its own thread. A process at its endpoint waits as a session that
//! the uplink keeps, until the answer or a deadline.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{ChildId, HostFrame, Incoming, Request};
use hvsock_fabric::{ConnectRequest, Explanation, PartitionKey, Verdict};

use super::labels::partition_label;
use super::sessions::Session;
use super::state::Core;
use super::uplinks::{Asker, AskingProcess};
use crate::data_path::ProcessSocket;
use crate::uplink::{Silence, add_guest, add_unknown_guest};

/// How long the broker in a guest may take.
pub(crate) const GUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A question to the broker in a VM, whose answer is awaited outside the core.
pub(crate) struct AskedGuest {
    vm: PartitionKey,
    request: Request,
    /// The VM's name.
    pub(crate) name: String,
    pub(crate) answer: Receiver<Refused>,
}

impl Core {
    /// Asks the broker in the VM of a container whether it would accept a connect, if the host's explanation
    /// leaves that to it. `None` if it does not.
    pub(crate) fn ask_to_explain(
        &mut self,
        request: &ConnectRequest<'_>,
        explanation: &mut Explanation,
    ) -> Option<Result<AskedGuest, (String, Silence)>> {
        self.explain_unknown_guest(request, explanation);
        let (vm, child) = self.guest_to_ask(request, explanation)?;
        let name = partition_label(&self.fabric, vm);
        let (sender, answer) = sync_channel(1);
        let Ok(number) = self.uplinks.begin_explanation(vm, Asker::Call(sender)) else {
            return Some(Err((name, Silence::Busy)));
        };
        self.send_question(vm, child, number, request);
        Some(Ok(AskedGuest {
            vm,
            request: number,
            name,
            answer,
        }))
    }

    /// Sends a process an explanation, once the broker in the guest that it leads to has added its part. Returns both
    /// if it leads to none.
    pub(super) fn explain_with_guest(
        &mut self,
        session: Session<ProcessSocket>,
        request: &ConnectRequest<'_>,
        explanation: Explanation,
    ) -> Option<(Session<ProcessSocket>, Explanation)> {
        let Some((vm, child)) = self.guest_to_ask(request, &explanation) else {
            return Some((session, explanation));
        };
        let asking = Asker::Process(Box::new(AskingProcess {
            session,
            explanation,
            deadline: Instant::now() + GUEST_TIMEOUT,
        }));
        match self.uplinks.begin_explanation(vm, asking) {
            Ok(number) => self.send_question(vm, child, number, request),
            Err((_, asker)) => self.answer_asker(vm, asker, Err(Silence::Busy)),
        }
        None
    }

    /// The broker that an explanation leaves the verdict to, and its number of the container.
    fn guest_to_ask(
        &self,
        request: &ConnectRequest<'_>,
        explanation: &Explanation,
    ) -> Option<(PartitionKey, ChildId)> {
        let target = self.fabric.find(&request.vm.into())?;
        let child = self.uplinks.number(target)?;
        let is_guests = explanation.verdict == Ok(Verdict::GuestDecides);
        is_guests.then(|| (self.carrier(target), child))
    }

    /// Says of a connect from a container in a VM that another broker judges it first.
    fn explain_unknown_guest(&self, request: &ConnectRequest<'_>, explanation: &mut Explanation) {
        if self.is_nested(request.from) && explanation.verdict.is_ok() {
            let vm = self.carrier(request.from);
            add_unknown_guest(explanation, &partition_label(&self.fabric, vm));
        }
    }

    fn send_question(
        &mut self,
        vm: PartitionKey,
        child: ChildId,
        number: Request,
        request: &ConnectRequest<'_>,
    ) {
        let question = Incoming {
            request: number,
            child,
            timeout_ms: GUEST_TIMEOUT.as_millis() as u32,
            service: request.service,
        };
        self.send_up(vm, HostFrame::Explain(question));
    }

    /// Passes the answer of the broker in a VM on.
    pub(super) fn answer_asker(
        &mut self,
        vm: PartitionKey,
        asker: Asker,
        answer: Result<Refused, Silence>,
    ) {
        match (asker, answer) {
            (Asker::Call(sender), Ok(answer)) => {
                // Who asked may wait no longer.
                let _ = sender.try_send(answer);
            }
            // It notices by itself.
            (Asker::Call(_), Err(_)) => {}
            (Asker::Process(process), answer) => {
                let AskingProcess {
                    session,
                    mut explanation,
                    ..
                } = *process;
                let name = partition_label(&self.fabric, vm);
                let said = answer.as_ref().map_err(|silence| *silence);
                add_guest(&mut explanation, &name, said);
                self.explain(&session, &explanation);
            }
        }
    }

    /// Answers the processes whose question was not answered in time.
    pub(super) fn expire_explanations(&mut self, now: Instant) {
        for (vm, request) in self.uplinks.expired_explanations(now) {
            if let Some(asker) = self.uplinks.take_explanation(vm, request) {
                self.answer_asker(vm, asker, Err(Silence::NoAnswer));
                self.send_up(vm, HostFrame::Cancel { request });
            }
        }
    }

    /// Answers the processes whose question has no answer yet.
    pub(super) fn end_explanations(&mut self) {
        self.expire_explanations(Instant::now() + GUEST_TIMEOUT);
    }

    /// Gives up a question that was not answered in time.
    pub(crate) fn give_up_explanation(&mut self, asked: &AskedGuest) {
        let AskedGuest { vm, request, .. } = *asked;
        if self.uplinks.take_explanation(vm, request).is_some() {
            self.send_up(vm, HostFrame::Cancel { request });
        }
    }
}
