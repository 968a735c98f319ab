//! What this machine says of itself, as far as a question is worth the time.
//!
//! Asking for virtual machines takes a moment, so that is done for who wants an explanation or
//! names one of them. For all else Windows' own answer is enough, with its registry beside.

use hvsock_address::{SockAddrHv, VmId};
use hvsock_fabric::Refusal;
use hvsock_hyperv::{Facts, Missing};

use super::socket;
use crate::backend::Settings;
use crate::{Explanation, ExplanationStep};

/// What would become of a connect.
pub(super) fn explain_connect(address: SockAddrHv) -> Explanation {
    let explanation = full_facts(address).explain_connect(address.vm, address.service);
    require_sockets(Explanation::of_facts(explanation))
}

/// What would become of a listen.
pub(super) fn explain_listen(address: SockAddrHv) -> Explanation {
    let explanation = full_facts(address).explain_listen(address.vm, address.service);
    require_sockets(Explanation::of_facts(explanation))
}

/// Nothing comes of what would succeed where Windows has no such sockets.
fn require_sockets(mut explanation: Explanation) -> Explanation {
    if explanation.refusal.is_some() || socket(Settings::default()).is_ok() {
        return explanation;
    }
    explanation.refusal = Some(Refusal::NotSupported);
    explanation.undecided = None;
    explanation.steps.push(ExplanationStep {
        question: "Does this Windows have Hyper-V sockets?".to_owned(),
        answer: Missing::HyperV.to_string(),
        pass: false,
    });
    explanation
}

/// What stands against a listen, which Windows itself would not say: that the service is not
/// registered, or switched off. Everything else is for Windows to say.
pub(super) fn listen_refusal(address: SockAddrHv) -> Option<Refusal> {
    let facts = quick_facts()?;
    // A virtual machine's host may let it through, and not every one knows what it is.
    let may_have_host = facts.machine.guest.is_some() || !facts.machine.is_host;
    let from_host = [VmId::WILDCARD, VmId::PARENT, VmId::SILOHOST].contains(&address.vm);
    if from_host && may_have_host {
        return None;
    }
    let explanation = facts.explain_listen(address.vm, address.service);
    explanation
        .verdict
        .err()
        .filter(|refusal| matches!(refusal, Refusal::Unregistered | Refusal::Disabled { .. }))
}

/// What a number of Winsock's means.
pub(super) fn refusal(number: i32, address: SockAddrHv, listening: bool) -> Option<Refusal> {
    hvsock_hyperv::refusal(number, quick_facts().as_ref(), address, listening)
}

/// What can be known at once, if the registry is to be read: without it every service would look
/// unregistered.
fn quick_facts() -> Option<Facts> {
    let facts = hvsock_hyperv::facts_at_hand();
    let registry_missing = |missing: &Missing| matches!(missing, Missing::Registry { .. });
    (!facts.missing.iter().any(registry_missing)).then_some(facts)
}

/// All facts that an address has to do with.
fn full_facts(address: SockAddrHv) -> Facts {
    if address.vm.is_well_known() && address.vm != VmId::CHILDREN {
        hvsock_hyperv::facts_at_hand()
    } else {
        hvsock_hyperv::facts()
    }
}
