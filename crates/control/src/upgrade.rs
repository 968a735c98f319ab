//! Upgrades of a running broker.

use serde::{Deserialize, Serialize};

/// Starts the broker's program again, and hands the running broker over to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewUpgrade {
    /// Does everything but the last step: the running broker goes on, after a short standstill.
    #[serde(default)]
    pub dry_run: bool,
    /// How long all traffic may stand still, in milliseconds. After it the running broker goes on. The default is
    /// 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standstill_limit_ms: Option<u64>,
}

/// A broker that was handed over, or could have been.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Upgrade {
    /// Whether the running broker goes on, as was asked for.
    pub dry_run: bool,
    /// The version of the broker that was running.
    pub from_version: String,
    /// The version of the new one.
    pub to_version: String,
    /// The process of the new broker.
    pub pid: u32,
    /// For how long all traffic stood still, in milliseconds.
    pub standstill_ms: f64,
    /// The number of established connections.
    pub connections: usize,
    /// The number of virtual machines.
    pub vms: usize,
    /// The number of containers.
    pub containers: usize,
    /// The number of listeners.
    pub listeners: usize,
    /// The number of descriptors that the new broker has received.
    pub descriptors: u32,
    /// The bytes of state that it has received.
    pub state_bytes: u64,
}
