//! A broker at a glance, and what it says when a request fails.

use std::path::PathBuf;

use hvsock_address::PartitionName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The broker at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
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
    #[schema(value_type = String)]
    pub run_dir: PathBuf,
    /// The folder of its configuration.
    #[schema(value_type = String)]
    pub config_dir: PathBuf,
    /// The name of the partition that it serves.
    #[schema(value_type = String)]
    pub partition: PartitionName,
    /// How many registrations there are.
    pub services: usize,
    /// How many partitions there are, its own among them.
    pub partitions: usize,
    /// How many listeners there are.
    pub listeners: usize,
    /// How many connections there are.
    pub connections: usize,
    /// Configuration files that could not be read, one sentence each.
    pub problems: Vec<String>,
}

/// What went wrong with a request, for programs and for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// One sentence, with the next step where there is one.
    pub error: String,
}
