//! What happens, for those who follow along.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::PartitionState;

/// Something that happened, for those who follow along.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// The kinds of event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A service was registered.
    ServiceRegistered {
        /// The service as it is now.
        service: String,
    },
    /// A service's entry changed.
    ServiceChanged {
        /// The service.
        service: String,
        /// Whether it may be used now.
        enabled: bool,
    },
    /// A service's entry is gone.
    ServiceUnregistered {
        /// The service.
        service: String,
    },
    /// A partition was added.
    PartitionAdded {
        /// Its name.
        partition: String,
    },
    /// A partition was removed.
    PartitionRemoved {
        /// Its name.
        partition: String,
    },
    /// A partition's state changed.
    PartitionState {
        /// Its name.
        partition: String,
        /// Its state now.
        state: PartitionState,
    },
    /// A guest's agent is heard, for the first time or again.
    GuestContact {
        /// The guest's partition.
        partition: String,
    },
    /// A guest's agent is not heard any more, though its partition runs.
    GuestContactLost {
        /// The guest's partition.
        partition: String,
        /// Milliseconds since it was heard last.
        silent_ms: u64,
    },
    /// A guest has started, as its service manager or its agent says.
    GuestReady {
        /// The guest's partition.
        partition: String,
    },
    /// A listener began.
    ListenerOpened {
        /// Its number.
        listener: u64,
        /// Its service.
        service: String,
        /// Its partition.
        partition: String,
    },
    /// A listener ended.
    ListenerClosed {
        /// Its number.
        listener: u64,
        /// Its service.
        service: String,
        /// Its partition.
        partition: String,
        /// Why, if it was cut.
        reason: Option<String>,
    },
    /// A connection began.
    ConnectionOpened {
        /// Its number.
        connection: u64,
        /// Its service.
        service: String,
        /// The partition that connected.
        from: String,
        /// The partition that accepted.
        to: String,
    },
    /// A connection ended.
    ConnectionClosed {
        /// Its number.
        connection: u64,
        /// Its service.
        service: String,
        /// Bytes from the connecting end.
        bytes_sent: u64,
        /// Bytes from the accepting end.
        bytes_received: u64,
        /// Why, if it was cut or broke.
        reason: Option<String>,
    },
    /// A connect or listen was refused.
    Refused {
        /// The partition that asked.
        from: String,
        /// The address that was asked for.
        address: String,
        /// The refusal's word.
        reason: String,
        /// The refusal's sentence.
        message: String,
    },
    /// A configuration file cannot be read.
    ConfigProblem {
        /// One sentence with file and line.
        problem: String,
    },
    /// The reader was too slow; events are missing here.
    Missed {
        /// How many.
        events: u64,
    },
}
