//! The outcome of a connection's turn.

use hvsock_fabric::Refusal;

/// The outcome of a connection's turn.
#[derive(Debug)]
pub(crate) enum Turn {
    /// No progress is possible until a descriptor is ready.
    Waiting,
    /// The turn reached its bound and there is more to do.
    Again,
    /// The connection is closed. The reason is set unless both ends closed cleanly.
    Closed(Option<Refusal>),
}
