//! A connect of a process to a guest that the guest has not accepted, while the process waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{Connect, Transport};
use hvsock_fabric::Route;
use hvsock_ring::Doorbells;

use super::sessions::Session;
use crate::budget::Charge;
use crate::data_path::{ByteCounters, ProcessSocket};

/// A connect that waits for its guest.
#[derive(Debug)]
pub(super) struct PendingConnect {
    pub(super) session: Session<ProcessSocket>,
    pub(super) address: SockAddrHv,
    pub(super) route: Route,
    pub(super) part: ProcessPart,
    pub(super) transport: Transport,
    pub(super) counters: Arc<ByteCounters>,
    /// The broker's socket of a process whose bytes it relays, and whether the process has a raw fd.
    pub(super) relayed: Option<(OwnedFd, bool)>,
    /// For the descriptors of both ends.
    pub(super) charge: Charge,
    /// For the reply.
    pub(super) reply: Charge,
}

/// A connect that waits until processes read what was sent to them.
#[derive(Debug)]
pub(super) struct ParkedConnect {
    pub(super) session: Session<ProcessSocket>,
    pub(super) connect: Connect,
}

/// The descriptors that the process receives.
#[derive(Debug)]
pub(super) enum ProcessPart {
    Ring {
        memory: OwnedFd,
        doorbells: Doorbells,
    },
    Socket(OwnedFd),
}

impl ProcessPart {
    /// As [`descriptors`](Self::descriptors), but gives them away.
    pub(super) fn into_descriptors(self) -> Vec<OwnedFd> {
        match self {
            Self::Ring { memory, doorbells } => vec![memory, doorbells.own, doorbells.peer],
            Self::Socket(data) => vec![data],
        }
    }

    /// The descriptors in the order of the endpoint protocol.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Ring { memory, doorbells } => {
                vec![
                    memory.as_fd(),
                    doorbells.own.as_fd(),
                    doorbells.peer.as_fd(),
                ]
            }
            Self::Socket(data) => vec![data.as_fd()],
        }
    }
}
