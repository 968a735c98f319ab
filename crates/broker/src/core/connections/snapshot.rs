//! The snapshot of the established connections. [`crate::handover::snapshot`] describes its format.
//!
//! Their data is elsewhere: that of connections between processes with the threads that own them, that of
//! connections with guests with the links.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::ServiceId;
use hvsock_control::{AuditRecord, Claim};
use hvsock_endpoint::Transport;
use hvsock_fabric::{ConnectionId, PartitionKey};
use serde::{Deserialize, Serialize};

use super::{ConnectionOwner, ConnectionRecord, Connections, EndRecord, Place};
use crate::budget::{Budget, Charge, ChargeSnapshot};
use crate::data_path::ByteCounters;
use crate::handover::snapshot::{
    CallerSnapshot, SnapshotError, check_version, ensure, nanoseconds_until, read_version, time_at,
};

/// The version of [`ConnectionsSnapshot`] that this release writes.
const CONNECTIONS_SNAPSHOT_VERSION: u32 = 1;

/// More descriptors than the broker has for one connection.
const MAX_CHARGE: u64 = 64;

/// The counters of connections, which those share who move the bytes.
pub(in crate::core) type Counters = HashMap<ConnectionId, Arc<ByteCounters>>;

/// All established connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct ConnectionsSnapshot {
    #[serde(deserialize_with = "read_version::<_, CONNECTIONS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their ids.
    connections: Vec<ConnectionSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConnectionSnapshot {
    id: u64,
    service: ServiceId,
    from: EndSnapshot,
    to: EndSnapshot,
    transport: TransportSnapshot,
    owner: OwnerSnapshot,
    /// Bytes from the client and from the server. Absent if nobody counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counted: Option<[u64; 2]>,
    /// Nanoseconds since it was established.
    age: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    charge: Option<ChargeSnapshot>,
    /// What the connecting process says that it is for, and about its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<Claim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claimed_result: Option<String>,
    /// The record of its beginning in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audited: Option<Box<AuditRecord>>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct EndSnapshot {
    partition: u64,
    caller: CallerSnapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TransportSnapshot {
    Descriptor,
    Ring,
    Direct,
    Arena,
    Attached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OwnerSnapshot {
    /// A thread for connections between processes. For a snapshot the core has all of them.
    Threads,
    /// The link of the VM with this partition.
    Link(u64),
}

impl From<EndRecord> for EndSnapshot {
    fn from(end: EndRecord) -> Self {
        let EndRecord { partition, caller } = end;
        Self {
            partition: partition.as_u64(),
            caller: caller.into(),
        }
    }
}

impl From<EndSnapshot> for EndRecord {
    fn from(snapshot: EndSnapshot) -> Self {
        let EndSnapshot { partition, caller } = snapshot;
        Self {
            partition: PartitionKey::from_u64(partition),
            caller: caller.into(),
        }
    }
}

impl TransportSnapshot {
    fn of(transport: Transport) -> Result<Self, SnapshotError> {
        Ok(match transport {
            Transport::Descriptor => Self::Descriptor,
            Transport::Ring => Self::Ring,
            Transport::Direct => Self::Direct,
            Transport::Arena => Self::Arena,
            Transport::Attached => Self::Attached,
            _ => {
                let what = "a connection has a transport that a snapshot cannot express";
                return Err(SnapshotError::Inconsistent { what });
            }
        })
    }
}

impl From<TransportSnapshot> for Transport {
    fn from(snapshot: TransportSnapshot) -> Self {
        match snapshot {
            TransportSnapshot::Descriptor => Self::Descriptor,
            TransportSnapshot::Ring => Self::Ring,
            TransportSnapshot::Direct => Self::Direct,
            TransportSnapshot::Arena => Self::Arena,
            TransportSnapshot::Attached => Self::Attached,
        }
    }
}

impl<P> Connections<P> {
    /// The established connections as a value.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Inconsistent`] if a process has yet to connect its own socket.
    pub(in crate::core) fn snapshot(
        &self,
        now: Instant,
    ) -> Result<ConnectionsSnapshot, SnapshotError> {
        let Self {
            established,
            // Their requests are made again.
            pending: _,
            deadlines: _,
            // It follows from the established ones.
            with_guests: _,
        } = self;
        let mut all: Vec<_> = established.iter().collect();
        all.sort_by_key(|(id, _)| **id);
        let connections = all.into_iter().map(|(id, record)| {
            let ConnectionRecord {
                service,
                from,
                to,
                transport,
                counters,
                owner,
                started,
                _charge: charge,
                claim,
                claimed_result,
                audited,
            } = record;
            let owner = match owner {
                ConnectionOwner::DataThreads(_) => OwnerSnapshot::Threads,
                ConnectionOwner::Link(vm) => OwnerSnapshot::Link(vm.as_u64()),
                ConnectionOwner::Attaching => {
                    let what = "a process has yet to connect its own socket";
                    return Err(SnapshotError::Inconsistent { what });
                }
            };
            Ok(ConnectionSnapshot {
                id: id.as_u64(),
                service: *service,
                from: (*from).into(),
                to: (*to).into(),
                transport: TransportSnapshot::of(*transport)?,
                owner,
                counted: counters.counted(),
                age: nanoseconds_until(*started, now).saturating_neg().max(0),
                charge: charge.as_ref().map(Charge::snapshot),
                claim: claim.as_deref().cloned(),
                claimed_result: claimed_result.clone(),
                audited: audited.as_deref().cloned().map(Box::new),
            })
        });
        Ok(ConnectionsSnapshot {
            version: CONNECTIONS_SNAPSHOT_VERSION,
            connections: connections.collect::<Result<_, _>>()?,
        })
    }

    /// The established connections of a snapshot. Those between processes count with `counters`, which is given
    /// those of the others. `is_vm` says which partitions are VMs.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for another version, ids out of order, impossible times, and a connection that nobody
    /// moves the bytes of.
    pub(in crate::core) fn restore(
        snapshot: ConnectionsSnapshot,
        counters: &mut Counters,
        descriptors: &Budget,
        is_vm: impl Fn(PartitionKey) -> bool,
        now: Instant,
    ) -> Result<Self, SnapshotError> {
        let ConnectionsSnapshot {
            version,
            connections,
        } = snapshot;
        check_version(version, CONNECTIONS_SNAPSHOT_VERSION)?;
        let mut restored = Self::default();
        let mut previous = None;
        for connection in connections {
            let ConnectionSnapshot {
                id,
                service,
                from,
                to,
                transport,
                owner,
                counted,
                age,
                charge,
                claim,
                claimed_result,
                audited,
            } = connection;
            ensure(Some(id) > previous, "the connections are not in order")?;
            previous = Some(id);
            ensure(age >= 0, "a connection begins in the future")?;
            let id = ConnectionId::from_u64(id);
            let (owner, counters) = match owner {
                OwnerSnapshot::Threads => {
                    let shared = counters.get(&id).map(Arc::clone);
                    let shared = shared.ok_or(SnapshotError::Inconsistent {
                        what: "a connection between processes has no data",
                    })?;
                    (ConnectionOwner::DataThreads(Place::Core), shared)
                }
                OwnerSnapshot::Link(vm) => {
                    let vm = PartitionKey::from_u64(vm);
                    ensure(is_vm(vm), "a connection is of the link of no VM")?;
                    let own = Arc::new(ByteCounters::resumed(counted));
                    let before = counters.insert(id, Arc::clone(&own));
                    ensure(
                        before.is_none(),
                        "the bytes of a connection are moved twice",
                    )?;
                    (ConnectionOwner::Link(vm), own)
                }
            };
            let record = ConnectionRecord {
                service,
                from: from.into(),
                to: to.into(),
                transport: transport.into(),
                counters,
                owner,
                started: time_at(age.saturating_neg(), now)?,
                _charge: charge.map(|charge| charge.charge(descriptors, MAX_CHARGE)),
                claim: claim.map(Arc::new),
                claimed_result,
                audited: audited.map(|record| Arc::new(*record)),
            };
            restored.establish(id, record);
        }
        Ok(restored)
    }
}
