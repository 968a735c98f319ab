//! The processes whose connections listeners have accepted, in the snapshot of the arenas.

use std::collections::VecDeque;

use hvsock_fabric::{ListenerId, PartitionKey};
use serde::{Deserialize, Serialize};

use super::{AcceptedPeers, MAX_PEERS};
use crate::handover::snapshot::{SnapshotError, check_limit, ensure};

/// The processes of each listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in crate::core::arenas) struct PeersSnapshot(Vec<ListenerSnapshot>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ListenerSnapshot {
    listener: u64,
    /// The partition and the process id of each, the newest first.
    processes: Vec<(u64, u32)>,
}

impl AcceptedPeers {
    pub(in crate::core::arenas) fn snapshot(&self) -> PeersSnapshot {
        let Self(listeners) = self;
        let mut listeners: Vec<_> = listeners
            .iter()
            .map(|(listener, peers)| ListenerSnapshot {
                listener: listener.as_u64(),
                processes: peers
                    .iter()
                    .map(|(key, pid)| (key.as_u64(), *pid))
                    .collect(),
            })
            .collect();
        listeners.sort_unstable_by_key(|one| one.listener);
        PeersSnapshot(listeners)
    }
}

impl PeersSnapshot {
    /// # Errors
    ///
    /// [`SnapshotError`] for listeners out of order, and too many processes.
    pub(in crate::core::arenas) fn restore(self) -> Result<AcceptedPeers, SnapshotError> {
        let mut restored = AcceptedPeers::default();
        let mut previous = None;
        for ListenerSnapshot {
            listener,
            processes,
        } in self.0
        {
            ensure(Some(listener) > previous, "the listeners are not in order")?;
            previous = Some(listener);
            let which = "processes of one listener";
            check_limit(which, processes.len(), MAX_PEERS)?;
            let processes = processes.into_iter();
            let peers: VecDeque<_> = processes
                .map(|(key, pid)| (PartitionKey::from_u64(key), pid))
                .collect();
            let listener = ListenerId::from_u64(listener);
            restored.0.insert(listener, peers);
        }
        Ok(restored)
    }
}
