//! How a VM's connections reach its guest.
//!
//! The core decides which connections exist; a [`GuestLink`] carries them to one guest and back. The
//! vhost-user device (`vhost_user`) is one. A program that embeds the broker can bring its own with
//! [`Handle::add_vm_with_link`](crate::Handle::add_vm_with_link).
//!
//! # A new kind of link to a guest
//!
//! A new kind is one module that implements [`GuestLink`], and one place that opens it: a
//! [`LinkFactory`]. Nothing else in the broker names a kind. Links have no terms in common but
//! those of [`values`]: a guest asks for a [`Destination`] and a [`Service`], by port or by GUID;
//! how that looks on the wire is the link's own matter.
//!
//! A link first says what it can do ([`Capabilities`]). The core refuses what it cannot, before
//! it tries: it does not emulate a capability, and a link must not claim one that it has only
//! sometimes.
//!
//! # Connections
//!
//! A connection from the guest: the link sends [`LinkEvent::Request`], the core answers exactly once,
//! with [`accept`](GuestLink::accept) or [`refuse`](GuestLink::refuse). A connection to the guest:
//! the core calls [`connect`](GuestLink::connect), the link answers exactly once, with
//! [`LinkEvent::Connected`] or [`LinkEvent::Failed`], within [`GuestConnect::timeout`]. Then it
//! depends on [`Capabilities::byte_counts`] who moves the bytes:
//!
//! - **With it, the link does.** It has a [`LinkEnd`] from `accept` or `connect`, whose [`Peer`] is
//!   the other end: a process, by a ring or a socket, or a sibling guest. After
//!   `Connected`, the core tells the waiting process, and then calls
//!   [`establish`](GuestLink::establish); the data of a process flows only from then on. The link
//!   counts what it moves, stops moving a suspended connection's bytes to the guest, and sends
//!   [`LinkEvent::Closed`] exactly once when both ends have closed, or when it has reset the
//!   connection on its own or by [`close`](GuestLink::close). If [`LinkEnd::reports`] is not set,
//!   it sends neither `Connected`, `Failed` nor `Closed` for the connection: the sibling's link
//!   does.
//! - **Without it, the broker's relay does.** The link hands out a connected stream socket, in
//!   [`GuestRequest::socket`] or with `Connected`, and has nothing more to do with the connection:
//!   it is neither established, suspended nor closed through the link. It has no siblings: a
//!   request for one is refused with `NotSupported`.
//!
//! An answer of the core may name a request or connection that is gone on the link's side. The link
//! ignores `refuse`, `establish`, `suspend` and `close` for those, and after `accept` it reports
//! [`LinkEvent::Closed`].
//!
//! # Threads
//!
//! The core calls a link from its one thread, which decides for all partitions: a method only
//! queues what is to be done and returns. The link's threads are its own, and so is their end:
//! dropping the link resets its connections and joins its threads. Events go through the
//! [`EventSender`], which does not block. Bytes never pass through the trait's methods.
//!
//! A guest is untrusted. The link bounds what a guest can make it keep: requests without an answer,
//! connections ([`LinkSettings::max_connections`]) and buffered bytes ([`LinkEnd::buffer`]).

mod capabilities;
mod event;
mod outcome;
mod peer;
pub(crate) mod pipe;
pub mod values;

use std::path::Path;

pub use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionState, Refusal};

pub use crate::data_path::ControlConnection;
pub use capabilities::Capabilities;
pub use event::{EventSender, LinkEvent};
pub use outcome::{ControlUpdate, DeliverError, FillOutcome, MessageEnd, Readiness};
pub use peer::Peer;
pub use pipe::{PeerState, PipeEnd, WakePeer};
pub use values::{
    Destination, GuestConnect, GuestRequest, LinkCounters, LinkEnd, PeerIdentity, RequestId,
    Service, SocketKind, Source,
};

use crate::StartError;

/// How a VM's connections reach its guest. See the [module](self) for the order of calls.
///
/// Dropping a link resets its connections, without events, and ends its threads.
pub trait GuestLink: Send {
    /// What the link can do. It does not change.
    fn capabilities(&self) -> Capabilities;

    /// The guest's state now. Changes are reported as [`LinkEvent::State`].
    fn state(&self) -> PartitionState;

    /// The path of the Unix socket at which the VMM connects to the link, if there is one. Operators
    /// see it. It is removed with the VM.
    fn socket(&self) -> Option<&Path> {
        None
    }

    /// Requests a connection from the guest.
    ///
    /// # Errors
    ///
    /// A refusal that needs no answer of the guest, such as
    /// [`ServiceNotMappable`](Refusal::ServiceNotMappable). No event follows.
    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal>;

    /// Accepts a request of the guest. `end` is the other end.
    fn accept(&self, request: RequestId, connection: ConnectionId, end: LinkEnd);

    /// Refuses a request of the guest. There is a reason if the link can pass it on
    /// ([`Capabilities::refusal_reason`]).
    fn refuse(&self, request: RequestId, reason: Option<&Refusal>);

    /// Hands over the control connection of the process at the other end of a connection that the
    /// guest has accepted, for [`Peer::set_control`]. From then on the connection's data flows.
    fn establish(&self, connection: ConnectionId, control: ControlConnection);

    /// Resets a connection, or gives up a connect, and sends both ends the reason.
    fn close(&self, connection: ConnectionId, refusal: Refusal);

    /// Suspends or resumes a connection's data.
    fn suspend(&self, connection: ConnectionId, suspended: bool);
}

/// The settings of a VM's link.
#[derive(Clone, Copy, Debug)]
pub struct LinkSettings {
    /// The guest's vsock context id.
    pub cid: u32,
    /// The most connections that the guest may have.
    pub max_connections: usize,
}

/// Opens the link of one VM. Functions of this shape are factories.
pub trait LinkFactory: Send {
    /// Opens the link. It may send events at once.
    ///
    /// # Errors
    ///
    /// If a socket, descriptor or thread cannot be made. The VM is then not added.
    fn open(
        self: Box<Self>,
        settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError>;
}

impl<F> LinkFactory for F
where
    F: FnOnce(LinkSettings, EventSender) -> Result<Box<dyn GuestLink>, StartError> + Send,
{
    fn open(
        self: Box<Self>,
        settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError> {
        self(settings, events)
    }
}
