//! Listeners and leases whose processes have closed them, while the broker has not read that yet.
//!
//! One turn of the event loop reads new clients after the sessions whose events the last poll returned. A process
//! that closes a listener and listens again may come in between, and would be refused its own address. So a request
//! that an existing listener or lease is in the way of looks at that one's socket first.

use hvsock_address::ServiceId;
use hvsock_fabric::{Partition, PartitionKey};

use super::session_io::is_gone;
use super::state::Core;

/// Most turns that a closed session gets for the messages that it sent before.
const MAX_TURNS: usize = 64;

impl Core {
    /// Closes a partition's listeners for a service whose processes have closed them. Returns whether there were any.
    pub(super) fn close_gone_listeners(
        &mut self,
        partition: PartitionKey,
        service: ServiceId,
    ) -> bool {
        // The socket of such a listener's session is the broker's own. It is closed with that of its program.
        for index in self.text_listeners.gone(partition) {
            self.text_listener_event(index);
        }
        let listeners = self.fabric.partition(partition).map(Partition::listeners);
        let sessions: Vec<_> = listeners
            .into_iter()
            .flatten()
            .filter_map(|id| self.listeners.get(id))
            .filter(|record| record.address.service == service)
            .filter_map(|record| record.session)
            .collect();
        let mut any = false;
        for index in sessions {
            any |= self.close_if_gone(index);
        }
        any
    }

    /// Ends the lease of a service if its process has closed it. Returns whether it did.
    pub(super) fn close_gone_lease(&mut self, service: ServiceId) -> bool {
        let session = self.leases.session(service);
        session.is_some_and(|index| self.close_if_gone(index))
    }

    /// Reads what a session that its process has closed still has to say, and closes it.
    fn close_if_gone(&mut self, index: usize) -> bool {
        let is_gone = |core: &Self| core.sessions.get(index).is_some_and(is_gone);
        if !is_gone(self) {
            return false;
        }
        for _ in 0..MAX_TURNS {
            self.session_ready(index);
            if !is_gone(self) {
                break;
            }
        }
        true
    }
}
