//! Connections: the pending and the established ones, and the thread that owns each.

pub(super) mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::ServiceId;
use hvsock_control::{AuditRecord, Claim};
use hvsock_endpoint::Transport;
use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionKey};

use crate::budget::Charge;
use crate::callers::Caller;
use crate::data_path::ByteCounters;

/// The connections by id. `P` is a connect to a guest that the guest has not accepted.
#[derive(Debug)]
pub(super) struct Connections<P> {
    established: HashMap<ConnectionId, ConnectionRecord>,
    pending: HashMap<ConnectionId, Pending<P>>,
    /// The pending connects by deadline.
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    /// Number of established connections with guests, by the partition of each end and by the VM whose link
    /// carries them.
    with_guests: HashMap<PartitionKey, usize>,
}

#[derive(Debug)]
struct Pending<P> {
    connect: P,
    deadline: Instant,
}

/// An established connection's state beside the fabric's.
#[derive(Debug)]
pub(super) struct ConnectionRecord {
    pub(super) service: ServiceId,
    pub(super) from: EndRecord,
    pub(super) to: EndRecord,
    pub(super) transport: Transport,
    pub(super) counters: Arc<ByteCounters>,
    pub(super) owner: ConnectionOwner,
    pub(super) started: Instant,
    /// For the broker's descriptors of it.
    pub(super) _charge: Option<Charge>,
    /// What the connecting process says that it is for.
    pub(super) claim: Option<Arc<Claim>>,
    /// What the connecting process says about its end.
    pub(super) claimed_result: Option<String>,
    /// The record of its beginning, if the audit has one.
    pub(super) audited: Option<Arc<AuditRecord>>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndRecord {
    pub(super) partition: PartitionKey,
    pub(super) caller: Caller,
}

/// The owner of an established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionOwner {
    /// One of the threads for connections between processes.
    DataThreads(Place),
    /// The link of a VM.
    Link(PartitionKey),
    /// The core, until the connecting process has connected its own socket.
    Attaching,
}

/// A thread for connections between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The core thread.
    Core,
    /// A data thread, by its index.
    Thread(usize),
}

impl<P> Default for Connections<P> {
    fn default() -> Self {
        Self {
            established: HashMap::new(),
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            with_guests: HashMap::new(),
        }
    }
}

impl<P> Connections<P> {
    /// Adds a connect that its guest has to accept before `deadline`.
    pub(super) fn begin(&mut self, id: ConnectionId, connect: P, deadline: Instant) {
        self.deadlines.insert((deadline, id));
        self.pending.insert(id, Pending { connect, deadline });
    }

    /// The earliest deadline of a pending connect.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The pending connect whose deadline has passed first, if one has. It stays pending.
    pub(super) fn expired(&self, now: Instant) -> Option<ConnectionId> {
        let (deadline, id) = self.deadlines.first()?;
        (*deadline <= now).then_some(*id)
    }

    /// A pending connect.
    pub(super) fn pending(&self, id: ConnectionId) -> Option<&P> {
        self.pending.get(&id).map(|pending| &pending.connect)
    }

    /// All pending connects, in no particular order.
    pub(super) fn all_pending(&self) -> impl Iterator<Item = (ConnectionId, &P)> {
        let pending = self.pending.iter();
        pending.map(|(id, pending)| (*id, &pending.connect))
    }

    /// A pending connect, to change it, and its deadline.
    pub(super) fn pending_mut(&mut self, id: ConnectionId) -> Option<(&mut P, Instant)> {
        let pending = self.pending.get_mut(&id)?;
        Some((&mut pending.connect, pending.deadline))
    }

    /// Sets the deadline of a pending connect.
    pub(super) fn set_deadline(&mut self, id: ConnectionId, deadline: Instant) {
        if let Some(pending) = self.pending.get_mut(&id) {
            self.deadlines.remove(&(pending.deadline, id));
            pending.deadline = deadline;
            self.deadlines.insert((deadline, id));
        }
    }

    /// Removes a pending connect, which its guest has accepted or which has failed.
    pub(super) fn take_pending(&mut self, id: ConnectionId) -> Option<P> {
        let Pending { connect, deadline } = self.pending.remove(&id)?;
        self.deadlines.remove(&(deadline, id));
        Some(connect)
    }

    /// Adds an established connection.
    pub(super) fn establish(&mut self, id: ConnectionId, record: ConnectionRecord) {
        for partition in record.partitions_with_guest() {
            *self.with_guests.entry(partition).or_default() += 1;
        }
        self.established.insert(id, record);
    }

    /// Removes an established connection.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<ConnectionRecord> {
        let record = self.established.remove(&id)?;
        for partition in record.partitions_with_guest() {
            if let Some(count) = self.with_guests.get_mut(&partition) {
                *count -= 1;
                if *count == 0 {
                    self.with_guests.remove(&partition);
                }
            }
        }
        Some(record)
    }

    /// An established connection.
    pub(super) fn get(&self, id: ConnectionId) -> Option<&ConnectionRecord> {
        self.established.get(&id)
    }

    /// An established connection, to change what is recorded about it.
    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut ConnectionRecord> {
        self.established.get_mut(&id)
    }

    /// The owner of an established connection.
    pub(super) fn owner(&self, id: ConnectionId) -> Option<ConnectionOwner> {
        Some(self.established.get(&id)?.owner)
    }

    /// The ids of the established connections with this owner, oldest first.
    pub(super) fn owned_by(&self, owner: ConnectionOwner) -> Vec<ConnectionId> {
        let owned = self.established.iter();
        let owned = owned.filter(|(_, record)| record.owner == owner);
        let mut ids: Vec<_> = owned.map(|(id, _)| *id).collect();
        ids.sort();
        ids
    }

    /// Records that a connection between processes has moved to another thread.
    pub(super) fn moved(&mut self, id: ConnectionId, place: Place) {
        if let Some(record) = self.established.get_mut(&id)
            && !matches!(record.owner, ConnectionOwner::Link(_))
        {
            record.owner = ConnectionOwner::DataThreads(place);
        }
    }

    /// Number of established connections with guests that have an end in this partition.
    pub(super) fn with_guests(&self, partition: PartitionKey) -> usize {
        self.with_guests.get(&partition).copied().unwrap_or(0)
    }

    /// Number of established connections.
    pub(super) fn len(&self) -> usize {
        self.established.len()
    }

    /// The ids of the established connections, oldest first.
    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        let mut ids: Vec<_> = self.established.keys().copied().collect();
        ids.sort();
        ids
    }

    /// The established connections, in no particular order.
    pub(super) fn records(&self) -> impl Iterator<Item = &ConnectionRecord> {
        self.established.values()
    }

    /// Number of established connections with an end in each partition that has any.
    pub(super) fn by_partition(&self) -> HashMap<PartitionKey, usize> {
        let mut counts = HashMap::new();
        for ConnectionRecord { from, to, .. } in self.established.values() {
            *counts.entry(from.partition).or_default() += 1;
            if to.partition != from.partition {
                *counts.entry(to.partition).or_default() += 1;
            }
        }
        counts
    }
}

impl ConnectionRecord {
    /// The end of a connection that is not a guest's. `connects` is whether the guest's end has connected.
    pub(super) fn end_facing_guest(&self, connects: bool) -> ConnectionEnd {
        match connects {
            true => ConnectionEnd::Server,
            false => ConnectionEnd::Client,
        }
    }

    /// The partitions of both ends if a guest has one of them, and the VM whose link carries it. Each once.
    fn partitions_with_guest(&self) -> impl Iterator<Item = PartitionKey> + use<> {
        let (from, to) = (self.from.partition, self.to.partition);
        let all = match self.owner {
            ConnectionOwner::Link(vm) => [
                Some(vm),
                Some(from).filter(|from| *from != vm),
                Some(to).filter(|to| *to != vm && *to != from),
            ],
            ConnectionOwner::DataThreads(_) | ConnectionOwner::Attaching => [None; 3],
        };
        all.into_iter().flatten()
    }
}
