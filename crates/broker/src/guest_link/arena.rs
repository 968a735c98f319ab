//! Connections of a guest with one listener's process, in one arena.
//!
//! The core judges the first requests of a guest to a service one by one. Then it creates an arena for the
//! guest and the listener's process, and hands the link the client's end ([`GuestArena`]). From then on the
//! link opens connections in it without the core, for as long as the core's grant in the arena's grant page
//! stands. The grant is the core's verdict about the guest, the service and the listener; the core revokes it
//! before a change that refuses the next request is reported as done.

pub(super) mod snapshot;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::{ConnectionEnd, ConnectionId, Refusal};
use hvsock_ring::{ArenaClient, ArenaMonitor, Grant, OpenError, ResetCause, RingSide, SlotId};

use super::arena_slot::{ArenaPeer, ArenaSlot};
use super::peer::Peer;
use super::values::{LinkCounters, LinkEnd};
use crate::data_path::{ControlConnection, ProcessSocket};
use crate::reply::refused;

/// The most connections of one arena that the core has not recorded yet. With that many the link asks
/// the core for the next one, and so waits for it.
const MAX_UNRECORDED: usize = 256;

/// The client's end of an arena between a guest and a listener's process.
#[derive(Debug)]
pub struct GuestArena {
    id: ConnectionId,
    port: u32,
    client: ArenaClient,
    control: ControlConnection,
    server: Arc<ArenaPeer>,
    unrecorded: Unrecorded,
}

/// Connections of an arena that the link has opened and the core has not recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unrecorded(Arc<AtomicUsize>);

/// A connection that was opened in an arena.
#[derive(Debug)]
pub struct ArenaConnection {
    /// The connection.
    pub connection: ConnectionId,
    /// Its slot in the arena, which [`GuestArena::drain_ready`] names.
    pub slot: u32,
    /// The other end.
    pub end: LinkEnd,
    pub(crate) opened: ArenaOpened,
}

/// What the core has to know of a connection that a link has opened in an arena.
#[derive(Debug)]
pub struct ArenaOpened {
    pub(crate) arena: ConnectionId,
    pub(crate) connection: ConnectionId,
    pub(crate) slot: SlotId,
    pub(crate) counters: LinkCounters,
}

/// Why no connection was opened in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// The listener has not accepted earlier connections: the request is to be refused.
    BacklogFull,
    /// Every slot is in use, or the grant is revoked or suspended, or the core is behind with recording: the
    /// core has to decide.
    AskCore,
}

/// What is in an arena's way to more connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArenaState {
    /// Nothing.
    Open,
    /// The process of the listener is gone, or has violated the protocol.
    Ended,
}

impl Unrecorded {
    /// The core has recorded a connection.
    pub(crate) fn recorded(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GuestArena {
    /// An arena whose connections have ids from `id` on. `control` is the connection to the listener's
    /// process.
    pub(crate) fn new(
        id: ConnectionId,
        port: u32,
        client: ArenaClient,
        control: ProcessSocket,
        monitor: Arc<ArenaMonitor>,
        unrecorded: Unrecorded,
    ) -> Self {
        Self {
            id,
            port,
            client,
            server: Arc::new(ArenaPeer {
                control: control.clone(),
                monitor,
            }),
            control: ControlConnection::new(control),
            unrecorded,
        }
    }

    /// Its number.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The port of the service, at the host.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The descriptor that becomes readable when connections are ready.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.client.doorbell()
    }

    /// The descriptor of the control connection, which becomes readable.
    pub fn control_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.control.descriptor()
    }

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// See [`NotOpened`].
    pub fn connect(&self) -> Result<ArenaConnection, NotOpened> {
        if self.unrecorded.0.load(Ordering::Relaxed) >= MAX_UNRECORDED {
            return Err(NotOpened::AskCore);
        }
        let opened = self.client.connect().map_err(|error| match error {
            OpenError::BacklogFull => NotOpened::BacklogFull,
            OpenError::Revoked
            | OpenError::Suspended
            | OpenError::NoSlot
            | OpenError::Violation(_) => NotOpened::AskCore,
        })?;
        opened.end.set_signals(true);
        self.unrecorded.0.fetch_add(1, Ordering::Relaxed);
        let slot = opened.id;
        let connection = ConnectionId::from_u64(self.id.as_u64() + u64::from(slot.seq));
        let counters = LinkCounters::new(Arc::default(), ConnectionEnd::Client);
        let buffer = opened.end.size().bytes();
        let server = Arc::clone(&self.server);
        Ok(ArenaConnection {
            connection,
            slot: slot.slot,
            end: LinkEnd {
                peer: Peer::slot(opened.end, ArenaSlot { id: slot, server }),
                counters: counters.clone(),
                buffer,
                reports: true,
            },
            opened: ArenaOpened {
                arena: self.id,
                connection,
                slot,
                counters,
            },
        })
    }

    /// Whether most of the granted slots are in use, and more could be granted.
    pub fn wants_more_slots(&self) -> bool {
        self.client.wants_more_slots()
    }

    /// Calls `each` with the slots that may be ready. Call it when [`doorbell`](Self::doorbell) was readable.
    pub fn drain_ready(&self, each: impl FnMut(u32)) {
        self.client.drain_ready(each);
    }

    /// Whether [`take_ready`](Self::take_ready) would name a slot.
    pub fn has_ready(&self) -> bool {
        self.client.has_ready()
    }

    /// As [`drain_ready`](Self::drain_ready), for a loop that polls: it reads no doorbell, and the process
    /// rings none until [`arm`](Self::arm).
    pub fn take_ready(&self, each: impl FnMut(u32)) {
        self.client.take_ready(each);
    }

    /// Requests that the doorbell is rung for the next slot that is ready. Returns `false` if there is one
    /// already.
    pub fn arm(&self) -> bool {
        self.client.arm_ready()
    }

    /// Reads the messages of the listener's process, a bounded number per call. Call it when
    /// [`control_descriptor`](Self::control_descriptor) was readable, and again while it returns `true`.
    /// The second value is whether the arena has ended: then its ends say so, at the latest when
    /// [`drain_ready`](Self::drain_ready) names them.
    pub fn read_control(&mut self) -> (bool, ArenaState) {
        self.control.readable = true;
        match self.control.read() {
            Ok(()) if self.control.closed => {
                self.server.monitor.set_grant(Grant::Revoked);
                self.server.monitor.close_end(RingSide::Second);
                (false, ArenaState::Ended)
            }
            Ok(()) => (self.control.readable, ArenaState::Open),
            Err(refusal) => {
                self.end(&refusal);
                (false, ArenaState::Ended)
            }
        }
    }

    /// Ends the arena for the listener's process, with a reason for all of its connections.
    pub fn end(&self, refusal: &Refusal) {
        self.server.monitor.set_grant(Grant::Revoked);
        self.control.send(&BrokerMessage::Reset(refused(refusal)));
        self.server.monitor.reset_all(ResetCause::Control);
    }
}
