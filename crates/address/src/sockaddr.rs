//! The two socket addresses in the binary layout of the operating systems.

use std::fmt;

use crate::{AF_HYPERV, AF_VSOCK, ServiceId, VmId};

/// `SOCKADDR_HV`: a partition and a service.
///
/// 36 bytes: u16 `Family` (34), u16 `Reserved`, GUID `VmId`, GUID `ServiceId`; all little-endian, as
/// on Windows. Source: `hvsocket.h` of the Windows SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockAddrHv {
    /// The partition.
    pub vm: VmId,
    /// The service.
    pub service: ServiceId,
    /// The field `Reserved` of `SOCKADDR_HV` in Microsoft's `hvsocket.h`: 0 or
    /// [`HVSOCKET_ADDRESS_FLAG_PASSTHRU`](crate::HVSOCKET_ADDRESS_FLAG_PASSTHRU).
    pub flags: u16,
}

/// `sockaddr_vm`: a context id and a port.
///
/// 16 bytes in native byte order: u16 family (40), u16 reserved, u32 port, u32 cid, u8 flags, three
/// zero bytes. Source: Linux `include/uapi/linux/vm_sockets.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockAddrVm {
    /// The context id (CID); 2 is the host.
    pub cid: u32,
    /// The port.
    pub port: u32,
    /// `VMADDR_FLAG_*`.
    pub flags: u8,
}

/// Bytes that are not a socket address of the expected kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Too few bytes.
    #[error("a {kind} has {want} bytes; these are {have}")]
    Short {
        /// The address's C name.
        kind: &'static str,
        /// Its length in bytes.
        want: usize,
        /// The number of bytes given.
        have: usize,
    },
    /// Another address family.
    #[error("a {kind} has the address family {want}; this one has {have}")]
    Family {
        /// The address's C name.
        kind: &'static str,
        /// The family of this address.
        want: u16,
        /// The family given.
        have: u16,
    },
}

impl SockAddrHv {
    /// Its length in bytes.
    pub const LEN: usize = 36;

    /// The address of a service in a partition, with no flags.
    pub const fn new(vm: VmId, service: ServiceId) -> Self {
        Self {
            vm,
            service,
            flags: 0,
        }
    }

    /// Encodes the address in its C layout.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..2].copy_from_slice(&AF_HYPERV.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[4..20].copy_from_slice(&self.vm.to_guid_bytes());
        bytes[20..36].copy_from_slice(&self.service.to_guid_bytes());
        bytes
    }

    /// Decodes an address. Bytes after the 36th are ignored, as in the system calls.
    ///
    /// # Errors
    ///
    /// [`AddressError`] if there are too few bytes or the address family is another one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AddressError> {
        let bytes: &[u8; Self::LEN] = leading(bytes, "SOCKADDR_HV")?;
        let family = u16::from_le_bytes([bytes[0], bytes[1]]);
        check_family("SOCKADDR_HV", AF_HYPERV, family)?;
        Ok(Self {
            flags: u16::from_le_bytes([bytes[2], bytes[3]]),
            vm: VmId::from_guid_bytes(array(bytes, 4)),
            service: ServiceId::from_guid_bytes(array(bytes, 20)),
        })
    }
}

impl SockAddrVm {
    /// Its length in bytes.
    pub const LEN: usize = 16;
    /// `VMADDR_CID_ANY`: any context id, for bind.
    pub const CID_ANY: u32 = u32::MAX;
    /// `VMADDR_CID_LOCAL`: loopback, the machine itself.
    pub const CID_LOCAL: u32 = 1;
    /// `VMADDR_CID_HOST`: the host, as its guests see it.
    pub const CID_HOST: u32 = 2;
    /// `VMADDR_PORT_ANY`: any port, for bind.
    pub const PORT_ANY: u32 = u32::MAX;

    /// The address of a port at a context id, with no flags.
    pub const fn new(cid: u32, port: u32) -> Self {
        Self {
            cid,
            port,
            flags: 0,
        }
    }

    /// Encodes the address in its C layout.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..2].copy_from_slice(&AF_VSOCK.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.port.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.cid.to_ne_bytes());
        bytes[12] = self.flags;
        bytes
    }

    /// Decodes an address. Bytes after the 16th are ignored, as in the system calls.
    ///
    /// # Errors
    ///
    /// [`AddressError`] if there are too few bytes or the address family is another one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AddressError> {
        let bytes: &[u8; Self::LEN] = leading(bytes, "sockaddr_vm")?;
        let family = u16::from_ne_bytes([bytes[0], bytes[1]]);
        check_family("sockaddr_vm", AF_VSOCK, family)?;
        Ok(Self {
            port: u32::from_ne_bytes(array(bytes, 4)),
            cid: u32::from_ne_bytes(array(bytes, 8)),
            flags: bytes[12],
        })
    }
}

impl fmt::Display for SockAddrHv {
    /// As a URL without the scheme: `parent/00000ac9-facb-…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vm.well_known_name() {
            Some(word) => write!(f, "{word}/{}", self.service),
            None => write!(f, "{}/{}", self.vm, self.service),
        }
    }
}

impl fmt::Display for SockAddrVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cid, self.port)
    }
}

fn leading<'a, const N: usize>(
    bytes: &'a [u8],
    kind: &'static str,
) -> Result<&'a [u8; N], AddressError> {
    let have = bytes.len();
    bytes.first_chunk().ok_or(AddressError::Short {
        kind,
        want: N,
        have,
    })
}

fn check_family(kind: &'static str, want: u16, have: u16) -> Result<(), AddressError> {
    if have == want {
        Ok(())
    } else {
        Err(AddressError::Family { kind, want, have })
    }
}

/// `M` bytes of `bytes` from `at` on. The constants of the callers keep the range in bounds.
fn array<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    // Written by hand from the layout: 34 = 0x22, PARENT and port 2761 on the template.
    const PARENT_2761: [u8; 36] = [
        0x22, 0x00, 0x00, 0x00, //
        0xda, 0x7c, 0x2e, 0xa4, 0x3f, 0xd0, 0x0c, 0x48, //
        0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab, 0xb8, 0x78, //
        0xc9, 0x0a, 0x00, 0x00, 0xcb, 0xfa, 0xe6, 0x11, //
        0xbd, 0x58, 0x64, 0x00, 0x6a, 0x79, 0x86, 0xd3,
    ];

    #[test]
    fn sockaddr_hv_is_byte_exact() {
        let address = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(2761));
        assert_eq!(address.to_bytes(), PARENT_2761);
        assert_eq!(SockAddrHv::from_bytes(&PARENT_2761), Ok(address));
    }

    #[test]
    fn flags_survive_a_round_trip() {
        let mut address = SockAddrHv::new(VmId::random(), ServiceId::random());
        address.flags = crate::HVSOCKET_ADDRESS_FLAG_PASSTHRU;
        assert_eq!(address.to_bytes()[2], 1);
        assert_eq!(SockAddrHv::from_bytes(&address.to_bytes()), Ok(address));
    }

    // Little-endian machines only, as the bytes are written by hand: 40 = 0x28.
    #[cfg(target_endian = "little")]
    #[test]
    fn sockaddr_vm_is_byte_exact() {
        let bytes = [0x28, 0, 0, 0, 0xc9, 0x0a, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0];
        let address = SockAddrVm {
            cid: 2,
            port: 2761,
            flags: 1,
        };
        assert_eq!(address.to_bytes(), bytes);
        assert_eq!(SockAddrVm::from_bytes(&bytes), Ok(address));
    }

    #[test]
    fn short_addresses_and_other_families_are_refused() {
        assert!(matches!(
            SockAddrHv::from_bytes(&PARENT_2761[..35]),
            Err(AddressError::Short {
                want: 36,
                have: 35,
                ..
            })
        ));
        let mut inet = PARENT_2761;
        inet[0] = 2;
        assert!(matches!(
            SockAddrHv::from_bytes(&inet),
            Err(AddressError::Family { have: 2, .. })
        ));
        assert!(SockAddrVm::from_bytes(&inet).is_err());
        assert!(SockAddrVm::from_bytes(&[]).is_err());
    }
}
