//! What guests say of themselves, in numbers. Their labels are the names that the host gave them;
//! no text of a guest's is one.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::{Value, family};
use crate::model::{Contact, Guest, GuestReport};

/// The most guests with numbers of their own.
const MOST: usize = 1000;

/// A metric that is a number of a guest's report.
struct OfReport {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: fn(&GuestReport) -> Option<f64>,
}

const OF_REPORTS: [OfReport; 7] = [
    OfReport {
        name: "hvsock_guest_uptime",
        help: "How long the guest's kernel has run, as it said last",
        unit: Some(Unit::Seconds),
        value: |report| Some(report.uptime_seconds),
    },
    OfReport {
        name: "hvsock_guest_load1",
        help: "The guest's load average of one minute",
        unit: None,
        value: |report| Some(report.load[0]),
    },
    OfReport {
        name: "hvsock_guest_load5",
        help: "The guest's load average of five minutes",
        unit: None,
        value: |report| Some(report.load[1]),
    },
    OfReport {
        name: "hvsock_guest_memory_total",
        help: "The guest's memory",
        unit: Some(Unit::Bytes),
        value: |report| Some(report.memory_total_bytes as f64),
    },
    OfReport {
        name: "hvsock_guest_memory_available",
        help: "Memory that programs in the guest could still get",
        unit: Some(Unit::Bytes),
        value: |report| Some(report.memory_available_bytes as f64),
    },
    OfReport {
        name: "hvsock_guest_clock_offset",
        help: "How far the guest's clock was ahead of the host's when last measured",
        unit: Some(Unit::Seconds),
        value: |report| Some(report.clock?.offset_seconds),
    },
    OfReport {
        name: "hvsock_guest_clock_error",
        help: "How far off that may be",
        unit: Some(Unit::Seconds),
        value: |report| Some(report.clock?.error_seconds),
    },
];

/// Writes them.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    guests: &[(String, Guest)],
) -> Result<(), fmt::Error> {
    let guests = &guests[..guests.len().min(MOST)];
    let mut write = |name, help, unit: Option<&Unit>, value: &dyn Fn(&Guest) -> Option<f64>| {
        let samples = guests.iter().filter_map(|(partition, guest)| {
            let labels = [("partition", partition.as_str())];
            Some((labels, Value::Gauge(value(guest)?)))
        });
        family(encoder, name, help, unit, samples)
    };
    write(
        "hvsock_guest_up",
        "Whether the guest's agent is heard",
        None,
        &|guest| Some(f64::from(u8::from(guest.contact == Contact::Ok))),
    )?;
    write(
        "hvsock_guest_ready",
        "Whether the guest has started",
        None,
        &|guest| Some(f64::from(u8::from(guest.ready))),
    )?;
    write(
        "hvsock_guest_heartbeat_age",
        "Since the guest's agent was last heard",
        Some(&Unit::Seconds),
        &|guest| guest.heard_seconds,
    )?;
    for metric in &OF_REPORTS {
        // Of one that is lost the last numbers are no numbers of now.
        write(metric.name, metric.help, metric.unit.as_ref(), &|guest| {
            let report = guest.report.as_ref();
            report
                .filter(|_| guest.contact == Contact::Ok)
                .and_then(metric.value)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::model::{ClockKeeper, GuestClock, MetricsSnapshot};

    use super::*;

    fn guest(contact: Contact) -> Guest {
        Guest {
            contact,
            heard_seconds: Some(0.5),
            ready: contact == Contact::Ok,
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
    fn a_guest_has_its_numbers_by_its_partitions_name_for_as_long_as_it_is_heard() {
        let snapshot = MetricsSnapshot {
            guests: vec![
                ("db".into(), guest(Contact::Lost)),
                ("web".into(), guest(Contact::Ok)),
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
