//! The snapshot of a [`ConnectionSet`]. [`crate::handover::snapshot`] describes its format.
//!
//! Bytes that are on their way in the broker are blobs. What is ready is not in it: each descriptor is watched anew, which
//! reports its readiness again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hvsock_fabric::ConnectionId;
use hvsock_ring::{ArenaMonitor, Monitor};
use serde::{Deserialize, Serialize};

use super::arena::MonitoredArena;
use super::arena::snapshot::ArenaSnapshot;
use super::connection::Connection;
use super::direct::Direct;
use super::direct::snapshot::DirectSnapshot;
use super::hand_over::HandOver;
use super::hand_over::snapshot::HandOverSnapshot;
use super::relay::Relay;
use super::relay::snapshot::RelaySnapshot;
use super::ring::MonitoredRing;
use super::ring::snapshot::RingSnapshot;
use super::set::{Adopted, ConnectionSet};
use crate::data_path::{ByteCounters, Charging, CountersSnapshot, is_false};
use crate::handover::snapshot::{check_version, ensure, read_version};
use crate::handover::{Exports, HandoverError, Imports};

/// The version of [`ConnectionSetDocument`] that this release writes.
const CONNECTION_SET_VERSION: u32 = 1;

/// All connections of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionSetDocument {
    #[serde(deserialize_with = "read_version::<_, CONNECTION_SET_VERSION>")]
    version: u32,
    /// In the order of their ids.
    connections: Vec<ConnectionSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConnectionSnapshot {
    id: u64,
    counters: CountersSnapshot,
    /// It waits for its turn.
    #[serde(default, skip_serializing_if = "is_false")]
    queued: bool,
    kind: KindSnapshot,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindSnapshot {
    Relay(RelaySnapshot),
    Ring(RingSnapshot),
    Arena(ArenaSnapshot),
    Direct(DirectSnapshot),
    HandOver(HandOverSnapshot),
}

/// What other tables share with the connections of a set.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Those of every connection.
    pub(crate) counters: HashMap<ConnectionId, Arc<ByteCounters>>,
    /// Those of arenas.
    pub(crate) arenas: HashMap<ConnectionId, Arc<ArenaMonitor>>,
}

impl ConnectionSet {
    /// The set as a value. Arenas are [prepared](ArenaMonitor::prepare_handover) for the broker that takes them over;
    /// [`stay`](Self::stay) undoes that.
    ///
    /// # Errors
    ///
    /// If there are too many descriptors or bytes, or they cannot leave.
    pub(crate) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<ConnectionSetDocument, HandoverError> {
        ensure(!self.has_reports(), "a set has reports for the core")?;
        let mut all: Vec<_> = self.entries().collect();
        all.sort_unstable_by_key(|entry| entry.id);
        let mut connections = Vec::with_capacity(all.len());
        for entry in all {
            let id = entry.id.as_u64();
            let kind = KindSnapshot::of(entry.connection, exports);
            connections.push(ConnectionSnapshot {
                id,
                counters: entry.counters.snapshot(),
                queued: entry.queued,
                kind: kind.map_err(|error| error.of(format!("connection {id}")))?,
            });
        }
        Ok(ConnectionSetDocument {
            version: CONNECTION_SET_VERSION,
            connections,
        })
    }

    /// The set stays with this broker after a snapshot.
    pub(crate) fn stay(&self) {
        for entry in self.entries() {
            if let Connection::Arena(arena) = entry.connection {
                arena.stay();
            }
        }
    }

    /// Adds the connections of a snapshot, and watches them. Reads, writes and resets nothing.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged, or a descriptor cannot be watched.
    pub(crate) fn restore(
        &mut self,
        document: ConnectionSetDocument,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Restored, HandoverError> {
        let ConnectionSetDocument {
            version,
            connections,
        } = document;
        check_version(version, CONNECTION_SET_VERSION)?;
        let mut seen = HashSet::with_capacity(connections.len());
        let mut restored = Restored::default();
        for connection in connections {
            let ConnectionSnapshot {
                id,
                counters,
                queued,
                kind,
            } = connection;
            let label = |error: HandoverError| error.of(format!("connection {id}"));
            let is_new = seen.insert(id);
            ensure(is_new, "two connections have one id")?;
            let id = ConnectionId::from_u64(id);
            let (connection, ring) = kind.restore(imports, charging).map_err(label)?;
            if let Connection::Arena(arena) = &connection {
                restored.arenas.insert(id, arena.monitor());
            }
            let counters = Arc::new(ByteCounters::restore(counters, ring));
            restored.counters.insert(id, Arc::clone(&counters));
            let adopted = Adopted {
                id,
                connection,
                counters,
            };
            let watched = self.insert(adopted);
            watched.map_err(|error| label(HandoverError::io("watch its descriptors")(error)))?;
            if queued {
                self.enqueue_connection(id);
            }
        }
        Ok(restored)
    }
}

impl KindSnapshot {
    fn of(connection: &Connection, exports: &mut Exports) -> Result<Self, HandoverError> {
        Ok(match connection {
            Connection::Relay(relay) => Self::Relay(relay.snapshot(exports)?),
            Connection::Ring(ring) => Self::Ring(ring.snapshot(exports)?),
            Connection::Arena(arena) => Self::Arena(arena.snapshot(exports)?),
            Connection::Direct(direct) => Self::Direct(direct.snapshot(exports)?),
            Connection::HandOver(passed) => Self::HandOver(passed.snapshot(exports)?),
        })
    }

    /// The connection, and the monitor of a ring.
    fn restore(
        self,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<(Connection, Option<Arc<Monitor>>), HandoverError> {
        let connection = match self {
            Self::Relay(relay) => Connection::Relay(Relay::restore(relay, imports, charging)?),
            Self::Ring(ring) => {
                let ring = MonitoredRing::restore(ring, imports, charging)?;
                let monitor = ring.monitor();
                return Ok((Connection::Ring(ring), Some(monitor)));
            }
            Self::Arena(arena) => {
                Connection::Arena(MonitoredArena::restore(arena, imports, charging)?)
            }
            Self::Direct(direct) => Connection::Direct(Direct::restore(direct, imports, charging)?),
            Self::HandOver(passed) => {
                Connection::HandOver(HandOver::restore(passed, imports, charging)?)
            }
        };
        Ok((connection, None))
    }
}
