//! What is counted for metrics: since the start, by service and by refusal.

use std::collections::{BTreeMap, HashMap};

use hvsock_address::ServiceId;
use hvsock_fabric::Refusal;

/// Counts since the start. Services that nobody registered share one entry, so that no partition
/// can make the broker count under names of its choice.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    services: HashMap<Option<ServiceId>, ServiceTally>,
    refusals: BTreeMap<&'static str, u64>,
}

/// One service's counts. The bytes of connections that stand are not in them yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ServiceTally {
    pub(crate) connections: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl ServiceTally {
    /// Processes say themselves what passed between them without the broker, so a sum can be more
    /// than there is room for.
    fn add(&mut self, sent: u64, received: u64) {
        self.sent = self.sent.saturating_add(sent);
        self.received = self.received.saturating_add(received);
    }
}

impl Tally {
    pub(super) fn opened(&mut self, service: Option<ServiceId>) {
        self.services.entry(service).or_default().connections += 1;
    }

    pub(super) fn closed(&mut self, service: Option<ServiceId>, sent: u64, received: u64) {
        let tally = self.services.entry(service).or_default();
        tally.add(sent, received);
    }

    pub(super) fn refused(&mut self, refusal: &Refusal) {
        *self.refusals.entry(refusal.label()).or_default() += 1;
    }

    /// A service that is registered no more is no longer counted by itself.
    pub(super) fn retire(&mut self, service: ServiceId) {
        if let Some(gone) = self.services.remove(&Some(service)) {
            let rest = self.services.entry(None).or_default();
            rest.connections += gone.connections;
            rest.add(gone.sent, gone.received);
        }
    }

    pub(super) fn services(&self) -> &HashMap<Option<ServiceId>, ServiceTally> {
        &self.services
    }

    pub(super) fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }
}
