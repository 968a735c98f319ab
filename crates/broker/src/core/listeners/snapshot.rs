//! The snapshot of the listeners. [`crate::handover::snapshot`] describes its format.

use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::Transports;
use hvsock_fabric::{ListenerId, PartitionKey};
use serde::{Deserialize, Serialize};

use super::{ListenerRecord, Listeners};
use crate::core::preference::TransportPreference;
use crate::handover::snapshot::{
    CallerSnapshot, SnapshotError, check_limit, check_version, ensure, nanoseconds_until,
    read_version, time_at,
};

/// The version of [`ListenersSnapshot`] that this release writes.
pub(in crate::core) const LISTENERS_SNAPSHOT_VERSION: u32 = 1;

/// All listeners. Their sessions are not in it: each session names its listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct ListenersSnapshot {
    #[serde(deserialize_with = "read_version::<_, LISTENERS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their ids.
    listeners: Vec<ListenerSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ListenerSnapshot {
    id: u64,
    partition: u64,
    caller: CallerSnapshot,
    /// The address that its process requested.
    vm: VmId,
    service: ServiceId,
    flags: u16,
    backlog: u32,
    /// The transports that its process supports, as in the endpoint protocol. The successor may know
    /// more of them.
    transports: u32,
    raw_fd: bool,
    /// Bytes.
    ring_size: u32,
    connected_suspend: bool,
    /// Nanoseconds since it was opened.
    age: i64,
}

impl Listeners {
    /// The listeners as a value.
    pub(in crate::core) fn snapshot(&self, now: Instant) -> ListenersSnapshot {
        let Self { records } = self;
        let mut listeners: Vec<_> = records.iter().collect();
        listeners.sort_by_key(|(id, _)| **id);
        let listeners = listeners.into_iter().map(|(id, record)| {
            let ListenerRecord {
                session: _,
                partition,
                caller,
                address: SockAddrHv { vm, service, flags },
                backlog,
                preference:
                    TransportPreference {
                        transports,
                        raw_fd,
                        ring_size,
                    },
                connected_suspend,
                started,
            } = *record;
            ListenerSnapshot {
                id: id.as_u64(),
                partition: partition.as_u64(),
                caller: caller.into(),
                vm,
                service,
                flags,
                backlog,
                transports: transports.bits(),
                raw_fd,
                ring_size,
                connected_suspend,
                age: nanoseconds_until(started, now).saturating_neg().max(0),
            }
        });
        ListenersSnapshot {
            version: LISTENERS_SNAPSHOT_VERSION,
            listeners: listeners.collect(),
        }
    }

    /// The listeners of a snapshot, at most `limit`. They have no sessions until
    /// [`set_session`](Self::set_session).
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::LimitExceeded`] for
    /// more than `limit` listeners; [`SnapshotError::Inconsistent`] for repeated ids, a listener without
    /// a transport, or an impossible age.
    pub(in crate::core) fn restore(
        snapshot: ListenersSnapshot,
        limit: usize,
        now: Instant,
    ) -> Result<Self, SnapshotError> {
        let ListenersSnapshot { version, listeners } = snapshot;
        check_version(version, LISTENERS_SNAPSHOT_VERSION)?;
        check_limit("listeners", listeners.len(), limit)?;
        let mut restored = Self::default();
        let mut previous = None;
        for listener in listeners {
            let ListenerSnapshot {
                id,
                partition,
                caller,
                vm,
                service,
                flags,
                backlog,
                transports,
                raw_fd,
                ring_size,
                connected_suspend,
                age,
            } = listener;
            ensure(Some(id) > previous, "the listeners are not in order")?;
            previous = Some(id);
            ensure(age >= 0, "a listener is opened in the future")?;
            let transports = Transports::from_bits(transports);
            let transports = transports.ok_or(SnapshotError::Inconsistent {
                what: "a listener has no transport",
            })?;
            let record = ListenerRecord {
                session: None,
                partition: PartitionKey::from_u64(partition),
                caller: caller.into(),
                address: SockAddrHv { vm, service, flags },
                backlog,
                preference: TransportPreference {
                    transports,
                    raw_fd,
                    ring_size,
                },
                connected_suspend,
                started: time_at(-age, now)?,
            };
            restored.insert(ListenerId::from_u64(id), record);
        }
        Ok(restored)
    }
}
