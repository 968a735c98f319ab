//! What a broker that has taken over another does first: give up half-open connections, and handle the requests
//! again that waited.

use hvsock_endpoint::ClientMessage;
use hvsock_fabric::{ConnectionId, PartitionKey};

/// What is done once this broker has committed.
#[derive(Debug, Default)]
pub(super) struct Replays {
    /// Requests by the serial numbers of their sessions.
    pub(super) requests: Vec<(u64, ClientMessage)>,
    /// Connections that the links of VMs have been asked for.
    pub(super) given_up: Vec<(PartitionKey, ConnectionId)>,
}
