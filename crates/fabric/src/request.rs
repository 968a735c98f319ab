//! What the fabric is asked, and what it answers.

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_registry::Principal;

use crate::{ConnectionId, ListenerId, PartitionKey, Refusal};

/// A process asks to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// The partition that the process is in.
    pub from: PartitionKey,
    /// The process.
    pub principal: &'a Principal,
    /// The partition that it gives.
    pub vm: VmId,
    /// The service that it gives.
    pub service: ServiceId,
}

/// A process asks to listen.
#[derive(Clone, Copy, Debug)]
pub struct ListenRequest<'a> {
    /// The partition that the process is in.
    pub from: PartitionKey,
    /// The process.
    pub principal: &'a Principal,
    /// Whom it wants to accept from.
    pub vm: VmId,
    /// The service that it offers.
    pub service: ServiceId,
    /// How many connections may wait to be accepted: at least one, and at most
    /// [`Limits::backlog_max`](crate::Limits::backlog_max), whatever is asked.
    pub backlog: u32,
}

/// Who takes a connection at the partition that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A listener that the fabric knows.
    Listener(ListenerId),
    /// The guest itself: the kernel in a VM listens, or not, and the fabric learns from nobody at
    /// which ports. In a fabric [without listeners](crate::Fabric::without_listeners) so does every
    /// other kernel.
    Guest,
}

impl Destination {
    /// The listener, if it is one.
    pub fn listener(self) -> Option<ListenerId> {
        match self {
            Self::Listener(id) => Some(id),
            Self::Guest => None,
        }
    }
}

/// A connection that was made; it waits for the listener, or the guest, until
/// [`accepted`](crate::Fabric::accepted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The connection.
    pub connection: ConnectionId,
    /// Whom it waits for.
    pub destination: Destination,
    /// The partition that this is in.
    pub target: PartitionKey,
    /// The listener, as the connecting process sees it.
    pub server: SockAddrHv,
    /// The connecting process, as the listener sees it. It has no service.
    pub client: SockAddrHv,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The end that connected.
    Client,
    /// The end that listened.
    Server,
}

/// What the fabric's caller has to do about a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Break the connection off, and tell both ends why. The fabric has forgotten it.
    CutConnection {
        /// The connection.
        id: ConnectionId,
        /// Why.
        refusal: Refusal,
    },
    /// End the listener, and tell its process why. The fabric has forgotten it.
    CutListener {
        /// The listener.
        id: ListenerId,
        /// Why.
        refusal: Refusal,
    },
    /// Let no more data through, and lose none, until [`Effect::Resume`].
    Suspend {
        /// The connection.
        id: ConnectionId,
    },
    /// Let data through again.
    Resume {
        /// The connection.
        id: ConnectionId,
    },
}
