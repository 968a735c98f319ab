//! The values of requests and connections, without the terms of any one link.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hvsock_address::{ServiceId, VmId};
use hvsock_fabric::{ConnectionEnd, ConnectionId};

use super::peer::Peer;
use crate::data_path::ByteCounters;

/// Identifies a request of a guest until it is accepted or refused. The link chooses the number; it
/// must not reuse one that is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The first id of a connection between a guest and the broker itself, for their link. The fabric, which knows none
/// of them, counts up from 1.
pub(crate) const FIRST_OF_BROKER: u64 = 1 << 62;

/// Where a guest wants to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Its host.
    Host,
    /// A sibling guest, by its vsock context id (CID). The number is not validated.
    Cid(u64),
    /// A partition, by its id or a well-known address such as `VmId::PARENT`.
    Partition(VmId),
}

/// A service, as a link's guests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// By a vsock port.
    Port(u32),
    /// By its GUID.
    Id(ServiceId),
}

impl Service {
    /// Its vsock port. `None` for a GUID that maps to none: such a connect fails with
    /// `ServiceNotMappable` on a link with ports.
    pub fn port(self) -> Option<u32> {
        match self {
            Self::Port(port) => Some(port),
            Self::Id(id) => id.port_for_guests(),
        }
    }
}

/// A service of the host, as a link's guest may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferedService {
    /// The service: registered, or one that the guest is allowed to connect to.
    pub service: ServiceId,
    /// Its vsock port. `None` if its GUID maps to none, or another service has the port.
    pub port: Option<u32>,
    /// Whether a connect of the guest would be accepted now: somebody listens.
    pub listening: bool,
}

/// The socket type of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A byte stream.
    Stream,
    /// A sequence of messages.
    Seqpacket,
}

/// The process in the guest that makes a request, in the guest's own numbers, as the guest claims.
/// Users and groups of a guest are not those of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The process id.
    pub pid: u32,
    /// The effective user id.
    pub uid: u32,
    /// The effective group id.
    pub gid: u32,
}

/// A guest's request for a connection.
#[derive(Debug)]
pub struct GuestRequest {
    /// Where it leads.
    pub destination: Destination,
    /// The service.
    pub service: Service,
    /// The socket type.
    pub kind: SocketKind,
    /// The guest's own port, if the link has ports. A sibling is told it.
    pub source_port: Option<u32>,
    /// The requesting process; see [`Capabilities::identity`](super::Capabilities::identity).
    pub identity: Option<PeerIdentity>,
    /// The connection's stream socket, on a link without
    /// [`byte_counts`](super::Capabilities::byte_counts). The core relays its bytes if it accepts
    /// the request and drops it otherwise.
    pub socket: Option<OwnedFd>,
}

/// Where a connection to a guest comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A process of the host, or of a container.
    Host,
    /// A sibling guest.
    Sibling {
        /// Its context id.
        cid: u32,
        /// Its port, if its link has ports.
        port: Option<u32>,
    },
}

/// A connect to a guest.
#[derive(Debug)]
pub struct GuestConnect {
    /// The connection.
    pub connection: ConnectionId,
    /// Where it comes from.
    pub source: Source,
    /// The container that it comes from; `None` for the broker's own partition and for a sibling.
    pub container: Option<VmId>,
    /// The guest's service.
    pub service: Service,
    /// The socket type.
    pub kind: SocketKind,
    /// How long the guest may take to answer. After it the link reports
    /// [`Failed`](super::LinkEvent::Failed) with `TimedOut`.
    pub timeout: Duration,
    /// The other end. `None` on a link without
    /// [`byte_counts`](super::Capabilities::byte_counts), which reports a socket instead.
    pub end: Option<LinkEnd>,
}

/// The other end of a guest's connection: what the link moves bytes from and to.
#[derive(Debug)]
pub struct LinkEnd {
    /// The process or sibling.
    pub peer: Peer,
    /// Counts the bytes that the link moves.
    pub counters: LinkCounters,
    /// The size of the peer's buffer for bytes from the guest, in bytes. At most this many may be
    /// accepted from the guest and not yet consumed by the peer.
    pub buffer: u32,
    /// The link reports the connection's close to the core. Of two siblings' links only one does.
    pub reports: bool,
}

/// The byte counters of one connection, from the guest's side.
#[derive(Clone, Debug)]
pub struct LinkCounters {
    counters: Arc<ByteCounters>,
    from_guest: usize,
}

impl LinkCounters {
    /// `guest` is the guest's end of the connection.
    pub(crate) fn new(counters: Arc<ByteCounters>, guest: ConnectionEnd) -> Self {
        let from_guest = match guest {
            ConnectionEnd::Client => 0,
            ConnectionEnd::Server => 1,
        };
        Self {
            counters,
            from_guest,
        }
    }

    /// The guest's end of the connection.
    pub(crate) fn guest(&self) -> ConnectionEnd {
        match self.from_guest {
            0 => ConnectionEnd::Client,
            _ => ConnectionEnd::Server,
        }
    }

    /// The counters, which the core reads.
    pub(crate) fn shared(self) -> Arc<ByteCounters> {
        self.counters
    }

    /// Counts bytes from the guest that the peer's buffer has accepted.
    pub fn add_from_guest(&self, bytes: usize) {
        self.counters.add(self.from_guest, bytes);
    }

    /// Counts bytes of the peer that the guest's buffer has accepted.
    pub fn add_to_guest(&self, bytes: usize) {
        self.counters.add(1 - self.from_guest, bytes);
    }
}
