//! Hands over the connections of processes, and takes those of a broker before this one over.
//!
//! For a handover all connections of the data threads return to the core's own set, and there is one set to hand over.
//! If the broker stays after all, busy connections move to the data threads again.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::connections::Place;
use super::state::Core;
use crate::data_path::{UnreadSockets, UnreadSocketsSnapshot};
use crate::handover::{Exports, HandoverError, Imports};
use crate::pump::{ConnectionSetDocument, Restored};

/// The connections of processes, in the core's set.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DataPathDocument {
    set: ConnectionSetDocument,
    /// Sockets that the broker has done with, and whose messages are unread.
    unread: UnreadSocketsSnapshot,
}

impl Core {
    /// Takes all connections of the data threads into the core's set. They have reported all before.
    ///
    /// # Errors
    ///
    /// If a data thread does not answer before `deadline`. It keeps its connections.
    pub(crate) fn gather_connections(&mut self, deadline: Instant) -> Result<(), HandoverError> {
        let (moved, in_time) = self.data_threads.gather(deadline);
        for id in moved {
            self.connections.moved(id, Place::Core);
        }
        in_time
    }

    /// The connections as a value, after [`gather_connections`](Self::gather_connections). Until
    /// [`keep_connections`](Self::keep_connections) no connection is opened in an arena.
    ///
    /// # Errors
    ///
    /// If the core has not handled all reports, or something cannot leave this process.
    pub(crate) fn hand_over_connections(
        &self,
        exports: &mut Exports,
    ) -> Result<DataPathDocument, HandoverError> {
        Ok(DataPathDocument {
            set: self.data_threads.core_set().snapshot(exports)?,
            unread: self.in_flight.unread().snapshot(exports)?,
        })
    }

    /// The connections stay with this broker after all.
    pub(crate) fn keep_connections(&self) {
        self.data_threads.core_set().stay();
        self.guest_arenas.stay();
    }

    /// Adds the connections of a broker before this one, and watches them. Does nothing to them before
    /// [`begin_connections`](Self::begin_connections).
    ///
    /// # Errors
    ///
    /// If the document is damaged.
    pub(crate) fn resume_connections(
        &mut self,
        document: DataPathDocument,
        imports: &mut Imports,
    ) -> Result<Restored, HandoverError> {
        let DataPathDocument { set, unread } = document;
        let mut charging = self.in_flight.charging(&self.descriptors);
        let core_set = self.data_threads.core_set_mut();
        let mut restored = core_set.restore(set, imports, &mut charging)?;
        UnreadSockets::restore(unread, imports, &charging)?;
        let sockets = charging.in_flight;
        self.in_flight.resume(&sockets);
        self.text_listeners.take_relays(&mut restored.counters)?;
        let mut ids = restored.counters.keys();
        if !ids.all(|id| self.fabric.connection(*id).is_some()) {
            let what = "a connection of processes is not in the fabric";
            return Err(HandoverError::inconsistent(what));
        }
        Ok(restored)
    }

    /// The connections of the broker before are this one's.
    pub(crate) fn begin_connections(&mut self, now: Instant) {
        self.in_flight.release(now);
    }
}
