//! Requests to the broker that wait for its answer. Each has a connection of its own, so a slow answer delays
//! no other call.

use std::os::fd::OwnedFd;
use std::time::Instant;

use hvsock::{ElementName, SockAddrHv};
use hvsock_address::VmId;
use hvsock_endpoint::ClientMessage;
use hvsock_sys::remote::Credentials;
use hvsock_sys::seccomp::Notification;

use crate::broker::Connection;
use crate::model::Address;

/// A request that the broker has not answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// `None`: to be opened at `retry_at`.
    pub(crate) connection: Option<Connection>,
    /// Messages to send when it is open.
    pub(crate) outbox: Vec<ClientMessage>,
    /// All messages, to send on a connection of its own if the prepared one has failed.
    pub(crate) again: Option<Vec<ClientMessage>>,
    /// With whose rights to connect to the endpoint.
    pub(crate) credentials: Option<Credentials>,
    /// When to give up.
    pub(crate) deadline: Instant,
    /// When to open it.
    pub(crate) retry_at: Option<Instant>,
    /// What it is for.
    pub(crate) purpose: Purpose,
}

/// What an exchange is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// `connect`.
    Connect(Connecting),
    /// `bind`: whether the address is free.
    Bind(Binding),
    /// `listen`.
    Listen(Opening),
    /// Registering the service of a `listen`.
    Register(Registering),
    /// The context id of the partition of peers.
    PeerCid(VmId),
}

/// A `connect` in progress.
#[derive(Debug)]
pub(crate) struct Connecting {
    /// The socket.
    pub(crate) inode: u64,
    /// A duplicate of the program's Unix socket.
    pub(crate) data: OwnedFd,
    /// What the program connects to.
    pub(crate) address: Address,
    /// The partition; `None` until the broker has found it.
    pub(crate) vm: Option<VmId>,
    /// The request for the connection, which needs the partition.
    pub(crate) timeout_ms: u32,
    /// All messages, to send again when the listener's backlog has space.
    pub(crate) messages: Vec<ClientMessage>,
    /// When to give up if the backlog has none.
    pub(crate) until: Instant,
    /// Whether it waits for that.
    pub(crate) is_held: bool,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Where to connect the Unix socket to, once the broker has said.
    pub(crate) attachable: Option<OwnedFd>,
    /// Calls to decide again once the result is known.
    pub(crate) deferred: Vec<Notification>,
}

/// How far a `connect` is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// Blocking: the call with this wait number is answered with the result.
    Blocking {
        /// The number of the wait.
        wait: u64,
    },
    /// Non-blocking: the call waits for `EINPROGRESS`.
    Beginning {
        /// The call.
        call: Notification,
    },
    /// Non-blocking: in progress. The send buffer had this size.
    InProgress {
        /// In bytes.
        send_buffer: usize,
    },
}

/// A `bind` in progress.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) call: Notification,
    pub(crate) inode: u64,
    pub(crate) data: OwnedFd,
    pub(crate) address: Address,
    /// Where a listener would be.
    pub(crate) target: SockAddrHv,
    pub(crate) since: Instant,
}

/// A `listen` in progress.
#[derive(Debug)]
pub(crate) struct Opening {
    /// `None`: the listener has ended and is opened again.
    pub(crate) call: Option<Notification>,
    pub(crate) inode: u64,
    /// A duplicate of the program's Unix socket, for the first time.
    pub(crate) data: Option<OwnedFd>,
    pub(crate) address: Address,
    pub(crate) target: SockAddrHv,
    pub(crate) backlog: u32,
    pub(crate) since: Instant,
    /// Why the first choice was refused.
    pub(crate) refused: Option<hvsock::Refusal>,
}

/// A registration in progress, after which the `listen` goes on.
#[derive(Debug)]
pub(crate) struct Registering {
    pub(crate) name: ElementName,
    pub(crate) opening: Opening,
}
