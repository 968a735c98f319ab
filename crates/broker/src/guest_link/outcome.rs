//! The results of moving bytes from and to a `Peer`.

use hvsock_fabric::Refusal;

/// Which ends of a SEQPACKET connection follow some bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageEnd {
    /// A message ends.
    pub message: bool,
    /// A record ends, which the sender marked with `MSG_EOR`.
    pub record: bool,
}

/// Why bytes from the guest were not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliverError {
    /// The peer has shut down receiving.
    ReadClosed,
    /// Too many message ends are queued for a sibling.
    TooManyMessages,
}

/// The outcome of `Peer::fill` and `Peer::read`.
#[derive(Debug)]
pub enum FillOutcome {
    /// The count of bytes copied, which message end follows them, and whether there may be more.
    Bytes(usize, MessageEnd, bool),
    /// Nothing yet.
    Empty,
    /// End of the peer's data.
    Ended,
    /// The connection has failed.
    Failed(Refusal),
}

/// The readiness of a data descriptor, as epoll reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// It is readable, or its peer has shut down sending.
    pub readable: bool,
    /// It is writable, or its peer has closed.
    pub writable: bool,
}

/// What a read of a control connection has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlUpdate {
    /// There may be more messages: read again without waiting for the descriptor.
    pub more: bool,
    /// A new value of `HVSOCKET_CONNECTED_SUSPEND`, which the link reports.
    pub connected_suspend: Option<bool>,
}
