//! What the broker of the host knows, for a machine without one: the ids of names, and why it refuses.

use std::io;
use std::time::{Duration, Instant};

use hvsock_address::{PartitionRef, ServiceId, ServiceRef, SockAddrHv, VmId};
use hvsock_endpoint::uplink::{ChildId, ExplainUp, GuestFrame, HostFrame, Request, What};
use hvsock_endpoint::{LookupKind, Refused};
use hvsock_fabric::Refusal;

use super::host_query::{HostQuery, NoAnswer};
use crate::{Explanation, HvAddr, NoRegistry, Verdict, error};
use hvsock_sys::machine::Machine;

/// The number of the one request of a connection.
const REQUEST: Request = Request(1);

/// Whether an address has names, which this machine cannot resolve by itself.
pub(super) fn has_names(address: &HvAddr) -> bool {
    !lookups(address).is_empty()
}

/// Begins to look up the names of an address.
///
/// # Errors
///
/// [`NoRegistry`] if the host cannot be asked.
pub(super) fn look_up(
    machine: Machine,
    address: &HvAddr,
    timeout: Duration,
) -> io::Result<HostQuery> {
    check_machine(machine).map_err(|cause| no_registry(address, cause))?;
    let query = HostQuery::start(&lookups(address), timeout);
    query.map_err(|why| no_registry(address, Some(why.to_string())))
}

/// The address with the ids that the host has found.
///
/// # Errors
///
/// The host's refusal, or [`NoRegistry`] if it sent something else.
pub(super) fn resolved(address: &HvAddr, answers: Vec<HostFrame>) -> io::Result<HvAddr> {
    let mut resolved = address.clone();
    for (question, answer) in lookups(address).into_iter().zip(answers) {
        let guid = match answer {
            HostFrame::Found { guid } => guid,
            HostFrame::Refused(refused) => return Err(refusal(&refused).into()),
            _ => {
                return Err(unanswered(address, &unexpected()));
            }
        };
        match question {
            GuestFrame::Lookup {
                kind: LookupKind::Partition,
                ..
            } => resolved.partition = VmId::from_guid_bytes(guid).into(),
            _ => resolved.service = ServiceId::from_guid_bytes(guid).into(),
        }
    }
    Ok(resolved)
}

/// Looks up the names of an address and waits until `deadline`.
///
/// # Errors
///
/// The host's refusal, or [`NoRegistry`] if it gives no answer.
pub(super) fn resolve(machine: Machine, address: &HvAddr, deadline: Instant) -> io::Result<HvAddr> {
    if !has_names(address) {
        return Ok(address.clone());
    }
    let timeout = deadline.saturating_duration_since(Instant::now());
    let answers = look_up(machine, address, timeout)?.wait(deadline);
    let answers = answers.map_err(|why| unanswered(address, &why))?;
    resolved(address, answers)
}

/// The id of one name. Waits until `deadline`.
///
/// # Errors
///
/// As [`resolve`].
pub(super) fn find(
    machine: Machine,
    kind: LookupKind,
    name: &str,
    deadline: Instant,
) -> io::Result<[u8; 16]> {
    let no_registry = |cause| {
        let missing = match kind {
            LookupKind::Partition | LookupKind::Cid => NoRegistry::partition(name),
            LookupKind::Service => NoRegistry::service(name),
        };
        io::Error::from(missing.because(cause))
    };
    check_machine(machine).map_err(no_registry)?;
    let question = GuestFrame::Lookup {
        kind,
        name: name.to_owned(),
    };
    let timeout = deadline.saturating_duration_since(Instant::now());
    let asked = HostQuery::start(&[question], timeout).and_then(|query| query.wait(deadline));
    let answers = asked.map_err(|why| no_registry(Some(why.to_string())))?;
    match answers.into_iter().next() {
        Some(HostFrame::Found { guid }) => Ok(guid),
        Some(HostFrame::Refused(refused)) => Err(refusal(&refused).into()),
        _ => Err(no_registry(Some(unexpected().to_string()))),
    }
}

/// The error for names of an address that the host has not resolved.
pub(super) fn unanswered(address: &HvAddr, why: &NoAnswer) -> io::Error {
    no_registry(address, Some(why.to_string()))
}

/// Begins to ask why the host would refuse a request to it.
pub(super) fn explain(
    machine: Machine,
    what: What,
    service: ServiceId,
    timeout: Duration,
) -> Result<HostQuery, NoAnswer> {
    check_machine(machine).map_err(|cause| match cause {
        Some(cause) => NoAnswer::Invalid(cause),
        None => NoAnswer::Refused,
    })?;
    let question = GuestFrame::Explain(ExplainUp {
        request: REQUEST,
        child: ChildId::MACHINE,
        what,
        address: SockAddrHv::new(VmId::PARENT, service),
    });
    HostQuery::start(&[question], timeout)
}

/// The host's explanation. `None` if it sent something else.
pub(super) fn explanation(answers: &[HostFrame], verdict: Verdict) -> Option<Explanation> {
    let [
        HostFrame::Explained {
            request: REQUEST,
            explanation,
        },
    ] = answers
    else {
        return None;
    };
    let (detail, lines) = match explanation.detail.split_once('\n') {
        Some((detail, lines)) => (detail, lines),
        None => (explanation.detail.as_str(), ""),
    };
    let verdict = match explanation.code {
        0 => Ok(verdict),
        code => Err(Refusal::from_wire(code, detail)),
    };
    Some(Explanation::from_lines(verdict, lines))
}

/// The error of a refused connect that the host has explained. The explanation is part of it only if the program
/// wants that, as with a broker.
pub(super) fn refused(explanation: Explanation, is_wanted: bool) -> Option<io::Error> {
    let refusal = explanation.refusal()?.clone();
    Some(match is_wanted {
        true => error::explained(refusal.into(), explanation),
        false => refusal.into(),
    })
}

/// Whether the machine's host may have a broker. The error is why it has none, if it is worth telling.
fn check_machine(machine: Machine) -> Result<(), Option<String>> {
    match machine {
        Machine::Guest { .. } => Ok(()),
        Machine::HyperV => Err(Some("Windows resolves no names for its guests".to_owned())),
        Machine::Host | Machine::NoTransport => Err(None),
    }
}

fn unexpected() -> NoAnswer {
    NoAnswer::Invalid("an unexpected answer to a look-up".to_owned())
}

fn lookups(address: &HvAddr) -> Vec<GuestFrame> {
    let lookup = |kind, name: &str| GuestFrame::Lookup {
        kind,
        name: name.to_owned(),
    };
    let partition = match address.partition() {
        PartitionRef::Name(name) => Some(lookup(LookupKind::Partition, name.as_str())),
        PartitionRef::Id(_) => None,
    };
    let service = match address.service() {
        ServiceRef::Name(name) => Some(lookup(LookupKind::Service, name.as_str())),
        ServiceRef::Id(_) => None,
    };
    partition.into_iter().chain(service).collect()
}

/// The error for the first name of an address.
fn no_registry(address: &HvAddr, cause: Option<String>) -> io::Error {
    let missing = match (address.partition(), address.service()) {
        (PartitionRef::Name(name), _) => NoRegistry::partition(name.as_str()),
        (_, service) => NoRegistry::service(&service.to_string()),
    };
    missing.because(cause).into()
}

fn refusal(refused: &Refused) -> Refusal {
    Refusal::from_wire(refused.code, &refused.detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal_of;

    const GUEST: Machine = Machine::Guest { cid: Some(42) };

    fn named() -> HvAddr {
        let (partition, service) = ("web".parse::<PartitionRef>(), "Demo".parse::<ServiceRef>());
        HvAddr::new(partition.unwrap(), service.unwrap())
    }

    #[test]
    fn both_names_of_an_address_are_replaced_by_what_was_found() {
        let service = ServiceId::from_port(5000);
        let found = |guid| HostFrame::Found { guid };
        let answers = vec![
            found(VmId::PARENT.to_guid_bytes()),
            found(service.to_guid_bytes()),
        ];
        let address = resolved(&named(), answers).unwrap();
        assert_eq!(address, HvAddr::new(VmId::PARENT, service));
        assert!(has_names(&named()) && !has_names(&address));
        let answers = vec![
            found(VmId::PARENT.to_guid_bytes()),
            HostFrame::Refused(Refused {
                code: Refusal::Unregistered.code(),
                errno: 111,
                detail: String::new(),
            }),
        ];
        let error = resolved(&named(), answers).unwrap_err();
        assert_eq!(refusal_of(&error), Some(&Refusal::Unregistered));
        let error = resolved(&named(), vec![HostFrame::Pong]).unwrap_err();
        assert!(error.get_ref().unwrap().is::<NoRegistry>(), "{error}");
    }

    #[test]
    fn an_explanation_is_one_of_the_request() {
        let refused = Refused {
            code: Refusal::Unregistered.code(),
            errno: 111,
            detail: "\nfail\tIs it registered?\tno\n".to_owned(),
        };
        let answer = |request, explanation| {
            let frame = HostFrame::Explained {
                request,
                explanation,
            };
            explanation_of(&[frame])
        };
        let explained = answer(REQUEST, refused.clone()).unwrap();
        assert_eq!(explained.refusal(), Some(&Refusal::Unregistered));
        assert_eq!(explained.steps.len(), 1);
        assert_eq!(answer(Request(2), refused), None);
        assert_eq!(explanation_of(&[]), None);
        let success = Refused {
            code: 0,
            errno: 0,
            detail: String::new(),
        };
        let explained = answer(REQUEST, success).unwrap();
        assert_eq!(explained.verdict, Ok(Verdict::Connect));
        assert!(super::refused(explained, true).is_none());
    }

    fn explanation_of(answers: &[HostFrame]) -> Option<Explanation> {
        explanation(answers, Verdict::Connect)
    }

    #[test]
    fn only_a_host_that_may_have_a_broker_is_asked() {
        assert_eq!(check_machine(GUEST), Ok(()));
        let on_hyper_v = look_up(Machine::HyperV, &named(), Duration::ZERO).unwrap_err();
        assert!(on_hyper_v.to_string().contains("Windows"), "{on_hyper_v}");
        for machine in [Machine::Host, Machine::NoTransport] {
            let error = look_up(machine, &named(), Duration::ZERO).unwrap_err();
            assert!(error.get_ref().unwrap().is::<NoRegistry>(), "{error}");
        }
    }
}
