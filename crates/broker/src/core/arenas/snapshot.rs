//! The snapshot of the table of arenas. [`crate::handover::snapshot`] describes its format.
//!
//! The pairs' memory is elsewhere: with the connections of processes. A grant is not in it: an arena of another broker
//! is granted no more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::{ServiceId, VmId};
use hvsock_control::AuditRecord;
use hvsock_endpoint::{ARENA_IDS, IdOrName, MAX_MESSAGE, NamedAddress};
use hvsock_fabric::{ConnectionId, ListenerId, PartitionKey};
use hvsock_registry::Principal;
use hvsock_ring::{ArenaLimits, ArenaMonitor};
use serde::{Deserialize, Serialize};

use super::observation::snapshot::SeenSnapshot;
use super::peers::snapshot::PeersSnapshot;
use super::{Arena, Arenas, JudgedRequest};
use crate::budget::{Budget, ChargeSnapshot};
use crate::core::connections::Place;
use crate::core::connections::snapshot::EndSnapshot;
use crate::handover::snapshot::{
    SnapshotError, check_limit, check_version, ensure, nanoseconds_until, read_version, time_at,
};

/// The version of [`ArenasSnapshot`] that this release writes.
pub(super) const ARENAS_SNAPSHOT_VERSION: u32 = 1;

/// Most groups of a process: the kernel's limit.
const MAX_GROUPS: usize = 65_536;
/// More descriptors than the broker has for one arena.
const MAX_CHARGE: u64 = 64;

/// The monitors of the arenas, by their first ids.
pub(in crate::core) type Monitors = HashMap<ConnectionId, Arc<ArenaMonitor>>;

/// All arenas of processes, and whose connections the listeners have accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct ArenasSnapshot {
    #[serde(deserialize_with = "read_version::<_, ARENAS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their ids.
    arenas: Vec<ArenaSnapshot>,
    peers: PeersSnapshot,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ArenaSnapshot {
    /// The first id of its connections.
    id: u64,
    request: RequestSnapshot,
    listener: u64,
    from: EndSnapshot,
    to: EndSnapshot,
    max_slots: u32,
    /// Nanoseconds since it was made.
    age: i64,
    /// The sides whose process is gone.
    gone: [bool; 2],
    orphaned: bool,
    charge: ChargeSnapshot,
    slots_charge: ChargeSnapshot,
    /// The record of the grant in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audited: Option<Box<AuditRecord>>,
    seen: SeenSnapshot,
}

/// A request whose verdict lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RequestSnapshot {
    from: u64,
    principal: PrincipalSnapshot,
    vm: VmId,
    service: ServiceId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    named: Option<NamedSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PrincipalSnapshot {
    uid: u32,
    user: Option<String>,
    groups: Vec<(u32, Option<String>)>,
    partition_uid: Option<u32>,
}

/// An address as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NamedSnapshot {
    partition: IdOrNameSnapshot<VmId>,
    service: IdOrNameSnapshot<ServiceId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum IdOrNameSnapshot<T> {
    Id(T),
    Name(String),
}

impl<T: Copy> IdOrNameSnapshot<T> {
    fn of(value: &IdOrName<T>) -> Self {
        match value {
            IdOrName::Id(id) => Self::Id(*id),
            IdOrName::Name(name) => Self::Name(name.clone()),
        }
    }

    fn restore(self) -> Result<IdOrName<T>, SnapshotError> {
        Ok(match self {
            Self::Id(id) => IdOrName::Id(id),
            Self::Name(name) => {
                let is_possible = (1..=MAX_MESSAGE).contains(&name.len());
                ensure(is_possible, "an address has an impossible name")?;
                IdOrName::Name(name)
            }
        })
    }
}

impl RequestSnapshot {
    fn of(request: &JudgedRequest) -> Self {
        let JudgedRequest {
            from,
            principal,
            vm,
            service,
            named,
        } = request;
        let Principal {
            uid,
            user,
            groups,
            partition_uid,
        } = principal.clone();
        Self {
            from: from.as_u64(),
            principal: PrincipalSnapshot {
                uid,
                user,
                groups,
                partition_uid,
            },
            vm: *vm,
            service: *service,
            named: named.as_deref().map(|named| NamedSnapshot {
                partition: IdOrNameSnapshot::of(&named.partition),
                service: IdOrNameSnapshot::of(&named.service),
            }),
        }
    }

    fn restore(self) -> Result<JudgedRequest, SnapshotError> {
        let Self {
            from,
            principal,
            vm,
            service,
            named,
        } = self;
        let PrincipalSnapshot {
            uid,
            user,
            groups,
            partition_uid,
        } = principal;
        check_limit("groups of a process", groups.len(), MAX_GROUPS)?;
        let named = named.map(|named| {
            Ok(Arc::new(NamedAddress {
                partition: named.partition.restore()?,
                service: named.service.restore()?,
            }))
        });
        Ok(JudgedRequest {
            from: PartitionKey::from_u64(from),
            principal: Principal {
                uid,
                user,
                groups,
                partition_uid,
            },
            vm,
            service,
            named: named.transpose()?,
        })
    }
}

impl Arenas {
    /// The table as a value.
    pub(in crate::core) fn snapshot(&self, now: Instant) -> ArenasSnapshot {
        let Self {
            arenas,
            // They follow from the arenas. All are scanned first by a broker that takes them over.
            by_service: _,
            due: _,
            peers,
        } = self;
        let arenas = arenas.iter().map(|(id, arena)| {
            let Arena {
                request,
                listener,
                from,
                to,
                // With the connections of processes.
                monitor: _,
                // The core has all of them for a snapshot.
                place: _,
                max_slots,
                started,
                // Revoked for good.
                grant: _,
                gone,
                is_orphaned,
                _charge: charge,
                slots_charge,
                audited,
                seen,
                next_scan: _,
            } = arena;
            ArenaSnapshot {
                id: id.as_u64(),
                request: RequestSnapshot::of(request),
                listener: listener.as_u64(),
                from: (*from).into(),
                to: (*to).into(),
                max_slots: *max_slots,
                age: nanoseconds_until(*started, now).saturating_neg().max(0),
                gone: *gone,
                orphaned: *is_orphaned,
                charge: charge.snapshot(),
                slots_charge: slots_charge.snapshot(),
                audited: audited.as_deref().cloned().map(Box::new),
                seen: seen.snapshot(now),
            }
        });
        ArenasSnapshot {
            version: ARENAS_SNAPSHOT_VERSION,
            arenas: arenas.collect(),
            peers: peers.snapshot(),
        }
    }

    /// The table of a snapshot. `monitors` are those of all arenas. `is_connection` says whether there is a connection with an
    /// id in the fabric.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for another version, ids out of order, impossible times, and an arena without memory or
    /// connection.
    pub(in crate::core) fn restore(
        snapshot: ArenasSnapshot,
        mut monitors: Monitors,
        [descriptors, slots]: [&Budget; 2],
        is_connection: impl Fn(ConnectionId) -> bool,
        now: Instant,
    ) -> Result<Self, SnapshotError> {
        let ArenasSnapshot {
            version,
            arenas,
            peers,
        } = snapshot;
        check_version(version, ARENAS_SNAPSHOT_VERSION)?;
        let mut restored = Self::default();
        let mut free_from = 0;
        for arena in arenas {
            let ArenaSnapshot {
                id,
                request,
                listener,
                from,
                to,
                max_slots,
                age,
                gone,
                orphaned,
                charge,
                slots_charge,
                audited,
                seen,
            } = arena;
            ensure(id >= free_from, "two arenas have the same ids")?;
            free_from = id.saturating_add(ARENA_IDS);
            ensure(age >= 0, "an arena begins in the future")?;
            let id = ConnectionId::from_u64(id);
            ensure(is_connection(id), "an arena is no connection")?;
            let monitor = monitors.remove(&id).ok_or(SnapshotError::Inconsistent {
                what: "an arena has no memory",
            })?;
            let arena = Arena {
                request: request.restore()?,
                listener: ListenerId::from_u64(listener),
                from: from.into(),
                to: to.into(),
                place: Place::Core,
                max_slots: max_slots.min(ArenaLimits::MAX_SLOTS),
                started: time_at(age.saturating_neg(), now)?,
                grant: monitor.grant(),
                monitor,
                gone,
                is_orphaned: orphaned,
                _charge: charge.charge(descriptors, MAX_CHARGE),
                slots_charge: slots_charge.charge(slots, ArenaLimits::MAX_SLOTS.into()),
                audited: audited.map(|record| Arc::new(*record)),
                seen: seen.restore(now)?,
                next_scan: None,
            };
            restored.insert(id, arena);
        }
        ensure(monitors.is_empty(), "an arena is not in the table")?;
        restored.peers = peers.restore()?;
        Ok(restored)
    }
}
