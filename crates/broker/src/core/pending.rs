//! A connect of a process to a guest that the guest has not accepted, while the process waits.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hvsock_endpoint::uplink::Request;
use hvsock_endpoint::{Connect, Transport};
use hvsock_fabric::Route;
use hvsock_ring::Doorbells;

use super::sessions::Session;
use crate::budget::Charge;
use crate::data_path::{ByteCounters, ProcessSocket};
use crate::guest_link::LinkEnd;

/// A connect that waits for its guest.
#[derive(Debug)]
pub(super) struct PendingConnect {
    pub(super) session: Session<ProcessSocket>,
    pub(super) connect: Connect,
    pub(super) route: Route,
    pub(super) part: ProcessPart,
    pub(super) transport: Transport,
    pub(super) counters: Arc<ByteCounters>,
    /// For the descriptors of both ends.
    pub(super) charge: Charge,
    /// For the reply, if it carries descriptors.
    pub(super) reply: Option<Charge>,
    pub(super) stage: Stage,
}

/// Who has to answer.
#[derive(Debug)]
pub(super) enum Stage {
    /// The broker in the guest, at which port a container expects the connection.
    Asked {
        request: Request,
        /// What the guest's link is to move bytes from and to, if it does.
        end: Option<LinkEnd>,
    },
    /// The guest's link.
    Connecting,
}

/// A connect that waits until processes read what was sent to them.
#[derive(Debug)]
pub(super) struct ParkedConnect {
    pub(super) session: Session<ProcessSocket>,
    pub(super) connect: Connect,
}

/// What a process receives, and what the broker keeps of its end.
#[derive(Debug)]
pub(super) enum ProcessPart {
    Ring {
        memory: OwnedFd,
        doorbells: Doorbells,
    },
    Socket(OwnedFd),
    /// Its socket, and the broker's, which relays the bytes to and from the guest's.
    Relayed(OwnedFd, OwnedFd),
    /// It receives the guest's socket, once there is one.
    HandedOver,
    /// Nothing: the socket that it connected with is its end, of which the guest's link has a duplicate.
    Own,
    /// Likewise, and the duplicate that the broker relays.
    OwnRelayed(OwnedFd),
    /// Nothing: it brings its own socket, which the guest's link gets.
    Attached,
    /// Nothing: it brings its own socket, which the broker relays.
    AttachedRelayed,
}

impl ProcessPart {
    /// The descriptors in the order of the endpoint protocol.
    pub(super) fn into_descriptors(self) -> Vec<OwnedFd> {
        match self {
            Self::Ring { memory, doorbells } => vec![memory, doorbells.own, doorbells.peer],
            Self::Socket(data) | Self::Relayed(data, _) => vec![data],
            Self::HandedOver
            | Self::Own
            | Self::OwnRelayed(_)
            | Self::Attached
            | Self::AttachedRelayed => Vec::new(),
        }
    }
}
