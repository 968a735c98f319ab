//! What the muxer has to say: about packets, to the guest, and of its connections.

use super::{Handle, Key};
use crate::{Header, SocketKind};

/// What to do with the bytes that follow the header of a packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "bytes of a connection must reach its link"]
pub enum Received {
    /// They are dropped, if there are any.
    Nothing,
    /// The first `len` go to the connection's link, where there is room for them by credit.
    Payload {
        /// The connection.
        handle: Handle,
        /// Bytes. They are 0 for an empty message, of which credit allows any number: how many
        /// messages wait is for the owner to limit.
        len: usize,
        /// What ends with them.
        end: MessageEnd,
    },
}

/// What ends with a packet's last byte. Nothing ever does in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageEnd {
    /// A message.
    pub message: bool,
    /// A record, which the sender marked with `MSG_EOR`.
    pub record: bool,
}

/// What to send to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// A packet without data. It counts as sent.
    Packet(Header),
    /// Bytes of a connection's link. Nothing has happened until the owner says so with
    /// [`sent`](super::Muxer::sent) or [`nothing_to_send`](super::Muxer::nothing_to_send).
    Data {
        /// The connection.
        handle: Handle,
        /// At most so many.
        max: usize,
        /// Of a [`SocketKind::Seqpacket`], bytes of one message only.
        kind: SocketKind,
    },
}

/// Something that happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest wants a connection: to be answered with [`accept`](super::Muxer::accept) or
    /// [`refuse`](super::Muxer::refuse).
    Request {
        /// Its handle from now on.
        handle: Handle,
        /// From where to where. The peer may be nobody that the owner knows.
        key: Key,
    },
    /// The guest has accepted a connection that was asked for by
    /// [`connect`](super::Muxer::connect).
    Connected {
        /// The connection.
        handle: Handle,
    },
    /// The guest sends no more: what its link holds is all.
    Finished {
        /// The connection.
        handle: Handle,
    },
    /// The guest reads no more: what the link still has for it is in vain.
    ClosedRead {
        /// The connection.
        handle: Handle,
    },
    /// The connection is over, and its handle means nothing any more.
    Closed {
        /// The connection.
        handle: Handle,
        /// Why.
        reason: Closed,
    },
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// One side closed it and the other agreed.
    #[error("closed")]
    Clean,
    /// The guest refused it.
    #[error("the guest refused the connection")]
    Refused,
    /// The guest reset it, or began another with the same ports.
    #[error("the guest reset the connection")]
    Reset,
    /// The guest did not answer in time.
    #[error("the guest did not answer in time")]
    TimedOut,
    /// The guest sent more than there was room for.
    #[error("the guest sent more than it had credit for")]
    CreditOverrun,
    /// The guest claims to have taken bytes that it was never sent, or takes back what it said.
    #[error("the guest told lies about its credit")]
    CreditLie,
    /// The guest broke the protocol.
    #[error("the guest broke the protocol: {0}")]
    Protocol(&'static str),
    /// The guest's driver began anew and knows none of its connections.
    #[error("the guest restarted")]
    GuestRestarted,
}
