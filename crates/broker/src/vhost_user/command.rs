//! What the device's threads share: the commands of the data thread, and the device's state.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hvsock_sys::sync::lock;
use hvsock_virtio::{Cid, GuestCid};
use rustix::net::RecvFlags;

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
    /// Opens connections in an arena from now on, which was made for this request.
    OpenArena(Box<GuestArena>, RequestId),
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

/// What a device knows of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No VMM has connected yet.
    #[default]
    Defined,
    /// A VMM is connected. The guest has no driver: it has not loaded it yet, or has removed it, or boots.
    Connected,
    /// The guest's driver is there.
    Running,
    /// The VMM has stopped the rings of a driver that is still there.
    Paused,
    /// The VMM is gone.
    Off,
}

impl Phase {
    const ALL: [Self; 5] = [
        Self::Defined,
        Self::Connected,
        Self::Running,
        Self::Paused,
        Self::Off,
    ];

    /// As the core sees it.
    pub(super) fn partition_state(self) -> PartitionState {
        match self {
            Self::Defined => PartitionState::Defined,
            Self::Connected => PartitionState::Connected,
            Self::Off => PartitionState::Off,
            Self::Running => PartitionState::Running,
            Self::Paused => PartitionState::Paused,
        }
    }
}

/// What a device's threads and the core know of each other.
#[derive(Clone, Debug, Default)]
pub(super) struct DeviceState(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    phase: AtomicU8,
    no_seqpacket: AtomicBool,
    /// Whether the VMM's thread reads or handles a request.
    is_serving: AtomicBool,
    connection: Mutex<Option<UnixStream>>,
}

impl DeviceState {
    pub(super) fn phase(&self) -> Phase {
        let index = usize::from(self.0.phase.load(Ordering::Relaxed));
        Phase::ALL.get(index).copied().unwrap_or_default()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Whether the driver knows SEQPACKET, as far as the VMM has said.
    pub(super) fn has_seqpacket(&self) -> bool {
        !self.0.no_seqpacket.load(Ordering::Relaxed)
    }

    pub(super) fn set_seqpacket(&self, seqpacket: bool) {
        self.0.no_seqpacket.store(!seqpacket, Ordering::Relaxed);
    }

    /// Sets the VMM's connection, or that there is none.
    pub(super) fn set_connection(&self, connection: Option<UnixStream>) {
        *lock(&self.0.connection) = connection;
    }

    /// Says whether the VMM's thread reads or handles a request: set before it reads any of it.
    pub(super) fn set_serving(&self, is_serving: bool) {
        self.0.is_serving.store(is_serving, Ordering::SeqCst);
    }

    /// Whether the VMM has sent requests that are not handled. Those that it sends meanwhile may be missed.
    pub(super) fn has_requests(&self) -> bool {
        let is_unread = lock(&self.0.connection).as_ref().is_some_and(has_unread);
        // In this order: what is not unread any more is being served.
        is_unread || self.0.is_serving.load(Ordering::SeqCst)
    }

    /// Ends the VMM's connection, if there is one. Wakes a thread that waits for the VMM.
    pub(super) fn disconnect(&self) {
        if let Some(connection) = &*lock(&self.0.connection) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn has_unread(connection: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let peeked = rustix::net::recv(connection, &mut [0][..], flags);
    peeked.is_ok_and(|(count, _)| count > 0)
}

/// What the VMM thread must know of its VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceSettings {
    pub(super) cid: GuestCid,
    /// Accepts unsealed memory files even if their truncation would not be handled.
    pub(super) unsealed_memory: bool,
}
