//! The state of a Windows machine, and explanations derived from it.

use hvsock_address::{ServiceId, VmId};
use hvsock_fabric::{ExplanationStep, Refusal};
use hvsock_registry::{Registration, Registry};

use crate::explanation::{HyperVExplanation, Outlook};
use crate::missing::Missing;
use crate::name::{FindVmError, find_vm};
use crate::view::View;
use crate::{Machine, ServicePolicy, Vm, VmKind, VmState};

/// The state of a Windows machine, as visible to this user.
///
/// [`missing`](Self::missing) lists what this user cannot see. Explanations take it into account and
/// make no claim about it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The services registered here, without those of Windows itself.
    pub registry: Registry,
    /// Problems with invalid entries of the Windows registry.
    pub problems: Vec<String>,
    /// The kind of this machine.
    pub machine: Machine,
    /// The visible virtual machines.
    pub vms: Vec<Vm>,
    /// The policies that enable or disable services for them.
    pub policies: Vec<ServicePolicy>,
    /// The information that could not be obtained.
    pub missing: Vec<Missing>,
}

/// A connect or listen to explain.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) vm: VmId,
    pub(crate) service: ServiceId,
    pub(crate) listening: bool,
}

impl Facts {
    /// Explains whether a connect to a service at `vm` would succeed.
    pub fn explain_connect(&self, vm: VmId, service: ServiceId) -> HyperVExplanation {
        self.explain(Question {
            vm,
            service,
            listening: false,
        })
    }

    /// Explains whether a listen that accepts from `vm` would succeed.
    pub fn explain_listen(&self, vm: VmId, service: ServiceId) -> HyperVExplanation {
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

    /// Finds the virtual machine that user input names: see [`find_vm`].
    ///
    /// # Errors
    ///
    /// [`FindVmError`] if no machine, or more than one, has this name.
    pub fn find_vm(&self, text: &str) -> Result<&Vm, FindVmError> {
        find_vm(&self.vms, text)
    }

    /// Whether virtual machines may exist that are not visible.
    pub(crate) fn may_hide_vms(&self) -> bool {
        self.missing.iter().any(hides_vms)
    }

    /// Whether it is a virtual machine and not a host.
    pub(crate) fn is_guest_only(&self) -> bool {
        self.machine.guest.is_some() && !self.machine.is_host
    }

    /// Whether this machine's own host decides the request.
    pub(crate) fn host_decides(&self, question: Question) -> bool {
        let to_host = match question.vm {
            VmId::PARENT => true,
            VmId::WILDCARD => !question.listening,
            _ => false,
        };
        self.is_guest_only() || self.machine.guest.is_some() && to_host
    }

    fn explain(&self, question: Question) -> HyperVExplanation {
        let view = View::new(self, question);
        let evaluated = view.evaluate(question);
        let mut explanation = HyperVExplanation {
            verdict: evaluated.verdict.map(|_| Outlook::Open),
            steps: evaluated.steps,
            fix: evaluated.fix,
        };
        if self.host_decides(question) {
            leave_to_host(&mut explanation, &view);
        } else {
            self.apply_exemptions(&mut explanation, question);
            self.add_caveats(&mut explanation, question, &view);
        }
        if let Err(refusal) = &explanation.verdict {
            explanation.fix = self.fix(refusal, question).or(explanation.fix);
        } else {
            explanation.fix = None;
        }
        explanation
    }

    /// Some services and machines need no registration.
    fn apply_exemptions(&self, explanation: &mut HyperVExplanation, question: Question) {
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
        explanation.verdict = Ok(Outlook::Open);
        let question = "Does the registry have to allow it?";
        explanation.steps.push(remark(question, answer));
    }

    /// Why the registry could not be read, if so.
    fn unread(&self) -> Option<&str> {
        self.missing.iter().find_map(|missing| match missing {
            Missing::Registry { why } => Some(why.as_str()),
            _ => None,
        })
    }

    /// Adds what is unknown about a success.
    fn add_caveats(&self, explanation: &mut HyperVExplanation, question: Question, view: &View) {
        let steps = &mut explanation.steps;
        if let Some(name) = &view.target {
            let words = match self.vm(question.vm).map(|vm| vm.state) {
                Some(VmState::Starting) => Some("it is starting"),
                Some(VmState::Stopping) => Some("it is stopping, saving or pausing"),
                Some(VmState::Unknown) => Some("Windows does not report it"),
                Some(_) => None,
                None => Some("unknown: Windows does not show this virtual machine"),
            };
            let running = format!("Is {name} running?");
            let step = steps.iter_mut().find(|step| step.question == running);
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
            steps.push(remark("Does WSL's virtual machine reach it?", answer));
        }
        for missing in self.missing.iter().filter(|missing| hides_vms(missing)) {
            let question = "Is it on for every virtual machine?";
            steps.push(remark(question, format!("unknown: {missing}")));
        }
        // hcsshim schema2, `HvSocketSystemConfig`: each virtual machine has a security descriptor
        // for bind and connect. Its owner sets it, and Windows does not show it.
        let answer = "Windows decides, by security descriptors that it does not show";
        steps.push(remark("May this user do it?", answer.to_owned()));
    }

    /// The fix for a refusal on Windows, if it differs from the one on Linux.
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

/// Whether virtual machines may be hidden for this reason. Without Hyper-V's management service
/// there are no machines of Hyper-V, and all others are visible.
fn hides_vms(missing: &Missing) -> bool {
    !matches!(missing, Missing::HyperV | Missing::Registry { .. })
}

/// In a virtual machine the host's registry decides.
fn leave_to_host(explanation: &mut HyperVExplanation, view: &View) {
    if explanation.verdict != Err(Refusal::Unregistered) {
        return;
    }
    explanation.steps.retain(|step| step.pass);
    explanation.verdict = Ok(Outlook::HostDecides);
    explanation.steps.push(remark(
        &format!("Is the service registered in {}?", view.host),
        "only the host knows, and it cannot be queried from here; run \
         `hvsock service list` there"
            .to_owned(),
    ));
}

/// A step that passes, with a remark.
fn remark(question: &str, answer: String) -> ExplanationStep {
    ExplanationStep {
        question: question.to_owned(),
        answer,
        pass: true,
    }
}
