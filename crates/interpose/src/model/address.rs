//! Socket addresses as programs give and get them.

use hvsock_address::{HVSOCKET_ADDRESS_FLAG_PASSTHRU, ServiceId, SockAddrHv, SockAddrVm, VmId};

use super::{Errno, Family};

/// The largest address that a call takes (`struct sockaddr_storage`).
pub const MAX_LEN: usize = 128;

/// `VMADDR_FLAG_TO_HOST` of vm_sockets.h, the only flag of a `sockaddr_vm`.
const FLAG_TO_HOST: u8 = 1;

/// An address of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A `sockaddr_vm`.
    Vsock(SockAddrVm),
    /// A `SOCKADDR_HV`.
    HyperV(SockAddrHv),
}

impl Address {
    /// Parses the bytes that a program gave to `bind` or `connect`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for all that is no address of the family; `EAFNOSUPPORT` for another family, which
    /// `AF_VSOCK` reports as `EINVAL`, too.
    pub fn parse(family: Family, bytes: &[u8]) -> Result<Self, Errno> {
        match family {
            Family::Vsock => match SockAddrVm::from_bytes(bytes) {
                Ok(address) if address.flags & !FLAG_TO_HOST == 0 => Ok(Self::Vsock(address)),
                _ => Err(Errno::EINVAL),
            },
            Family::HyperV => {
                let own = Family::HyperV.number().to_le_bytes();
                if bytes.get(..2).is_some_and(|given| given != own) {
                    return Err(Errno::EAFNOSUPPORT);
                }
                match SockAddrHv::from_bytes(bytes) {
                    Ok(address) if address.flags & !HVSOCKET_ADDRESS_FLAG_PASSTHRU == 0 => {
                        Ok(Self::HyperV(address))
                    }
                    _ => Err(Errno::EINVAL),
                }
            }
        }
    }

    /// The bytes for a program.
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Vsock(address) => address.to_bytes().to_vec(),
            Self::HyperV(address) => address.to_bytes().to_vec(),
        }
    }

    /// The bytes that fit into the `space` that a program has for them. The call also reports how many
    /// there are in all.
    pub fn truncated(self, space: usize) -> (Vec<u8>, usize) {
        let mut bytes = self.to_bytes();
        let len = bytes.len();
        bytes.truncate(space);
        (bytes, len)
    }

    /// Its family.
    pub fn family(&self) -> Family {
        match self {
            Self::Vsock(_) => Family::Vsock,
            Self::HyperV(_) => Family::HyperV,
        }
    }

    /// The service: the one of the port, or the GUID.
    pub fn service(&self) -> ServiceId {
        match self {
            Self::Vsock(address) => ServiceId::from_port(address.port),
            Self::HyperV(address) => address.service,
        }
    }
}

/// The partition in which a program is, as far as context ids go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnCid(pub u32);

impl OwnCid {
    /// The partition of a context id, if everyone knows it. `None`: ask the broker.
    ///
    /// On a host both 1 and 2 are the host itself. In a container, 2 is its parent.
    pub fn well_known(self, cid: u32) -> Option<VmId> {
        match cid {
            SockAddrVm::CID_LOCAL => Some(VmId::LOOPBACK),
            cid if cid == self.0 => Some(VmId::LOOPBACK),
            SockAddrVm::CID_HOST => Some(VmId::PARENT),
            _ => None,
        }
    }

    /// The partitions that a socket accepts from which is bound to this context id. `None`: this machine
    /// does not have it.
    pub fn accepts_from(self, cid: u32) -> Option<VmId> {
        match cid {
            SockAddrVm::CID_ANY => Some(VmId::WILDCARD),
            SockAddrVm::CID_LOCAL => Some(VmId::LOOPBACK),
            cid if cid == self.0 => Some(VmId::WILDCARD),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_vsock_address_of_any_wrong_form_is_invalid() {
        let good = SockAddrVm::new(2, 99).to_bytes();
        let parse = |bytes: &[u8]| Address::parse(Family::Vsock, bytes);
        let parsed = parse(&good);
        assert_eq!(parsed, Ok(Address::Vsock(SockAddrVm::new(2, 99))));
        for len in 0..16 {
            assert_eq!(parse(&good[..len]), Err(Errno::EINVAL));
        }
        let mut inet = good;
        inet[0] = 2;
        assert_eq!(parse(&inet), Err(Errno::EINVAL));
        let mut flags = good;
        flags[12] = 1;
        assert!(parse(&flags).is_ok());
        flags[12] = 2;
        assert_eq!(parse(&flags), Err(Errno::EINVAL));
    }

    #[test]
    fn a_hyperv_address_names_the_family_that_is_wrong() {
        let good = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(1)).to_bytes();
        let parse = |bytes: &[u8]| Address::parse(Family::HyperV, bytes);
        assert!(parse(&good).is_ok());
        for len in 0..36 {
            assert_eq!(parse(&good[..len]), Err(Errno::EINVAL));
        }
        let mut vsock = good;
        vsock[0] = 40;
        assert_eq!(parse(&vsock), Err(Errno::EAFNOSUPPORT));
        assert_eq!(parse(&vsock[..2]), Err(Errno::EAFNOSUPPORT));
        let mut reserved = good;
        reserved[2] = 2;
        assert_eq!(parse(&reserved), Err(Errno::EINVAL));
    }

    #[test]
    fn an_address_is_cut_to_the_space_of_the_program() {
        let address = Address::Vsock(SockAddrVm::new(3, 5));
        let (bytes, len) = address.truncated(4);
        assert_eq!((&bytes[..], len), (&address.to_bytes()[..4], 16));
        assert_eq!(address.truncated(100), (address.to_bytes(), 16));
        assert_eq!(address.truncated(0), (Vec::new(), 16));
    }

    #[test]
    fn the_host_is_itself_on_the_host_and_the_parent_in_a_container() {
        let (host, container) = (OwnCid(2), OwnCid(0x8000_0001));
        assert_eq!(host.well_known(1), Some(VmId::LOOPBACK));
        assert_eq!(host.well_known(2), Some(VmId::LOOPBACK));
        assert_eq!(container.well_known(1), Some(VmId::LOOPBACK));
        assert_eq!(container.well_known(2), Some(VmId::PARENT));
        assert_eq!(container.well_known(0x8000_0001), Some(VmId::LOOPBACK));
        assert_eq!(container.well_known(3), None);
        assert_eq!(container.accepts_from(2), None);
        assert_eq!(host.accepts_from(2), Some(VmId::WILDCARD));
        assert_eq!(host.accepts_from(1), Some(VmId::LOOPBACK));
        assert_eq!(host.accepts_from(0), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_address_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..MAX_LEN),
            family in prop_oneof![Just(Family::Vsock), Just(Family::HyperV)],
        ) {
            if let Ok(address) = Address::parse(family, &bytes) {
                let same = address.to_bytes();
                prop_assert_eq!(Address::parse(family, &same), Ok(address));
            }
        }
    }
}
