//! Explains refusals through the endpoint, in the form of the control API.

use std::io;

use hvsock::{ConnectOptions, HvAddr, ListenOptions};
use hvsock_address::ServiceRef;
use hvsock_control::{Explanation, RefusalReport, Step};

use crate::context::Context;
use crate::failure::Failure;
use crate::words::shell_word;

/// Asks the endpoint whether a connect or listen would succeed.
///
/// # Errors
///
/// Fails if the endpoint cannot be reached.
pub fn explain(context: &Context, address: &HvAddr, listen: bool) -> io::Result<Explanation> {
    let endpoint = context.endpoint();
    let explained = if listen {
        ListenOptions::new()
            .endpoint(endpoint)
            .explain(address.clone())?
    } else {
        ConnectOptions::new()
            .endpoint(endpoint)
            .explain(address.clone())?
    };
    let steps = explained.steps().iter().map(|step| Step {
        question: step.question().to_owned(),
        answer: step.answer().to_owned(),
        pass: step.pass(),
    });
    let fix = explained.fix().map(str::to_owned);
    let refusal = explained.refusal().map(|refusal| RefusalReport {
        reason: refusal.label().to_owned(),
        message: refusal.to_string(),
        errno: refusal.errno(),
        fix: fix.or_else(|| fix_for_name(address, refusal)),
    });
    let verdict = match (&refusal, explained.undecided()) {
        (Some(refusal), _) => format!("refused: {}", refusal.message),
        (None, Some(undecided)) => undecided.to_owned(),
        (None, None) if listen => "the listen would succeed".to_owned(),
        (None, None) => "the connect would succeed".to_owned(),
    };
    Ok(Explanation {
        verdict,
        refusal,
        steps: steps.collect(),
    })
}

/// The fix for a service name that is not registered. The broker explains only known services.
fn fix_for_name(address: &HvAddr, refusal: &hvsock::Refusal) -> Option<String> {
    match (refusal, address.service()) {
        (hvsock::Refusal::Unregistered, ServiceRef::Name(name)) => Some(format!(
            "hvsock service register {}",
            shell_word(name.as_str())
        )),
        _ => None,
    }
}

/// The error of a failed connect or listen, with the command that would fix it.
pub fn failure(
    context: &Context,
    error: io::Error,
    address: &HvAddr,
    listen: bool,
) -> anyhow::Error {
    if hvsock::refusal_of(&error).is_none() {
        return error.into();
    }
    let doing = if listen {
        "cannot listen"
    } else {
        "cannot connect"
    };
    let failure = Failure::new(format!("{doing}: {error}"));
    // Only a refused connect pays for the explanation.
    let explanation = explain(context, address, listen).ok();
    match explanation.and_then(|explanation| explanation.refusal?.fix) {
        Some(fix) => failure.help(context.command(&fix)).into(),
        None => failure.into(),
    }
}
