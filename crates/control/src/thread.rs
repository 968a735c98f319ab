//! The threads of a broker, as its watchdog sees them.

use serde::{Deserialize, Serialize};

/// A thread of the broker, and the turn that it is in: what it does between two waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BrokerThread {
    /// Its name.
    pub name: String,
    /// Its number in `/proc/PID/task`.
    pub tid: u32,
    /// The VM that it serves, if it serves one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Whether the broker cannot go on without it.
    pub critical: bool,
    /// Whether its turn takes longer than its limit.
    pub stuck: bool,
    /// For how many seconds it is known to be in its turn; 0 while it waits.
    pub turn_seconds: f64,
    /// How many seconds a turn may take.
    pub limit_seconds: f64,
    /// What it does in its turn; absent while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}
