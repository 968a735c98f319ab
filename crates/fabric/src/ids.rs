//! The names by which the fabric's caller speaks of what is in it.

use std::fmt;

/// A partition of one fabric. The key of a removed partition never means another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl fmt::Debug for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartitionKey({}.{})", self.slot, self.generation)
    }
}

/// A listener of one fabric; no number is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(u64);

/// A connection of one fabric; no number is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

macro_rules! numbered {
    ($name:ident) => {
        impl $name {
            /// The id with this number; it may be nobody's.
            pub const fn from_u64(number: u64) -> Self {
                Self(number)
            }

            /// Its number.
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The id after this one.
            pub(crate) const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

numbered!(ListenerId);
numbered!(ConnectionId);
