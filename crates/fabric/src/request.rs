//! Requests to the fabric, and their results and effects.

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_registry::Principal;

use crate::{ConnectionId, ListenerId, PartitionKey, Refusal};

/// A connect by a process.
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// The partition of the process.
    pub from: PartitionKey,
    /// The credentials of the process.
    pub principal: &'a Principal,
    /// The requested partition.
    pub vm: VmId,
    /// The requested service.
    pub service: ServiceId,
}

/// How many connections one connection of the fabric stands for.
///
/// Two processes that share memory for many connections have one connection here, of which their later
/// ones are parts. It weighs as many as there may be at once, and has an id for each that there may ever
/// be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The connections that count against the [`Limits`](crate::Limits), at least 1.
    pub weight: u32,
    /// The ids that are given, at least 1. The connection has the first one.
    pub ids: u64,
}

impl Block {
    /// One connection.
    pub const SINGLE: Self = Self { weight: 1, ids: 1 };
}

/// A bind and listen by a process.
#[derive(Clone, Copy, Debug)]
pub struct ListenRequest<'a> {
    /// The partition of the process.
    pub from: PartitionKey,
    /// The credentials of the process.
    pub principal: &'a Principal,
    /// The partitions to accept from.
    pub vm: VmId,
    /// The service to listen for.
    pub service: ServiceId,
    /// The backlog: how many connections may be pending. Clamped to 1 ..=
    /// [`Limits::backlog_max`](crate::Limits::backlog_max).
    pub backlog: u32,
}

/// The acceptor of a connection in its target partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A listener of the fabric.
    Listener(ListenerId),
    /// The guest kernel of a VM. The fabric has no record of its listeners. In a fabric
    /// [without listeners](crate::Fabric::without_listeners) this is every kernel.
    Guest,
}

impl Destination {
    /// The listener, or `None` for a guest.
    pub fn listener(self) -> Option<ListenerId> {
        match self {
            Self::Listener(id) => Some(id),
            Self::Guest => None,
        }
    }
}

/// A new connection. It is pending until [`accepted`](crate::Fabric::accepted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The connection.
    pub connection: ConnectionId,
    /// The acceptor.
    pub destination: Destination,
    /// The partition of the acceptor.
    pub target: PartitionKey,
    /// The address of the listener as the client sees it (`getpeername`).
    pub server: SockAddrHv,
    /// The address of the client as the listener sees it. Its service is zero.
    pub client: SockAddrHv,
    /// Whether the registry wants both processes to have the ends of one socket pair
    /// ([`TransportSetting::Direct`](hvsock_registry::TransportSetting)). Never with a guest.
    pub direct: bool,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionEnd {
    /// The end that connected.
    Client,
    /// The end that listened.
    Server,
}

/// An action that the fabric's owner must perform after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Reset the connection, and report the reason to both ends. The fabric has removed it.
    ResetConnection {
        /// The connection.
        id: ConnectionId,
        /// The reason.
        refusal: Refusal,
    },
    /// Close the listener, and report the reason to its process. The fabric has removed it.
    CloseListener {
        /// The listener.
        id: ListenerId,
        /// The reason.
        refusal: Refusal,
    },
    /// Stop the data transfer without losing data, until [`Effect::Resume`].
    Suspend {
        /// The connection.
        id: ConnectionId,
    },
    /// Continue the data transfer.
    Resume {
        /// The connection.
        id: ConnectionId,
    },
}
