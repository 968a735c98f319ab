//! Keys and ids of partitions, listeners and connections.

use std::fmt;

/// The key of a partition in one fabric. Keys are never reused after a partition is removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl PartitionKey {
    /// The key with this number. It need not exist.
    pub const fn from_u64(number: u64) -> Self {
        Self {
            slot: number as u32,
            generation: (number >> 32) as u32,
        }
    }

    /// The key as a number.
    pub const fn as_u64(self) -> u64 {
        ((self.generation as u64) << 32) | self.slot as u64
    }
}

impl fmt::Debug for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartitionKey({}.{})", self.slot, self.generation)
    }
}

/// The id of a listener in one fabric. Ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(u64);

/// The id of a connection in one fabric. Ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

macro_rules! numbered {
    ($name:ident) => {
        impl $name {
            /// The id with this number. It need not exist.
            pub const fn from_u64(number: u64) -> Self {
                Self(number)
            }

            /// The id as a number.
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The id after `ids` of them, of which this is the first.
            pub(crate) const fn after(self, ids: u64) -> Self {
                Self(self.0.saturating_add(ids))
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
