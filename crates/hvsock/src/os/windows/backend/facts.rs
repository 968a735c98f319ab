//! Facts about this machine, queried only when they are needed.
//!
//! Querying virtual machines takes a moment. It is done for an explanation, and for an address that
//! names one of them. For all else the reply of Windows and its registry are enough.

use hvsock_address::{SockAddrHv, VmId};
use hvsock_fabric::Refusal;
use hvsock_hyperv::{Facts, Missing};

/// The refusal of a listen that Windows itself would not report: the service is not registered or
/// is disabled. Windows decides everything else.
pub(super) fn listen_refusal(address: SockAddrHv) -> Option<Refusal> {
    let facts = quick_facts()?;
    // The host of a virtual machine may permit it. A machine may be virtual without detecting it.
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

/// Converts an error number of Winsock.
pub(super) fn refusal(number: i32, address: SockAddrHv, listening: bool) -> Option<Refusal> {
    hvsock_hyperv::refusal(number, quick_facts().as_ref(), address, listening)
}

/// The facts that need no query, or `None` if the registry cannot be read: without it every service
/// would seem unregistered.
fn quick_facts() -> Option<Facts> {
    let facts = hvsock_hyperv::registry_facts();
    let registry_missing = |missing: &Missing| matches!(missing, Missing::Registry { .. });
    (!facts.missing.iter().any(registry_missing)).then_some(facts)
}

/// All facts that concern an address.
pub(super) fn full_facts(address: SockAddrHv) -> Facts {
    if address.vm.is_well_known() && address.vm != VmId::CHILDREN {
        hvsock_hyperv::registry_facts()
    } else {
        hvsock_hyperv::facts()
    }
}
