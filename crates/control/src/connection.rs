//! Listeners and connections, with the processes or guests at their ends.

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A socket that accepts connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Listener {
    /// Its number.
    pub id: u64,
    /// The service that it offers.
    #[schema(value_type = String, format = Uuid)]
    pub service: ServiceId,
    /// The service's friendly name, where it is registered.
    #[schema(value_type = Option<String>)]
    pub service_name: Option<ElementName>,
    /// Whom it accepts from: a well-known word, or a partition's name or id.
    pub from: String,
    /// The process behind it.
    pub end: End,
    /// How many connections may wait to be taken.
    pub backlog: u32,
    /// How many wait now.
    pub waiting: u32,
    /// Seconds since it began.
    pub age_seconds: f64,
}

/// A process, or a guest, at one end of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// The name of its partition.
    #[schema(value_type = String)]
    pub partition: PartitionName,
    /// The id of its partition.
    #[schema(value_type = String, format = Uuid)]
    pub vm_id: VmId,
    /// Whether it is a guest, of whose processes and users only its own kernel knows.
    #[serde(default)]
    pub guest: bool,
    /// Its process id on this machine; a guest has none, which is 0.
    pub pid: u32,
    /// Its user id on this machine; a guest has none, which is 4294967295.
    pub uid: u32,
    /// Its user's name on this machine.
    pub user: Option<String>,
    /// Whether it set `HVSOCKET_CONNECTED_SUSPEND`.
    pub connected_suspend: bool,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Waiting for the listener to take it.
    Waiting,
    /// Data may flow.
    Open,
    /// Kept, and standing still, while a partition is paused.
    Suspended,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Its number.
    pub id: u64,
    /// The service.
    #[schema(value_type = String, format = Uuid)]
    pub service: ServiceId,
    /// The service's friendly name, where it is registered.
    #[schema(value_type = Option<String>)]
    pub service_name: Option<ElementName>,
    /// The end that connected.
    pub from: End,
    /// The end that accepted.
    pub to: End,
    /// How its bytes move: `ring`, between its ends, or `descriptor`, through the broker.
    pub transport: String,
    /// How it stands.
    pub state: ConnectionState,
    /// Bytes from the connecting end to the accepting end; with a ring, as that end says.
    pub bytes_sent: u64,
    /// Bytes from the accepting end to the connecting end; with a ring, as that end says.
    pub bytes_received: u64,
    /// Seconds since it began.
    pub age_seconds: f64,
}
