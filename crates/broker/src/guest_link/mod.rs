//! How a VM's connections reach its guest.
//!
//! The core decides which connections exist; a [`GuestLink`] carries them to one guest and back. The
//! vhost-user device (`vhost_user`) is one. A program that embeds the broker can bring its own with
//! [`Handle::add_vm_with_link`](crate::Handle::add_vm_with_link).
//!
//! # A new kind of link to a guest
//!
//! A new kind is one folder with an implementation of [`GuestLink`], and one line that opens it by a
//! [`LinkFactory`]: in `links.rs` for a kind that the broker has built in, or in the program that
//! embeds the broker. Nothing else in the broker names a kind.
//!
//! The links have only these terms in common: a guest asks for a [`Destination`] and a [`Service`], by
//! vsock port or by GUID; a connection has the broker's [`ConnectionId`]; a request has a number that
//! the link chooses. How that looks on the wire, and which of the host's ports a connection comes
//! from, is the link's own matter. All sizes are in bytes.
//!
//! A link says what it can do ([`Capabilities`]). The core refuses what a link cannot, before it
//! tries. It does not emulate a capability, and a link must not claim one that it has only
//! sometimes. `crates/broker/tests/links` has two links to start from, an able one and a bare one;
//! `conformance_link` runs the conformance suite over both.
//!
//! ## Connections
//!
//! A connection from the guest: the link sends [`LinkEvent::Request`], the core answers once, with
//! [`accept`](GuestLink::accept) or [`refuse`](GuestLink::refuse). A connection to the guest: the core
//! calls [`connect`](GuestLink::connect), the link answers once, with [`LinkEvent::Connected`] or
//! [`LinkEvent::Failed`], within [`GuestConnect::timeout`]. The core gives up on a link 5 seconds later.
//!
//! Then it depends on [`Capabilities::byte_counts`] who moves the bytes.
//!
//! **With it, the link does.** It has a [`LinkEnd`] from `accept` or `connect`, whose [`Peer`] is the
//! other end: a process, by a ring or a socket, or a sibling guest.
//!
//! 1. After `Connected`, the core gives the waiting process its descriptors and calls
//!    [`establish`](GuestLink::establish). Bytes to the guest flow only from then on
//!    ([`Peer::is_established`]). The process of an accepted request has its descriptors already.
//! 2. The link moves and counts the bytes ([`LinkCounters`]). It holds the bytes to the guest of a
//!    [suspended](GuestLink::suspend) connection. The end of the guest's data is [`Peer::finish`];
//!    that of the peer's is [`FillOutcome::Ended`].
//! 3. When both ends have closed, or the link has reset the connection, on its own or by
//!    [`close`](GuestLink::close), it sends [`LinkEvent::Closed`] once. A process that has closed
//!    ([`Peer::is_closed`]) without having read all ([`Peer::leaves_unread`]) is a reset.
//! 4. If [`LinkEnd::reports`] is not set, the link sends neither `Connected`, `Failed` nor `Closed`
//!    for the connection: the sibling's link does. It removes the connection when its own guest has
//!    closed. The end of a sibling that connects is open once [`PeerState::connected`] is set; the
//!    accepting link sets it by [`PipeEnd::connected`].
//!
//! **Without it, the broker's relay does.** The link hands out a connected stream socket, in
//! [`GuestRequest::socket`] or with `Connected`, and has nothing more to do with the connection: it is
//! neither accepted, established, suspended nor closed through the link. The process gets a socket,
//! never a ring. There are no siblings: a request for one is refused with `NotSupported`. An accepted
//! request is answered with [`taken`](GuestLink::taken).
//!
//! If the link [hands over](GuestLink::hands_over), a process that can use the link's socket gets that itself:
//! the relay has nothing to do, no byte is counted, and the broker can close the connection but not
//! suspend it.
//!
//! **In an arena** the link opens connections from the guest by itself, if it
//! [can](GuestLink::takes_arenas). The core hands over a [`GuestArena`] for a port of the host
//! ([`open_arena`](GuestLink::open_arena)) and has a first request answered in it
//! ([`connect_in_arena`](GuestLink::connect_in_arena)). From then on the link tries
//! [`GuestArena::connect`] before it sends a request. It reports each connection that it opens
//! ([`LinkEvent::Opened`]) before anything else about it, and then the connection is as any other.
//! When the guest loses its driver the link ends all arenas before it reports that state. So what the core
//! does about the state, perhaps after the driver has started again, concerns no new connection.
//!
//! **Containers in the guest** are reached by the same calls. A link tells the core the guest's port of a request
//! ([`GuestRequest::source_port`]), by which the broker in the guest proves to be root's; without it there are no
//! such containers. A connection of one arrives at a port of the host that is no service's: the core announces it
//! by [`expect_port`](GuestLink::expect_port), for a link whose guests do not reach every port.
//!
//! An answer of the core may name a request or connection that is gone on the link's side. The link
//! then ignores `refuse`, `establish`, `suspend` and `close`, and answers `accept` with
//! [`LinkEvent::Closed`]. After `close` of a connect that is not answered, it may still send one event
//! for it, or none.
//!
//! ## Errors
//!
//! The reason for the end of a connection is a [`Refusal`]. A connect that no listener accepts is
//! `NoListener`, one without an answer `TimedOut`, a full table `LimitReached` with its name, the
//! death of a guest `PartitionOff`, and any other end that is not clean `Reset` with its cause. The
//! link sends it to the process by [`Peer::reset`], and to the guest as well as it can. What the link
//! cannot know is not guessed.
//!
//! ## Threads
//!
//! The core calls a link from its one thread, which decides for all partitions: a method only queues
//! what is to be done and returns. [`LinkFactory::open`] and the drop run on that thread, too, so they must
//! neither wait for a guest nor call a [`Handle`](crate::Handle), and nothing of a link may panic there.
//! The link's threads are its own, and so is their end: dropping the
//! link resets its connections and joins its threads. Events go through the [`EventSender`], which
//! does not block. Bytes never pass through the trait's methods, so a call by dynamic dispatch costs
//! once per connection and not per byte.
//!
//! # Handing over
//!
//! A broker can pass its state to another process ([`handover`](crate::handover)) while guests run. The core
//! [freezes](GuestLink::freeze) all links, waits for them, and takes [their state](GuestLink::hand_over); in the other process
//! [`LinkFactory::resume`] makes them again. A link that cannot do that is the default: then the broker cannot
//! be handed over while it has one.
//!
//! A guest is untrusted. The link bounds what a guest can make it keep: requests without an answer,
//! connections ([`LinkSettings::max_connections`]) and buffered bytes ([`LinkEnd::buffer`]).

mod arena;
mod arena_slot;
mod capabilities;
mod event;
mod outcome;
pub(crate) mod peer;
pub(crate) mod pipe;
mod values;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionState, Refusal};

pub use crate::data_path::ControlConnection;
pub(crate) use arena::Unrecorded;
pub(crate) use arena::snapshot::{GuestArenaState, SharedArena};
pub use arena::{ArenaConnection, ArenaOpened, ArenaState, GuestArena, NotOpened};
pub(crate) use arena_slot::SlotState;
pub use capabilities::Capabilities;
pub use event::{EventSender, LinkEvent, PortProblem, Stranger};
pub use outcome::{ControlUpdate, DeliverError, FillOutcome, MessageEnd, Readiness};
pub use peer::{FillRun, Peer};
pub use pipe::{PeerState, PipeEnd, WakePeer};
pub(crate) use values::FIRST_OF_BROKER;
pub use values::{
    Destination, GuestConnect, GuestRequest, LinkCounters, LinkEnd, OfferedService, PeerIdentity,
    RequestId, Service, SocketKind, Source,
};

use crate::StartError;
use crate::data_path::ByteCounters;
use crate::handover::{Exports, HandoverError, Imports, LinkDocument};

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

    /// A request's [socket](GuestRequest::socket) is the broker's from now on: the request is accepted. Called
    /// only for a link without [`Capabilities::byte_counts`], in place of [`accept`](Self::accept).
    fn taken(&self, _request: RequestId) {}

    /// Hands over the control connection of the process at the other end of a connection that the
    /// guest has accepted, for [`Peer::set_control`]. From then on the connection's data flows.
    fn establish(&self, connection: ConnectionId, control: ControlConnection);

    /// Resets a connection, or gives up a connect, and sends both ends the reason.
    fn close(&self, connection: ConnectionId, refusal: Refusal);

    /// Suspends or resumes a connection's data.
    fn suspend(&self, connection: ConnectionId, suspended: bool);

    /// Whether the link wants to know which of the host's services its guest can reach. A link does whose
    /// guest learns of a refusal only by the absence of a socket.
    fn takes_services(&self) -> bool {
        false
    }

    /// The host's services of which the guest may know, whenever they have changed, and once after the
    /// link has been opened. The link has sockets for what is [listening](OfferedService::listening), and
    /// for nothing else. A connect is still judged by the core ([`LinkEvent::Request`]): the set may have
    /// changed meanwhile. Called only if [`takes_services`](Self::takes_services).
    fn set_services(&self, _services: Vec<OfferedService>) {}

    /// The most descriptors that the link has for these services, at any time: by default a socket for each that
    /// is listening. The VM is charged for them.
    fn descriptors_for(&self, services: &[OfferedService]) -> usize {
        services.iter().filter(|one| one.listening).count()
    }

    /// Whether the sockets that the link hands out ([`GuestRequest::socket`], [`LinkEvent::Connected`]) go
    /// to the process, instead of through the broker's relay. Their bytes are then not counted, and the
    /// connection can be closed but not suspended: the broker has a duplicate. A process that cannot use the
    /// socket gets its bytes by the relay. Only for a link without [`Capabilities::byte_counts`].
    fn hands_over(&self) -> bool {
        false
    }

    /// What the link cannot do beside its [capabilities](Self::capabilities), in words for operators.
    fn limits(&self) -> &'static [&'static str] {
        &[]
    }

    /// Expects a connection of the guest at this port of the host, which is no service's: the core has allowed it
    /// once. A link whose guests reach every port has nothing to do.
    ///
    /// # Errors
    ///
    /// Why the guest would not reach the port, such as that another program has it.
    fn expect_port(&self, _port: u32) -> Result<(), Refusal> {
        Ok(())
    }

    /// Expects none any more.
    fn release_port(&self, _port: u32) {}

    /// Whether the link can open connections by itself, in [arenas](GuestArena).
    fn takes_arenas(&self) -> bool {
        false
    }

    /// Hands over an arena, which is made for a request of the guest. From then on the link opens connections
    /// in it by itself, for requests of its port at the host. If the guest's driver has gone since the request,
    /// the link ends the arena instead. Called only if [`takes_arenas`](Self::takes_arenas).
    fn open_arena(&self, _arena: GuestArena, _request: RequestId) {}

    /// Answers a request of the guest with a connection in an arena that is for its port. If there is none,
    /// the link asks again ([`LinkEvent::NoSlot`]).
    fn connect_in_arena(&self, _request: RequestId) {}

    /// Ends an arena, and resets its connections with the reason. The link sends
    /// [`LinkEvent::ArenaEnded`] after the events of its connections.
    fn close_arena(&self, _arena: ConnectionId, _refusal: Refusal) {}

    /// Asks the link to freeze, for a [handover](crate::handover) of the broker's state: its threads finish what
    /// they are at, send the events of it, and from then on apply what the core asks, without touching the
    /// guest's memory or any socket. Returns at once. After it the core calls [`frozen`](Self::frozen), and
    /// [`thaw`](Self::thaw) if this broker goes on.
    ///
    /// # Errors
    ///
    /// If the link cannot be handed over, and so the broker cannot. Nothing has happened then.
    fn freeze(&self) -> Result<(), HandoverError> {
        Err(cannot_be_handed_over())
    }

    /// Waits until the link is frozen, and has applied everything that the core has asked so far.
    ///
    /// # Errors
    ///
    /// [`HandoverError::TimedOut`] if that takes until the deadline.
    fn frozen(&self, _deadline: Instant) -> Result<(), HandoverError> {
        Err(cannot_be_handed_over())
    }

    /// The state of a frozen link, for [`LinkFactory::resume`] in another process. It changes nothing.
    ///
    /// # Errors
    ///
    /// If the state cannot leave this process.
    fn hand_over(&self, _exports: &mut Exports) -> Result<LinkDocument, HandoverError> {
        Err(cannot_be_handed_over())
    }

    /// Goes on after [`freeze`](Self::freeze) or [`LinkFactory::resume`]: what came meanwhile is handled now.
    fn thaw(&self) {}
}

fn cannot_be_handed_over() -> HandoverError {
    HandoverError::NotSupported {
        what: "a link of this kind".into(),
    }
}

/// The settings of a VM's link.
#[derive(Clone, Copy, Debug)]
pub struct LinkSettings {
    /// The guest's vsock context id, if it is known.
    pub cid: Option<u32>,
    /// The most connections that the guest may have.
    pub max_connections: usize,
}

/// Opens the link of one VM. Functions of this shape are factories:
///
/// ```
/// use hvsock_broker::StartError;
/// use hvsock_broker::guest_link::{EventSender, GuestLink, LinkFactory, LinkSettings, Refusal};
///
/// fn unavailable(vm: LinkSettings, _: EventSender) -> Result<Box<dyn GuestLink>, StartError> {
///     let error = std::io::Error::from(Refusal::PartitionOff);
///     let what = format!("open the link to the guest with CID {:?}", vm.cid);
///     Err(StartError::Io { what, error })
/// }
///
/// let factory: Box<dyn LinkFactory> = Box::new(unavailable);
/// ```
pub trait LinkFactory: Send {
    /// Opens the link, on the core's thread. It may send events at once.
    ///
    /// # Errors
    ///
    /// If a socket, descriptor or thread cannot be made. The VM is then not added.
    fn open(
        self: Box<Self>,
        settings: LinkSettings,
        events: EventSender,
    ) -> Result<Box<dyn GuestLink>, StartError>;

    /// Opens the link with the state of one of another process, frozen until [`GuestLink::thaw`]. It touches
    /// neither the guest's memory nor a socket until then, and sends no event: the other process may go on after
    /// all, and this one ends.
    ///
    /// # Errors
    ///
    /// If links of this kind cannot be taken over, or the state is damaged or of another kind.
    fn resume(
        self: Box<Self>,
        _document: LinkDocument,
        _imports: &mut Imports,
        _resuming: Resuming<'_>,
    ) -> Result<Box<dyn GuestLink>, HandoverError> {
        Err(cannot_be_handed_over())
    }
}

/// What a link that is taken over is told.
#[derive(Debug)]
#[allow(dead_code, reason = "links read it as they learn to be taken over")]
pub struct Resuming<'a> {
    /// As for a new link.
    pub settings: LinkSettings,
    /// Where it reports to.
    pub events: EventSender,
    counters: &'a HashMap<ConnectionId, Arc<ByteCounters>>,
}

#[allow(dead_code, reason = "for a live upgrade")]
impl<'a> Resuming<'a> {
    pub(crate) fn new(
        settings: LinkSettings,
        events: EventSender,
        counters: &'a HashMap<ConnectionId, Arc<ByteCounters>>,
    ) -> Self {
        Self {
            settings,
            events,
            counters,
        }
    }

    /// The counters of a connection that was established or has been asked for. Nobody reads those of the broker's
    /// own.
    pub(crate) fn counters(&self, connection: ConnectionId) -> Option<Arc<ByteCounters>> {
        let is_own = connection.as_u64() >= FIRST_OF_BROKER;
        let own = is_own.then(Arc::default);
        self.counters.get(&connection).cloned().or(own)
    }
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
