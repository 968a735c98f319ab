//! Explanations derived from the state of a Windows machine.

use hvsock_address::{ServiceId, VmId};
use hvsock_fabric::{Check, Explanation, ExplanationStep, Fix, Refusal, Verdict};
use hvsock_registry::Registration;

use crate::facts::Question;
use crate::view::View;
use crate::{Facts, Missing, VmKind, VmState};

impl Facts {
    /// Explains whether a connect to a service at `vm` would succeed.
    pub fn explain_connect(&self, vm: VmId, service: ServiceId) -> Explanation {
        self.explain(Question {
            vm,
            service,
            listening: false,
        })
    }

    /// Explains whether a listen that accepts from `vm` would succeed.
    pub fn explain_listen(&self, vm: VmId, service: ServiceId) -> Explanation {
        self.explain(Question {
            vm,
            service,
            listening: true,
        })
    }

    fn explain(&self, question: Question) -> Explanation {
        let view = View::new(self, question);
        let mut explanation = view.evaluate(question);
        if self.host_decides(question) {
            leave_to_host(&mut explanation, &view);
        } else {
            self.apply_exemptions(&mut explanation, question);
            self.add_caveats(&mut explanation, question, &view);
        }
        explanation.fix = match &explanation.verdict {
            Err(refusal) => self.fix(refusal, question).or(explanation.fix),
            Ok(Verdict::HostDecides) => Some(Fix::ListServicesOnHost),
            Ok(_) if self.missing.contains(&Missing::NotQueried) => Some(Fix::ListPartitions),
            Ok(_) => None,
        };
        explanation
    }

    /// Some services and machines need no registration.
    fn apply_exemptions(&self, explanation: &mut Explanation, question: Question) {
        let kind = self.vm(question.vm).map(|vm| &vm.kind);
        let shipped = Registration::in_box();
        let shipped = shipped.iter().any(|entry| entry.id == question.service);
        let answer: &str = match (&explanation.verdict, kind) {
            (Err(Refusal::Unregistered), _) if shipped => "no: it is a service of Windows itself",
            // Hyper-V's management service reads the registry. A machine of the host compute service
            // has its own table of services (hcsshim schema2, `HvSocketSystemConfig`). WSL's machine
            // accepts unregistered services:
            // github.com/nbdd0121/wsld/issues/5, github.com/microsoft/WSL/pull/13212.
            (
                Err(Refusal::Unregistered | Refusal::Disabled { .. }),
                Some(VmKind::Wsl | VmKind::Utility { .. }),
            ) => match kind {
                Some(VmKind::Utility { owner: None }) if self.may_hide_vms() => {
                    "it does not, which matters if Hyper-V Manager runs the virtual machine; \
                     Windows does not show who runs it"
                }
                _ => "no: the host compute service has its own rules for this virtual machine",
            },
            (Err(Refusal::Unregistered), _) => match self.unread() {
                Some(why) => why,
                None => return,
            },
            _ => return,
        };
        let answer = answer.to_owned();
        explanation.steps.retain(|step| step.pass);
        explanation.verdict = Ok(Verdict::SystemDecides);
        let question = "Does the registry have to allow it?";
        let step = ExplanationStep::new(Check::NeedsRegistry, true, question, answer);
        explanation.steps.push(step);
    }

    /// Why the registry could not be read, if so.
    fn unread(&self) -> Option<&str> {
        self.missing.iter().find_map(|missing| match missing {
            Missing::Registry { why } => Some(why.as_str()),
            _ => None,
        })
    }

    /// Adds what is unknown about a success.
    fn add_caveats(&self, explanation: &mut Explanation, question: Question, view: &View) {
        let steps = &mut explanation.steps;
        if let Some(name) = &view.target {
            let words = match self.vm(question.vm).map(|vm| vm.state) {
                Some(VmState::Starting) => Some("it is starting"),
                Some(VmState::Stopping) => Some("it is stopping, saving or pausing"),
                Some(VmState::Unknown) => Some("Windows does not report it"),
                Some(_) => None,
                None => Some("unknown: Windows does not show this virtual machine"),
            };
            let is_state = |step: &&mut ExplanationStep| {
                step.check == Check::Running && step.subject.as_deref() == Some(name.as_str())
            };
            let step = steps.iter_mut().find(is_state);
            if let (Some(step), Some(words)) = (step, words) {
                words.clone_into(&mut step.answer);
            }
        }
        if explanation.verdict.is_err() {
            return;
        }
        let to_children = match question.vm {
            VmId::LOOPBACK => return,
            VmId::WILDCARD | VmId::CHILDREN => true,
            _ => false,
        };
        // WSL's machine reaches only listeners that bind to its id: microsoft/WSL#5751.
        let wsl = self.vms.iter().find(|vm| vm.kind == VmKind::Wsl);
        if let Some(wsl) = wsl.filter(|_| to_children) {
            let answer = format!("no: it reaches only listeners at its own id, {}", wsl.id);
            let question = "Does WSL's virtual machine reach it?";
            steps.push(ExplanationStep::new(Check::Address, true, question, answer));
        }
        for missing in self.missing.iter().filter(|missing| missing.hides_vms()) {
            let question = "Is it on for every virtual machine?";
            let answer = format!("unknown: {missing}");
            steps.push(ExplanationStep::new(Check::Enabled, true, question, answer));
        }
        // hcsshim schema2, `HvSocketSystemConfig`: each virtual machine has a security descriptor
        // for bind and connect. Its owner sets it, and Windows does not show it.
        let answer = "Windows decides, by security descriptors that it does not show";
        let question = "May this user do it?";
        steps.push(ExplanationStep::new(Check::System, true, question, answer));
    }

    /// The fix for a refusal on Windows, if it differs from the one on Linux.
    fn fix(&self, refusal: &Refusal, question: Question) -> Option<Fix> {
        let kind = self.vm(question.vm).map(|vm| &vm.kind);
        match (refusal, kind) {
            // The fabric's own: resume it, or start it.
            (Refusal::PartitionOff | Refusal::PartitionPaused, Some(VmKind::HyperV)) => None,
            (Refusal::PartitionOff | Refusal::PartitionPaused, _) => Some(Fix::StartWithItsManager),
            (Refusal::PartitionUnknown, _) if self.missing.contains(&Missing::HyperV) => {
                Some(Fix::EnableHyperV)
            }
            (Refusal::PartitionUnknown, _) => Some(Fix::ListPartitions),
            _ => None,
        }
    }
}

/// In a virtual machine the host's registry decides.
fn leave_to_host(explanation: &mut Explanation, view: &View) {
    if explanation.verdict != Err(Refusal::Unregistered) {
        return;
    }
    explanation.steps.retain(|step| step.pass);
    explanation.verdict = Ok(Verdict::HostDecides);
    let question = format!("Is the service registered in {}?", view.host);
    let answer = "only the host knows, and it cannot be queried from here";
    let step = ExplanationStep::new(Check::Registered, true, question, answer);
    explanation.steps.push(step.about(&view.host));
}
