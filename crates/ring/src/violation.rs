//! The ring protocol's violations.

use thiserror::Error;

/// How the peer violated the ring protocol. The stream is over; nothing else is affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// `head` is more than the ring's size ahead of `tail`, or went back.
    #[error("the other end claims to have written more bytes than fit")]
    Head,
    /// `tail` is ahead of `head`, or went back.
    #[error("the other end claims to have read bytes that were not written")]
    Tail,
}
