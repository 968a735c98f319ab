//! The snapshot of a [`MonitoredRing`]. [`crate::handover::snapshot`] describes its format.

use std::sync::Arc;

use hvsock_ring::{Monitor, MonitorSnapshot};
use serde::{Deserialize, Serialize};

use super::MonitoredRing;
use crate::data_path::{Charging, ControlConnection, ControlSnapshot, is_false};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// A ring connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::pump) struct RingSnapshot {
    /// Of the client, then of the server.
    controls: [ControlSnapshot; 2],
    memory: FdIndex,
    monitor: MonitorSnapshot,
    /// The sides whose process is gone, once that has been handled.
    gone: [bool; 2],
    #[serde(default, skip_serializing_if = "is_false")]
    suspended: bool,
}

impl MonitoredRing {
    /// The connection as a value.
    pub(in crate::pump) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<RingSnapshot, HandoverError> {
        let Self {
            controls: [client, server],
            memory,
            monitor,
            gone,
            suspended,
        } = self;
        Ok(RingSnapshot {
            controls: [client.snapshot(exports)?, server.snapshot(exports)?],
            memory: exports.fd(memory)?,
            monitor: monitor.snapshot(),
            gone: *gone,
            suspended: *suspended,
        })
    }

    /// The connection of a snapshot.
    ///
    /// # Errors
    ///
    /// If a descriptor is missing, or the memory is not that of a ring.
    pub(in crate::pump) fn restore(
        snapshot: RingSnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let RingSnapshot {
            controls: [client, server],
            memory,
            monitor,
            gone,
            suspended,
        } = snapshot;
        let memory = imports.fd(memory)?;
        let monitor = Monitor::restore(monitor, &memory);
        let monitor = monitor.map_err(|error| HandoverError::damaged(error.to_string()))?;
        Ok(Self {
            controls: [
                ControlConnection::restore(client, imports, charging)?,
                ControlConnection::restore(server, imports, charging)?,
            ],
            memory,
            monitor: Arc::new(monitor),
            gone,
            suspended,
        })
    }

    /// The monitor, for the counters.
    pub(in crate::pump) fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }
}
