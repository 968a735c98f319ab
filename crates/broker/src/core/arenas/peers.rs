//! The processes whose connections a listener has accepted.

pub(super) mod snapshot;

use std::collections::{HashMap, VecDeque};

use hvsock_fabric::{ListenerId, PartitionKey};

use crate::callers::Caller;

/// Processes that are remembered for one listener: the newest ones.
const MAX_PEERS: usize = 64;

/// The processes whose connections each listener has accepted lately.
///
/// Only they get an arena. A listener whose process never accepts thus has its backlog of connections and
/// not one more for each arena.
#[derive(Debug, Default)]
pub(in crate::core) struct AcceptedPeers(HashMap<ListenerId, VecDeque<Peer>>);

type Peer = (PartitionKey, u32);

impl AcceptedPeers {
    /// Records that a listener has accepted a connection of this process. A process without a number here
    /// cannot be told from others.
    pub(in crate::core) fn accepted(
        &mut self,
        listener: ListenerId,
        partition: PartitionKey,
        caller: Caller,
    ) {
        if caller.pid == 0 {
            return;
        }
        let peers = self.0.entry(listener).or_default();
        let peer = (partition, caller.pid);
        if peers.front() == Some(&peer) {
            return;
        }
        peers.retain(|other| *other != peer);
        peers.truncate(MAX_PEERS - 1);
        peers.push_front(peer);
    }

    /// Whether a listener has accepted a connection of this process.
    pub(in crate::core) fn has_accepted(
        &self,
        listener: ListenerId,
        partition: PartitionKey,
        caller: Caller,
    ) -> bool {
        let peers = self.0.get(&listener);
        peers.is_some_and(|peers| peers.contains(&(partition, caller.pid)))
    }

    /// Forgets a listener that is closed.
    pub(in crate::core) fn remove(&mut self, listener: ListenerId) {
        self.0.remove(&listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_processes_of_each_listener_are_remembered_and_those_without_a_number_are_not() {
        let mut peers = AcceptedPeers::default();
        let (one, other) = (ListenerId::from_u64(1), ListenerId::from_u64(2));
        let (host, web) = (PartitionKey::from_u64(0), PartitionKey::from_u64(1));
        let caller = |pid| Caller {
            pid,
            uid: 0,
            gid: 0,
        };
        for pid in 0..=MAX_PEERS as u32 {
            peers.accepted(one, host, caller(pid));
        }
        peers.accepted(one, host, caller(2));
        assert!(!peers.has_accepted(one, host, caller(0)));
        assert!(peers.has_accepted(one, host, caller(1)));
        assert!(!peers.has_accepted(other, host, caller(1)));
        assert!(!peers.has_accepted(one, web, caller(1)));
        for pid in 100..100 + MAX_PEERS as u32 - 1 {
            peers.accepted(one, host, caller(pid));
        }
        assert!(peers.has_accepted(one, host, caller(2)));
        assert!(!peers.has_accepted(one, host, caller(1)));
        assert_eq!(peers.0[&one].len(), MAX_PEERS);
        peers.remove(one);
        assert!(peers.0.is_empty());
    }
}
