//! Explains refusals through the endpoint, in the form of the control API.

use std::io;

use hvsock::{ConnectOptions, Explanation, Fix, HvAddr, ListenOptions};
use hvsock_address::{PartitionRef, ServiceRef};
use hvsock_control::ExplanationReport;

use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::fix;

/// Queries the endpoint whether a connect or listen would succeed.
///
/// # Errors
///
/// Fails if the endpoint cannot be reached.
pub fn explain(context: &Context, address: &HvAddr, listen: bool) -> io::Result<ExplanationReport> {
    let endpoint = context.endpoint();
    let explanation = if listen {
        ListenOptions::new()
            .endpoint(endpoint)
            .explain(address.clone())?
    } else {
        ConnectOptions::new()
            .endpoint(endpoint)
            .explain(address.clone())?
    };
    Ok(report(explanation, address))
}

/// An explanation with a fix for a service that is not registered.
fn report(mut explanation: Explanation, address: &HvAddr) -> ExplanationReport {
    // The broker explains only known services, so a name that is not registered has no fix of its own.
    if let Some(hvsock::Refusal::Unregistered) = explanation.refusal()
        && let None | Some(Fix::ListServices | Fix::UseServiceId { .. }) = explanation.fix
        && let service @ ServiceRef::Name(_) = address.service()
    {
        let service = service.clone();
        explanation.fix = Some(Fix::RegisterService { service });
    }
    ExplanationReport::from(&explanation)
}

/// The error of a failed connect or listen, with the command that would fix it.
pub fn failure(
    context: &Context,
    error: io::Error,
    address: &HvAddr,
    listen: bool,
) -> anyhow::Error {
    let service = address.service().to_string();
    named_failure(context, error, address, &service, listen)
}

/// Like [`failure`], with the name of the service, for an address that has only its GUID or port.
pub fn named_failure(
    context: &Context,
    error: io::Error,
    address: &HvAddr,
    service: &str,
    listen: bool,
) -> anyhow::Error {
    let Some(refusal) = hvsock::refusal_of(&error) else {
        return error.into();
    };
    let partition = address.partition();
    let action = if listen {
        format!("cannot listen for \"{service}\"")
    } else {
        format!("cannot connect to \"{service}\" in \"{partition}\"")
    };
    let similar = similar_name(context, address, refusal);
    let similar = similar.map(|name| format!(" (did you mean \"{name}\"?)"));
    let message = format!("{action}: {error}{}", similar.unwrap_or_default());
    let failure = Failure::new(message);
    // A connect of an integration service does not ask for the explanation: it is asked for here.
    let explanation = match hvsock::explanation_of(&error) {
        Some(explanation) => Some(report(explanation.clone(), address)),
        None => explain(context, address, listen).ok(),
    };
    let explained = explanation.and_then(|explanation| explanation.refusal?.fix);
    let fix = explained.as_ref().map(Fix::from);
    let fix = fix.or_else(|| hvsock::fix_of(&error));
    // The root partition may list the partitions; others learn of none.
    let unknown = matches!(refusal, hvsock::Refusal::PartitionUnknown);
    match fix.or_else(|| unknown.then_some(Fix::ListPartitions)) {
        Some(fix) => failure.help(context.help(&fix::help(&fix))).into(),
        None => failure.into(),
    }
}

/// A known name that is similar to an unknown one in the address. `None` also where the names cannot
/// be listed, such as in a container.
fn similar_name(context: &Context, address: &HvAddr, refusal: &hvsock::Refusal) -> Option<String> {
    use hvsock::Refusal::{NotReachable, PartitionUnknown, Unregistered};

    let broker = context.broker.clone();
    let (unknown, known) = match (refusal, address.partition(), address.service()) {
        (Unregistered, _, ServiceRef::Name(name)) => {
            (name.to_string(), complete::services_of(broker))
        }
        (PartitionUnknown | NotReachable, PartitionRef::Name(name), _) => {
            (name.to_string(), complete::guests_of(broker, None))
        }
        _ => return None,
    };
    nearest(&unknown, known.into_iter().map(|known| known.name))
}

/// The most similar of the known names, if the unknown name may be a typing error for it.
fn nearest(unknown: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let limit = (unknown.chars().count() / 3).clamp(1, 3);
    let distances = known
        .into_iter()
        .map(|name| (distance(unknown, &name), name));
    let (distance, name) = distances.min()?;
    (1..=limit).contains(&distance).then_some(name)
}

/// The number of inserted, removed and replaced letters between two names in any case (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, known) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *known);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_near_and_another_word_is_not() {
        let known = || {
            ["web1", "db", "HV Socket Demo"]
                .into_iter()
                .map(str::to_owned)
        };
        let of = |unknown| nearest(unknown, known());
        assert_eq!(of("web").as_deref(), Some("web1"));
        assert_eq!(of("hv socket dmeo").as_deref(), Some("HV Socket Demo"));
        assert_eq!(of("mail"), None);
        assert_eq!(of("a"), None);
        // It is known, so a similar name explains nothing.
        assert_eq!(of("db"), None);
        assert_eq!(nearest("web", std::iter::empty()), None);
    }
}
