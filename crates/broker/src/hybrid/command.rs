//! What the core and the thread of a link share: the core's commands, and the VM's state.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hvsock_endpoint::HybridService;
use hvsock_sys::sync::lock;

use crate::guest_link::{ConnectionId, OfferedService, PartitionState, RequestId};

/// Where the VMM's socket is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) name: OsString,
}

/// A command of the core.
#[derive(Debug)]
pub(super) enum Command {
    /// Connect to a service of the guest, under the first of these names that it knows.
    Connect {
        connection: ConnectionId,
        names: Vec<HybridService>,
        timeout: Duration,
    },
    /// Give up a connect.
    GiveUp(ConnectionId),
    /// The services of the host.
    Services(Vec<OfferedService>),
    /// A request of the guest is answered.
    Answered(RequestId),
    /// End.
    Stop,
}

/// The VM's state, which the thread changes.
#[derive(Clone, Debug)]
pub(super) struct SharedState(Arc<Mutex<PartitionState>>);

impl SharedState {
    pub(super) fn new(state: PartitionState) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    pub(super) fn get(&self) -> PartitionState {
        *lock(&self.0)
    }

    pub(super) fn set(&self, state: PartitionState) {
        *lock(&self.0) = state;
    }
}
