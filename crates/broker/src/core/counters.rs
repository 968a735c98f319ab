//! Counters for metrics, by service and by refusal, since the broker started.

pub(super) mod snapshot;

use std::collections::{BTreeMap, HashMap};

use hvsock_address::ServiceId;
use hvsock_fabric::Refusal;

/// Counters since the start. All unregistered services share one entry, so that no partition can
/// create metrics under names of its choice.
#[derive(Debug, Default)]
pub(crate) struct MetricsCounters {
    services: HashMap<Option<ServiceId>, ServiceCounters>,
    refusals: BTreeMap<&'static str, u64>,
}

/// One service's counters. They include the bytes of closed connections only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ServiceCounters {
    pub(crate) connections: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl ServiceCounters {
    /// Adds bytes, saturating: the ends of a ring report their own counts and may report any value.
    fn add(&mut self, sent: u64, received: u64) {
        self.sent = self.sent.saturating_add(sent);
        self.received = self.received.saturating_add(received);
    }
}

impl MetricsCounters {
    pub(super) fn opened(&mut self, service: Option<ServiceId>, connections: u64) {
        let counters = self.services.entry(service).or_default();
        counters.connections = counters.connections.saturating_add(connections);
    }

    pub(super) fn closed(&mut self, service: Option<ServiceId>, sent: u64, received: u64) {
        let counters = self.services.entry(service).or_default();
        counters.add(sent, received);
    }

    pub(super) fn refused(&mut self, refusal: &Refusal) {
        *self.refusals.entry(refusal.label()).or_default() += 1;
    }

    /// Moves an unregistered service's counters to the shared entry.
    pub(super) fn retire(&mut self, service: ServiceId) {
        if let Some(gone) = self.services.remove(&Some(service)) {
            let rest = self.services.entry(None).or_default();
            rest.connections = rest.connections.saturating_add(gone.connections);
            rest.add(gone.sent, gone.received);
        }
    }

    pub(super) fn services(&self) -> &HashMap<Option<ServiceId>, ServiceCounters> {
        &self.services
    }

    pub(super) fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }
}
