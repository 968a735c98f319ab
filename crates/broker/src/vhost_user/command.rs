//! What the device's threads share: the commands of the data thread, and the device's state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use hvsock_virtio::{Cid, GuestCid};

use super::queues::{QueueCommand, QueueReply};
use crate::guest_link::{
    ConnectionId, ControlConnection, GuestArena, LinkEnd, PartitionState, Refusal, RequestId,
};

/// A command to a VM's data thread.
pub(super) enum Command {
    /// Accepts the guest's request.
    Accept(RequestId, ConnectionId, Box<LinkEnd>),
    /// Refuses the guest's request.
    Refuse(RequestId),
    /// Requests a connection from the guest.
    Connect(Box<ConnectCommand>),
    /// Sets the control connection of the process at the other end.
    Establish(ConnectionId, Box<ControlConnection>),
    /// Resets a connection and reports the refusal to both ends.
    Close(ConnectionId, Refusal),
    /// Suspends or resumes a connection's data.
    Suspend(ConnectionId, bool),
    /// Opens connections in an arena from now on.
    OpenArena(Box<GuestArena>),
    /// Accepts the guest's request in an arena.
    AcceptInArena(RequestId),
    /// Ends an arena and resets its connections.
    CloseArena(ConnectionId, Refusal),
    /// A request of the VMM that concerns the virtqueues.
    Vmm(QueueCommand, Sender<QueueReply>),
    /// Resets all connections and ends the thread.
    Stop,
}

/// A connect to the guest, in the device's terms.
pub(super) struct ConnectCommand {
    pub(super) connection: ConnectionId,
    pub(super) guest_port: u32,
    pub(super) peer: Cid,
    /// `None`: a free port of the host.
    pub(super) peer_port: Option<u32>,
    pub(super) kind: hvsock_virtio::SocketKind,
    pub(super) timeout: Duration,
    pub(super) end: LinkEnd,
}

/// The state of a device that its data thread sets and the core reads.
#[derive(Clone, Debug, Default)]
pub(super) struct DeviceState(Arc<AtomicU8>);

impl DeviceState {
    pub(super) fn get(&self) -> PartitionState {
        let index = usize::from(self.0.load(Ordering::Relaxed));
        PartitionState::ALL
            .get(index)
            .copied()
            .unwrap_or(PartitionState::Off)
    }

    pub(super) fn set(&self, state: PartitionState) {
        let index = PartitionState::ALL.iter().position(|one| *one == state);
        let index = index.and_then(|index| u8::try_from(index).ok());
        self.0.store(index.unwrap_or_default(), Ordering::Relaxed);
    }
}

/// What the VMM thread must know of its VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceSettings {
    pub(super) cid: GuestCid,
    /// Accepts memory files that are not sealed against shrinking.
    pub(super) unsealed_memory: bool,
}
