//! All that a Windows machine says of itself, and the questions that it answers.

use hvsock_address::{ServiceId, VmId};
use hvsock_fabric::{Refusal, Step};
use hvsock_registry::{Registration, Registry};

use crate::explanation::{Explanation, Outlook};
use crate::missing::Missing;
use crate::name::{FindVmError, find_vm};
use crate::view::View;
use crate::{Machine, ServicePolicy, Vm, VmKind, VmState};

/// All that a Windows machine says of itself.
///
/// What one user may see is not all that there is: [`missing`](Self::missing) says what was not
/// told. Explanations heed it, and claim nothing of what they cannot know.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The services registered here, those of Windows itself left out.
    pub registry: Registry,
    /// What is wrong with entries of the registry that are not among them.
    pub problems: Vec<String>,
    /// What this machine is.
    pub machine: Machine,
    /// The virtual machines that it shows.
    pub vms: Vec<Vm>,
    /// For which of them services are switched on or off.
    pub policies: Vec<ServicePolicy>,
    /// What it did not tell.
    pub missing: Vec<Missing>,
}

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) vm: VmId,
    pub(crate) service: ServiceId,
    pub(crate) listening: bool,
}

impl Facts {
    /// What would become of a connect to a service at `vm`.
    pub fn explain_connect(&self, vm: VmId, service: ServiceId) -> Explanation {
        self.explain(Question {
            vm,
            service,
            listening: false,
        })
    }

    /// What would become of a listen that accepts from `vm`.
    pub fn explain_listen(&self, vm: VmId, service: ServiceId) -> Explanation {
        self.explain(Question {
            vm,
            service,
            listening: true,
        })
    }

    /// The virtual machine with this id.
    pub fn vm(&self, id: VmId) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.id == id)
    }

    /// The virtual machine that a person means: see [`find_vm`].
    pub fn find_vm(&self, text: &str) -> Result<&Vm, FindVmError> {
        find_vm(&self.vms, text)
    }

    /// Whether there may be virtual machines that it does not show.
    pub(crate) fn may_hide_vms(&self) -> bool {
        self.missing.iter().any(hides_vms)
    }

    /// Whether it is a virtual machine that has none itself.
    pub(crate) fn is_mere_guest(&self) -> bool {
        self.machine.guest.is_some() && !self.machine.is_host
    }

    /// Whether its own host answers, and not this machine.
    pub(crate) fn asks_host(&self, question: Question) -> bool {
        let to_host = match question.vm {
            VmId::PARENT => true,
            VmId::WILDCARD => !question.listening,
            _ => false,
        };
        self.is_mere_guest() || self.machine.guest.is_some() && to_host
    }

    fn explain(&self, question: Question) -> Explanation {
        let view = View::new(self, question);
        let judged = view.judge(question);
        let mut explanation = Explanation {
            verdict: judged.verdict.map(|_| Outlook::Open),
            steps: judged.steps,
            fix: judged.fix,
        };
        if self.asks_host(question) {
            leave_to_host(&mut explanation, &view);
        } else {
            self.heed_exemptions(&mut explanation, question);
            self.heed_doubts(&mut explanation, question, &view);
        }
        if let Err(refusal) = &explanation.verdict {
            explanation.fix = self.fix(refusal, question).or(explanation.fix);
        } else {
            explanation.fix = None;
        }
        explanation
    }

    /// Some are reached without a registration.
    fn heed_exemptions(&self, explanation: &mut Explanation, question: Question) {
        let kind = self.vm(question.vm).map(|vm| &vm.kind);
        let shipped = Registration::in_box();
        let shipped = shipped.iter().any(|entry| entry.id == question.service);
        let answer: &str = match (&explanation.verdict, kind) {
            (Err(Refusal::Unregistered), _) if shipped => "no: it is a service of Windows itself",
            // The registry is read by Hyper-V's management service, and a machine that the host
            // compute service runs has its own table of services (hcsshim schema2,
            // `HvSocketSystemConfig`). Seen with WSL's, which takes unregistered services:
            // github.com/nbdd0121/wsld/issues/5, github.com/microsoft/WSL/pull/13212.
            (
                Err(Refusal::Unregistered | Refusal::Disabled { .. }),
                Some(VmKind::Wsl | VmKind::Utility { .. }),
            ) => match kind {
                Some(VmKind::Utility { owner: None }) if self.may_hide_vms() => {
                    "it does not, which counts if the virtual machine is Hyper-V Manager's; \
                     whose it is, Windows does not show"
                }
                _ => "no: the host compute service runs this virtual machine by rules of its own",
            },
            (Err(Refusal::Unregistered), _) => match self.unread() {
                Some(why) => why,
                None => return,
            },
            _ => return,
        };
        let answer = answer.to_owned();
        explanation.steps.retain(|step| step.pass);
        explanation.verdict = Ok(Outlook::Open);
        let question = "Does the registry have to allow it?";
        explanation.steps.push(remark(question, answer));
    }

    /// Why the registry could not be read, if it could not.
    fn unread(&self) -> Option<&str> {
        self.missing.iter().find_map(|missing| match missing {
            Missing::Registry { why } => Some(why.as_str()),
            _ => None,
        })
    }

    /// Says what is not known about a success.
    fn heed_doubts(&self, explanation: &mut Explanation, question: Question, view: &View) {
        let steps = &mut explanation.steps;
        if let Some(name) = &view.asked {
            let words = match self.vm(question.vm).map(|vm| vm.state) {
                Some(VmState::Starting) => Some("it is starting"),
                Some(VmState::Stopping) => Some("it is stopping, saving or pausing"),
                Some(VmState::Unknown) => Some("Windows does not say"),
                Some(_) => None,
                None => Some("not known, since Windows does not show this virtual machine"),
            };
            let asked = format!("Is {name} running?");
            let step = steps.iter_mut().find(|step| step.question == asked);
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
        // One binds to the id of WSL's machine, or hears nothing of it: microsoft/WSL#5751.
        let wsl = self.vms.iter().find(|vm| vm.kind == VmKind::Wsl);
        if let Some(wsl) = wsl.filter(|_| to_children) {
            let answer = format!("no: it reaches only who listens at its own id, {}", wsl.id);
            steps.push(remark("Does WSL's virtual machine reach it?", answer));
        }
        for missing in self.missing.iter().filter(|missing| hides_vms(missing)) {
            let question = "Is it on for every virtual machine?";
            steps.push(remark(question, format!("not known: {missing}")));
        }
        // hcsshim schema2, `HvSocketSystemConfig`: who may bind and connect is in a security
        // descriptor for each virtual machine, which its owner set and nobody is shown.
        let answer = "Windows decides, by security descriptors that it does not show";
        steps.push(remark("May this user do it?", answer.to_owned()));
    }

    /// What helps on Windows, where it is something else than on Linux.
    fn fix(&self, refusal: &Refusal, question: Question) -> Option<String> {
        let id = question.vm;
        let kind = self.vm(id).map(|vm| &vm.kind);
        match (refusal, kind) {
            (Refusal::PartitionOff, Some(VmKind::HyperV)) => {
                Some(format!("Get-VM -Id {id} | Start-VM"))
            }
            (Refusal::PartitionPaused, Some(VmKind::HyperV)) => {
                Some(format!("Get-VM -Id {id} | Resume-VM"))
            }
            (Refusal::PartitionOff | Refusal::PartitionPaused, _) => {
                Some("start it with the program that runs it".to_owned())
            }
            (Refusal::PartitionUnknown, _) if self.missing.contains(&Missing::HyperV) => {
                Some(Missing::HyperV.to_string())
            }
            (Refusal::PartitionUnknown, _) => Some("hvsock vm list".to_owned()),
            _ => None,
        }
    }
}

/// Whether there may be virtual machines that are not shown for this reason. Without Hyper-V's
/// management there are none of Hyper-V's, and the others are shown.
fn hides_vms(missing: &Missing) -> bool {
    !matches!(missing, Missing::HyperV | Missing::Registry { .. })
}

/// In a virtual machine the registry that counts is its host's.
fn leave_to_host(explanation: &mut Explanation, view: &View) {
    if explanation.verdict != Err(Refusal::Unregistered) {
        return;
    }
    explanation.steps.retain(|step| step.pass);
    explanation.verdict = Ok(Outlook::HostDecides);
    explanation.steps.push(remark(
        &format!("Is the service registered in {}?", view.host),
        "the host alone knows, and cannot be asked from here; ask there with \
         `hvsock service list`"
            .to_owned(),
    ));
}

/// An answer that stands against nothing.
fn remark(question: &str, answer: String) -> Step {
    Step {
        question: question.to_owned(),
        answer,
        pass: true,
    }
}
