//! Output of the muxer: what to do with payload, what to send, and events.

use crate::{Handle, Header, Key, MessageEnd, SocketKind};

/// What to do with the payload of a packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "bytes of a connection must reach its link"]
pub enum Received {
    /// Drop it, if there is any.
    Nothing,
    /// Pass the first `len` bytes to the connection's link, which has free space for them by credit.
    Payload {
        /// The connection.
        handle: Handle,
        /// Number of bytes. 0 for an empty message; credit does not limit their number, so the owner
        /// has to.
        len: usize,
        /// Whether a message or record ends with them.
        end: MessageEnd,
    },
}

/// What to send to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// A packet without data. It counts as sent.
    Packet(Header),
    /// Data of a connection's link. The owner answers with [`sent`](super::Muxer::sent) or
    /// [`nothing_to_send`](super::Muxer::nothing_to_send).
    Data {
        /// The connection.
        handle: Handle,
        /// Maximum number of bytes.
        max: usize,
        /// The socket type. For [`SocketKind::Seqpacket`], send bytes of one message only.
        kind: SocketKind,
    },
}

/// Something that happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest requests a connection. The owner answers with [`accept`](super::Muxer::accept) or
    /// [`refuse`](super::Muxer::refuse).
    Request {
        /// Its handle from now on.
        handle: Handle,
        /// Its ports, peer and type. The peer may be unknown to the owner.
        key: Key,
    },
    /// The guest has accepted a connection of [`connect`](super::Muxer::connect).
    Connected {
        /// The connection.
        handle: Handle,
    },
    /// The guest sends no more data (half-close): the link has all of it.
    Finished {
        /// The connection.
        handle: Handle,
    },
    /// The guest receives no more data: the remaining data of the link is lost.
    ClosedRead {
        /// The connection.
        handle: Handle,
    },
    /// The connection has ended and its handle is invalid.
    Closed {
        /// The connection.
        handle: Handle,
        /// Why.
        reason: Closed,
    },
}

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// One side closed it and the other confirmed.
    #[error("closed")]
    Clean,
    /// The guest refused it.
    #[error("the guest refused the connection")]
    Refused,
    /// The guest reset it, or requested another with the same ports.
    #[error("the guest reset the connection")]
    Reset,
    /// The guest did not answer in time.
    #[error("timed out: the guest did not answer")]
    TimedOut,
    /// The guest sent more data than there was free space for.
    #[error("the guest sent more data than its credit allows")]
    CreditOverrun,
    /// The guest's `fwd_cnt` covers bytes that were never sent, or goes backwards.
    #[error("the guest sent an invalid fwd_cnt")]
    CreditViolation,
    /// The guest violated the protocol.
    #[error("the guest violated the protocol: {0}")]
    Protocol(&'static str),
    /// The guest's driver was reset and has lost all of its connections.
    #[error("the guest restarted")]
    GuestRestarted,
}

/// What [`Closed::Protocol`] says.
pub(super) mod violation {
    pub(crate) const BEFORE_RESPONSE: &str = "a packet before its RESPONSE";
    pub(crate) const UNREQUESTED_RESPONSE: &str = "RESPONSE to no REQUEST";
    pub(crate) const UNKNOWN_OPERATION: &str = "an unknown operation";
    pub(crate) const UNESTABLISHED: &str = "RW or SHUTDOWN before the RESPONSE to it";
    pub(crate) const AFTER_SHUTDOWN: &str = "RW after SHUTDOWN";
    pub(crate) const SHORT_DATA: &str = "RW with less data than its len";
    /// In a snapshot of a release that knows more of them.
    pub(crate) const OTHER: &str = "a packet that the protocol does not allow";

    pub(crate) const ALL: [&str; 6] = [
        BEFORE_RESPONSE,
        UNREQUESTED_RESPONSE,
        UNKNOWN_OPERATION,
        UNESTABLISHED,
        AFTER_SHUTDOWN,
        SHORT_DATA,
    ];
}
