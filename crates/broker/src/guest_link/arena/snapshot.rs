//! A link's end of an arena in the link's document.
//!
//! The broker that takes over goes on with the arena's connections, and opens no others: the core makes another arena
//! for those.

use std::sync::Arc;

use hvsock_fabric::ConnectionId;
use hvsock_ring::{
    ArenaClient, ArenaClientSnapshot, ArenaMonitor, Doorbells, RingEndSnapshot, SlotId,
    SnapshotError,
};
use serde::{Deserialize, Serialize};

use super::{GuestArena, Unrecorded};
use crate::data_path::{ControlConnection, ControlSnapshot};
use crate::guest_link::arena_slot::{ArenaPeer, ArenaSlot, SlotState};
use crate::guest_link::peer::Peer;
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// What the core leaves for the link of a restored arena, by its number.
#[derive(Debug)]
pub(crate) struct SharedArena {
    pub(crate) monitor: Arc<ArenaMonitor>,
    pub(crate) unrecorded: Unrecorded,
}

/// A link's end of an arena, without its connections.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GuestArenaState {
    id: u64,
    port: u32,
    client: ArenaClientSnapshot,
    /// This end's, and the process's.
    doorbells: [FdIndex; 2],
    control: ControlSnapshot,
}

fn damaged(error: &SnapshotError) -> HandoverError {
    HandoverError::damaged(error.to_string())
}

impl GuestArena {
    /// The end as a value, prepared for another broker, while no thread uses it.
    pub(crate) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<GuestArenaState, HandoverError> {
        let Self {
            id,
            port,
            client,
            control,
            server,
            // The core has recorded all.
            unrecorded: _,
        } = self;
        server.monitor.prepare_handover();
        let [own, peer] = client.doorbells();
        Ok(GuestArenaState {
            id: id.as_u64(),
            port: *port,
            client: client.snapshot(),
            doorbells: [exports.fd(own)?, exports.fd(peer)?],
            control: control.snapshot(exports)?,
        })
    }

    /// The end of a value. Does nothing to the arena, nor when it is dropped.
    pub(crate) fn resume(
        state: GuestArenaState,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        let GuestArenaState {
            id,
            port,
            client,
            doorbells: [own, peer],
            control,
        } = state;
        let unknown = || HandoverError::inconsistent("the core does not know an arena");
        let SharedArena {
            monitor,
            unrecorded,
        } = imports.kept(id).ok_or_else(unknown)?;
        let doorbells = Doorbells {
            own: imports.fd(own)?,
            peer: imports.fd(peer)?,
        };
        let (memory, grant) = (monitor.memory(), monitor.grant_memory());
        let client = ArenaClient::restore(client, memory, grant, doorbells, Arc::new(|| {}));
        let client = client.map_err(|error| damaged(&error))?;
        let control = ControlConnection::restore_uncharged(control, imports)?;
        let missing = || HandoverError::inconsistent("an arena has no control connection");
        let socket = control.socket().ok_or_else(missing)?.clone();
        Ok(Self {
            id: ConnectionId::from_u64(id),
            port,
            client,
            server: Arc::new(ArenaPeer {
                control: socket,
                monitor,
            }),
            control,
            unrecorded,
        })
    }

    /// The other end of a connection in a resumed arena. It does nothing when it is dropped before [`Peer::wake`].
    pub(crate) fn resume_slot(
        &self,
        state: SlotState,
        end: RingEndSnapshot,
    ) -> Result<Peer, HandoverError> {
        let SlotState { slot, seq } = state;
        let id = SlotId { slot, seq };
        let end = self
            .client
            .restore_end(id, end)
            .map_err(|error| damaged(&error))?;
        let server = Arc::clone(&self.server);
        Ok(Peer::slot(end, ArenaSlot { id, server }))
    }

    /// Whether all connections of a resumed arena are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.client.has_all_ends()
    }
}
