//! The status of a broker, and the body of its error responses.

use std::path::PathBuf;

use hvsock_address::PartitionName;
use serde::{Deserialize, Serialize};

use crate::{BrokerThread, Confinement, FixReport, Problem, SharedResource};

/// The status of the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// The broker's version.
    pub version: String,
    /// The broker's process id.
    pub pid: u32,
    /// The user id that the broker runs as.
    pub uid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The folder of its sockets.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub run_dir: PathBuf,
    /// The folder of its configuration.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub config_dir: PathBuf,
    /// The name of the partition that it serves.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub partition: PartitionName,
    /// The number of registrations.
    pub services: usize,
    /// The number of partitions, including its own.
    pub partitions: usize,
    /// The number of listeners.
    pub listeners: usize,
    /// The number of connections.
    pub connections: usize,
    /// What the broker cannot do as it should.
    pub problems: Vec<Problem>,
    /// The broker's descriptors that processes and guests use.
    #[serde(default)]
    pub descriptors: SharedResource,
    /// The messages with descriptors that processes have not received yet.
    #[serde(default)]
    pub unread_messages: SharedResource,
    /// The broker's threads that the watchdog watches.
    #[serde(default)]
    pub threads: Vec<BrokerThread>,
    /// What the broker has taken from itself. An older one does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<Confinement>,
}

/// The body of an error response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The error as one sentence.
    pub error: String,
    /// What would help, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<FixReport>,
}
