//! Which context id and port an address means in a machine without a broker, and who may come to
//! a listener there: the table of DESIGN for a guest that has no children and knows no siblings.

use std::io;

use hvsock_address::{PartitionRef, ServiceId, ServiceRef, SockAddrHv, SockAddrVm, VmId};
use hvsock_fabric::Refusal;

use super::machine::Machine;
use crate::error::worded;
use crate::{HvAddr, NoRegistry};

/// Where to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: SockAddrVm,
    /// It as it was asked for.
    pub(super) peer: SockAddrHv,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: SockAddrVm,
    pub(super) local: SockAddrHv,
    pub(super) from: Whom,
}

/// Whom a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    Anyone,
    Parent,
    /// The kernel lets nobody else through.
    Itself,
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    Parent,
    Itself,
    /// Another guest of the same host.
    Sibling {
        cid: u32,
    },
}

impl Target {
    pub(super) fn of(machine: Machine, address: &HvAddr) -> io::Result<Self> {
        let (vm, service) = ids(address)?;
        let (cid, vm) = match vm {
            VmId::LOOPBACK => (SockAddrVm::CID_LOCAL, vm),
            VmId::PARENT => {
                has_parent(machine, Refusal::NotSupported)?;
                (SockAddrVm::CID_HOST, vm)
            }
            VmId::ZERO => {
                has_parent(machine, Refusal::AddressNotAvailable)?;
                (SockAddrVm::CID_HOST, VmId::PARENT)
            }
            VmId::CHILDREN | VmId::BROADCAST => {
                let text = "a connect needs one partition, and this address names many";
                return Err(worded(Refusal::AddressNotAvailable, text));
            }
            VmId::SILOHOST => return Err(no_container()),
            _ => return Err(no_ids("reached")),
        };
        let port = port(machine, vm, service)?;
        Ok(Self {
            address: SockAddrVm::new(cid, port),
            peer: SockAddrHv::new(vm, service),
        })
    }

    /// Whether it is this machine itself.
    pub(super) fn is_local(&self) -> bool {
        self.address.cid == SockAddrVm::CID_LOCAL
    }
}

impl Place {
    pub(super) fn of(machine: Machine, address: &HvAddr) -> io::Result<Self> {
        let (vm, service) = ids(address)?;
        let (cid, from) = match vm {
            VmId::WILDCARD => (SockAddrVm::CID_ANY, Whom::Anyone),
            VmId::LOOPBACK => (SockAddrVm::CID_LOCAL, Whom::Itself),
            VmId::PARENT => {
                has_parent(machine, Refusal::NotSupported)?;
                // Not the machine's own context id: that may change when it is restored.
                (SockAddrVm::CID_ANY, Whom::Parent)
            }
            VmId::CHILDREN => {
                let text = "this machine has no children without a broker of its own";
                return Err(worded(Refusal::NotReachable, text));
            }
            VmId::BROADCAST => {
                let text = "nobody can listen at this address";
                return Err(worded(Refusal::AddressNotAvailable, text));
            }
            VmId::SILOHOST => return Err(no_container()),
            _ => return Err(no_ids("heard")),
        };
        let port = port(machine, vm, service)?;
        Ok(Self {
            address: SockAddrVm::new(cid, port),
            local: SockAddrHv::new(vm, service),
            from,
        })
    }
}

impl Place {
    /// Whether nobody but this machine itself can come.
    pub(super) fn is_local(&self) -> bool {
        self.from == Whom::Itself
    }
}

impl Whom {
    pub(super) fn takes(self, caller: Caller) -> bool {
        match self {
            Self::Anyone => true,
            Self::Parent => caller == Caller::Parent,
            Self::Itself => caller == Caller::Itself,
        }
    }
}

impl Caller {
    pub(super) fn of(machine: Machine, cid: u32) -> Self {
        match cid {
            0 | SockAddrVm::CID_HOST => Self::Parent,
            _ if machine.is_own(cid) => Self::Itself,
            _ => Self::Sibling { cid },
        }
    }

    /// Its address here. Only the host knows the id that belongs to a context id.
    pub(super) fn vm(self) -> VmId {
        match self {
            Self::Parent => VmId::PARENT,
            Self::Itself => VmId::LOOPBACK,
            Self::Sibling { .. } => VmId::ZERO,
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Parent => "parent".to_owned(),
            Self::Itself => "loopback".to_owned(),
            Self::Sibling { cid } => format!("cid {cid}"),
        }
    }
}

/// Both ids of an address; nobody is there to look a name up.
fn ids(address: &HvAddr) -> io::Result<(VmId, ServiceId)> {
    match (address.partition(), address.service()) {
        (PartitionRef::Name(name), _) => Err(NoRegistry::partition(name.as_str()).into()),
        (_, ServiceRef::Name(name)) => Err(NoRegistry::service(name.as_str()).into()),
        (PartitionRef::Id(vm), ServiceRef::Id(service)) => Ok((*vm, *service)),
    }
}

/// The port of a service: that on the template, else its alias, which hvsock's broker gives it for
/// every guest that knows ports only.
fn port(machine: Machine, vm: VmId, service: ServiceId) -> io::Result<u32> {
    let on_hyper_v = machine == Machine::HyperV && vm != VmId::LOOPBACK;
    if on_hyper_v && service.vsock_alias().is_some() {
        let text = format!(
            "on Hyper-V a Linux guest knows services by vsock port only, and the GUID {service} \
             stands for none; use one of the form PORT-facb-11e6-bd58-64006a7986d3 on both sides"
        );
        return Err(worded(Refusal::ServiceNotMappable, text));
    }
    match service.port_for_guests() {
        Some(SockAddrVm::PORT_ANY) => {
            let text = "vsock port 4294967295 stands for any port and is none";
            Err(worded(Refusal::AddressNotAvailable, text))
        }
        Some(port) => Ok(port),
        None => {
            let text = "the zero GUID is no service";
            Err(worded(Refusal::AddressNotAvailable, text))
        }
    }
}

fn has_parent(machine: Machine, of_the_host: Refusal) -> io::Result<()> {
    match machine {
        Machine::Guest { .. } | Machine::HyperV => Ok(()),
        Machine::Host => Err(worded(
            of_the_host,
            "this machine is the host of its virtual machines and has no parent",
        )),
        Machine::Alone => Err(worded(
            Refusal::NotReachable,
            "no vsock device connects this machine with a host; if it is a virtual machine, give \
             it one (`virtio-vsock`), or load its driver",
        )),
    }
}

fn no_container() -> io::Error {
    let text = "this process is in no container that a broker knows of";
    worded(Refusal::AddressNotAvailable, text)
}

fn no_ids(what: &str) -> io::Error {
    let text = format!(
        "without a broker no partition can be {what} by its id: AF_VSOCK knows the parent and the \
         machine itself"
    );
    worded(Refusal::NotReachable, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal_of;

    const GUEST: Machine = Machine::Guest { cid: Some(42) };
    const SERVICE: ServiceId = ServiceId::from_port(2761);

    fn connect(machine: Machine, vm: VmId) -> Result<(u32, VmId), Refusal> {
        let target = Target::of(machine, &HvAddr::new(vm, SERVICE));
        let target = target.map_err(|error| refusal_of(&error).cloned().unwrap())?;
        assert_eq!(
            (target.address.port, target.peer.service),
            (2761, SERVICE),
            "{vm}"
        );
        Ok((target.address.cid, target.peer.vm))
    }

    fn listen(machine: Machine, vm: VmId) -> Result<(u32, Whom), Refusal> {
        let place = Place::of(machine, &HvAddr::new(vm, SERVICE));
        let place = place.map_err(|error| refusal_of(&error).cloned().unwrap())?;
        assert_eq!(place.address.port, 2761);
        assert_eq!(place.local, SockAddrHv::new(vm, SERVICE));
        Ok((place.address.cid, place.from))
    }

    #[test]
    fn a_connect_leads_to_the_host_or_to_the_machine_itself() {
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
    fn a_host_has_no_parent_and_a_machine_alone_has_no_way_to_it() {
        let host = Machine::Host;
        assert_eq!(connect(host, VmId::PARENT), Err(Refusal::NotSupported));
        assert_eq!(connect(host, VmId::ZERO), Err(Refusal::AddressNotAvailable));
        assert_eq!(listen(host, VmId::PARENT), Err(Refusal::NotSupported));
        for vm in [VmId::PARENT, VmId::ZERO] {
            assert_eq!(connect(Machine::Alone, vm), Err(Refusal::NotReachable));
        }
        for machine in [Machine::Host, Machine::Alone] {
            assert_eq!(connect(machine, VmId::LOOPBACK), Ok((1, VmId::LOOPBACK)));
        }
    }

    #[test]
    fn a_listener_takes_whom_its_address_names() {
        let any = SockAddrVm::CID_ANY;
        assert_eq!(listen(GUEST, VmId::WILDCARD), Ok((any, Whom::Anyone)));
        assert_eq!(listen(GUEST, VmId::PARENT), Ok((any, Whom::Parent)));
        assert_eq!(listen(GUEST, VmId::LOOPBACK), Ok((1, Whom::Itself)));
        for vm in [VmId::BROADCAST, VmId::SILOHOST] {
            assert_eq!(listen(GUEST, vm), Err(Refusal::AddressNotAvailable));
        }
        for vm in [VmId::CHILDREN, VmId::random()] {
            assert_eq!(listen(GUEST, vm), Err(Refusal::NotReachable));
        }

        let [host, own, local, sibling] = [2, 42, 1, 43].map(|cid| Caller::of(GUEST, cid));
        assert_eq!([host, own], [Caller::Parent, Caller::Itself]);
        let who = [host, own, local, sibling];
        assert_eq!(
            who.map(Caller::vm),
            [VmId::PARENT, VmId::LOOPBACK, VmId::LOOPBACK, VmId::ZERO]
        );
        assert_eq!(sibling.name(), "cid 43");
        assert_eq!(who.map(|who| Whom::Anyone.takes(who)), [true; 4]);
        assert_eq!(
            who.map(|who| Whom::Parent.takes(who)),
            [true, false, false, false]
        );
        assert_eq!(
            who.map(|who| Whom::Itself.takes(who)),
            [false, true, true, false]
        );
    }

    #[test]
    fn a_guid_off_the_template_has_a_port_but_not_on_hyper_v() {
        let service: ServiceId = "0b2f1f0e-0000-4000-8000-000000000001".parse().unwrap();
        let of = |machine, vm| Target::of(machine, &HvAddr::new(vm, service));
        let alias = of(GUEST, VmId::PARENT).unwrap();
        assert_eq!(Some(alias.address.port), service.vsock_alias());
        assert_eq!(alias.peer, SockAddrHv::new(VmId::PARENT, service));
        let place = Place::of(GUEST, &HvAddr::new(VmId::WILDCARD, service)).unwrap();
        assert_eq!(place.address.port, alias.address.port);

        let error = of(Machine::HyperV, VmId::PARENT).unwrap_err();
        assert_eq!(refusal_of(&error), Some(&Refusal::ServiceNotMappable));
        assert!(error.to_string().contains(&service.to_string()), "{error}");
        // Both ends of it are here.
        let own = of(Machine::HyperV, VmId::LOOPBACK).unwrap();
        assert_eq!(own.address.port, alias.address.port);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for service in [ServiceId::ZERO, ServiceId::from_port(u32::MAX)] {
            let address = HvAddr::new(VmId::LOOPBACK, service);
            for error in [
                Target::of(GUEST, &address).map(|_| ()).unwrap_err(),
                Place::of(GUEST, &address).map(|_| ()).unwrap_err(),
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
            let error = Target::of(GUEST, &address).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert!(error.get_ref().unwrap().is::<NoRegistry>());
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
