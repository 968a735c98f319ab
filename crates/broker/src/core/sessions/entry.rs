//! How a process reached the broker.

use hvsock_endpoint::{HybridRequestReader, TextRequestReader};
use hvsock_fabric::PartitionKey;

/// The socket that a process connected to, and with it the protocol of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The endpoint of its partition.
    Endpoint,
    /// The text protocol's socket of its partition.
    Text(TextEntry),
    /// The hybrid vsock socket of a VM.
    Hybrid(HybridEntry),
}

/// A process that speaks the text protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextEntry {
    /// What has arrived of its request.
    pub(crate) request: TextRequestReader,
    /// It has given a port only, as Firecracker has it, and is answered with a number.
    pub(crate) by_port: bool,
}

/// A process at the hybrid vsock socket of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HybridEntry {
    pub(crate) vm: PartitionKey,
    /// What has arrived of its request.
    pub(crate) request: HybridRequestReader,
}

impl Entry {
    /// The hybrid vsock socket of this VM, for a process that has sent nothing.
    pub(crate) fn hybrid(vm: PartitionKey) -> Self {
        let request = HybridRequestReader::default();
        Self::Hybrid(HybridEntry { vm, request })
    }
}
