//! The ring protocol's violations.

use thiserror::Error;

/// How the peer violated the ring protocol. This ends the stream, or the arena, and affects nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// `head` is more than the ring's size ahead of `tail`, or went back.
    #[error("the other end claims to have written more bytes than fit")]
    Head,
    /// `tail` is ahead of `head`, or went back.
    #[error("the other end claims to have read bytes that were not written")]
    Tail,
    /// `window` is no possible size of a part of the ring.
    #[error("the other end claims to use an impossible part of the ring")]
    Window,
    /// In an arena: a counter of the connect queue is impossible.
    #[error("the other end claims to have opened or accepted connections that it cannot have")]
    Queue,
    /// In an arena: a slot is out of range, is in use already, or was returned for another connection.
    #[error("the other end uses a slot that it cannot use")]
    Slot,
    /// In an arena: a connection's sequence number does not follow the earlier ones, or is not its slot's.
    #[error("the other end uses a sequence number that it cannot use")]
    Sequence,
}
