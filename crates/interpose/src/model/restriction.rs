//! Listeners for fewer partitions than the program's address names, where the registry does not permit more.

use hvsock::Refusal;
use hvsock_address::{SockAddrHv, VmId};

use super::{Address, OwnCid, listen_target};

/// Where to listen instead for a socket that is bound to `address`, when the broker does not permit a listener
/// at `refused_at`: for the children, or the parent where there are none, if the registry only rules out the wildcard,
/// and at last for the own partition. `None`: the refusal is the program's.
pub fn narrower_target(
    address: Address,
    own: OwnCid,
    refused_at: SockAddrHv,
    refusal: &Refusal,
) -> Option<SockAddrHv> {
    let first = listen_target(address, own);
    let is_first = refused_at == first;
    let vm = match (refused_at.vm, refusal) {
        (VmId::WILDCARD, Refusal::WildcardNotAllowed) => VmId::CHILDREN,
        (
            VmId::WILDCARD,
            Refusal::Unregistered | Refusal::Disabled { .. } | Refusal::Denied { .. },
        ) => VmId::LOOPBACK,
        // An address of AF_HYPERV that names partitions means those.
        _ if is_first => return None,
        // No such listener makes room for itself.
        (_, Refusal::AddressInUse) => return None,
        // A container has no children.
        (VmId::CHILDREN, Refusal::NotSupported) => VmId::PARENT,
        (VmId::CHILDREN | VmId::PARENT, _) => VmId::LOOPBACK,
        _ => return None,
    };
    Some(SockAddrHv { vm, ..refused_at })
}

/// Says that only partitions of `accepts_from` can connect to a socket that is bound to `address`, since the broker
/// has refused more.
pub fn restriction(address: &Address, accepts_from: VmId, refusal: &Refusal) -> String {
    let who = match accepts_from {
        VmId::CHILDREN => "only child partitions, not this one,",
        VmId::PARENT => "only the parent, not this partition,",
        _ => "nobody outside",
    };
    format!("{who} can connect to {}: {refusal}", place(address))
}

/// An address in words.
pub fn place(address: &Address) -> String {
    match (address, address.service().port()) {
        (_, Some(port)) => format!("vsock port {port}"),
        (_, None) => format!("service {}", address.service()),
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::{ServiceId, SockAddrVm};

    use super::*;

    const OWN: OwnCid = OwnCid(2);

    /// Where is listened one after another, each time with the same refusal.
    fn tried(address: Address, refusal: &Refusal) -> Vec<VmId> {
        let first = listen_target(address, OWN);
        let next = |at: &SockAddrHv| narrower_target(address, OWN, *at, refusal);
        let targets = std::iter::successors(Some(first), next).skip(1);
        targets.map(|target| target.vm).take(10).collect()
    }

    fn hyperv(vm: VmId) -> Address {
        Address::HyperV(SockAddrHv::new(vm, ServiceId::from_port(5000)))
    }

    #[test]
    fn a_listener_for_all_becomes_one_for_those_that_the_registry_permits() {
        let any = Address::Vsock(SockAddrVm::new(SockAddrVm::CID_ANY, 5000));
        let denied = Refusal::Denied {
            rule: String::new(),
        };
        for address in [any, hyperv(VmId::WILDCARD)] {
            for refusal in [&Refusal::Unregistered, &denied] {
                assert_eq!(tried(address, refusal), [VmId::LOOPBACK]);
            }
            assert_eq!(tried(address, &Refusal::AddressInUse), []);
            let wildcard = tried(address, &Refusal::WildcardNotAllowed);
            assert_eq!(wildcard, [VmId::CHILDREN, VmId::LOOPBACK]);
            let service = ServiceId::from_port(5000);
            let children = SockAddrHv::new(VmId::CHILDREN, service);
            let next = |at, refusal| narrower_target(address, OWN, at, refusal);
            let parent = SockAddrHv::new(VmId::PARENT, service);
            assert_eq!(next(children, &Refusal::NotSupported), Some(parent));
            assert_eq!(next(children, &Refusal::AddressInUse), None);
        }
    }

    #[test]
    fn a_listener_for_named_partitions_is_for_those_or_none() {
        let local = Address::Vsock(SockAddrVm::new(SockAddrVm::CID_LOCAL, 5000));
        let named = [VmId::CHILDREN, VmId::PARENT, VmId::LOOPBACK].map(hyperv);
        for address in named.into_iter().chain([local]) {
            for refusal in [
                Refusal::Unregistered,
                Refusal::NotSupported,
                Refusal::AddressInUse,
                Refusal::WildcardNotAllowed,
            ] {
                assert_eq!(tried(address, &refusal), [], "{address:?} {refusal}");
            }
        }
    }

    #[test]
    fn a_restriction_says_who_can_connect() {
        let address = hyperv(VmId::WILDCARD);
        let text = |vm| restriction(&address, vm, &Refusal::Unregistered);
        let why = "can connect to vsock port 5000: the service is not registered";
        assert_eq!(text(VmId::LOOPBACK), format!("nobody outside {why}"));
        assert_eq!(
            text(VmId::CHILDREN),
            format!("only child partitions, not this one, {why}")
        );
        assert_eq!(
            text(VmId::PARENT),
            format!("only the parent, not this partition, {why}")
        );
    }
}
