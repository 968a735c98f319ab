//! Context ids: who is at one end of a packet.

use std::fmt;

/// A context id as a packet has it, whoever it may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(pub u64);

impl Cid {
    /// The hypervisor itself (`VMADDR_CID_HYPERVISOR`).
    pub const HYPERVISOR: Self = Self(0);
    /// The sender's own machine (`VMADDR_CID_LOCAL`).
    pub const LOCAL: Self = Self(1);
    /// The host (`VMADDR_CID_HOST`).
    pub const HOST: Self = Self(2);
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A context id that a guest can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestCid(u32);

/// A number that no guest can have as its context id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a guest's CID is a number from 3 to 4294967294; {0} is not")]
pub struct InvalidCid(pub u64);

impl GuestCid {
    /// The first; those below name the host and the guest itself.
    pub const MIN: Self = Self(3);
    /// The last; `u32::MAX` is `VMADDR_CID_ANY`.
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
    fn a_guest_has_neither_a_reserved_number_nor_one_of_more_than_32_bits() {
        for bad in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            assert_eq!(GuestCid::try_from(bad), Err(InvalidCid(bad)));
        }
        for good in [3, 42, u64::from(u32::MAX) - 1] {
            assert_eq!(GuestCid::try_from(good).map(Cid::from), Ok(Cid(good)));
        }
    }
}
