//! The broker's counters in the OpenMetrics text format, for Prometheus.
//!
//! Each scrape formats one snapshot of the broker's own counters, so no second set of counters
//! exists. Labels are friendly names. A user who may register services creates labels, so their
//! number is bounded.

mod family;
mod guests;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::model::{BrokerThread, MetricsSnapshot, PartitionKind, ServiceMetrics, Share};
use family::{Value, family};

/// The content type of [`text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The most services with their own label. The rest are summed under [`OTHERS`].
const MAX_SERVICES: usize = 1000;
/// The label of all services without their own label.
const OTHERS: &str = "(others)";
/// The label of unregistered services. Loopback needs no registration.
const UNREGISTERED: &str = "(unregistered)";

/// Formats one scrape.
pub(crate) fn text(snapshot: MetricsSnapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(snapshot)));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Scrape(MetricsSnapshot);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = &self.0;
        let services = by_service(&snapshot.services);
        let mut of_services = |name, help, unit, value: fn(&ServiceMetrics) -> Value| {
            let samples = services
                .iter()
                .map(|(service, metrics)| ([("service", *service)], value(metrics)));
            family(&mut encoder, name, help, unit, samples)
        };
        of_services(
            "hvsock_connections",
            "Connections since the broker started",
            None,
            |service| Value::Counter(service.connections_total),
        )?;
        of_services(
            "hvsock_open_connections",
            "Connections open now",
            None,
            |service| Value::Gauge(service.connections as f64),
        )?;
        of_services("hvsock_listeners", "Listeners open now", None, |service| {
            Value::Gauge(service.listeners as f64)
        })?;
        of_services(
            "hvsock_sent",
            "Bytes from connecting to accepting ends since the broker started",
            Some(&Unit::Bytes),
            |service| Value::Counter(service.sent_bytes),
        )?;
        of_services(
            "hvsock_received",
            "Bytes from accepting to connecting ends since the broker started",
            Some(&Unit::Bytes),
            |service| Value::Counter(service.received_bytes),
        )?;
        family(
            &mut encoder,
            "hvsock_refusals",
            "Connects and listens refused since the broker started",
            None,
            snapshot
                .refusals
                .iter()
                .map(|(reason, count)| ([("reason", reason.as_str())], Value::Counter(*count))),
        )?;
        family(
            &mut encoder,
            "hvsock_partitions",
            "Partitions known",
            None,
            snapshot.partitions.iter().map(|(kind, state, count)| {
                let labels = [("kind", kind_label(*kind)), ("state", state.label())];
                (labels, Value::Gauge(*count as f64))
            }),
        )?;
        family(
            &mut encoder,
            "hvsock_problems",
            "Things that the broker cannot do as it should now",
            None,
            snapshot
                .problems
                .iter()
                .map(|(kind, count)| ([("kind", kind.as_str())], Value::Gauge(*count as f64))),
        )?;
        family(
            &mut encoder,
            "hvsock_audit_records",
            "Records of the audit since the broker started",
            None,
            snapshot
                .audit
                .records
                .iter()
                .map(|(category, outcome, count)| {
                    let labels = [("category", category.label()), ("outcome", outcome.label())];
                    (labels, Value::Counter(*count))
                }),
        )?;
        let dropped = [
            ("rate_limit", snapshot.audit.left_out),
            ("not_written", snapshot.audit.not_written),
        ];
        family(
            &mut encoder,
            "hvsock_audit_records_dropped",
            "Records of the audit that were left out, or not written to the journal or log",
            None,
            dropped
                .into_iter()
                .map(|(reason, count)| ([("reason", reason)], Value::Counter(count))),
        )?;
        family(
            &mut encoder,
            "hvsock_denied_system_calls",
            "System calls that the broker's threads are not expected to make, and that failed",
            None,
            snapshot.denied_calls.iter().map(|denied| {
                let name = denied.name.as_deref().unwrap_or("unknown");
                let labels = [("thread", denied.kind.as_str()), ("call", name)];
                (labels, Value::Counter(denied.count))
            }),
        )?;
        guests::encode(&mut encoder, &snapshot.guests)?;
        family(
            &mut encoder,
            "hvsock_threads",
            "Threads of the broker that the watchdog watches",
            None,
            threads_by_state(&snapshot.threads)
                .map(|(state, count)| ([("state", state)], Value::Gauge(count as f64))),
        )?;
        let hangs = ConstCounter::new(snapshot.hangs);
        let help = "Turns of threads that took longer than their limit since the broker started";
        let descriptor =
            encoder.encode_descriptor("hvsock_thread_hangs", help, None, MetricType::Counter)?;
        hangs.encode(descriptor)?;
        let panics = ConstCounter::new(snapshot.panics);
        let help = "Panics of the data threads of VMs since the broker started";
        let descriptor =
            encoder.encode_descriptor("hvsock_thread_panics", help, None, MetricType::Counter)?;
        panics.encode(descriptor)?;
        let resources = [
            (
                ["hvsock_descriptors_used", "hvsock_descriptors_limit"],
                "Broker descriptors by owner",
                &snapshot.descriptors,
            ),
            (
                ["hvsock_unread_messages", "hvsock_unread_messages_limit"],
                "Messages with descriptors that processes have not received, by owner",
                &snapshot.unread_messages,
            ),
        ];
        for ([used, limit], help, resource) in resources {
            let mut of_owners = |name, help: &str, value: fn(&Share) -> u64| {
                let samples = resource.owners.iter().map(|share| {
                    let labels = [("owner", share.owner.as_str())];
                    (labels, Value::Gauge(value(share) as f64))
                });
                family(&mut encoder, name, help, None, samples)
            };
            of_owners(used, help, |share| share.used)?;
            let help = format!("{help}: what each may use at present");
            of_owners(limit, &help, |share| share.limit)?;
        }
        let gauges = [
            (
                "process_open_fds",
                "Open descriptors",
                None,
                snapshot.open_fds as f64,
            ),
            (
                "process_resident_memory",
                "Resident memory",
                Some(&Unit::Bytes),
                snapshot.resident_bytes as f64,
            ),
            (
                "process_start_time",
                "Start time of the broker since 1970 UTC",
                Some(&Unit::Seconds),
                snapshot.start_time_seconds,
            ),
        ];
        for (name, help, unit, value) in gauges {
            let metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        let info = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let descriptor = encoder.encode_descriptor(
            "hvsock_build",
            "The broker's build",
            None,
            MetricType::Info,
        )?;
        info.encode(descriptor)
    }
}

/// Sums services by label. The busiest [`MAX_SERVICES`] have their own label.
fn by_service(services: &[ServiceMetrics]) -> BTreeMap<&str, ServiceMetrics> {
    let mut ranked: Vec<_> = services.iter().collect();
    ranked.sort_by_key(|s| Reverse((s.connections_total, s.listeners)));
    let mut labels: BTreeMap<&str, ServiceMetrics> = BTreeMap::new();
    for (rank, service) in ranked.into_iter().enumerate() {
        let label = match service.service.as_deref() {
            None => UNREGISTERED,
            Some(name) if rank < MAX_SERVICES => name,
            Some(_) => OTHERS,
        };
        let sum = labels.entry(label).or_default();
        sum.connections_total += service.connections_total;
        sum.connections += service.connections;
        sum.listeners += service.listeners;
        sum.sent_bytes = sum.sent_bytes.saturating_add(service.sent_bytes);
        sum.received_bytes = sum.received_bytes.saturating_add(service.received_bytes);
    }
    labels
}

/// The number of threads in each state.
fn threads_by_state(threads: &[BrokerThread]) -> impl Iterator<Item = (&'static str, usize)> {
    let count = |wanted: fn(&BrokerThread) -> bool| threads.iter().filter(|t| wanted(t)).count();
    let stuck = count(|thread| thread.stuck);
    let working = count(|thread| !thread.stuck && thread.step.is_some());
    let waiting = threads.len() - stuck - working;
    [("waiting", waiting), ("working", working), ("stuck", stuck)].into_iter()
}

fn kind_label(kind: PartitionKind) -> &'static str {
    match kind {
        PartitionKind::Host => "host",
        PartitionKind::Vm => "vm",
        PartitionKind::Container => "container",
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{AuditCategory, AuditMetrics, AuditOutcome, DeniedCall, PartitionState};

    use super::*;
    use crate::model::SharedResource;

    fn thread(step: Option<&str>, stuck: bool) -> BrokerThread {
        BrokerThread {
            name: "hvsock-core".into(),
            tid: 7,
            vm: None,
            critical: true,
            stuck,
            turn_seconds: 0.5,
            limit_seconds: 10.0,
            step: step.map(str::to_owned),
        }
    }

    fn snapshot() -> MetricsSnapshot {
        MetricsSnapshot {
            services: vec![
                ServiceMetrics {
                    service: Some("HV Socket \"Demo\"".into()),
                    connections_total: 3,
                    connections: 1,
                    listeners: 1,
                    sent_bytes: 10,
                    received_bytes: 20,
                },
                ServiceMetrics {
                    connections_total: 1,
                    ..Default::default()
                },
            ],
            refusals: [("no_listener".to_owned(), 7)].into(),
            partitions: vec![(PartitionKind::Container, PartitionState::Running, 2)],
            problems: [("config_watch".to_owned(), 1)].into(),
            guests: Vec::new(),
            descriptors: SharedResource {
                used: 7,
                capacity: 100,
                owners: vec![Share {
                    owner: "partition web".into(),
                    used: 7,
                    limit: 25,
                }],
            },
            unread_messages: SharedResource::default(),
            audit: AuditMetrics {
                records: vec![(AuditCategory::Guest, AuditOutcome::Refused, 5)],
                left_out: 6,
                not_written: 0,
            },
            threads: vec![
                thread(None, false),
                thread(Some("files"), false),
                thread(Some("timers"), true),
            ],
            hangs: 4,
            panics: 3,
            denied_calls: vec![DeniedCall {
                kind: "core".into(),
                syscall: 59,
                name: Some("execve".into()),
                count: 2,
            }],
            open_fds: 12,
            resident_bytes: 4096,
            start_time_seconds: 1.5,
        }
    }

    #[test]
    fn every_counter_has_a_sample_labelled_by_friendly_name() {
        let text = text(snapshot());
        for line in [
            r#"hvsock_connections_total{service="HV Socket \"Demo\""} 3"#,
            r#"hvsock_connections_total{service="(unregistered)"} 1"#,
            r#"hvsock_open_connections{service="HV Socket \"Demo\""} 1.0"#,
            r#"hvsock_listeners{service="HV Socket \"Demo\""} 1.0"#,
            r#"hvsock_sent_bytes_total{service="HV Socket \"Demo\""} 10"#,
            r#"hvsock_received_bytes_total{service="HV Socket \"Demo\""} 20"#,
            r#"hvsock_audit_records_total{category="guest",outcome="refused"} 5"#,
            r#"hvsock_audit_records_dropped_total{reason="rate_limit"} 6"#,
            r#"hvsock_audit_records_dropped_total{reason="not_written"} 0"#,
            r#"hvsock_denied_system_calls_total{thread="core",call="execve"} 2"#,
            r#"hvsock_refusals_total{reason="no_listener"} 7"#,
            r#"hvsock_partitions{kind="container",state="running"} 2.0"#,
            r#"hvsock_problems{kind="config_watch"} 1.0"#,
            r#"hvsock_descriptors_used{owner="partition web"} 7.0"#,
            r#"hvsock_descriptors_limit{owner="partition web"} 25.0"#,
            r#"hvsock_threads{state="waiting"} 1.0"#,
            r#"hvsock_threads{state="working"} 1.0"#,
            r#"hvsock_threads{state="stuck"} 1.0"#,
            "hvsock_thread_hangs_total 4",
            "hvsock_thread_panics_total 3",
            "process_open_fds 12.0",
            "process_resident_memory_bytes 4096.0",
            "process_start_time_seconds 1.5",
            "# TYPE hvsock_connections counter",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line}\n is not in\n{text}"
            );
        }
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("hvsock_build_info{{version=\"{version}\"}} 1")));
    }

    #[test]
    fn services_beyond_the_label_limit_share_one_label() {
        let service = |number: u64| ServiceMetrics {
            service: Some(format!("service {number}")),
            connections_total: number,
            ..Default::default()
        };
        let services: Vec<_> = (1..=MAX_SERVICES as u64 + 3).map(service).collect();
        let labels = by_service(&services);
        assert_eq!(labels.len(), MAX_SERVICES + 1);
        assert_eq!(labels[OTHERS].connections_total, 1 + 2 + 3);
    }
}
