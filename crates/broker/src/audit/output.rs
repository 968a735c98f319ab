//! Writes records to the journal or the log, on a thread of its own: a slow reader of either delays
//! nothing else, and what it does not take in time is counted.

use crate::sandbox;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvsock_control::{AuditCategory, AuditOutcome, AuditRecord};
use hvsock_sys::journal::{Entry, Journal};

/// Records that wait to be written.
const QUEUE: usize = 1024;

/// How often to look whether all records are written.
const FINISH_POLL: Duration = Duration::from_millis(1);

/// `MESSAGE_ID` of the records in the journal.
const MESSAGE_ID: &str = "5c1e0d3b8f3f4b6e9a54b0d5c3a2f7e1";

/// Where records are written, besides the memory of the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AuditOutput {
    /// To the broker's log (the default): changes and the use of guests' services at the level `info`,
    /// other connections at `debug`.
    #[default]
    Log,
    /// To the journal whose socket has this path, as fields of the form `HVSOCK_...`. If it does not
    /// take a record, the log gets it.
    Journal(PathBuf),
    /// Nowhere.
    None,
}

/// The writing thread's queue.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<SyncSender<Arc<AuditRecord>>>,
    thread: Option<JoinHandle<()>>,
    not_written: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread. Without one, records are only counted.
    pub(super) fn start(output: AuditOutput) -> Self {
        let not_written = Arc::new(AtomicU64::new(0));
        if output == AuditOutput::None {
            return Self {
                queue: None,
                thread: None,
                not_written,
            };
        }
        let (queue, records) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("hvsock-audit".into())
            .spawn(move || {
                sandbox::enter(sandbox::Kind::Audit);
                write_all(&output, &records);
            })
            .inspect_err(|error| tracing::error!(%error, "cannot start the thread of the audit"));
        Self {
            queue: thread.is_ok().then_some(queue),
            thread: thread.ok(),
            not_written,
        }
    }

    /// Queues a record. Never waits.
    pub(super) fn write(&self, record: &Arc<AuditRecord>) {
        if let Some(queue) = &self.queue
            && queue.try_send(Arc::clone(record)).is_err()
        {
            self.not_written.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of records that found the queue full.
    pub(super) fn not_written(&self) -> u64 {
        self.not_written.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Waits until all records are written, until `deadline`. It writes none afterwards.
    pub(super) fn finish(&mut self, deadline: Instant) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(FINISH_POLL);
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(output: &AuditOutput, records: &Receiver<Arc<AuditRecord>>) {
    let journal = match output {
        AuditOutput::Journal(path) => Journal::open(path)
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot write the audit to the journal at {}; it goes to \
                    the log", path.display());
            })
            .ok(),
        AuditOutput::Log | AuditOutput::None => None,
    };
    while let Ok(record) = records.recv() {
        let sent = journal
            .as_ref()
            .is_some_and(|journal| journal.send(&entry(&record)).is_ok());
        if !sent {
            log(&record);
        }
    }
}

/// The record as an entry of the journal.
fn entry(record: &AuditRecord) -> Entry {
    let AuditRecord {
        number: _,
        time_ms: _,
        category,
        action,
        outcome,
        reason,
        actor,
        service,
        target,
        connection,
        detail,
        claim,
        ended,
        left_out,
    } = record;
    // As syslog's: 4 is a warning, 5 a notice, 6 information.
    let priority = match (outcome, category) {
        (AuditOutcome::Refused | AuditOutcome::Failed, _) => "4",
        (_, AuditCategory::Change | AuditCategory::Guest) => "5",
        (_, AuditCategory::Connection) => "6",
    };
    let number = |number: u64| number.to_string();
    let mut entry = Entry::default()
        .field("MESSAGE", &record.to_string())
        .field("MESSAGE_ID", MESSAGE_ID)
        .field("PRIORITY", priority)
        .field("SYSLOG_IDENTIFIER", "hvsock")
        .field("HVSOCK_RECORD", &number(record.number))
        .field("HVSOCK_CATEGORY", category.label())
        .field("HVSOCK_ACTION", action)
        .field("HVSOCK_OUTCOME", outcome.label())
        .optional("HVSOCK_REASON", reason.as_deref())
        .optional("HVSOCK_SERVICE", service.as_deref())
        .optional("HVSOCK_TARGET", target.as_deref())
        .optional("HVSOCK_CONNECTION", connection.map(number).as_deref())
        .optional("HVSOCK_DETAIL", detail.as_deref());
    if let Some(actor) = actor {
        let id = |id: Option<u32>| id.map(|id| id.to_string());
        entry = entry
            .field("HVSOCK_PARTITION", &actor.partition)
            .optional("HVSOCK_USER", actor.user.as_deref())
            .optional("HVSOCK_UID", id(actor.uid).as_deref())
            .optional("HVSOCK_GID", id(actor.gid).as_deref())
            .optional("HVSOCK_PID", id(actor.pid).as_deref())
            .optional("HVSOCK_PROGRAM", actor.program.as_deref());
    }
    if let Some(claim) = claim {
        entry = entry
            .field("HVSOCK_CLAIMED_ACTION", &claim.action)
            .field("HVSOCK_CLAIMED_DETAIL", &claim.detail)
            .optional("HVSOCK_CLAIMED_RESULT", claim.result.as_deref());
    }
    if let Some(end) = ended {
        entry = entry.field("HVSOCK_DURATION_MS", &number(end.duration_ms));
        for (name, bytes) in [
            ("HVSOCK_BYTES_SENT", end.bytes_sent),
            ("HVSOCK_BYTES_RECEIVED", end.bytes_received),
        ] {
            if let Some(bytes) = bytes {
                entry = entry.field(name, &number(bytes));
            }
        }
    }
    match left_out {
        0 => entry,
        left_out => entry.field("HVSOCK_LEFT_OUT", &number(*left_out)),
    }
}

/// Logs a record as one line with fields.
fn log(record: &AuditRecord) {
    let actor = record.actor.as_ref();
    let claim = record.claim.as_ref();
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "hvsock_audit",
                record = record.number,
                action = %record.action,
                outcome = record.outcome.label(),
                reason = record.reason.as_deref(),
                user = actor.and_then(|actor| actor.user.as_deref()),
                uid = actor.and_then(|actor| actor.uid),
                pid = actor.and_then(|actor| actor.pid),
                program = actor.and_then(|actor| actor.program.as_deref()),
                partition = actor.map(|actor| actor.partition.as_str()),
                service = record.service.as_deref(),
                target = record.target.as_deref(),
                connection = record.connection,
                detail = record.detail.as_deref(),
                claimed_action = claim.map(|claim| claim.action.as_str()),
                claimed_detail = claim.map(|claim| claim.detail.as_str()),
                claimed_result = claim.and_then(|claim| claim.result.as_deref()),
                duration_ms = record.ended.as_ref().map(|end| end.duration_ms),
                sent = record.ended.as_ref().and_then(|end| end.bytes_sent),
                received = record.ended.as_ref().and_then(|end| end.bytes_received),
                left_out = record.left_out,
                "audit"
            )
        };
    }
    match record.category {
        AuditCategory::Connection => line!(debug),
        AuditCategory::Change | AuditCategory::Guest => line!(info),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use hvsock_control::{AuditActor, AuditEnd, Claim};
    use hvsock_testkit::TempFolder;

    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            number: 7,
            category: AuditCategory::Guest,
            action: "disconnect".into(),
            outcome: AuditOutcome::Ended,
            actor: Some(AuditActor {
                partition: "host".into(),
                user: Some("alice".into()),
                uid: Some(1000),
                pid: Some(4711),
                ..AuditActor::default()
            }),
            target: Some("web".into()),
            connection: Some(3),
            claim: Some(Claim {
                action: "exec".into(),
                detail: "uname -r".into(),
                result: Some("exit status 0".into()),
            }),
            ended: Some(AuditEnd {
                bytes_sent: Some(0),
                ..AuditEnd::default()
            }),
            ..AuditRecord::default()
        }
    }

    #[test]
    fn the_journal_gets_every_record_as_fields() {
        let folder = TempFolder::new();
        let path = folder.path().join("journal");
        let journal = UnixDatagram::bind(&path).unwrap();
        let writer = Writer::start(AuditOutput::Journal(path));
        writer.write(&Arc::new(record()));
        drop(writer);
        let mut bytes = [0; 4096];
        let count = journal.recv(&mut bytes).unwrap();
        let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
        for field in [
            "PRIORITY=5",
            "SYSLOG_IDENTIFIER=hvsock",
            "HVSOCK_RECORD=7",
            "HVSOCK_ACTION=disconnect",
            "HVSOCK_OUTCOME=ended",
            "HVSOCK_USER=alice",
            "HVSOCK_UID=1000",
            "HVSOCK_PID=4711",
            "HVSOCK_PARTITION=host",
            "HVSOCK_TARGET=web",
            "HVSOCK_CONNECTION=3",
            "HVSOCK_CLAIMED_ACTION=exec",
            "HVSOCK_CLAIMED_DETAIL=uname -r",
            "HVSOCK_CLAIMED_RESULT=exit status 0",
            "HVSOCK_BYTES_SENT=0",
        ] {
            assert!(text.lines().any(|line| line == field), "{field}: {text}");
        }
    }

    #[test]
    fn records_that_cannot_be_queued_are_counted() {
        let (queue, _records) = sync_channel(2);
        let writer = Writer {
            queue: Some(queue),
            thread: None,
            not_written: Arc::default(),
        };
        for _ in 0..5 {
            writer.write(&Arc::new(record()));
        }
        assert_eq!(writer.not_written(), 3);
    }
}
