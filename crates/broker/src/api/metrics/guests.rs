//! Metrics from the guests' reports. Labels are the host's names of the partitions, never text
//! from a guest.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::family::{Value, family};
use crate::model::{AgentState, Guest, GuestReport};

/// The most guests with samples. Further guests are left out.
const MAX_GUESTS: usize = 1000;

/// A metric from a field of a guest's report.
struct ReportMetric {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: fn(&GuestReport) -> Option<f64>,
}

const REPORT_METRICS: [ReportMetric; 7] = [
    ReportMetric {
        name: "hvsock_guest_uptime",
        help: "Uptime of the guest's kernel, from its last report",
        unit: Some(Unit::Seconds),
        value: |report| Some(report.uptime_seconds),
    },
    ReportMetric {
        name: "hvsock_guest_load1",
        help: "The guest's load average over one minute",
        unit: None,
        value: |report| Some(report.load[0]),
    },
    ReportMetric {
        name: "hvsock_guest_load5",
        help: "The guest's load average over five minutes",
        unit: None,
        value: |report| Some(report.load[1]),
    },
    ReportMetric {
        name: "hvsock_guest_memory_total",
        help: "The guest's total memory",
        unit: Some(Unit::Bytes),
        value: |report| Some(report.memory_total_bytes as f64),
    },
    ReportMetric {
        name: "hvsock_guest_memory_available",
        help: "Memory available to programs in the guest",
        unit: Some(Unit::Bytes),
        value: |report| Some(report.memory_available_bytes as f64),
    },
    ReportMetric {
        name: "hvsock_guest_clock_offset",
        help: "Offset of the guest's clock from the host's at the last measurement; positive is ahead",
        unit: Some(Unit::Seconds),
        value: |report| Some(report.clock?.offset_seconds),
    },
    ReportMetric {
        name: "hvsock_guest_clock_error",
        help: "Error bound of the clock offset",
        unit: Some(Unit::Seconds),
        value: |report| Some(report.clock?.error_seconds),
    },
];

/// Writes the guests' metrics.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    guests: &[(String, Guest)],
) -> Result<(), fmt::Error> {
    let guests = &guests[..guests.len().min(MAX_GUESTS)];
    let mut write = |name, help, unit: Option<&Unit>, value: &dyn Fn(&Guest) -> Option<f64>| {
        let samples = guests.iter().filter_map(|(partition, guest)| {
            let labels = [("partition", partition.as_str())];
            Some((labels, Value::Gauge(value(guest)?)))
        });
        family(encoder, name, help, unit, samples)
    };
    write(
        "hvsock_guest_up",
        "Whether the guest's agent is connected",
        None,
        &|guest| Some(f64::from(u8::from(guest.agent == AgentState::Connected))),
    )?;
    write(
        "hvsock_guest_ready",
        "Whether the guest has started",
        None,
        &|guest| Some(f64::from(u8::from(guest.ready))),
    )?;
    write(
        "hvsock_guest_heartbeat_age",
        "Time since the last heartbeat of the guest's agent",
        Some(&Unit::Seconds),
        &|guest| guest.last_seen_seconds,
    )?;
    for metric in &REPORT_METRICS {
        // The last report of a lost agent is out of date.
        write(metric.name, metric.help, metric.unit.as_ref(), &|guest| {
            let report = guest.report.as_ref();
            report
                .filter(|_| guest.agent == AgentState::Connected)
                .and_then(metric.value)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::model::{ClockKeeper, GuestClock, MetricsSnapshot};

    use super::*;

    fn guest(agent: AgentState) -> Guest {
        Guest {
            agent,
            last_seen_seconds: Some(0.5),
            ready: agent == AgentState::Connected,
            report: Some(GuestReport {
                uptime_seconds: 12.5,
                load: [0.25, 0.5, 0.75],
                clock: Some(GuestClock {
                    offset_seconds: -0.001,
                    error_seconds: 0.0005,
                    age_seconds: 3.0,
                    keeper: ClockKeeper::Agent,
                }),
                ..Default::default()
            }),
            notice: None,
        }
    }

    #[test]
    fn a_report_has_samples_labelled_by_partition_while_the_agent_is_connected() {
        let snapshot = MetricsSnapshot {
            guests: vec![
                ("db".into(), guest(AgentState::Lost)),
                ("web".into(), guest(AgentState::Connected)),
            ],
            ..Default::default()
        };
        let text = super::super::text(snapshot);
        for line in [
            r#"hvsock_guest_up{partition="db"} 0.0"#,
            r#"hvsock_guest_up{partition="web"} 1.0"#,
            r#"hvsock_guest_ready{partition="web"} 1.0"#,
            r#"hvsock_guest_heartbeat_age_seconds{partition="db"} 0.5"#,
            r#"hvsock_guest_uptime_seconds{partition="web"} 12.5"#,
            r#"hvsock_guest_load1{partition="web"} 0.25"#,
            r#"hvsock_guest_clock_offset_seconds{partition="web"} -0.001"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n not in\n{text}");
        }
        assert!(
            !text.contains(r#"hvsock_guest_load1{partition="db"}"#),
            "{text}"
        );
    }
}
