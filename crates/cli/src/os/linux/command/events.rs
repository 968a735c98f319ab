//! `hvsock events`: prints events as they happen.

use std::time::{Duration, UNIX_EPOCH};

use anstyle::Style;
use anyhow::Result;
use clap::Args;
use hvsock_control::{Event, EventKind};

use crate::backoff;
use crate::context::Context;
use crate::failure::printable;
use crate::os::linux::format;
use crate::os::linux::output::{self, Json};

/// Print events as they happen, until Ctrl-C, through restarts of the broker
#[derive(Debug, Args)]
pub struct Events {
    /// Print records of the audit, too
    #[arg(long)]
    audit: bool,
    #[command(flatten)]
    json: Json,
}

impl Events {
    pub fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        let follow = || match self.audit {
            true => client.events_with_audit(),
            false => client.events(),
        };
        let mut events = follow()?;
        context.note("following events; Ctrl-C ends");
        loop {
            for event in events {
                let event = event?;
                if self.json.json {
                    output::json_line(&event)?;
                } else {
                    output::line(line(&event))?;
                }
            }
            context.note("the broker ended; events are missing until one runs again");
            events = backoff::until_done(|| Ok(follow()?), |reason| context.note(reason));
            context.note("following events again");
        }
    }
}

const FAINT: Style = Style::new().dimmed();

fn line(event: &Event) -> String {
    let time = clock(event.time_ms);
    let sentence = printable(&sentence(&event.what));
    format!("{FAINT}{time}{FAINT:#}  {sentence}")
}

/// The time of day in UTC, to the millisecond.
fn clock(time_ms: u64) -> String {
    let since = Duration::from_millis(time_ms);
    let day = (UNIX_EPOCH + since)
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() % 86_400);
    let (hour, minute, second) = (day / 3600, day / 60 % 60, day % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{:03}Z", time_ms % 1000)
}

fn sentence(what: &EventKind) -> String {
    let because = |reason: &Option<String>| match reason {
        Some(reason) => format!(": {reason}"),
        None => String::new(),
    };
    match what {
        EventKind::ServiceRegistered { service } => format!("service `{service}` registered"),
        EventKind::ServiceChanged { service, enabled } => {
            let state = if *enabled { "enabled" } else { "disabled" };
            format!("service `{service}` changed, {state}")
        }
        EventKind::ServiceUnregistered { service } => format!("service `{service}` unregistered"),
        EventKind::PartitionAdded { partition } => format!("partition {partition} added"),
        EventKind::PartitionRemoved { partition } => format!("partition {partition} removed"),
        EventKind::PartitionState { partition, state } => {
            format!("partition {partition} {}", format::state(*state))
        }
        EventKind::GuestAgentConnected { partition } => format!("agent of {partition} connected"),
        EventKind::GuestAgentLost {
            partition,
            silent_ms,
        } => {
            let silent = *silent_ms as f64 / 1000.0;
            format!("agent of {partition} lost: no heartbeat for {silent:.1} s")
        }
        EventKind::GuestReady { partition } => format!("guest {partition} is ready"),
        EventKind::GuestBrokerConnected { partition } => {
            format!("broker in {partition} connected")
        }
        EventKind::GuestBrokerLost { partition, reason } => {
            format!("broker in {partition} lost: {reason}")
        }
        EventKind::UplinkOpened { host, partition } => {
            format!("uplink to {host} open; this virtual machine is {partition} there")
        }
        EventKind::UplinkLost { reason } => format!("uplink to the host lost: {reason}"),
        EventKind::ListenerOpened {
            listener,
            service,
            partition,
        } => format!("listener {listener} of `{service}` in {partition} opened"),
        EventKind::ListenerClosed {
            listener,
            service,
            partition,
            reason,
        } => {
            let because = because(reason);
            format!("listener {listener} of `{service}` in {partition} closed{because}")
        }
        EventKind::ConnectionsCounted {
            service,
            from,
            to,
            connections,
        } => format!(
            "{connections} short connections of `{service}` opened and closed, {from} → {to}"
        ),
        EventKind::ConnectionOpened {
            connection,
            service,
            from,
            to,
        } => format!("connection {connection} of `{service}` opened, {from} → {to}"),
        EventKind::ConnectionClosed {
            connection,
            service,
            bytes_sent,
            bytes_received,
            reason,
        } => format!(
            "connection {connection} of `{service}` closed after {}{}",
            format::traffic(*bytes_sent, *bytes_received),
            because(reason),
        ),
        EventKind::Refused {
            from,
            address,
            reason,
            message,
        } => format!("{from} refused at {address} ({reason}): {message}"),
        EventKind::ProblemFound { problem, .. } => format!("problem: {problem}"),
        EventKind::ProblemSolved { problem, .. } => format!("solved: {problem}"),
        EventKind::Audit { record } => record.to_string(),
        EventKind::HandedOver { .. } => "the broker is being handed over".to_owned(),
        EventKind::Missed { events } => format!("({events} events missed here)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_time_and_its_reason() {
        let event = Event {
            time_ms: 86_400_000 + 3_661_042,
            what: EventKind::ListenerClosed {
                listener: 3,
                service: "Demo\x1b".into(),
                partition: "web".into(),
                reason: Some("the service is disabled".into()),
            },
        };
        let line = line(&event);
        let line = anstream::adapter::strip_str(&line).to_string();
        assert_eq!(
            line,
            "01:01:01.042Z  listener 3 of `Demo\\u{1b}` in web closed: the service is disabled"
        );
    }
}
