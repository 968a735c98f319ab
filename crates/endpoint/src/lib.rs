//! The messages between a process and its broker, and where the two meet: codecs only.
//!
//! An endpoint is a Unix `SOCK_SEQPACKET` socket, and one connection to it is one socket object:
//! it looks names up, then connects, listens or registers, and lives as long as its file
//! descriptor. `docs/endpoint.md` is the protocol in prose; this crate is the same in types:
//! [`ClientMessage`] and [`BrokerMessage`], encoded with [`encode`](ClientMessage::encode) and
//! read with [`decode`](ClientMessage::decode), which takes any bytes without a panic and
//! allocates no more than a message holds. [`Dirs`] says where sockets and configuration lie.

#![forbid(unsafe_code)]

mod broker;
mod client;
mod paths;
mod wire;

pub use broker::{BrokerMessage, Connected, Incoming, Listening, Refused};
pub use client::{ClientMessage, Connect, Listen, LookupKind, Register};
pub use paths::{DirSource, Dirs};
pub use wire::DecodeError;

use std::ops::BitOr;

/// The version byte that every message starts with.
pub const VERSION: u8 = 1;
/// The most bytes that any message has.
pub const MAX_MESSAGE: usize = 4096;
/// The most descriptors that any message carries.
pub const MAX_DESCRIPTORS: usize = 4;

/// Flags of [`Connect`] and [`Listen`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The data descriptor goes to a program that knows nothing of hvsock: its end of file is a
    /// clean end, with no [`ClientMessage::Shutdown`] before it.
    pub plain: bool,
    /// Say what would happen, and do nothing: answered by [`BrokerMessage::Explained`].
    pub dry_run: bool,
}

/// How the bytes of one connection move. Offered as a set, granted as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// One end of a Unix stream socket pair, pumped by the broker.
    Descriptor,
    /// Memory that both processes share, and a bell for each; the broker only looks on.
    Ring,
}

/// The transports that a client can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transports(u32);

impl Transports {
    /// What every client can use.
    pub const DESCRIPTOR: Transports = Transports(1);
    /// What clients can use that map memory.
    pub const RING: Transports = Transports(2);

    /// Whether `transport` is among them.
    pub const fn contains(self, transport: Transport) -> bool {
        self.0 & transport.bit() != 0
    }

    /// What is in either of the two.
    pub const fn union(self, other: Transports) -> Transports {
        Transports(self.0 | other.0)
    }
}

impl BitOr for Transports {
    type Output = Transports;

    fn bitor(self, other: Transports) -> Transports {
        self.union(other)
    }
}

impl Transport {
    /// The one word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Descriptor => "descriptor",
            Transport::Ring => "ring",
        }
    }

    const fn bit(self) -> u32 {
        match self {
            Transport::Descriptor => Transports::DESCRIPTOR.0,
            Transport::Ring => Transports::RING.0,
        }
    }
}

/// The options of a socket. Below 0x100 they are those of level `HV_PROTOCOL_RAW`, with the
/// numbers of hvsocket.h; from there on they are this protocol's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SocketOption {
    /// `HVSOCKET_CONNECT_TIMEOUT`: milliseconds, at most
    /// [`HVSOCKET_CONNECT_TIMEOUT_MAX`](hvsock_address::HVSOCKET_CONNECT_TIMEOUT_MAX).
    ConnectTimeout = 0x01,
    /// `HVSOCKET_CONTAINER_PASSTHRU`: reach through a container to its host.
    ContainerPassthru = 0x02,
    /// `HVSOCKET_CONNECTED_SUSPEND`: non-zero keeps a connection while its partition is paused.
    ConnectedSuspend = 0x04,
    /// `HVSOCKET_HIGH_VTL`: the host reaches the guest's VTL2.
    HighVtl = 0x08,
    /// The bytes that a ring is wished to hold in each direction; 0 is the broker's default.
    RingSize = 0x100,
}

impl SocketOption {
    /// The option with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [
            Self::ConnectTimeout,
            Self::ContainerPassthru,
            Self::ConnectedSuspend,
            Self::HighVtl,
            Self::RingSize,
        ]
        .into_iter()
        .find(|option| *option as u32 == number)
    }
}
