//! What a guest says of itself, by the agent in it and by its service manager.
//!
//! All of it is the guest's word; what makes it useful is that the broker knows which guest said
//! it, and when.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a guest is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Contact {
    /// Its agent has not been heard since it started.
    None,
    /// Its agent beats.
    Ok,
    /// Its agent beat, and does not any more.
    Lost,
    /// Its agent beat, and the partition is paused.
    Paused,
}

/// How a guest says that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It does not say.
    #[default]
    Unknown,
    /// It still starts.
    Starting,
    /// It has started.
    Ok,
    /// It runs, without something that it cannot do without.
    Critical,
    /// It powers off or reboots.
    Stopping,
}

/// A guest as it is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// Whether its agent is heard.
    pub contact: Contact,
    /// Seconds since its agent was last heard.
    pub heard_seconds: Option<f64>,
    /// Whether it has started, as its service manager or its agent says.
    pub ready: bool,
    /// What its agent said last.
    pub report: Option<GuestReport>,
    /// What its service manager said last.
    pub notice: Option<GuestNotice>,
}

/// What a guest's agent says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestReport {
    /// How it is.
    pub health: Health,
    /// Its service manager's own word for that; empty without one.
    pub manager: String,
    /// Beats of this agent.
    pub beats: u64,
    /// Seconds since its kernel started.
    pub uptime_seconds: f64,
    /// The load averages of the last 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Bytes of its memory.
    pub memory_total_bytes: u64,
    /// Bytes of it that programs could still get.
    pub memory_available_bytes: u64,
    /// What seldom changes.
    pub facts: GuestFacts,
    /// How its clock stands to the host's, once that was measured.
    pub clock: Option<GuestClock>,
}

/// What seldom changes about a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    /// Its IP addresses, but for those of loopback.
    pub addresses: Vec<String>,
    /// What its agent offers.
    pub services: Vec<GuestService>,
}

/// Whether a guest's agent offers a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestService {
    /// The service's vsock port.
    pub port: u32,
    /// Whether the agent listens for it.
    pub offered: bool,
    /// Why not.
    pub problem: Option<String>,
}

/// Who keeps a guest's clock right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClockKeeper {
    /// It does not say.
    #[default]
    Unknown,
    /// Its agent.
    Agent,
    /// Another program in it, such as an NTP client.
    Other,
    /// The host: a container has no clock of its own.
    Host,
}

/// How a guest's clock stands to the host's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestClock {
    /// How far it is ahead, in seconds.
    pub offset_seconds: f64,
    /// The truth is within so many seconds of it.
    pub error_seconds: f64,
    /// Seconds since it was measured, when it was reported.
    pub age_seconds: f64,
    /// Who keeps it right.
    pub keeper: ClockKeeper,
}

/// What a guest's service manager says of its start (`sd_notify`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestNotice {
    /// Whether it said `READY=1`.
    pub ready: bool,
    /// Whether it said `STOPPING=1`.
    pub stopping: bool,
    /// Its last `STATUS=`.
    pub status: Option<String>,
    /// Its last `ERRNO=`.
    pub errno: Option<u32>,
    /// Its last `EXIT_STATUS=`, with which it wants the machine to end.
    pub exit_status: Option<u32>,
    /// Further variables by name, such as `X_SYSTEMD_HOSTNAME`.
    pub more: std::collections::BTreeMap<String, String>,
}

/// Something to ask a guest's agent for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGuestOrder {
    /// What.
    pub order: GuestOrder,
}

/// What an operator asks a guest's agent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestOrder {
    /// To measure how its clock stands to the host's, and to correct it.
    SyncClock,
}
