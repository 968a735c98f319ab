//! The snapshot of a client's end of an arena: what it keeps in private memory. [`crate::snapshot`] describes its
//! compatibility.
//!
//! For a broker that is itself the client, for a guest. The broker that takes over goes on with the connections that
//! are open. It opens no others: the grant is revoked ([`ArenaMonitor::prepare_handover`]).
//!
//! [`ArenaMonitor::prepare_handover`]: crate::ArenaMonitor::prepare_handover

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use hvsock_sys::sync::lock;
use serde::{Deserialize, Serialize};

use super::{ArenaClient, Client, memory};
use crate::arena::SlotId;
use crate::arena::client_slots::{ClientSlots, ClientSlotsState};
use crate::arena::process::{ArenaProcess, TellBroker};
use crate::arena::slot::{SlotLink, SlotOwner};
use crate::snapshot::{SnapshotError, check_version, read_version};
use crate::{Doorbells, RingEnd, RingEndSnapshot, RingSide};

/// The version of [`ArenaClientSnapshot`] that this release writes.
pub const ARENA_CLIENT_SNAPSHOT_VERSION: u32 = 1;

/// An [`ArenaClient`] that no thread uses, without its memory and doorbells, and without its connections' ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaClientSnapshot {
    #[serde(deserialize_with = "read_version::<_, ARENA_CLIENT_SNAPSHOT_VERSION>")]
    version: u32,
    slots: ClientSlotsState,
    /// Its control connection was lost.
    ended: bool,
}

impl ArenaClient {
    /// The client's end as a value, while no thread uses it or one of its connections.
    pub fn snapshot(&self) -> ArenaClientSnapshot {
        ArenaClientSnapshot {
            version: ARENA_CLIENT_SNAPSHOT_VERSION,
            slots: lock(&self.0.slots).state(),
            ended: self.0.process.has_ended(),
        }
    }

    /// The client's end of a snapshot, with the memory and the doorbells of that one. Writes nothing to the memory. Its
    /// connections' ends follow by [`restore_end`](Self::restore_end).
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::Inconsistent`] if no sequence of
    /// operations leads to the snapshot; [`SnapshotError::Memory`] as [`ArenaClient::open`].
    pub fn restore(
        snapshot: ArenaClientSnapshot,
        memory: impl AsFd,
        grant: impl AsFd,
        doorbells: Doorbells,
        tell_broker: TellBroker,
    ) -> Result<Self, SnapshotError> {
        let ArenaClientSnapshot {
            version,
            slots,
            ended,
        } = snapshot;
        check_version(version, ARENA_CLIENT_SNAPSHOT_VERSION)?;
        let slots = ClientSlots::resume(slots)?;
        let side = RingSide::First;
        let process = ArenaProcess::open(side, memory, grant, doorbells, tell_broker)?;
        if slots.used() > process.limits().slots {
            return Err(SnapshotError::Inconsistent {
                what: "it is of an arena with more slots",
            });
        }
        if ended {
            process.mark_ended();
        }
        Ok(Self(Arc::new(Client {
            process,
            slots: Mutex::new(slots),
        })))
    }

    /// The end of an open connection of a restored client. It is dormant until [`RingEnd::wake`].
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if there is no such connection, or it has its end already; otherwise as
    /// [`RingEnd::restore`].
    pub fn restore_end(
        &self,
        id: SlotId,
        snapshot: RingEndSnapshot,
    ) -> Result<RingEnd, SnapshotError> {
        if !lock(&self.0.slots).take_end(id) {
            return Err(SnapshotError::Inconsistent {
                what: "a connection is not open in the arena, or there twice",
            });
        }
        let owner = Arc::clone(&self.0) as Arc<dyn SlotOwner>;
        let link = SlotLink::new(owner, id);
        RingEnd::restore_in_slot(snapshot, memory(&self.0.process, id.slot), link)
    }

    /// Whether every open connection of a restored client has its end.
    pub fn has_all_ends(&self) -> bool {
        lock(&self.0.slots).have_ends()
    }
}
