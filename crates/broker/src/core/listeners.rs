//! Listeners: the broker's part of each listener of the fabric.

#[cfg_attr(not(test), allow(dead_code, reason = "for a live upgrade"))]
pub(super) mod snapshot;

use std::collections::HashMap;
use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv};
use hvsock_fabric::{ListenerId, PartitionKey};

use super::preference::TransportPreference;
use crate::callers::Caller;

/// The listeners by id.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    records: HashMap<ListenerId, ListenerRecord>,
}

/// A listener's state beside the fabric's.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListenerRecord {
    /// The index of its session, once it has one.
    pub(super) session: Option<usize>,
    pub(super) partition: PartitionKey,
    pub(super) caller: Caller,
    pub(super) address: SockAddrHv,
    pub(super) backlog: u32,
    /// The transports that its process supports.
    pub(super) preference: TransportPreference,
    /// `HVSOCKET_CONNECTED_SUSPEND`, which accepted connections inherit.
    pub(super) connected_suspend: bool,
    pub(super) started: Instant,
}

impl Listeners {
    /// Adds a listener.
    pub(super) fn insert(&mut self, id: ListenerId, record: ListenerRecord) {
        self.records.insert(id, record);
    }

    /// Removes a listener.
    pub(super) fn remove(&mut self, id: ListenerId) -> Option<ListenerRecord> {
        self.records.remove(&id)
    }

    /// A listener.
    pub(super) fn get(&self, id: ListenerId) -> Option<&ListenerRecord> {
        self.records.get(&id)
    }

    /// Records the index of a listener's session.
    pub(super) fn set_session(&mut self, id: ListenerId, index: usize) {
        if let Some(record) = self.records.get_mut(&id) {
            record.session = Some(index);
        }
    }

    /// Sets `HVSOCKET_CONNECTED_SUSPEND` for the connections that are accepted from now on.
    pub(super) fn set_connected_suspend(&mut self, id: ListenerId, value: bool) {
        if let Some(record) = self.records.get_mut(&id) {
            record.connected_suspend = value;
        }
    }

    /// Number of listeners.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// All listeners, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ListenerId, &ListenerRecord)> {
        self.records.iter().map(|(id, record)| (*id, record))
    }

    /// The service of each listener.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.records.values().map(|record| record.address.service)
    }

    /// Number of listeners in each partition that has any.
    pub(super) fn by_partition(&self) -> HashMap<PartitionKey, usize> {
        let mut counts = HashMap::new();
        for record in self.records.values() {
            *counts.entry(record.partition).or_default() += 1;
        }
        counts
    }
}
