//! The next step after errors that any command may have.

use hvsock::Fix;
use hvsock_address::ServiceRef;
use hvsock_hyperv::{PolicyError, UnknownVm};
use hvsock_registry::key_store::KeyError;
use hvsock_registry::{Clash, UnknownService};

use super::missing;
use crate::fix;
use crate::hint::Help;

/// The command that helps, or another next step.
pub fn advice(error: &anyhow::Error) -> Option<Help> {
    error.chain().find_map(|cause| {
        let is_unknown_service = cause.is::<UnknownService>()
            || matches!(cause.downcast_ref(), Some(KeyError::NotRegistered(_)));
        if is_unknown_service {
            return Some(Help::sentence(
                "`hvsock service list` lists them, `hvsock service register` adds one",
            ));
        }
        if cause.is::<UnknownVm>() {
            return Some(Help::sentence("`hvsock vm list` shows all names"));
        }
        match cause.downcast_ref::<PolicyError>() {
            Some(PolicyError::UnknownVm { .. }) => {
                return Some(Help::sentence(
                    "run `hvsock vm list` as administrator to see all of them",
                ));
            }
            Some(PolicyError::Missing(missing)) => {
                return missing::advice(missing).map(Help::Sentence);
            }
            _ => {}
        }
        let clash = match cause.downcast_ref::<KeyError>() {
            Some(KeyError::Clash(clash)) => clash,
            _ => cause.downcast_ref()?,
        };
        unregister(clash)
    })
}

/// The command that removes the registration which has the GUID, name or port.
fn unregister(clash: &Clash) -> Option<Help> {
    let service = ServiceRef::Id(clash.removable()?);
    Some(fix::help(&Fix::UnregisterService { service }))
}
