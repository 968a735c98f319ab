//! The host's vsock ports in the kernel, as the links of VMs report them: those that another process has, and
//! connections of CIDs that are no VM's.

use hvsock_fabric::{
    Audience, Check, ConnectRequest, Explanation, ExplanationStep, ListenRequest, PartitionKey,
    Refusal,
};

use super::labels::partition_label;
use super::state::Core;
use crate::guest_link::{PortProblem, Stranger};
use crate::model::{EventKind, ProblemKind};

fn object(port: u32) -> String {
    format!("vsock port {port}")
}

impl Core {
    /// Records that a VM's guest cannot reach a port of the host, or can again.
    pub(super) fn port_problem(
        &mut self,
        vm: PartitionKey,
        port: u32,
        problem: Option<PortProblem>,
    ) {
        // The link of a VM that has just been removed may still report one.
        if !self.vms.contains(vm) {
            return;
        }
        match problem {
            Some(problem) => {
                let (text, fix) = (problem.text.clone(), problem.fix.clone());
                self.port_problems.insert(vm, port, problem);
                self.raise(ProblemKind::VsockPort, object(port), text, fix);
            }
            None => self.port_problem_gone(vm, port),
        }
    }

    /// Forgets the problems of a VM that is removed.
    pub(super) fn forget_port_problems(&mut self, vm: PartitionKey) {
        for port in self.port_problems.ports_of(vm) {
            self.port_problem_gone(vm, port);
        }
    }

    fn port_problem_gone(&mut self, vm: PartitionKey, port: u32) {
        let was_there = self.port_problems.remove(vm, port).is_some();
        if was_there && !self.port_problems.has_port(port) {
            self.clear(ProblemKind::VsockPort, &object(port));
        }
    }

    /// Records connections that were closed because no VM has their CID.
    pub(super) fn stranger(&mut self, stranger: Stranger) {
        let Stranger { cid, port, count } = stranger;
        let refusal = Refusal::NotReachable;
        for _ in 0..count.min(1000) {
            self.telemetry.count_refused(&refusal);
        }
        let who = match cid {
            2 => "the host of this machine".to_owned(),
            0..=2 => "a process of this machine".to_owned(),
            _ => format!("the guest with the CID {cid}, which is no partition here"),
        };
        let message = match count {
            1 => format!("closed a connection of {who}"),
            _ => format!("closed {count} connections of {who}"),
        };
        tracing::warn!(cid, port, count, "{message}");
        self.telemetry.publish(|| EventKind::Refused {
            from: format!("CID {cid}"),
            address: format!("host port {port}"),
            reason: refusal.label().into(),
            message,
        });
    }

    /// Explains a connect: the fabric's verdict, and what the link of a VM adds to it.
    pub(crate) fn explain_connect(&self, request: &ConnectRequest<'_>) -> Explanation {
        let mut explanation = self.fabric.explain_connect(request, Audience::Operator);
        if explanation.verdict.is_err() {
            self.fit_start_to_link(&mut explanation, true);
            return explanation;
        }
        let (from, to) = (request.from, self.target_of(request));
        for vm in [Some(from), to].into_iter().flatten() {
            if self.hands_over(vm) {
                explanation.steps.push(ExplanationStep {
                    check: Check::Transport,
                    subject: Some(partition_label(&self.fabric, vm)),
                    rule: None,
                    question: "How do the bytes travel?".into(),
                    answer:
                        "by the kernel's vsock, uncounted; other processes of the host reach the \
                             guest's CID without asking the broker"
                            .into(),
                    pass: true,
                });
            }
        }
        let port = request.service.port_for_guests();
        let problem = port.and_then(|port| self.port_problems.get(from, port));
        if let Some(problem) = problem {
            explanation.steps.push(ExplanationStep {
                check: Check::VsockPort,
                subject: port.map(object),
                rule: None,
                question: "Does the broker have the host's port?".into(),
                answer: format!("no: {}", problem.text),
                pass: false,
            });
            explanation.verdict = Err(problem.refusal.clone());
            explanation.fix = problem.fix.clone();
        }
        explanation
    }

    /// Explains a listen.
    pub(crate) fn explain_listen(&self, request: &ListenRequest<'_>) -> Explanation {
        let mut explanation = self.fabric.explain_listen(request, Audience::Operator);
        self.fit_start_to_link(&mut explanation, true);
        explanation
    }

    /// The VM that a connect leads to, if it is one.
    fn target_of(&self, request: &ConnectRequest<'_>) -> Option<PartitionKey> {
        let target = self.fabric.find(&request.vm.into())?;
        (self.vms.contains(target) && target != request.from).then_some(target)
    }
}
