//! The listeners and connections of a fabric.

use std::collections::BTreeSet;

use hvsock_address::{ServiceId, VmId};
use hvsock_registry::Principal;

use crate::{ConnectionEnd, ConnectionId, Destination, PartitionKey};

/// The partitions that a listener accepts from: the [`VmId`] that it is bound to, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Binding {
    /// All partitions that can reach the listener's partition.
    Wildcard,
    Parent,
    Children,
    Loopback,
    /// One child or sibling.
    Partition(PartitionKey),
}

/// The lookup key of a listener.
pub(crate) type ListenAddress = (PartitionKey, Binding, ServiceId);

/// A listener of a fabric.
#[derive(Debug)]
pub struct Listener {
    pub(crate) partition: PartitionKey,
    pub(crate) vm: VmId,
    pub(crate) binding: Binding,
    pub(crate) service: ServiceId,
    pub(crate) principal: Principal,
    pub(crate) backlog: u32,
    pub(crate) waiting: BTreeSet<ConnectionId>,
    /// The partitions whose registries it depends on. Recorded here, so that the listener can be
    /// removed from their dependents even if the partition that it is bound to is gone.
    pub(crate) owners: [Option<PartitionKey>; 2],
}

/// A connection of a fabric.
#[derive(Debug)]
pub struct Connection {
    pub(crate) source: PartitionKey,
    pub(crate) target: PartitionKey,
    pub(crate) destination: Destination,
    pub(crate) service: ServiceId,
    /// The partition whose registry it depends on; `None` inside a container.
    pub(crate) registry: Option<PartitionKey>,
    pub(crate) waiting: bool,
    pub(crate) suspended: bool,
    pub(crate) client_connected_suspend: bool,
    pub(crate) server_connected_suspend: bool,
    /// As in [`Block::weight`](crate::Block::weight).
    pub(crate) weight: u32,
}

impl Listener {
    /// The listener's partition.
    pub fn partition(&self) -> PartitionKey {
        self.partition
    }

    /// The partitions that it accepts from, as requested by its process.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The service.
    pub fn service(&self) -> ServiceId {
        self.service
    }

    /// The credentials of its process.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The maximum number of pending connections.
    pub fn backlog(&self) -> u32 {
        self.backlog
    }

    /// The pending connections, the oldest first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = ConnectionId> {
        self.waiting.iter().copied()
    }

    pub(crate) fn address(&self) -> ListenAddress {
        (self.partition, self.binding, self.service)
    }
}

impl Connection {
    /// The client's partition.
    pub fn source(&self) -> PartitionKey {
        self.source
    }

    /// The server's partition.
    pub fn target(&self) -> PartitionKey {
        self.target
    }

    /// The acceptor. A listener may have been closed since.
    pub fn destination(&self) -> Destination {
        self.destination
    }

    /// The service.
    pub fn service(&self) -> ServiceId {
        self.service
    }

    /// The partition whose registry it depends on; `None` if both ends are in one container.
    pub fn registry(&self) -> Option<PartitionKey> {
        self.registry
    }

    /// Whether the connection is pending: not yet accepted.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether its data transfer is suspended because a partition is paused.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// How many connections it counts as.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Whether this end set `HVSOCKET_CONNECTED_SUSPEND`.
    pub fn connected_suspend(&self, end: ConnectionEnd) -> bool {
        match end {
            ConnectionEnd::Client => self.client_connected_suspend,
            ConnectionEnd::Server => self.server_connected_suspend,
        }
    }
}
