//! `hvsock audit`: who did what, when, and with which outcome.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use hvsock_control::{AuditActor, AuditCategory, AuditFilter, AuditRecord, EventKind};
use hvsock_services::catalog::Integration;

use crate::backoff;
use crate::context::Context;
use crate::failure::printable;
use crate::os::linux::output::{self, Json};
use crate::os::linux::time;
use crate::table::Columns;

/// List who did what, when, and with which outcome
#[derive(Debug, Args)]
pub struct Audit {
    /// Only from this time on: 30s, 10m, 2h or 7d ago, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    /// Only what this user did, by name or id
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only from or to this virtual machine, container or host
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// Only changes, the use of guests' services, or other connections
    #[arg(long, value_name = "CATEGORY", value_parser = category)]
    category: Option<AuditCategory>,
    /// Only this service: its friendly name, or a key such as session
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only this action, such as exec, cp, connect or change_service
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only what was refused, failed or was reset
    #[arg(long)]
    failed: bool,
    /// Only the newest ones, at most this many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000)]
    last: usize,
    /// Print further records as they come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    json: Json,
}

impl Audit {
    pub fn run(self, context: &Context) -> Result<()> {
        let filter = AuditFilter {
            since_ms: self.since,
            after: None,
            user: self.user,
            partition: self.partition,
            category: self.category,
            service: self.service.map(|service| {
                let known = Integration::find(&service);
                known.map_or(service, |known| known.name.to_owned())
            }),
            action: self.action,
            failed: self.failed,
            limit: Some(self.last),
        };
        match self.follow {
            true => follow(context, filter, self.json),
            false => list(context, &filter, self.json),
        }
    }
}

fn list(context: &Context, filter: &AuditFilter, json: Json) -> Result<()> {
    let records = context.client()?.audit(filter)?;
    if json.json {
        return output::json(&records);
    }
    let headings = ["time", "who", "what", "on", "outcome"];
    let mut table = Columns::new(&headings, "no records").whole(0);
    for record in &records {
        table.row(cells(record));
    }
    table.print()
}

/// Prints the records so far and then each new one, through restarts of the broker. What comes meanwhile
/// is not missed: the subscription begins first.
fn follow(context: &Context, mut filter: AuditFilter, json: Json) -> Result<()> {
    let client = context.client()?;
    let catch_up = |filter: &AuditFilter| -> Result<u64> {
        let mut last = filter.after.unwrap_or(0);
        for record in client.audit(filter)? {
            print(&record, json)?;
            last = record.number;
        }
        Ok(last)
    };
    let mut events = client.events_with_audit()?;
    context.note("following the audit; Ctrl-C ends");
    loop {
        let mut last = catch_up(&filter)?;
        filter.limit = None;
        for event in events {
            match event?.what {
                EventKind::Audit { record } if record.number > last => {
                    last = record.number;
                    if filter.matches(&record) {
                        print(&record, json)?;
                    }
                }
                // The broker still has them.
                EventKind::Missed { .. } => {
                    filter.after = Some(last);
                    last = catch_up(&filter)?;
                    filter.after = None;
                }
                _ => {}
            }
        }
        // The next broker numbers its records from 1, and has none of these.
        context.note("the broker ended; records are missing until one runs again");
        let subscribe = || Ok(client.events_with_audit()?);
        events = backoff::until_done(subscribe, |reason| context.note(reason));
        context.note("following the audit again");
    }
}

fn print(record: &AuditRecord, json: Json) -> Result<()> {
    if json.json {
        return output::json_line(record);
    }
    let time = time::utc(record.time_ms);
    output::line(printable(&format!("{time}  {record}")))
}

fn cells(record: &AuditRecord) -> [String; 5] {
    let actor = record.actor.as_ref();
    let mut outcome = record.result();
    if record.left_out > 0 {
        outcome = format!("{outcome}; {} before it left out", record.left_out);
    }
    [
        time::utc(record.time_ms),
        actor.map_or_else(|| "unknown".to_owned(), AuditActor::label),
        record.what(),
        record.target.clone().unwrap_or_default(),
        outcome,
    ]
}

fn category(text: &str) -> Result<AuditCategory, String> {
    let all = AuditCategory::ALL;
    let found = all.into_iter().find(|one| one.label() == text);
    found.ok_or_else(|| {
        format!(
            "the categories are {}",
            all.map(AuditCategory::label).join(", ")
        )
    })
}

/// Parses a time: how long ago, or a date. Returns milliseconds since 1970.
fn since(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or(Duration::ZERO).as_millis();
    since_from(text, u64::try_from(now).unwrap_or(u64::MAX))
}

fn since_from(text: &str, now_ms: u64) -> Result<u64, String> {
    let invalid =
        || format!("`{text}` is neither a time ago such as 10m nor like 2026-01-31T12:00:00Z");
    let unit = text.chars().next_back().ok_or_else(invalid)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return time::parse_utc(text).ok_or_else(invalid),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| invalid())?;
    let ago = count.checked_mul(seconds * 1000).ok_or_else(invalid)?;
    Ok(now_ms.saturating_sub(ago))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_given_as_a_duration_or_a_date() {
        let now = 1_000_000_000;
        assert_eq!(since_from("90s", now), Ok(now - 90_000));
        assert_eq!(since_from("2h", now), Ok(now - 7_200_000));
        assert_eq!(since_from("9999d", now), Ok(0));
        assert_eq!(since_from("1970-01-02T00:00:00Z", now), Ok(86_400_000));
        for text in [
            "",
            "m",
            "-5m",
            "5",
            "5w",
            "é",
            "18446744073709551615d",
            "2026-13-01T00:00:00Z",
        ] {
            assert!(since_from(text, now).is_err(), "{text}");
        }
    }
}
