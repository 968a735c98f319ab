//! The snapshot of a [`MonitoredArena`]. [`crate::handover::snapshot`] describes its format.

use std::sync::Arc;

use hvsock_ring::{ArenaMonitor, ArenaMonitorSnapshot};
use serde::{Deserialize, Serialize};

use super::{ArenaNews, MonitoredArena};
use crate::data_path::{Charging, ControlConnection, ControlSnapshot, is_false};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// An arena.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::pump) struct ArenaSnapshot {
    /// Of the client, then of the server.
    controls: [ControlSnapshot; 2],
    memory: FdIndex,
    grant: FdIndex,
    monitor: ArenaMonitorSnapshot,
    /// The sides whose process is gone, once that has been handled.
    gone: [bool; 2],
    #[serde(default, skip_serializing_if = "is_false")]
    suspended: bool,
    #[serde(default)]
    news: NewsSnapshot,
}

/// What was not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct NewsSnapshot {
    changed: bool,
    grow: bool,
    gone: [bool; 2],
}

impl MonitoredArena {
    /// The arena as a value, prepared for another broker.
    pub(in crate::pump) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<ArenaSnapshot, HandoverError> {
        let Self {
            controls: [client, server],
            monitor,
            gone,
            suspended,
            news,
        } = self;
        let ArenaNews {
            changed,
            grow,
            gone: gone_news,
        } = *news;
        monitor.prepare_handover();
        Ok(ArenaSnapshot {
            controls: [client.snapshot(exports)?, server.snapshot(exports)?],
            memory: exports.fd(monitor.memory())?,
            grant: exports.fd(monitor.grant_memory())?,
            monitor: monitor.snapshot(),
            gone: *gone,
            suspended: *suspended,
            news: NewsSnapshot {
                changed,
                grow,
                gone: gone_news,
            },
        })
    }

    /// The arena stays with this broker after a snapshot.
    pub(in crate::pump) fn stay(&self) {
        self.monitor.keep();
    }

    /// The arena of a snapshot.
    ///
    /// # Errors
    ///
    /// If a descriptor is missing, or the memory is not that of an arena.
    pub(in crate::pump) fn restore(
        snapshot: ArenaSnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let ArenaSnapshot {
            controls: [client, server],
            memory,
            grant,
            monitor,
            gone,
            suspended,
            news:
                NewsSnapshot {
                    changed,
                    grow,
                    gone: gone_news,
                },
        } = snapshot;
        let [memory, grant] = [imports.fd(memory)?, imports.fd(grant)?];
        let monitor = ArenaMonitor::restore(monitor, memory, grant);
        let monitor = monitor.map_err(|error| HandoverError::damaged(error.to_string()))?;
        Ok(Self {
            controls: [
                ControlConnection::restore(client, imports, charging)?,
                ControlConnection::restore(server, imports, charging)?,
            ],
            monitor: Arc::new(monitor),
            gone,
            suspended,
            news: ArenaNews {
                changed,
                grow,
                gone: gone_news,
            },
        })
    }

    /// The monitor, for the table of arenas.
    pub(in crate::pump) fn monitor(&self) -> Arc<ArenaMonitor> {
        Arc::clone(&self.monitor)
    }

    /// Whether there is something to report.
    pub(in crate::pump) fn has_news(&self) -> bool {
        self.news != ArenaNews::default()
    }
}
