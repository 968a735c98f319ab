//! How a process reached the broker.

use hvsock_endpoint::HybridRequestReader;
use hvsock_fabric::PartitionKey;

/// The socket that a process connected to, and with it the protocol of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The endpoint of its partition.
    Endpoint,
    /// The hybrid vsock socket of a VM.
    Hybrid(HybridEntry),
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
