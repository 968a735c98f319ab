//! Requests: what the kernel can do, and errors for the rest.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_endpoint::uplink::What;
use hvsock_endpoint::{ClientMessage, LookupKind};
use hvsock_sys::vsock;

use super::connecting::Connecting;
use super::host;
use super::host_query::NoAnswer;
use super::listener::Listener;
use super::resolve::{ConnectTarget, ListenTarget};
use super::stream::Stream;
use crate::backend::{OutcomeOf, Request, RequestKind};
use crate::os::with_fix;
use crate::{Check, Explanation, ExplanationStep, Fix, NoRegistry, Verdict, error, refusal_of};
use hvsock_sys::machine::Machine;

/// The result of a request.
pub(crate) type Outcome = OutcomeOf<Stream, Listener>;

/// Returns true if this machine has a host that `AF_VSOCK` reaches.
pub(crate) fn is_available() -> bool {
    Path::new(vsock::DEVICE).exists() && Machine::detect().is_guest()
}

/// Connects, listens or explains. Waits up to `timeout`.
pub(crate) fn execute(request: &Request, timeout: Duration) -> io::Result<Outcome> {
    let machine = Machine::detect();
    let deadline = Instant::now() + timeout;
    if request.flags.dry_run {
        return explain(machine, request, deadline).map(Outcome::Explained);
    }
    match request.kind {
        RequestKind::Connect { .. } => {
            let stream = Connecting::start(machine, request)?.wait()?;
            Ok(Outcome::Connected(stream))
        }
        RequestKind::Listen { backlog } => {
            let address = host::resolve(machine, &request.address, deadline)?;
            let target = ListenTarget::of(machine, &address)?;
            let listener = Listener::new(machine, &target, backlog, request)?;
            Ok(Outcome::Listening(listener))
        }
    }
}

/// Whether a request asks the host something, besides connecting, so that it may wait.
#[cfg(feature = "tokio")]
pub(crate) fn needs_host(request: &Request) -> bool {
    request.flags.dry_run || host::has_names(&request.address)
}

/// The id of a name, which the host looks up. Waits up to `timeout`.
///
/// # Errors
///
/// The host's refusal; [`NoRegistry`] if it does not answer.
pub(crate) fn look_up(kind: LookupKind, name: &str, timeout: Duration) -> io::Result<[u8; 16]> {
    host::find(Machine::detect(), kind, name, Instant::now() + timeout)
}

/// The error for a request that only a broker in this machine could serve.
pub(crate) fn no_registry(asked: &ClientMessage) -> io::Error {
    match asked {
        ClientMessage::Register(register) => NoRegistry::registration(&register.name).into(),
        _ => error::new(
            io::ErrorKind::Unsupported,
            "there is no broker in this virtual machine",
        ),
    }
}

/// Explains a refusal that this machine decides, or has the host explain what it decides. If that is not
/// possible, it is an error which says so.
fn explain(machine: Machine, request: &Request, deadline: Instant) -> io::Result<Explanation> {
    let address = &host::resolve(machine, &request.address, deadline)?;
    let (resolved, what, within) = match request.kind {
        RequestKind::Connect { .. } => {
            let target = ConnectTarget::of(machine, address);
            let within = target.as_ref().is_ok_and(ConnectTarget::is_local);
            let target = target.map(|target| (target.address, target.peer));
            (target, What::Connect, within)
        }
        RequestKind::Listen { .. } => {
            let target = ListenTarget::of(machine, address);
            let within = target.as_ref().is_ok_and(ListenTarget::is_local);
            let target = target.map(|target| (target.address, target.local));
            (target, What::Listen, within)
        }
    };
    let (to, peer) = match resolved {
        Err(error) => return refused_here(error),
        Ok(to) => to,
    };
    let verdict = match what {
        What::Connect => Verdict::Connect,
        // Whether the port is free is the matter of this machine's kernel.
        What::Listen => Verdict::SystemDecides,
    };
    let no_broker = "there is no broker in this virtual machine to explain this";
    if within {
        let text = format!(
            "{no_broker}: no rule applies, and only a try shows whether port {} has a listener",
            to.port
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let SockAddrHv { service, .. } = peer;
    let left = deadline.saturating_duration_since(Instant::now());
    let asked = host::explain(machine, what, service, left).and_then(|query| query.wait(deadline));
    let why = match asked {
        Ok(answers) => match host::explanation(&answers, verdict) {
            Some(mut explanation) => {
                // The host knows no listeners of this machine's kernel.
                let is_of_kernel = |check| matches!(check, Check::AddressFree | Check::Capacity);
                let steps = &mut explanation.steps;
                steps.retain(|step| what == What::Connect || !is_of_kernel(step.check));
                return Ok(explanation);
            }
            None => NoAnswer::Invalid("an unexpected answer".to_owned()),
        },
        Err(why) => why,
    };
    let text = format!(
        "{no_broker}: the host decides for vsock port {}, and gave no explanation: {why}",
        to.port
    );
    let fix = Fix::ExplainOnHost {
        partition: address.partition().clone(),
        service: address.service().clone(),
        listening: what == What::Listen,
    };
    Err(with_fix(io::ErrorKind::Unsupported, text, fix))
}

fn refused_here(error: io::Error) -> io::Result<Explanation> {
    match refusal_of(&error) {
        Some(refusal) => {
            let question = "Does AF_VSOCK reach this address without a broker?";
            let answer = error.to_string();
            let step = ExplanationStep::new(Check::Address, false, question, answer);
            let mut explanation = Explanation::refused(refusal.clone(), step);
            explanation.fix = error.get_ref().and_then(|inner| error::own_fix(inner));
            Ok(explanation)
        }
        None => Err(error),
    }
}
