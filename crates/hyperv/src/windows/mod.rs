//! Queries to Windows: the registry for services and the kind of this machine; WMI and the host
//! compute service for virtual machines.

mod machine;
mod policies;
mod vms;
mod wmi;
mod worker;

use std::time::Instant;

use hvsock_registry::key_store::KeyStore;

use crate::{Facts, Missing, Vm};

pub use machine::machine;
pub use policies::{PolicyError, set_policy};
use vms::LIMIT;

/// Queries the state of this machine. Takes at most 5 seconds.
pub fn facts() -> Facts {
    let queries = vms::query();
    let mut facts = registry_facts();
    let found = queries.by(Instant::now() + LIMIT);
    facts
        .missing
        .retain(|missing| *missing != Missing::NotQueried);
    facts.missing.extend(found.missing);
    facts.policies = found.policies;
    facts.vms = found.vms;
    facts.machine.is_host |= !facts.vms.is_empty();
    facts
}

/// The part of the state that is in the Windows registry, without waiting. Hyper-V's virtual machines
/// and their policies are [`Missing::NotQueried`].
pub fn registry_facts() -> Facts {
    let mut facts = Facts {
        machine: machine(),
        vms: vms::in_registry(),
        missing: vec![Missing::NotQueried],
        ..Facts::default()
    };
    match KeyStore::open().and_then(|store| store.read()) {
        Ok(listing) => {
            facts.registry = listing.registry;
            facts.problems = listing.problems;
        }
        Err(error) => facts.missing.push(Missing::Registry {
            why: error.to_string(),
        }),
    }
    facts
}

/// The virtual machines of this host that this user may see, and what could not be obtained. Takes at
/// most 5 seconds.
pub fn virtual_machines() -> (Vec<Vm>, Vec<Missing>) {
    let found = vms::query().by(Instant::now() + LIMIT);
    (found.vms, found.missing)
}
