//! Asking Windows: its registry for services and for what this machine is, WMI and the host compute
//! service for virtual machines.

mod machine;
mod policies;
mod vms;
mod wmi;
mod worker;

use std::time::{Duration, Instant};

use hvsock_registry::key_store::KeyStore;

use crate::{Facts, Missing, Vm};

pub use machine::machine;
pub use policies::{PolicyError, set_policy};

/// How long all questions together may take. WMI's service may have to start first.
const LIMIT: Duration = Duration::from_secs(5);

/// All that this machine says of itself. Takes 5 seconds at the most.
pub fn facts() -> Facts {
    let asked = vms::ask();
    let mut facts = facts_at_hand();
    let found = asked.by(Instant::now() + LIMIT);
    facts
        .missing
        .retain(|missing| *missing != Missing::NotAsked);
    facts.missing.extend(found.missing);
    facts.policies = found.policies;
    facts.vms = found.vms;
    facts.machine.is_host |= !facts.vms.is_empty();
    facts
}

/// What the registry says, at once: everything but Hyper-V's virtual machines and their policies,
/// which are [`Missing::NotAsked`].
pub fn facts_at_hand() -> Facts {
    let mut facts = Facts {
        machine: machine(),
        vms: vms::in_registry(),
        missing: vec![Missing::NotAsked],
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

/// The virtual machines of this host, as far as this user may see them, and what was not told.
/// Takes 5 seconds at the most.
pub fn virtual_machines() -> (Vec<Vm>, Vec<Missing>) {
    let found = vms::ask().by(Instant::now() + LIMIT);
    (found.vms, found.missing)
}
