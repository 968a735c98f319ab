//! The slot of a connection in an arena: how to reset it for the listener's process, and why that has reset it.

use std::sync::Arc;

use hvsock_endpoint::{BrokerMessage, StreamReset};
use hvsock_fabric::Refusal;
use hvsock_ring::{ArenaMonitor, ResetCause, RingError, SlotId};
use serde::{Deserialize, Serialize};

use crate::data_path::{ProcessSocket, peer_died, unread_data};
use crate::reply::refused;

/// What the connections of an arena share: how to reset one for the listener's process.
#[derive(Debug)]
pub(super) struct ArenaPeer {
    pub(super) control: ProcessSocket,
    pub(super) monitor: Arc<ArenaMonitor>,
}

/// The slot of a connection in an arena.
#[derive(Debug)]
pub(super) struct ArenaSlot {
    pub(super) id: SlotId,
    pub(super) server: Arc<ArenaPeer>,
}

/// Where a connection is in an arena, in the document of a link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct SlotState {
    pub(crate) slot: u32,
    pub(crate) seq: u32,
}

impl ArenaPeer {
    /// Resets a connection for the listener's process, and sends it the reason.
    pub(super) fn reset(&self, id: SlotId, refusal: &Refusal) {
        let message = BrokerMessage::StreamReset(StreamReset {
            slot: id.slot,
            seq: id.seq,
            reason: refused(refusal),
        });
        // Before the reset, so that a process that sees that finds the reason queued.
        self.control.send(&message);
        self.monitor.reset(id, ResetCause::Control);
    }
}

/// The refusal for a connection in an arena that the listener's process has ended.
pub(super) fn refusal_of_reset(cause: ResetCause) -> Refusal {
    match cause {
        ResetCause::PeerGone => peer_died(),
        ResetCause::UnreadData => unread_data(),
        ResetCause::Control | ResetCause::Aborted => Refusal::Reset {
            cause: RingError::Reset.to_string(),
        },
    }
}
