//! Values in the messages, and the limits of a message.

use std::ops::BitOr;

/// The protocol version: the first byte of every message.
pub const VERSION: u8 = 1;
/// The maximum size of a message in bytes.
pub const MAX_MESSAGE: usize = 4096;
/// What the detail of every refusal and reset for a protocol violation contains. It tells a broker that
/// does not know a message from one that passes on another cause.
pub const VIOLATION: &str = "violated the endpoint protocol";
/// The maximum number of descriptors that are sent with a message.
pub const MAX_DESCRIPTORS: usize = 5;
/// The most bytes that a process may have written to an attached socket before it is connected
/// ([`ClientMessage::Attach`](crate::ClientMessage::Attach)).
pub const MAX_FILLER: u32 = 4096;
/// The connection ids of one arena: the number in CONNECTED or INCOMING is the first. The connection
/// with the open counter `seq` has the id `first + seq`.
pub const ARENA_IDS: u64 = 1 << 20;

/// Flags of the requests for a connection or listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The data descriptor is used as a raw fd, by a program without hvsock's library. Its end of
    /// file is a clean end of the stream, without a [`ClientMessage::Shutdown`](crate::ClientMessage::Shutdown) before it.
    pub raw_fd: bool,
    /// Only explain what would happen. The broker answers with [`BrokerMessage::Explained`](crate::BrokerMessage::Explained).
    pub dry_run: bool,
    /// Explain a refusal: the broker answers with
    /// [`BrokerMessage::Explained`](crate::BrokerMessage::Explained) instead of
    /// [`BrokerMessage::Refused`](crate::BrokerMessage::Refused). A broker before this flag takes it
    /// for a protocol violation.
    pub explain: bool,
}

/// The kind of a name to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LookupKind {
    /// A service's friendly name.
    Service = 1,
    /// A partition's name.
    Partition = 2,
    /// A partition's vsock context id (CID), as a decimal number. A broker before this kind takes it for a
    /// protocol violation.
    Cid = 3,
}

/// The data path of a connection. A client offers a set of them; the broker chooses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// Two Unix stream socket pairs. The broker copies the bytes between them.
    Descriptor,
    /// Memory shared by both processes, and a doorbell for each. The broker copies nothing.
    Ring,
    /// One Unix stream socket pair, of which each process has one end. The broker copies nothing.
    Direct,
    /// A slot of an arena: memory that the processes share for many connections, which the
    /// connecting one opens without a request each.
    Arena,
    /// A Unix stream socket of the connecting process's own, which it connects to a socket of the broker
    /// ([`ClientMessage::Attach`](crate::ClientMessage::Attach)). The broker copies the bytes.
    Attached,
}

/// The set of transports that a client can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transports(pub(crate) u32);

impl Transports {
    /// The descriptor transport, which every client can use.
    pub const DESCRIPTOR: Transports = Transports(1);
    /// The ring transport, for clients that can map memory.
    pub const RING: Transports = Transports(2);
    /// The direct transport, for clients that keep control open as long as data.
    pub const DIRECT: Transports = Transports(8);
    /// The arena, for clients that can open connections in one.
    pub const ARENA: Transports = Transports(4);
    /// The process's own socket, and nothing else: after [`ClientMessage::Attach`](crate::ClientMessage::Attach).
    pub const ATTACHED: Transports = Transports(16);

    /// The set with these bits, which may be those of transports of a later version. `None` if it is
    /// empty.
    pub const fn from_bits(bits: u32) -> Option<Transports> {
        match bits {
            0 => None,
            bits => Some(Transports(bits)),
        }
    }

    /// The set as bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether the set contains `transport`.
    pub const fn contains(self, transport: Transport) -> bool {
        self.0 & transport.bit() != 0
    }

    /// The union of both sets.
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
    /// Its name, as logs and the control API show it.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Descriptor => "descriptor",
            Transport::Ring => "ring",
            Transport::Direct => "direct",
            Transport::Arena => "arena",
            Transport::Attached => "attached",
        }
    }

    pub(crate) const fn bit(self) -> u32 {
        match self {
            Transport::Descriptor => Transports::DESCRIPTOR.0,
            Transport::Ring => Transports::RING.0,
            Transport::Direct => Transports::DIRECT.0,
            Transport::Arena => Transports::ARENA.0,
            Transport::Attached => Transports::ATTACHED.0,
        }
    }
}

/// A socket option. Below 0x100 the numbers are those of level `HV_PROTOCOL_RAW` in hvsocket.h; from
/// 0x100 on they are specific to this protocol.
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
    /// The requested ring size in bytes for each direction; 0 is the broker's default.
    RingSize = 0x100,
    /// On a connection with [`Transport::Direct`]: this process has read the end of the data and asks
    /// what it means. The broker answers with SHUTDOWN or RESET.
    ConfirmEnd = 0x101,
}

impl SocketOption {
    /// The option with this number; `None` if it is unknown.
    pub fn from_number(number: u32) -> Option<Self> {
        [
            Self::ConnectTimeout,
            Self::ContainerPassthru,
            Self::ConnectedSuspend,
            Self::HighVtl,
            Self::RingSize,
            Self::ConfirmEnd,
        ]
        .into_iter()
        .find(|option| *option as u32 == number)
    }
}
