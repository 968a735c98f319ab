//! What a link reports to the core.

use std::os::fd::OwnedFd;

use hvsock_fabric::{ConnectionId, Fix, PartitionState, Refusal};

use super::arena::ArenaOpened;
use super::values::{GuestRequest, RequestId};
use crate::data_path::ReportSender;

/// Sends a link's events to the core, from any thread and in order. It does not block.
pub type EventSender = ReportSender<LinkEvent>;

/// An event that a link reports to the core.
#[derive(Debug)]
pub enum LinkEvent {
    /// The guest's state has changed. Connections of a guest that is off are closed by the link,
    /// with [`Refusal::PartitionOff`], and reported as closed before this event.
    State(PartitionState),
    /// The guest requests a connection. The core answers with
    /// [`accept`](super::GuestLink::accept) or [`refuse`](super::GuestLink::refuse). The link must
    /// bound the number of requests without an answer.
    Request(RequestId, GuestRequest),
    /// The guest has accepted a connection that the core requested. A link without
    /// [`byte_counts`](super::Capabilities::byte_counts) hands out its stream socket, and has
    /// nothing more to do with the connection.
    Connected(ConnectionId, Option<OwnedFd>),
    /// A connection that the core requested has failed before it was established.
    Failed(ConnectionId, Refusal),
    /// The process at the other end set `HVSOCKET_CONNECTED_SUSPEND`.
    ConnectedSuspend(ConnectionId, bool),
    /// A connection is closed. The reason is set unless both ends closed cleanly.
    Closed(ConnectionId, Option<Refusal>),
    /// The link has refused a request of the guest by itself, in an [arena](super::GuestArena).
    Refused(GuestRequest, Refusal),
    /// The link has opened a connection in an arena.
    Opened(ArenaOpened),
    /// A request that was to be [answered in an arena](super::GuestLink::connect_in_arena) could not be:
    /// the core decides about it alone.
    NoSlot(RequestId, GuestRequest),
    /// Most slots of an arena are in use.
    WantsSlots(ConnectionId),
    /// An arena has ended. All of its connections are reported as closed before this event.
    ArenaEnded(ConnectionId),
    /// A fault of the guest or of its VMM, for the log.
    Fault(String),
    /// What an operator has to see to before the link works, as a sentence about an object; `None` once
    /// that is solved. Operators see it until then.
    Problem(Option<String>),
    /// The link cannot have the host's port of a service that its guest may reach, or can again.
    PortProblem(u32, Option<PortProblem>),
    /// The link has closed connections to the host that are of no VM.
    Stranger(Stranger),
}

/// Why a guest does not reach a service of the host although it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortProblem {
    /// The problem as one sentence.
    pub text: String,
    /// The nearest refusal, for the explanation of a connect.
    pub refusal: Refusal,
    /// What removes its cause.
    pub fix: Option<Fix>,
}

/// Connections to the host whose CID is no VM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The CID.
    pub cid: u32,
    /// The host's port, of the last one.
    pub port: u32,
    /// How many there were since the last report.
    pub count: u64,
}

impl LinkEvent {
    /// Whether somebody waits for what the core does about it. The core may handle others some
    /// milliseconds later, several at once.
    pub(crate) fn is_urgent(&self) -> bool {
        !matches!(self, Self::Opened(_) | Self::Closed(..))
    }
}
