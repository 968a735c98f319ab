//! The name of a connection in its arena.

/// A connection in an arena. The slot is used again for later ones, with other sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId {
    /// The slot's number.
    pub slot: u32,
    /// The connection's sequence number: 1 to 2^20 − 1. It is unique among the open connections of an
    /// honest client.
    pub seq: u32,
}
