//! The uplinks of brokers in guests.
//!
//! The connection is a client of [`uplink_server`](super::uplink_server), by whose index it is known here.

use hvsock_endpoint::uplink::{GuestFrame, Hello};
use hvsock_fabric::{PartitionKey, Refusal};

use super::state::Core;

impl Core {
    /// A guest's broker opens an uplink: the root of `vm` has connected and sent HELLO. The connection is
    /// `client` of [`uplink_clients`](Self::uplink_clients). To keep it, set its role to `Role::Uplink`.
    pub(super) fn open_uplink(&mut self, client: usize, _vm: PartitionKey, _hello: &Hello) {
        self.refuse_uplink_client(client, &Refusal::NotSupported);
    }

    /// A frame of an uplink has arrived.
    pub(super) fn uplink_frame(&mut self, client: usize, _frame: GuestFrame) {
        self.fail_uplink_client(client, "a frame that is not expected");
    }

    /// An uplink has ended. Its connection is closed when this returns.
    pub(super) fn uplink_ended(&mut self, _client: usize) {}
}
