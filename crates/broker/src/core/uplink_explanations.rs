//! Asks the brokers in guests what they would say about a connect.

use std::sync::mpsc::{Receiver, sync_channel};

use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{HostFrame, Incoming, Request};
use hvsock_fabric::{ConnectRequest, Explanation, PartitionKey, Verdict};

use super::labels::partition_label;
use super::state::Core;
use crate::uplink::{Silence, add_unknown_guest};

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
        timeout_ms: u32,
    ) -> Option<Result<AskedGuest, (String, Silence)>> {
        if self.is_nested(request.from) && explanation.verdict.is_ok() {
            let vm = self.carrier(request.from);
            let name = partition_label(&self.fabric, vm);
            add_unknown_guest(explanation, &name);
        }
        let target = self.fabric.find(&request.vm.into())?;
        let child = self.uplinks.number(target)?;
        if explanation.verdict != Ok(Verdict::GuestDecides) {
            return None;
        }
        let vm = self.carrier(target);
        let name = partition_label(&self.fabric, vm);
        let (sender, answer) = sync_channel(1);
        let Ok(number) = self.uplinks.begin_explanation(vm, sender) else {
            return Some(Err((name, Silence::Busy)));
        };
        self.send_up(
            vm,
            HostFrame::Explain(Incoming {
                request: number,
                child,
                timeout_ms,
                service: request.service,
            }),
        );
        Some(Ok(AskedGuest {
            vm,
            request: number,
            name,
            answer,
        }))
    }

    /// Gives up a question that was not answered in time.
    pub(crate) fn give_up_explanation(&mut self, asked: &AskedGuest) {
        let AskedGuest { vm, request, .. } = *asked;
        if self.uplinks.take_explanation(vm, request).is_some() {
            self.send_up(vm, HostFrame::Cancel { request });
        }
    }
}
