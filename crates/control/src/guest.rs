//! The liveness and status of a guest, as reported by its agent and its service manager.
//!
//! The guest can report any value. The broker adds which guest reported it, and when.

use serde::{Deserialize, Serialize};

/// The liveness of a guest's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// No heartbeat since the guest started.
    None,
    /// The agent is connected and sends heartbeats.
    Connected,
    /// The agent is lost: its heartbeats stopped.
    Lost,
    /// The agent was connected when the partition was paused.
    Paused,
}

/// The health that a guest reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not reported.
    #[default]
    Unknown,
    /// The guest is starting.
    Starting,
    /// The guest has started.
    Ok,
    /// The guest runs, but something essential has failed.
    Critical,
    /// The guest is powering off or rebooting.
    Stopping,
}

/// The last known status of a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Guest {
    /// The liveness of its agent.
    pub agent: AgentState,
    /// Seconds since the last heartbeat of its agent.
    pub last_seen_seconds: Option<f64>,
    /// Whether it has started, as reported by its service manager or its agent.
    pub ready: bool,
    /// The last report of its agent.
    pub report: Option<GuestReport>,
    /// The last notice of its service manager.
    pub notice: Option<GuestNotice>,
}

/// A report of a guest's agent, sent with each heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestReport {
    /// The health of the guest.
    pub health: Health,
    /// The state that its service manager reports; empty without a service manager.
    pub manager: String,
    /// The number of heartbeats of this agent.
    pub beats: u64,
    /// Seconds since its kernel started.
    pub uptime_seconds: f64,
    /// The load averages of the last 1, 5 and 15 minutes.
    #[cfg_attr(feature = "openapi", schema(min_items = 3, max_items = 3))]
    pub load: [f64; 3],
    /// Its memory in bytes.
    pub memory_total_bytes: u64,
    /// The memory that is available to programs, in bytes.
    pub memory_available_bytes: u64,
    /// Properties that rarely change.
    pub facts: GuestFacts,
    /// The offset of its clock, once measured.
    pub clock: Option<GuestClock>,
}

/// Properties of a guest that rarely change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestFacts {
    /// Its kernel's random id of this boot.
    pub boot_id: String,
    /// Its agent's version.
    pub agent: String,
    /// Its operating system.
    pub os: String,
    /// Its kernel's release.
    pub kernel: String,
    /// Its host name.
    pub hostname: String,
    /// Its IP addresses, without loopback.
    pub addresses: Vec<String>,
    /// The services of its agent.
    pub services: Vec<GuestService>,
}

/// Whether a guest's agent offers a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestService {
    /// The service's vsock port.
    pub port: u32,
    /// Whether the agent listens for it.
    pub offered: bool,
    /// Why it does not.
    pub problem: Option<String>,
}

/// The program that synchronizes a guest's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ClockKeeper {
    /// Not reported.
    #[default]
    Unknown,
    /// The agent in the guest.
    Agent,
    /// Another program in the guest, such as an NTP client.
    Other,
    /// The host: a container uses the host's clock.
    Host,
}

/// The offset of a guest's clock from the host's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestClock {
    /// The offset in seconds; positive if the guest's clock is ahead.
    pub offset_seconds: f64,
    /// The maximum error of the offset in seconds.
    pub error_seconds: f64,
    /// The age of the measurement in seconds at the time of the report.
    pub age_seconds: f64,
    /// The program that synchronizes it.
    pub keeper: ClockKeeper,
}

/// The state that a guest's service manager sends with `sd_notify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestNotice {
    /// Whether it sent `READY=1`.
    pub ready: bool,
    /// Whether it sent `STOPPING=1`.
    pub stopping: bool,
    /// Its last `STATUS=`.
    pub status: Option<String>,
    /// Its last `ERRNO=`.
    pub errno: Option<u32>,
    /// Its last `EXIT_STATUS=`: the exit status that it requests for the machine.
    pub exit_status: Option<u32>,
    /// Further variables by name, such as `X_SYSTEMD_HOSTNAME`.
    pub more: std::collections::BTreeMap<String, String>,
}

/// A request to send a command to a guest's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewGuestCommand {
    /// The command.
    pub command: GuestCommand,
}

/// A command for a guest's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum GuestCommand {
    /// Measure the offset of the guest's clock from the host's, and correct it.
    SyncClock,
}
