//! A connect of a process to a guest that the guest has not accepted, while the process waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_address::SockAddrHv;
use hvsock_endpoint::Transport;
use hvsock_fabric::Route;
use hvsock_ring::Doorbells;

use super::sessions::Session;
use crate::data_path::ByteCounters;

/// A connect that waits for its guest.
#[derive(Debug)]
pub(super) struct PendingConnect {
    pub(super) session: Session<OwnedFd>,
    pub(super) address: SockAddrHv,
    pub(super) route: Route,
    pub(super) part: ProcessPart,
    pub(super) transport: Transport,
    pub(super) counters: Arc<ByteCounters>,
    /// The broker's socket of a process whose bytes it relays, and whether the process has a raw fd.
    pub(super) relayed: Option<(OwnedFd, bool)>,
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
