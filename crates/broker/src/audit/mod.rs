//! The audit: who did what, when, and with which outcome.
//!
//! [`log`] keeps the newest records of each category, numbered, and counts all; [`limit`] bounds how
//! many one source can cause; [`text`] makes text of others fit to be shown; [`output`] writes records
//! to the journal or the log. The first three do no I/O and take the time as an argument.
//!
//! The core makes the records, since it decides: connects, listens, leases and ends of connections by
//! itself, changes when the control thread reports them.

mod limit;
mod log;
mod output;
mod text;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hvsock_address::ServiceId;
use hvsock_control::{
    AuditActor, AuditCategory, AuditFilter, AuditMetrics, AuditOutcome, AuditRecord, Claim,
};

pub(crate) use limit::Source;
use log::AuditLog;
pub use output::AuditOutput;
use output::Writer;
pub(crate) use text::visible;

/// The most bytes of a claim's action, detail and result, and of a record's other texts.
const MAX_ACTION: usize = 32;
const MAX_DETAIL: usize = 1024;
const MAX_RESULT: usize = 128;
pub(crate) const MAX_TEXT: usize = 512;

/// The records of a broker.
#[derive(Debug)]
pub(crate) struct Audit {
    log: AuditLog,
    writer: Writer,
    /// The services that act in a guest.
    guest_services: HashSet<ServiceId>,
}

impl Audit {
    /// Waits until all records are written, until `deadline`. None is written afterwards.
    pub(crate) fn finish(&mut self, deadline: Instant) {
        self.writer.finish(deadline);
    }

    /// Starts the thread that writes to `output`. `guest_services` are those whose use has a category
    /// of its own.
    pub(crate) fn new(
        output: AuditOutput,
        guest_services: impl IntoIterator<Item = ServiceId>,
    ) -> Self {
        Self {
            log: AuditLog::default(),
            writer: Writer::start(output),
            guest_services: guest_services.into_iter().collect(),
        }
    }

    /// The category of a connection of the broker's own partition to a child, or of any other one.
    pub(crate) fn category(&self, service: ServiceId, acts_in_child: bool) -> AuditCategory {
        match acts_in_child && self.guest_services.contains(&service) {
            true => AuditCategory::Guest,
            false => AuditCategory::Connection,
        }
    }

    /// Allows a record of `source`, and returns how many were left out before it.
    pub(crate) fn admit(
        &mut self,
        source: Source,
        category: AuditCategory,
        outcome: AuditOutcome,
    ) -> Option<u64> {
        self.log.admit(source, category, outcome, Instant::now())
    }

    /// Counts records of `source` that nobody made.
    pub(crate) fn leave_out(&mut self, source: Source, category: AuditCategory, records: u64) {
        self.log
            .leave_out(source, category, records, Instant::now());
    }

    /// Adds a record: gives it its number and time, and queues it for writing.
    pub(crate) fn append(&mut self, mut record: AuditRecord) -> Arc<AuditRecord> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default().as_millis();
        record.time_ms = u64::try_from(since).unwrap_or(u64::MAX);
        let record = self.log.append(record);
        self.writer.write(&record);
        record
    }

    /// The records that a filter selects, oldest first.
    pub(crate) fn select(&self, filter: &AuditFilter) -> Vec<Arc<AuditRecord>> {
        self.log.select(filter)
    }

    /// The record of how a connection began, if it is still kept and if this process made it.
    pub(crate) fn connect_of(&self, id: u64, own: &AuditActor) -> Option<AuditRecord> {
        let is_it = |record: &AuditRecord| {
            let actor = record.actor.as_ref();
            record.connection == Some(id)
                && record.action == "connect"
                && record.outcome == AuditOutcome::Allowed
                && actor.is_some_and(|actor| {
                    (actor.uid, actor.pid) == (own.uid, own.pid) && actor.partition == own.partition
                })
        };
        self.log.find(is_it)
    }

    /// The counts since the start.
    pub(crate) fn metrics(&self) -> AuditMetrics {
        AuditMetrics {
            not_written: self.writer.not_written(),
            ..self.log.metrics()
        }
    }
}

/// A claim of a process, within the bounds of a record.
pub(crate) fn claim(action: &str, detail: &str) -> Claim {
    Claim {
        action: visible(action, MAX_ACTION),
        detail: visible(detail, MAX_DETAIL),
        result: None,
    }
}

/// How a process says that its connection ended.
pub(crate) fn claimed_result(result: &str) -> String {
    visible(result, MAX_RESULT)
}
