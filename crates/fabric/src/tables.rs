//! The listeners and connections of a fabric.

use std::collections::BTreeSet;

use hvsock_address::{ServiceId, VmId};
use hvsock_registry::Principal;

use crate::{ConnectionId, Destination, End, PartitionKey};

/// Whom a listener accepts from: the [`VmId`] that it was bound to, with its meaning looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bound {
    /// Everyone who may reach the partition.
    Wildcard,
    Parent,
    Children,
    Loopback,
    /// This child or sibling.
    Partition(PartitionKey),
}

/// Where a listener is found by those who connect.
pub(crate) type ListenAddress = (PartitionKey, Bound, ServiceId);

/// A listener of a fabric.
#[derive(Debug)]
pub struct Listener {
    pub(crate) partition: PartitionKey,
    pub(crate) vm: VmId,
    pub(crate) bound: Bound,
    pub(crate) service: ServiceId,
    pub(crate) principal: Principal,
    pub(crate) backlog: u32,
    pub(crate) waiting: BTreeSet<ConnectionId>,
    /// The partitions whose registries it depends on, so that it can be taken out of their books
    /// whatever has become of those that it was bound to.
    pub(crate) owners: [Option<PartitionKey>; 2],
}

/// A connection of a fabric.
#[derive(Debug)]
pub struct Connection {
    pub(crate) source: PartitionKey,
    pub(crate) target: PartitionKey,
    pub(crate) destination: Destination,
    pub(crate) service: ServiceId,
    /// The partition whose registry it depends on; none inside a container.
    pub(crate) registry: Option<PartitionKey>,
    pub(crate) waiting: bool,
    pub(crate) suspended: bool,
    pub(crate) client_keeps: bool,
    pub(crate) server_keeps: bool,
}

impl Listener {
    /// The partition that it is in.
    pub fn partition(&self) -> PartitionKey {
        self.partition
    }

    /// Whom it accepts from, as its process gave it.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The service that it offers.
    pub fn service(&self) -> ServiceId {
        self.service
    }

    /// The process behind it.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// How many connections may wait for it.
    pub fn backlog(&self) -> u32 {
        self.backlog
    }

    /// The connections that wait for it, the oldest first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = ConnectionId> {
        self.waiting.iter().copied()
    }

    pub(crate) fn address(&self) -> ListenAddress {
        (self.partition, self.bound, self.service)
    }
}

impl Connection {
    /// The partition that connected.
    pub fn source(&self) -> PartitionKey {
        self.source
    }

    /// The partition that it connected to.
    pub fn target(&self) -> PartitionKey {
        self.target
    }

    /// Who it went to; a listener may be gone.
    pub fn destination(&self) -> Destination {
        self.destination
    }

    /// The service.
    pub fn service(&self) -> ServiceId {
        self.service
    }

    /// The partition whose registry it depends on; none if both ends are in one container.
    pub fn registry(&self) -> Option<PartitionKey> {
        self.registry
    }

    /// Whether it waits to be accepted.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether it stands still because a partition is paused.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Whether this end set `HVSOCKET_CONNECTED_SUSPEND`.
    pub fn keeps(&self, end: End) -> bool {
        match end {
            End::Client => self.client_keeps,
            End::Server => self.server_keeps,
        }
    }
}
