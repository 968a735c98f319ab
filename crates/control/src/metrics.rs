//! What a broker counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Guest, PartitionKind, PartitionState};

/// Everything that the broker counts, as it stands at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsSnapshot {
    /// By service.
    pub services: Vec<ServiceMetrics>,
    /// Refusals since the broker started, by the refusal's word.
    pub refusals: BTreeMap<String, u64>,
    /// How many partitions there are of each kind in each state.
    pub partitions: Vec<(PartitionKind, PartitionState, u64)>,
    /// What is known of each guest that was heard of, by its partition's name.
    pub guests: Vec<(String, Guest)>,
    /// The broker's open descriptors.
    pub open_fds: u64,
    /// The broker's resident memory in bytes.
    pub resident_bytes: u64,
    /// When the broker started, in seconds since 1970, UTC.
    pub start_time_seconds: f64,
}

/// What is counted for one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceMetrics {
    /// The friendly name; absent for everything that is not registered, counted as one.
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
