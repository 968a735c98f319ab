//! Listeners and connections, and the processes or guests at their ends.

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use serde::{Deserialize, Serialize};

/// A socket that accepts connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Listener {
    /// Its number.
    pub id: u64,
    /// The service that it offers.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub service: ServiceId,
    /// The service's friendly name, where it is registered.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub service_name: Option<ElementName>,
    /// The partitions that it accepts from: a well-known word, or a partition's name or id.
    pub from: String,
    /// The process that listens.
    pub end: ConnectionEnd,
    /// The number of connections that may wait to be accepted.
    pub backlog: u32,
    /// The number of connections that wait now.
    pub waiting: u32,
    /// Its age in seconds.
    pub age_seconds: f64,
}

/// A process, or a guest, at one end of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConnectionEnd {
    /// The name of its partition.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub partition: PartitionName,
    /// The id of its partition.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub vm_id: VmId,
    /// Whether it is a guest. The broker cannot see the processes and users of a guest.
    #[serde(default)]
    pub guest: bool,
    /// Its process id on this machine; 0 for a guest.
    pub pid: u32,
    /// Its user id on this machine; 4294967295 for a guest.
    pub uid: u32,
    /// Its user's name on this machine.
    pub user: Option<String>,
    /// Whether it set `HVSOCKET_CONNECTED_SUSPEND`.
    pub connected_suspend: bool,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Waiting to be accepted by the listener.
    Waiting,
    /// Data may flow.
    Open,
    /// Suspended while a partition is paused.
    Suspended,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Connection {
    /// Its number.
    pub id: u64,
    /// The service.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
    pub service: ServiceId,
    /// The service's friendly name, where it is registered.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub service_name: Option<ElementName>,
    /// The end that connected.
    pub from: ConnectionEnd,
    /// The end that accepted.
    pub to: ConnectionEnd,
    /// Its transport: `ring`, directly between its ends, `arena`, likewise and opened by them without the
    /// broker, `descriptor`, through the broker, or `direct`, one socket pair of its ends.
    pub transport: String,
    /// The arena that it is in. Connections with the same number share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arena: Option<u64>,
    /// Its state.
    pub state: ConnectionState,
    /// Bytes from the connecting end to the accepting end. With a ring or an arena, the sender's own counter. Absent
    /// for a direct connection, whose bytes are not counted.
    #[serde(default)]
    pub bytes_sent: Option<u64>,
    /// Bytes from the accepting end to the connecting end, likewise.
    #[serde(default)]
    pub bytes_received: Option<u64>,
    /// Its age in seconds.
    pub age_seconds: f64,
}
