//! The events of a broker.

use serde::{Deserialize, Serialize};

use crate::{AuditRecord, PartitionState, ProblemKind};

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// The time in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// The kinds of event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A service was registered.
    ServiceRegistered {
        /// The service as it is now.
        service: String,
    },
    /// A service's registration changed.
    ServiceChanged {
        /// The service.
        service: String,
        /// Whether it is enabled now.
        enabled: bool,
    },
    /// A service was unregistered.
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
    /// A guest's agent connected, for the first time or again.
    GuestAgentConnected {
        /// The guest's partition.
        partition: String,
    },
    /// A guest's agent is lost: its heartbeats stopped while its partition runs.
    GuestAgentLost {
        /// The guest's partition.
        partition: String,
        /// Milliseconds since the last heartbeat.
        silent_ms: u64,
    },
    /// A guest reports that it has started, through its service manager or its agent.
    GuestReady {
        /// The guest's partition.
        partition: String,
    },
    /// The broker in a guest connected: its containers can be reached.
    GuestBrokerConnected {
        /// The guest's partition.
        partition: String,
    },
    /// The broker in a guest is gone, and its containers with it.
    GuestBrokerLost {
        /// The guest's partition.
        partition: String,
        /// Why, as a clause.
        reason: String,
    },
    /// A listener opened.
    ListenerOpened {
        /// Its number.
        listener: u64,
        /// Its service.
        service: String,
        /// Its partition.
        partition: String,
    },
    /// A listener closed.
    ListenerClosed {
        /// Its number.
        listener: u64,
        /// Its service.
        service: String,
        /// Its partition.
        partition: String,
        /// The reason, if it was reset.
        reason: Option<String>,
    },
    /// Connections of a pair of processes that share an arena opened and closed again before the broker
    /// saw them.
    ConnectionsCounted {
        /// Their service.
        service: String,
        /// The partition that they came from.
        from: String,
        /// The partition that they led to.
        to: String,
        /// How many, as the pair claims.
        connections: u64,
    },
    /// A connection opened.
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
    /// A connection closed.
    ConnectionClosed {
        /// Its number.
        connection: u64,
        /// Its service.
        service: String,
        /// Bytes from the connecting end. Absent for a direct connection, whose bytes are not counted.
        #[serde(default)]
        bytes_sent: Option<u64>,
        /// Bytes from the accepting end, likewise.
        #[serde(default)]
        bytes_received: Option<u64>,
        /// The reason, if it was reset.
        reason: Option<String>,
    },
    /// A connect or listen was refused.
    Refused {
        /// The partition of the caller.
        from: String,
        /// The address of the request.
        address: String,
        /// The label of the refusal, such as `no_listener`.
        reason: String,
        /// The refusal as one sentence.
        message: String,
    },
    /// The uplink to the host of this virtual machine is open.
    UplinkOpened {
        /// The host's name.
        host: String,
        /// The name that this virtual machine has there.
        partition: String,
    },
    /// The uplink to the host of this virtual machine has ended.
    UplinkLost {
        /// Why.
        reason: String,
    },
    /// The broker cannot do something as it should, such as read a configuration file.
    ProblemFound {
        /// The kind of the problem.
        kind: ProblemKind,
        /// The problem as one sentence, with file and line if it concerns a file.
        problem: String,
    },
    /// A problem is gone.
    ProblemSolved {
        /// The kind of the problem.
        kind: ProblemKind,
        /// The problem as it was last reported.
        problem: String,
    },
    /// A record of the audit. Sent to those who ask for it, and to an unprivileged user only about that
    /// user.
    Audit {
        /// The record.
        record: Box<AuditRecord>,
    },
    /// The stream ends here, because the broker is being handed over. What follows is in a stream that is opened with
    /// the parameter `resume`, soon.
    HandedOver {
        /// The parameter.
        resume: String,
    },
    /// Events are missing here, because the reader was too slow.
    Missed {
        /// The number of missing events.
        events: u64,
    },
}
