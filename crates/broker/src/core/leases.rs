//! Leases: registrations that live as long as the session that made them.
//!
//! A registration from a file that clashes with a lease waits until the lease ends.

#[cfg_attr(not(test), allow(dead_code, reason = "for a live upgrade"))]
pub(super) mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use hvsock_address::ServiceId;
use hvsock_registry::store::Entry;

/// The leased services, and the registrations from files that wait for one of them.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: HashMap<ServiceId, Lease>,
    blocked: BTreeMap<ServiceId, Box<Entry>>,
}

/// The session that holds a leased registration.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// The session's serial number.
    serial: u64,
    /// The session's index, once it has one.
    session: Option<usize>,
}

/// A lease that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndedLease {
    /// The index of the session that held it, which may be closed.
    pub(super) session: Option<usize>,
}

impl Leases {
    /// Records that the session with this serial number holds a registered service.
    pub(super) fn grant(&mut self, service: ServiceId, serial: u64) {
        let session = None;
        self.held.insert(service, Lease { serial, session });
    }

    /// Records the index of the session that holds a lease.
    pub(super) fn set_session(&mut self, service: ServiceId, index: usize) {
        if let Some(lease) = self.held.get_mut(&service) {
            lease.session = Some(index);
        }
    }

    /// Whether the service is leased.
    pub(super) fn contains(&self, service: ServiceId) -> bool {
        self.held.contains_key(&service)
    }

    /// The index of the session that holds a service.
    pub(super) fn session(&self, service: ServiceId) -> Option<usize> {
        self.held.get(&service)?.session
    }

    /// Whether the session with this serial number holds the service. After its lease has ended,
    /// another session may hold it.
    pub(super) fn is_held_by(&self, service: ServiceId, serial: u64) -> bool {
        let lease = self.held.get(&service);
        lease.is_some_and(|lease| lease.serial == serial)
    }

    /// Ends a lease, if the service is leased.
    pub(super) fn end(&mut self, service: ServiceId) -> Option<EndedLease> {
        let Lease { session, .. } = self.held.remove(&service)?;
        Some(EndedLease { session })
    }

    /// Keeps a registration from a file until a lease ends. It replaces an earlier one of the service.
    pub(super) fn block(&mut self, entry: Box<Entry>) {
        self.blocked.insert(entry.registration.id, entry);
    }

    /// Discards the waiting registration of a service.
    pub(super) fn unblock(&mut self, service: ServiceId) {
        self.blocked.remove(&service);
    }

    /// The waiting registrations.
    pub(super) fn blocked(&self) -> impl Iterator<Item = &Entry> {
        self.blocked.values().map(Box::as_ref)
    }

    /// Takes all waiting registrations, for another try. Those that a lease still blocks come back by
    /// [`block`](Self::block).
    pub(super) fn take_blocked(&mut self) -> impl Iterator<Item = Box<Entry>> + use<> {
        std::mem::take(&mut self.blocked).into_values()
    }
}
