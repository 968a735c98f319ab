//! One session: the state of a process's connection to an endpoint.

use std::sync::Arc;

use hvsock_address::ServiceId;
use hvsock_control::Claim;
use hvsock_endpoint::NamedAddress;
use hvsock_fabric::{ListenerId, PartitionKey};

use super::entry::Entry;
use crate::callers::Caller;
use crate::core::attachments::Attachment;

/// Most lookups and options on one session before its request.
pub(crate) const MAX_QUERIES: u32 = 64;

/// A process's connection to an endpoint, or to a hybrid vsock socket. `D` is its descriptor.
#[derive(Debug)]
pub(crate) struct Session<D> {
    pub(crate) socket: D,
    pub(crate) partition: PartitionKey,
    pub(crate) caller: Caller,
    pub(crate) entry: Entry,
    pub(crate) connected_suspend: bool,
    /// Requested ring capacity in bytes; 0 selects the broker's default.
    pub(crate) ring_size: u32,
    /// What the process says that its connection is for.
    pub(crate) claim: Option<Arc<Claim>>,
    /// The address of its connect, if that was given with names.
    pub(crate) named: Option<Arc<NamedAddress>>,
    /// The socket of the process, if the session's is the broker's own.
    pub(crate) on_behalf_of: Option<D>,
    /// The socket to which the process connects its own one.
    pub(crate) attachment: Option<Box<Attachment>>,
    /// The request whose refusal the process wants explained.
    pub(crate) explains: Option<Request>,
    pub(super) serial: u64,
    pub(super) queries: u32,
    /// It waits for its turn and is not read before.
    pub(super) queued: bool,
    pub(super) role: Role,
}

/// A request for a connection or a listener, as far as its address does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Connect,
    Listen { backlog: u32 },
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It has not sent its request.
    Idle,
    /// It is a listener until its process closes it.
    Listener(ListenerId),
    /// It holds a registration until its process closes it.
    Lease(ServiceId),
}

impl<D> Session<D> {
    /// A session that has not sent its request.
    pub(super) fn new(
        serial: u64,
        socket: D,
        partition: PartitionKey,
        caller: Caller,
        entry: Entry,
    ) -> Self {
        Self {
            socket,
            partition,
            caller,
            entry,
            connected_suspend: false,
            ring_size: 0,
            claim: None,
            named: None,
            on_behalf_of: None,
            attachment: None,
            explains: None,
            serial,
            queries: 0,
            queued: false,
            role: Role::Idle,
        }
    }

    /// The serial number, which no other session of this broker has or had.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// The partition whose socket the process connected to: its own, or the VM of a hybrid vsock socket.
    pub(crate) fn socket_of(&self) -> PartitionKey {
        match &self.entry {
            Entry::Endpoint | Entry::Text(_) => self.partition,
            Entry::Hybrid(hybrid) => hybrid.vm,
        }
    }

    /// Whether it came by a hybrid vsock socket.
    pub(crate) fn is_hybrid(&self) -> bool {
        matches!(self.entry, Entry::Hybrid(_))
    }

    /// Whether it came by a socket of the text protocol.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.entry, Entry::Text(_))
    }

    /// Whether its socket is also the data of its connection.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_hybrid() || self.is_text()
    }

    /// The socket of the process, by which the kernel knows it.
    pub(crate) fn identity(&self) -> &D {
        self.on_behalf_of.as_ref().unwrap_or(&self.socket)
    }

    /// What it is for.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Whether it has not sent its request.
    pub(crate) fn is_idle(&self) -> bool {
        self.role == Role::Idle
    }

    /// Gives an idle session its role.
    pub(crate) fn assume(&mut self, role: Role) {
        self.role = role;
    }

    /// Counts a lookup or an option.
    pub(crate) fn count_query(&mut self) {
        self.queries = self.queries.saturating_add(1);
    }

    /// Whether it has made more than [`MAX_QUERIES`] queries without a request.
    pub(crate) fn exceeds_queries(&self) -> bool {
        self.queries > MAX_QUERIES && self.is_idle()
    }
}
