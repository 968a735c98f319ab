//! The host of the virtual machine that this broker runs in: the fabric's outer partition.
//!
//! The link to it is an [`UplinkClient`]. This is what the core has beside that: what the host has said about
//! containers, the ports of this machine that listen for it, and who waits for what the host will say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use hvsock_address::{ElementName, ServiceId, VmId};
use hvsock_fabric::{ListenerId, PartitionKey};

use super::outer_held::{HeldExplanation, HeldRequest};
use super::outer_waits::Waits;
use crate::uplink_client::{UplinkClient, UplinkState};

/// The name of the host until it has told one.
pub(super) const UNNAMED: &str = "the-host";

/// The outer partition.
#[derive(Debug)]
pub(super) struct Outer {
    pub(super) key: PartitionKey,
    pub(super) client: UplinkClient,
    /// An operator requires the uplink, so that it is a problem if there is none.
    pub(super) is_required: bool,
    pub(super) state: UplinkState,
    /// Whether there ever was an uplink.
    pub(super) was_open: bool,
    /// Since when it has this state.
    pub(super) since: Instant,
    /// What the host has said to the announcement of a container: its name there, or why it is refused.
    pub(super) announced: HashMap<VmId, Result<String, String>>,
    pub(super) ports: OwnPorts,
    /// The service that the host has just looked up, for the request that asked for it.
    pub(super) looked_up: Option<(ElementName, ServiceId)>,
    pub(super) waits: Waits<HeldRequest, HeldExplanation>,
}

/// The vsock ports of this machine that listen for the host, each for the listeners of one service.
#[derive(Debug, Default)]
pub(super) struct OwnPorts {
    by_port: BTreeMap<u32, BTreeSet<ListenerId>>,
    by_listener: HashMap<ListenerId, u32>,
}

impl OwnPorts {
    /// Adds a listener.
    pub(super) fn add(&mut self, port: u32, listener: ListenerId) {
        self.by_port.entry(port).or_default().insert(listener);
        self.by_listener.insert(listener, port);
    }

    /// Removes a listener. Returns its port if that has no other.
    pub(super) fn remove(&mut self, listener: ListenerId) -> Option<u32> {
        let port = self.by_listener.remove(&listener)?;
        let listeners = self.by_port.get_mut(&port)?;
        listeners.remove(&listener);
        listeners.is_empty().then(|| {
            self.by_port.remove(&port);
            port
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_closed_with_its_last_listener() {
        let mut ports = OwnPorts::default();
        let [a, b, c] = [1, 2, 3].map(ListenerId::from_u64);
        ports.add(7, a);
        ports.add(7, b);
        ports.add(8, c);
        assert_eq!(ports.remove(a), None);
        assert_eq!(ports.remove(a), None);
        assert_eq!(ports.remove(b), Some(7));
        assert_eq!(ports.remove(c), Some(8));
    }
}
