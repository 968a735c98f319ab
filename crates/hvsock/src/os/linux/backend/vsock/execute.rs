//! Requests: what the kernel can do, and errors for the rest.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use hvsock_endpoint::ClientMessage;
use hvsock_sys::vsock;

use super::listener::Listener;
use super::machine::Machine;
use super::pending_connect::ConnectAttempt;
use super::resolve::{ConnectTarget, ListenTarget};
use super::stream::Stream;
use crate::backend::{OutcomeOf, Request, RequestKind};
use crate::os::with_fix;
use crate::{Check, Explanation, ExplanationStep, Fix, NoRegistry, error, refusal_of};

/// The result of a request.
pub(crate) type Outcome = OutcomeOf<Stream, Listener>;

/// Returns true if this machine has a host that `AF_VSOCK` reaches.
pub(crate) fn is_available() -> bool {
    Path::new(vsock::DEVICE).exists() && Machine::detect().is_guest()
}

/// Connects, listens or explains. Waits up to `timeout`.
pub(crate) fn execute(request: &Request, timeout: Duration) -> io::Result<Outcome> {
    let machine = Machine::detect();
    if request.flags.dry_run {
        return explain(machine, request).map(Outcome::Explained);
    }
    match request.kind {
        RequestKind::Connect { .. } => {
            let deadline = Instant::now() + timeout;
            let stream = ConnectAttempt::start(machine, request)?.wait(deadline)?;
            Ok(Outcome::Connected(stream))
        }
        RequestKind::Listen { backlog } => {
            let target = ListenTarget::of(machine, &request.address)?;
            let listener = Listener::new(machine, &target, backlog, request)?;
            Ok(Outcome::Listening(listener))
        }
    }
}

/// The error for a request that only a broker can serve.
pub(crate) fn no_registry(asked: &ClientMessage) -> io::Error {
    match asked {
        ClientMessage::Register(register) => NoRegistry::registration(&register.name).into(),
        ClientMessage::Lookup { kind, name } => match kind {
            hvsock_endpoint::LookupKind::Service => NoRegistry::service(name).into(),
            hvsock_endpoint::LookupKind::Partition => NoRegistry::partition(name).into(),
        },
        _ => error::new(
            io::ErrorKind::Unsupported,
            "there is no broker in this virtual machine",
        ),
    }
}

/// Explains a refusal that this machine decides. If the host decides, that is an error which says
/// so.
fn explain(machine: Machine, request: &Request) -> io::Result<Explanation> {
    let address = &request.address;
    let (resolved, listening, within) = match request.kind {
        RequestKind::Connect { .. } => {
            let target = ConnectTarget::of(machine, address);
            let within = target.as_ref().is_ok_and(ConnectTarget::is_local);
            (target.map(|target| target.address), false, within)
        }
        RequestKind::Listen { .. } => {
            let target = ListenTarget::of(machine, address);
            let within = target.as_ref().is_ok_and(ListenTarget::is_local);
            (target.map(|target| target.address), true, within)
        }
    };
    let to = match resolved {
        Err(error) => return refused_here(error),
        Ok(to) => to,
    };
    let no_broker = "there is no broker in this virtual machine to explain this";
    if within {
        let text = format!(
            "{no_broker}: no rule applies, and only a try shows whether port {} has a listener",
            to.port
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let text = format!("{no_broker}: the host decides for vsock port {}", to.port);
    let fix = Fix::ExplainOnHost {
        partition: address.partition().clone(),
        service: address.service().clone(),
        listening,
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
