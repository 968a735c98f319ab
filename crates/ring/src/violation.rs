//! What a peer may not do.

use thiserror::Error;

/// How the other end broke the rules of the ring. The stream is over; nothing else is harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The count of written bytes is more than the ring holds ahead of what was read, or went back.
    #[error("the other end claims to have written what does not fit")]
    Head,
    /// The count of read bytes is more than was written, or went back.
    #[error("the other end claims to have read what was not written")]
    Tail,
}
