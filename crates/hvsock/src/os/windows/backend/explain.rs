//! Explanations of what a request would do.

use hvsock_address::SockAddrHv;
use hvsock_fabric::Refusal;
use hvsock_hyperv::Missing;

use super::facts::full_facts;
use super::socket::socket;
use crate::backend::Settings;
use crate::{Check, Explanation, ExplanationStep, Fix};

/// Explains what a connect would do.
pub(super) fn connect(address: SockAddrHv) -> Explanation {
    let explanation = full_facts(address).explain_connect(address.vm, address.service);
    require_sockets(explanation)
}

/// Explains what a listen would do.
pub(super) fn listen(address: SockAddrHv) -> Explanation {
    let explanation = full_facts(address).explain_listen(address.vm, address.service);
    require_sockets(explanation)
}

/// Turns a success into a refusal if Windows has no such sockets.
fn require_sockets(mut explanation: Explanation) -> Explanation {
    if explanation.verdict.is_err() || socket(Settings::default()).is_ok() {
        return explanation;
    }
    explanation.verdict = Err(Refusal::NotSupported);
    explanation.fix = Some(Fix::EnableHyperV);
    let question = "Does this Windows have Hyper-V sockets?";
    let answer = Missing::HyperV.to_string();
    let step = ExplanationStep::new(Check::System, false, question, answer);
    explanation.steps.push(step);
    explanation
}
