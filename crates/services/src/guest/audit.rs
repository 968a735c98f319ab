//! The guest's own log of what its parent did here: commands, copies, forwards, values, power and
//! freezes.
//!
//! What was done is what the agent did. Who asked for it is what the parent's program says
//! ([`Requester`]): the parent could say anything, and has power over the guest anyway. The fields go to
//! the journal, if the guest has one, and otherwise to the agent's log.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;

use hvsock_sys::journal::{self, Entry, Journal};

use crate::text::{shell_word, truncated};
use crate::wire::{copy, forward, session};

/// The most bytes of one field.
const MAX: usize = 1024;

/// Who asked for something, as the parent's program says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Requester {
    /// `alice (uid 1000, pid 4711) on machine`.
    who: Option<String>,
    connection: Option<u64>,
}

impl Requester {
    fn new(user: &str, uid: u32, pid: u32, host: &str, connection: u64) -> Self {
        let user = match truncated(user, 64) {
            "" => format!("uid {uid}"),
            user => format!("{user} (uid {uid})"),
        };
        let host = truncated(host, 64);
        Self {
            who: Some(format!("{user}, process {pid} on {host}")),
            connection: Some(connection),
        }
    }
}

impl From<Option<session::Requester>> for Requester {
    fn from(said: Option<session::Requester>) -> Self {
        said.map_or_else(Self::default, |one| {
            Self::new(&one.user, one.uid, one.pid, &one.host, one.connection)
        })
    }
}

impl From<Option<copy::Requester>> for Requester {
    fn from(said: Option<copy::Requester>) -> Self {
        said.map_or_else(Self::default, |one| {
            Self::new(&one.user, one.uid, one.pid, &one.host, one.connection)
        })
    }
}

impl From<Option<forward::Requester>> for Requester {
    fn from(said: Option<forward::Requester>) -> Self {
        said.map_or_else(Self::default, |one| {
            Self::new(&one.user, one.uid, one.pid, &one.host, one.connection)
        })
    }
}

/// One line of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// `exec`, `copy_in`, ...
    pub(super) action: &'a str,
    /// `started`, `failed`, `ended`, `done`.
    pub(super) outcome: &'a str,
    /// The command line, paths or addresses.
    pub(super) detail: &'a str,
    /// The exit status, or the error.
    pub(super) result: Option<&'a str>,
    /// The user that a command runs as, and its process.
    pub(super) user: Option<&'a str>,
    pub(super) pid: Option<u32>,
    pub(super) by: Option<&'a Requester>,
}

/// Writes a record. Never waits.
pub(super) fn write(record: &Record<'_>) {
    static JOURNAL: OnceLock<Option<Journal>> = OnceLock::new();
    let journal = JOURNAL.get_or_init(|| Journal::open(Path::new(journal::SOCKET)).ok());
    let sent = journal
        .as_ref()
        .is_some_and(|journal| journal.send(&entry(record)).is_ok());
    if sent {
        return;
    }
    let Record {
        action,
        outcome,
        detail,
        result,
        user,
        pid,
        by,
    } = record;
    let detail = truncated(detail, MAX);
    tracing::info!(
        action,
        outcome,
        detail,
        result,
        user,
        pid,
        requested_by = by.and_then(|by| by.who.as_deref()),
        connection = by.and_then(|by| by.connection),
        "audit"
    );
}

fn entry(record: &Record<'_>) -> Entry {
    let Record {
        action,
        outcome,
        detail,
        result,
        user,
        pid,
        by,
    } = record;
    let (detail, result) = (
        truncated(detail, MAX),
        result.map(|text| truncated(text, MAX)),
    );
    let who = by.and_then(|by| by.who.as_deref());
    let message = format!(
        "{action} {detail}: {outcome}{}; requested by {}",
        result.map_or_else(String::new, |result| format!(", {result}")),
        who.unwrap_or("the parent"),
    );
    let id = |id: Option<u64>| id.map(|id| id.to_string());
    Entry::default()
        .field("MESSAGE", &message)
        .field("PRIORITY", "5")
        .field("SYSLOG_IDENTIFIER", "hvsock-guest")
        .field("HVSOCK_ACTION", action)
        .field("HVSOCK_OUTCOME", outcome)
        .field("HVSOCK_DETAIL", detail)
        .optional("HVSOCK_RESULT", result)
        .optional("HVSOCK_RUN_AS", *user)
        .optional("HVSOCK_PID", id(pid.map(u64::from)).as_deref())
        .optional("HVSOCK_REQUESTED_BY", who)
        .optional(
            "HVSOCK_CONNECTION",
            id(by.and_then(|by| by.connection)).as_deref(),
        )
}

/// The words of a command line, quoted as for a shell.
pub(super) fn words<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> String {
    let words = words.into_iter().map(shell_word);
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_was_done_and_who_is_said_to_have_asked() {
        let by = Requester::from(Some(session::Requester {
            user: "alice".into(),
            uid: 1000,
            pid: 4711,
            host: "machine".into(),
            connection: 3,
        }));
        let entry = entry(&Record {
            action: "exec",
            outcome: "started",
            detail: "cat '/a\nHVSOCK_ACTION=none'",
            user: Some("root"),
            pid: Some(7),
            by: Some(&by),
            ..Record::default()
        });
        let text = String::from_utf8_lossy(entry.as_bytes()).into_owned();
        for field in [
            "HVSOCK_ACTION=exec",
            "HVSOCK_OUTCOME=started",
            "HVSOCK_RUN_AS=root",
            "HVSOCK_PID=7",
            "HVSOCK_REQUESTED_BY=alice (uid 1000), process 4711 on machine",
            "HVSOCK_CONNECTION=3",
        ] {
            assert!(text.lines().any(|line| line == field), "{field}: {text}");
        }
        // The line break did not make a field: the value has a length.
        assert!(text.contains("HVSOCK_DETAIL\n"), "{text}");
    }
}
