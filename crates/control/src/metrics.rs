//! The broker's metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AuditMetrics, BrokerThread, DeniedCall, Guest, PartitionKind, PartitionState, SharedResource,
};

/// A snapshot of all of the broker's metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsSnapshot {
    /// By service.
    pub services: Vec<ServiceMetrics>,
    /// Refusals since the broker started, by label.
    pub refusals: BTreeMap<String, u64>,
    /// The number of partitions of each kind in each state.
    pub partitions: Vec<(PartitionKind, PartitionState, u64)>,
    /// The current problems, by the label of their kind.
    pub problems: BTreeMap<String, u64>,
    /// The status of each guest that sent a heartbeat, by the name of its partition.
    pub guests: Vec<(String, Guest)>,
    /// The broker's descriptors that processes and guests use.
    #[serde(default)]
    pub descriptors: SharedResource,
    /// The messages with descriptors that processes have not received yet.
    #[serde(default)]
    pub unread_messages: SharedResource,
    /// The records of the audit.
    pub audit: AuditMetrics,
    /// The broker's threads that the watchdog watches.
    #[serde(default)]
    pub threads: Vec<BrokerThread>,
    /// How often a thread got stuck since the broker started.
    #[serde(default)]
    pub hangs: u64,
    /// How often the data thread of a VM went on after a panic since the broker started.
    #[serde(default)]
    pub panics: u64,
    /// The system calls that were denied to the broker's threads.
    #[serde(default)]
    pub denied_calls: Vec<DeniedCall>,
    /// The number of the broker's open descriptors.
    pub open_fds: u64,
    /// The broker's resident memory in bytes.
    pub resident_bytes: u64,
    /// The start time of the broker in seconds since 1970-01-01 UTC.
    pub start_time_seconds: f64,
}

/// The metrics of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceMetrics {
    /// The friendly name; absent for the sum of all unregistered services.
    pub service: Option<String>,
    /// Connections since the broker started.
    pub connections_total: u64,
    /// Connections now.
    pub connections: u64,
    /// Listeners now.
    pub listeners: u64,
    /// Bytes from connecting ends since the broker started.
    pub sent_bytes: u64,
    /// Bytes from accepting ends since the broker started.
    pub received_bytes: u64,
}
