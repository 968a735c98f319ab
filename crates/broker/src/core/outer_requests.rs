//! Requests that wait for the host: for what it has changed, or for its explanation.

use std::sync::mpsc::SyncSender;
use std::time::Instant;

use hvsock_address::{ElementName, ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::uplink::What;
use hvsock_endpoint::{ClientMessage, IdOrName, LookupKind, Refused};
use hvsock_fabric::{
    Audience, Check, Explanation, ExplanationStep, ListenRequest, PartitionKey, Refusal, Verdict,
};

use super::labels::partition_label;
use super::outer_held::{Asker, HeldExplanation, HeldRequest};
use super::requests::SessionState;
use super::sessions::Session;
use super::state::Core;
use crate::data_path::ProcessSocket;
use crate::uplink_client::UplinkState;

impl Core {
    /// Whether a request of a partition that is refused for an unknown name may be accepted once the host has said
    /// what it has changed.
    pub(super) fn may_be_new(&self, from: PartitionKey, refusal: &Refusal) -> bool {
        let Some(outer) = &self.outer else {
            return false;
        };
        let is_open = matches!(outer.state, UplinkState::Open(_));
        let may_help = match refusal {
            // A container names services of its parent, which is this machine.
            Refusal::Unregistered => from == self.fabric.root(),
            // The host may not have told its name yet.
            Refusal::PartitionUnknown | Refusal::NotReachable => !is_open,
            _ => false,
        };
        let may_learn = outer.client.may_learn() || outer.state.has_lookups_only();
        may_help && outer.waits.has_room() && may_learn
    }

    /// Whether a listen of the own partition that the host's registry refuses may be allowed once the host has
    /// said what it has changed.
    pub(super) fn may_be_allowed(
        &mut self,
        session: &Session<ProcessSocket>,
        address: SockAddrHv,
    ) -> bool {
        let from = session.partition;
        let Some(outer) = &self.outer else {
            return false;
        };
        if from != self.fabric.root()
            || !outer.waits.has_room()
            || !self.accepts_from_outer(address.vm)
            || !outer.client.may_learn()
        {
            return false;
        }
        let principal = self.principal_of_listener(session);
        let request = ListenRequest {
            from,
            principal: &principal,
            vm: address.vm,
            service: address.service,
            backlog: 1,
        };
        let verdict = self.fabric.explain_listen(&request, Audience::Requester);
        matches!(
            verdict.refusal(),
            Some(
                Refusal::Unregistered
                    | Refusal::Disabled { .. }
                    | Refusal::Denied { .. }
                    | Refusal::WildcardNotAllowed
            )
        )
    }

    /// Has a request wait until the host has said what it has changed. `index` is the index of a watched
    /// session.
    pub(super) fn hold_request(
        &mut self,
        session: Session<ProcessSocket>,
        message: ClientMessage,
        index: Option<usize>,
    ) -> SessionState {
        if index.is_some() {
            self.session_io.unwatch(&session.socket);
        }
        if let Some(outer) = &mut self.outer {
            let name = service_name_in(&message);
            let name = name.filter(|_| outer.state.has_lookups_only());
            let held = HeldRequest { session, message };
            let number = outer.waits.add(held, Instant::now());
            match name {
                None => {
                    outer.client.sync(number);
                }
                Some(name) if outer.client.look_up(number, name.clone()) => {}
                Some(_) => self.retry_looked_up(number, None),
            }
        }
        SessionState::Closed
    }

    /// Handles a request again whose name the host has looked up.
    pub(super) fn retry_looked_up(&mut self, number: u64, found: Option<ServiceId>) {
        let Some(outer) = &mut self.outer else {
            return;
        };
        let Some(held) = outer.waits.take(number) else {
            return;
        };
        let name = service_name_in(&held.message).and_then(|name| ElementName::new(name).ok());
        outer.looked_up = name.zip(found);
        self.retry_held(held);
        if let Some(outer) = &mut self.outer {
            outer.looked_up = None;
        }
    }

    /// Handles the requests again that an answer of the host serves.
    pub(super) fn retry_synced(&mut self, number: u64) {
        while let Some(outer) = &mut self.outer
            && let Some(held) = outer.waits.take_synced(number)
        {
            self.retry_held(held);
        }
    }

    fn retry_held(&mut self, held: HeldRequest) {
        self.set_last_try(true);
        let state = self.handle_message(held.session, held.message, None);
        self.set_last_try(false);
        if let SessionState::Open(session) = state {
            self.watch_session(session);
        }
    }

    fn set_last_try(&mut self, is_last_try: bool) {
        if let Some(outer) = &mut self.outer {
            outer.waits.is_last_try = is_last_try;
        }
    }

    /// Answers those that have waited for the host for long enough.
    pub(super) fn expire_outer_waits(&mut self, now: Instant) {
        while let Some(outer) = &mut self.outer
            && let Some(held) = outer.waits.take_expired(now)
        {
            self.retry_held(held);
            self.apply_effects();
        }
        while let Some(outer) = &mut self.outer
            && let Some((number, held)) = outer.waits.take_unexplained(now)
        {
            outer.client.explain_gone(number);
            self.finish_unexplained(held, "it has not answered in time");
        }
    }

    /// When the next one has waited for long enough.
    pub(super) fn next_outer_deadline(&self) -> Option<Instant> {
        self.outer.as_ref()?.waits.next_deadline()
    }

    /// Whether an address of a partition leads to the host.
    pub(super) fn leads_to_outer(&self, from: PartitionKey, vm: VmId) -> bool {
        let own = from == self.fabric.root();
        match vm {
            VmId::PARENT | VmId::WILDCARD => own && self.outer.is_some(),
            id => self.outer_id() == Some(id),
        }
    }

    /// Whether a listener of the own partition at this address accepts from the host.
    pub(super) fn accepts_from_outer(&self, vm: VmId) -> bool {
        self.leads_to_outer(self.fabric.root(), vm)
    }

    /// The service that has a name at the host.
    pub(super) fn service_of_outer(&self, name: &ElementName) -> Option<ServiceId> {
        let outer = self.outer.as_ref()?;
        if let Some((looked_up, service)) = &outer.looked_up
            && looked_up == name
        {
            return Some(*service);
        }
        let registry = self.fabric.registry(outer.key)?;
        registry
            .by_name(name)
            .filter(|_| self.fabric.outer_is_mirrored())
            .map(|found| found.id)
    }

    fn outer_id(&self) -> Option<VmId> {
        let outer = self.fabric.partition(self.outer.as_ref()?.key)?;
        Some(outer.vm_id())
    }

    /// Completes the explanation of a connect for an operator, who gets it now or once the host has said its part.
    pub(crate) fn explain_to_operator(
        &mut self,
        from: PartitionKey,
        address: SockAddrHv,
        explanation: Explanation,
        answer: SyncSender<Explanation>,
    ) {
        self.explain_with_host(Asker::Call(answer), from, address, explanation, None);
    }

    /// Explains a connect, with the host's part if it leads there. `refusal` is what it was refused for, if it
    /// was made.
    pub(super) fn explain_with_host(
        &mut self,
        asker: Asker,
        from: PartitionKey,
        address: SockAddrHv,
        mut own: Explanation,
        refusal: Option<Refusal>,
    ) {
        let passed = own.verdict.is_ok() || refusal.is_some();
        if !passed || !self.leads_to_outer(from, address.vm) {
            return self.answer_explanation(asker, &own);
        }
        let child = (from != self.fabric.root())
            .then(|| self.fabric.partition(from))
            .flatten()
            .map(hvsock_fabric::Partition::vm_id);
        let name = self.outer.as_ref().map(|outer| outer.key);
        let name = name.map_or_else(String::new, |key| partition_label(&self.fabric, key));
        let Some(outer) = &mut self.outer else {
            return self.answer_explanation(asker, &own);
        };
        let question = format!("Is there an uplink to {name}?");
        let step = |pass, answer: String| {
            ExplanationStep::new(Check::Host, pass, &*question, answer).about(&name)
        };
        let UplinkState::Open(welcome) = &outer.state else {
            let why = match &outer.state {
                UplinkState::Down(why) => why.to_string(),
                _ => "it is being made".to_owned(),
            };
            match child {
                None => own.steps.push(step(
                    true,
                    format!("no: {why}; the connect goes to its vsock port, without a reason if it fails"),
                )),
                Some(_) => {
                    own.steps.push(step(
                        false,
                        format!("no: {why}; only this virtual machine itself reaches it"),
                    ));
                    own.verdict = Err(Refusal::PartitionOff);
                    own.fix = None;
                }
            }
            return self.answer_explanation(asker, &own);
        };
        let (machine, host) = (&welcome.machine_name, welcome.host);
        own.steps.push(step(
            true,
            format!("yes: this virtual machine is {machine} there"),
        ));
        let vm = match child {
            None => VmId::PARENT,
            Some(_) => host,
        };
        let asked = SockAddrHv::new(vm, address.service);
        let held = HeldExplanation {
            own,
            refusal,
            asker,
        };
        let number = match outer.waits.add_explain(held, Instant::now()) {
            Ok(number) => number,
            Err(held) => return self.finish_unexplained(held, "too many ask"),
        };
        if !outer.client.explain(number, child, What::Connect, asked)
            && let Some(held) = outer.waits.take_explain(number)
        {
            self.finish_unexplained(held, "it cannot be asked now");
        }
    }

    /// The host has said its part of an explanation.
    pub(super) fn host_explained(&mut self, number: u64, answer: &Refused) {
        let Some(outer) = &mut self.outer else {
            return;
        };
        let Some(HeldExplanation {
            mut own,
            refusal,
            asker,
        }) = outer.waits.take_explain(number)
        else {
            return;
        };
        let (detail, lines) = answer
            .detail
            .split_once('\n')
            .unwrap_or((&answer.detail, ""));
        let verdict = match answer.code {
            0 => Ok(Verdict::Connect),
            code => Err(Refusal::from_wire(code, detail)),
        };
        let host = Explanation::from_lines(verdict, lines);
        own.steps.extend(host.steps);
        match refusal {
            // The host may say something else by now.
            Some(refusal) => {
                let is_same = host.verdict.as_ref().err() == Some(&refusal);
                own.fix = host.fix.filter(|_| is_same);
                own.verdict = Err(refusal);
            }
            None => (own.verdict, own.fix) = (host.verdict, host.fix),
        }
        self.answer_explanation(asker, &own);
    }

    /// Answers all that wait for the host's part, without it.
    pub(super) fn end_explains(&mut self) {
        while let Some(outer) = &mut self.outer
            && let Some(held) = outer.waits.take_any_explain()
        {
            self.finish_unexplained(held, "the uplink has ended");
        }
    }

    fn finish_unexplained(&mut self, held: HeldExplanation, why: &str) {
        let HeldExplanation {
            mut own,
            refusal,
            asker,
        } = held;
        let question = "What does the host say?";
        let answer = format!("unknown: {why}");
        own.steps
            .push(ExplanationStep::new(Check::Host, true, question, answer));
        if let Some(refusal) = refusal {
            (own.verdict, own.fix) = (Err(refusal), None);
        }
        self.answer_explanation(asker, &own);
    }

    fn answer_explanation(&mut self, asker: Asker, explanation: &Explanation) {
        match asker {
            Asker::Process(session) => {
                self.explain(&session, explanation);
            }
            Asker::Call(answer) => {
                // The caller may have timed out.
                let _ = answer.try_send(explanation.clone());
            }
        }
    }
}

/// The name of a service in a request.
fn service_name_in(message: &ClientMessage) -> Option<String> {
    let service = match message {
        ClientMessage::ConnectNamed(named) => &named.address.service,
        ClientMessage::ListenNamed(named) => &named.address.service,
        ClientMessage::Lookup { kind, name } => {
            return (*kind == LookupKind::Service).then(|| name.clone());
        }
        _ => return None,
    };
    match service {
        IdOrName::Name(name) => Some(name.clone()),
        IdOrName::Id(_) => None,
    }
}
