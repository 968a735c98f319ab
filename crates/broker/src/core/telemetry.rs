//! What the core tells its operators: events, and counters for metrics.

use std::collections::{BTreeMap, HashMap};

use hvsock_address::ServiceId;
use hvsock_fabric::Refusal;

use super::counters::{MetricsCounters, ServiceCounters};
use crate::events::{EventBus, EventStream, NotResumable, RecordScope};
use crate::model::{AuditRecord, EventKind};

/// The subscribers to events, and the counters since the start.
#[derive(Debug, Default)]
pub(super) struct Telemetry {
    events: EventBus,
    counters: MetricsCounters,
}

impl Telemetry {
    /// Publishes an event, which `what` builds only if there is a subscriber.
    pub(super) fn publish(&mut self, what: impl FnOnce() -> EventKind) {
        self.events.publish(what);
    }

    /// Publishes a record of the audit to the subscribers who may see it and want to.
    /// `partition` is the broker's own.
    pub(super) fn publish_record(&mut self, record: &AuditRecord, partition: &str) {
        self.events.publish_record(record, partition);
    }

    /// Adds a subscriber; `None` if there are too many.
    pub(super) fn subscribe(&mut self, records: RecordScope) -> Option<EventStream> {
        self.events.subscribe(records)
    }

    /// As [`subscribe`](Self::subscribe), for a stream that has ended with a handover.
    pub(super) fn resume(
        &mut self,
        records: RecordScope,
        resume: &str,
        partition: &str,
    ) -> Result<Option<EventStream>, NotResumable> {
        self.events.resume(records, resume, partition)
    }

    /// Ends the streams of events for a handover. Returns what they are resumed with.
    pub(super) fn end_streams(&mut self, resume: String) -> String {
        self.events.end_all(resume)
    }

    /// Keeps events for streams that are resumed.
    pub(super) fn keep_for(&mut self, resume: String) {
        self.events.keep_for(resume);
    }

    /// Counts an established connection of a service, `None` for an unregistered one.
    pub(super) fn count_opened(&mut self, service: Option<ServiceId>) {
        self.counters.opened(service, 1);
    }

    /// Counts what a pair of processes did in its arena: connections opened, and bytes each way.
    pub(super) fn count_in_arena(
        &mut self,
        service: Option<ServiceId>,
        opened: u64,
        [sent, received]: [u64; 2],
    ) {
        self.counters.opened(service, opened);
        self.counters.closed(service, sent, received);
    }

    /// Counts the bytes of a closed connection.
    pub(super) fn count_closed(&mut self, service: Option<ServiceId>, sent: u64, received: u64) {
        self.counters.closed(service, sent, received);
    }

    /// Counts a refusal.
    pub(super) fn count_refused(&mut self, refusal: &Refusal) {
        self.counters.refused(refusal);
    }

    /// Counts an unregistered service with the other unregistered ones from now on.
    pub(super) fn retire(&mut self, service: ServiceId) {
        self.counters.retire(service);
    }

    /// All counters.
    pub(super) fn counters(&self) -> &MetricsCounters {
        &self.counters
    }

    /// Goes on with these counters.
    pub(super) fn set_counters(&mut self, counters: MetricsCounters) {
        self.counters = counters;
    }

    /// The counters by service.
    pub(super) fn services(&self) -> &HashMap<Option<ServiceId>, ServiceCounters> {
        self.counters.services()
    }

    /// The refusals by label.
    pub(super) fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        self.counters.refusals()
    }
}
