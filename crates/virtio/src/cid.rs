//! Context ids (CIDs): the addresses of packets.

use std::fmt;

/// A context id as found in a packet, not validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(pub u64);

impl Cid {
    /// The hypervisor itself (`VMADDR_CID_HYPERVISOR`).
    pub const HYPERVISOR: Self = Self(0);
    /// Loopback: the sender's own machine (`VMADDR_CID_LOCAL`).
    pub const LOCAL: Self = Self(1);
    /// The host (`VMADDR_CID_HOST`).
    pub const HOST: Self = Self(2);
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A context id of a guest: 3 to `u32::MAX - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestCid(u32);

/// The number is not a valid guest CID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a guest's CID is a number from 3 to 4294967294; {0} is not")]
pub struct InvalidCid(pub u64);

impl GuestCid {
    /// The smallest; smaller ones are reserved for the hypervisor, loopback and the host.
    pub const MIN: Self = Self(3);
    /// The largest; `u32::MAX` is `VMADDR_CID_ANY`.
    pub const MAX: Self = Self(u32::MAX - 1);

    /// The CID as a number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for GuestCid {
    type Error = InvalidCid;

    fn try_from(number: u64) -> Result<Self, InvalidCid> {
        let within = u64::from(Self::MIN.0)..=u64::from(Self::MAX.0);
        match u32::try_from(number) {
            Ok(cid) if within.contains(&number) => Ok(Self(cid)),
            _ => Err(InvalidCid(number)),
        }
    }
}

impl From<GuestCid> for Cid {
    fn from(guest: GuestCid) -> Self {
        Self(u64::from(guest.0))
    }
}

impl fmt::Display for GuestCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_cids_and_those_of_more_than_32_bits_are_not_guest_cids() {
        for bad in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            assert_eq!(GuestCid::try_from(bad), Err(InvalidCid(bad)));
        }
        for good in [3, 42, u64::from(u32::MAX) - 1] {
            assert_eq!(GuestCid::try_from(good).map(Cid::from), Ok(Cid(good)));
        }
    }
}
