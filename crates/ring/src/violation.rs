//! The ring protocol's violations.

use thiserror::Error;

/// How the peer violated the ring protocol. This ends the stream and affects nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// `head` is more than the ring's size ahead of `tail`, or went back.
    #[error("the other end claims to have written more bytes than fit")]
    Head,
    /// `tail` is ahead of `head`, or went back.
    #[error("the other end claims to have read bytes that were not written")]
    Tail,
}
