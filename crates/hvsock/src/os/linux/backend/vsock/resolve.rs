//! Resolves an address to a context id and port in a machine without a broker, and decides which
//! peers a listener accepts. This is the address table of a guest without children and without
//! known siblings.

use std::io;

use hvsock_address::{PartitionRef, ServiceId, ServiceRef, SockAddrHv, SockAddrVm, VmId};
use hvsock_fabric::Refusal;

use crate::error::refused_with;
use crate::{HvAddr, NoRegistry};
use hvsock_sys::machine::Machine;

/// The address of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectTarget {
    pub(super) address: SockAddrVm,
    /// The address as it was requested.
    pub(super) peer: SockAddrHv,
}

/// The address of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListenTarget {
    pub(super) address: SockAddrVm,
    pub(super) local: SockAddrHv,
    pub(super) filter: AcceptFilter,
}

/// The peers that a listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptFilter {
    Any,
    Parent,
    /// The kernel permits no other peer.
    Loopback,
}

/// The kind of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerKind {
    Parent,
    Loopback,
    /// Another guest of the same host.
    Sibling {
        cid: u32,
    },
}

impl ConnectTarget {
    pub(super) fn of(machine: Machine, address: &HvAddr) -> io::Result<Self> {
        let (vm, service) = ids(address)?;
        let (cid, vm) = match vm {
            VmId::LOOPBACK => (SockAddrVm::CID_LOCAL, vm),
            VmId::PARENT => {
                require_parent(machine, Refusal::NotSupported)?;
                (SockAddrVm::CID_HOST, vm)
            }
            VmId::ZERO => {
                require_parent(machine, Refusal::AddressNotAvailable)?;
                (SockAddrVm::CID_HOST, VmId::PARENT)
            }
            VmId::CHILDREN | VmId::BROADCAST => {
                let text = "a connect needs one partition; this address names many";
                return Err(refused_with(Refusal::AddressNotAvailable, text));
            }
            VmId::SILOHOST => return Err(not_in_container()),
            _ => return Err(id_not_supported("connect to")),
        };
        let port = port(machine, vm, service)?;
        Ok(Self {
            address: SockAddrVm::new(cid, port),
            peer: SockAddrHv::new(vm, service),
        })
    }

    /// Returns true if it is this machine.
    pub(super) fn is_local(&self) -> bool {
        self.address.cid == SockAddrVm::CID_LOCAL
    }
}

impl ListenTarget {
    pub(super) fn of(machine: Machine, address: &HvAddr) -> io::Result<Self> {
        let (vm, service) = ids(address)?;
        let (cid, filter) = match vm {
            VmId::WILDCARD => (SockAddrVm::CID_ANY, AcceptFilter::Any),
            VmId::LOOPBACK => (SockAddrVm::CID_LOCAL, AcceptFilter::Loopback),
            VmId::PARENT => {
                require_parent(machine, Refusal::NotSupported)?;
                // Not the context id of this machine, which may change when the machine is
                // restored.
                (SockAddrVm::CID_ANY, AcceptFilter::Parent)
            }
            VmId::CHILDREN => {
                let text = "this machine runs no broker, so it has no children";
                return Err(refused_with(Refusal::NotReachable, text));
            }
            VmId::BROADCAST => {
                let text = "listening at a broadcast address is not possible";
                return Err(refused_with(Refusal::AddressNotAvailable, text));
            }
            VmId::SILOHOST => return Err(not_in_container()),
            _ => return Err(id_not_supported("listen for")),
        };
        let port = port(machine, vm, service)?;
        Ok(Self {
            address: SockAddrVm::new(cid, port),
            local: SockAddrHv::new(vm, service),
            filter,
        })
    }
}

impl ListenTarget {
    /// Returns true if only this machine can connect.
    pub(super) fn is_local(&self) -> bool {
        self.filter == AcceptFilter::Loopback
    }
}

impl AcceptFilter {
    pub(super) fn accepts(self, kind: PeerKind) -> bool {
        match self {
            Self::Any => true,
            Self::Parent => kind == PeerKind::Parent,
            Self::Loopback => kind == PeerKind::Loopback,
        }
    }
}

impl PeerKind {
    pub(super) fn of(machine: Machine, cid: u32) -> Self {
        match cid {
            0 | SockAddrVm::CID_HOST => Self::Parent,
            _ if machine.is_local_cid(cid) => Self::Loopback,
            _ => Self::Sibling { cid },
        }
    }

    /// The partition id of this peer. A context id has no known partition id except on the host.
    pub(super) fn vm(self) -> VmId {
        match self {
            Self::Parent => VmId::PARENT,
            Self::Loopback => VmId::LOOPBACK,
            Self::Sibling { .. } => VmId::ZERO,
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Parent => "parent".to_owned(),
            Self::Loopback => "loopback".to_owned(),
            Self::Sibling { cid } => format!("cid {cid}"),
        }
    }
}

/// Both ids of an address, whose names have been resolved.
fn ids(address: &HvAddr) -> io::Result<(VmId, ServiceId)> {
    match (address.partition(), address.service()) {
        (PartitionRef::Name(name), _) => Err(NoRegistry::partition(name.as_str()).into()),
        (_, ServiceRef::Name(name)) => Err(NoRegistry::service(name.as_str()).into()),
        (PartitionRef::Id(vm), ServiceRef::Id(service)) => Ok((*vm, *service)),
    }
}

/// The port of a service: the one on the template, else its alias. The broker of the host uses the
/// same alias for guests, which have ports only.
fn port(machine: Machine, vm: VmId, service: ServiceId) -> io::Result<u32> {
    let on_hyper_v = machine == Machine::HyperV && vm != VmId::LOOPBACK;
    if on_hyper_v && service.vsock_alias().is_some() {
        let text = format!(
            "on Hyper-V a Linux guest reaches services by vsock port only, and the GUID {service} \
             has none; use one of the form PORT-facb-11e6-bd58-64006a7986d3 on both sides"
        );
        return Err(refused_with(Refusal::ServiceNotMappable, text));
    }
    match service.port_for_guests() {
        Some(SockAddrVm::PORT_ANY) => {
            let text = "vsock port 4294967295 means any port and cannot be used";
            Err(refused_with(Refusal::AddressNotAvailable, text))
        }
        Some(port) => Ok(port),
        None => {
            let text = "the zero GUID is not a service";
            Err(refused_with(Refusal::AddressNotAvailable, text))
        }
    }
}

fn require_parent(machine: Machine, of_the_host: Refusal) -> io::Result<()> {
    match machine {
        Machine::Guest { .. } | Machine::HyperV => Ok(()),
        Machine::Host => Err(refused_with(
            of_the_host,
            "this machine is the host of its virtual machines and has no parent",
        )),
        Machine::NoTransport => Err(refused_with(
            Refusal::NotReachable,
            "no vsock device connects this machine with a host; if it is a virtual machine, give \
             it one (`virtio-vsock`), or load its driver",
        )),
    }
}

fn not_in_container() -> io::Error {
    let text = "this process is not in a container of a broker";
    refused_with(Refusal::AddressNotAvailable, text)
}

fn id_not_supported(what: &str) -> io::Error {
    let text = format!(
        "cannot {what} a partition by its id without a broker; AF_VSOCK has the parent and \
         loopback only"
    );
    refused_with(Refusal::NotReachable, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal_of;

    const GUEST: Machine = Machine::Guest { cid: Some(42) };
    const SERVICE: ServiceId = ServiceId::from_port(2761);

    fn connect(machine: Machine, vm: VmId) -> Result<(u32, VmId), Refusal> {
        let target = ConnectTarget::of(machine, &HvAddr::new(vm, SERVICE));
        let target = target.map_err(|error| refusal_of(&error).cloned().unwrap())?;
        assert_eq!(
            (target.address.port, target.peer.service),
            (2761, SERVICE),
            "{vm}"
        );
        Ok((target.address.cid, target.peer.vm))
    }

    fn listen(machine: Machine, vm: VmId) -> Result<(u32, AcceptFilter), Refusal> {
        let target = ListenTarget::of(machine, &HvAddr::new(vm, SERVICE));
        let target = target.map_err(|error| refusal_of(&error).cloned().unwrap())?;
        assert_eq!(target.address.port, 2761);
        assert_eq!(target.local, SockAddrHv::new(vm, SERVICE));
        Ok((target.address.cid, target.filter))
    }

    #[test]
    fn a_connect_resolves_to_the_host_or_to_loopback() {
        for machine in [GUEST, Machine::Guest { cid: None }, Machine::HyperV] {
            for vm in [VmId::PARENT, VmId::ZERO] {
                assert_eq!(connect(machine, vm), Ok((2, VmId::PARENT)));
            }
            assert_eq!(connect(machine, VmId::LOOPBACK), Ok((1, VmId::LOOPBACK)));
            for vm in [VmId::CHILDREN, VmId::BROADCAST, VmId::SILOHOST] {
                assert_eq!(connect(machine, vm), Err(Refusal::AddressNotAvailable));
            }
            assert_eq!(connect(machine, VmId::random()), Err(Refusal::NotReachable));
        }
    }

    #[test]
    fn a_host_and_a_machine_without_a_transport_have_no_parent() {
        let host = Machine::Host;
        assert_eq!(connect(host, VmId::PARENT), Err(Refusal::NotSupported));
        assert_eq!(connect(host, VmId::ZERO), Err(Refusal::AddressNotAvailable));
        assert_eq!(listen(host, VmId::PARENT), Err(Refusal::NotSupported));
        for vm in [VmId::PARENT, VmId::ZERO] {
            assert_eq!(
                connect(Machine::NoTransport, vm),
                Err(Refusal::NotReachable)
            );
        }
        for machine in [Machine::Host, Machine::NoTransport] {
            assert_eq!(connect(machine, VmId::LOOPBACK), Ok((1, VmId::LOOPBACK)));
        }
    }

    #[test]
    fn a_listener_accepts_the_peers_of_its_address() {
        let any = SockAddrVm::CID_ANY;
        assert_eq!(listen(GUEST, VmId::WILDCARD), Ok((any, AcceptFilter::Any)));
        assert_eq!(listen(GUEST, VmId::PARENT), Ok((any, AcceptFilter::Parent)));
        assert_eq!(
            listen(GUEST, VmId::LOOPBACK),
            Ok((1, AcceptFilter::Loopback))
        );
        for vm in [VmId::BROADCAST, VmId::SILOHOST] {
            assert_eq!(listen(GUEST, vm), Err(Refusal::AddressNotAvailable));
        }
        for vm in [VmId::CHILDREN, VmId::random()] {
            assert_eq!(listen(GUEST, vm), Err(Refusal::NotReachable));
        }

        let [host, own, local, sibling] = [2, 42, 1, 43].map(|cid| PeerKind::of(GUEST, cid));
        assert_eq!([host, own], [PeerKind::Parent, PeerKind::Loopback]);
        let peers = [host, own, local, sibling];
        assert_eq!(
            peers.map(PeerKind::vm),
            [VmId::PARENT, VmId::LOOPBACK, VmId::LOOPBACK, VmId::ZERO]
        );
        assert_eq!(sibling.name(), "cid 43");
        assert_eq!(peers.map(|peer| AcceptFilter::Any.accepts(peer)), [true; 4]);
        assert_eq!(
            peers.map(|peer| AcceptFilter::Parent.accepts(peer)),
            [true, false, false, false]
        );
        assert_eq!(
            peers.map(|peer| AcceptFilter::Loopback.accepts(peer)),
            [false, true, true, false]
        );
    }

    #[test]
    fn a_guid_off_the_template_has_a_port_but_not_on_hyper_v() {
        let service: ServiceId = "0b2f1f0e-0000-4000-8000-000000000001".parse().unwrap();
        let of = |machine, vm| ConnectTarget::of(machine, &HvAddr::new(vm, service));
        let alias = of(GUEST, VmId::PARENT).unwrap();
        assert_eq!(Some(alias.address.port), service.vsock_alias());
        assert_eq!(alias.peer, SockAddrHv::new(VmId::PARENT, service));
        let target = ListenTarget::of(GUEST, &HvAddr::new(VmId::WILDCARD, service)).unwrap();
        assert_eq!(target.address.port, alias.address.port);

        let error = of(Machine::HyperV, VmId::PARENT).unwrap_err();
        assert_eq!(refusal_of(&error), Some(&Refusal::ServiceNotMappable));
        assert!(error.to_string().contains(&service.to_string()), "{error}");
        // Both ends are on this machine.
        let own = of(Machine::HyperV, VmId::LOOPBACK).unwrap();
        assert_eq!(own.address.port, alias.address.port);
    }

    #[test]
    fn an_invalid_port_is_refused() {
        for service in [ServiceId::ZERO, ServiceId::from_port(u32::MAX)] {
            let address = HvAddr::new(VmId::LOOPBACK, service);
            for error in [
                ConnectTarget::of(GUEST, &address).map(|_| ()).unwrap_err(),
                ListenTarget::of(GUEST, &address).map(|_| ()).unwrap_err(),
            ] {
                assert_eq!(refusal_of(&error), Some(&Refusal::AddressNotAvailable));
            }
        }
    }

    #[test]
    fn names_need_a_broker() {
        let service = HvAddr::new(
            VmId::PARENT,
            "HV Socket Demo".parse::<ServiceRef>().unwrap(),
        );
        let partition = HvAddr::new("web".parse::<PartitionRef>().unwrap(), SERVICE);
        for (address, name) in [(service, "`HV Socket Demo`"), (partition, "`web`")] {
            let error = ConnectTarget::of(GUEST, &address).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert!(error.get_ref().unwrap().is::<NoRegistry>());
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
