//! What the host is told of this machine: its containers and their states, and the ports at which it listens.

use hvsock_address::{SockAddrHv, VmId};
use hvsock_endpoint::uplink::ChildState;
use hvsock_fabric::{ListenerId, PartitionKey, PartitionKind, PartitionState, Refusal};

use super::state::Core;
use crate::model::{self, UplinkStatus};
use crate::uplink_client::UplinkState;

impl Core {
    /// Announces a container that was added.
    pub(super) fn announce(&mut self, key: PartitionKey) {
        if let Some(outer) = &self.outer
            && let Some(partition) = self.fabric.partition(key)
            && partition.kind() == PartitionKind::Container
        {
            let state = child_state(partition.state());
            let (id, name) = (partition.vm_id(), partition.name().as_str());
            outer.client.add_child(id, name, state);
        }
    }

    /// Announces a container's new state.
    pub(super) fn announce_state(&mut self, key: PartitionKey) {
        if let Some(outer) = &self.outer
            && let Some(partition) = self.fabric.partition(key)
        {
            let state = child_state(partition.state());
            outer.client.set_child_state(partition.vm_id(), state);
        }
    }

    /// Withdraws a container that is being removed.
    pub(super) fn withdraw(&mut self, key: PartitionKey) {
        if let Some(outer) = &mut self.outer
            && let Some(partition) = self.fabric.partition(key)
        {
            outer.client.remove_child(partition.vm_id());
            outer.announced.remove(&partition.vm_id());
        }
    }

    /// Why the host does not know a container, in words.
    pub(super) fn refusal_at_host(&self, id: VmId) -> Option<String> {
        let answer = self.outer.as_ref()?.announced.get(&id)?;
        let why = answer.as_ref().err()?;
        Some(format!("the host does not reach it: {why}"))
    }

    /// The uplink to a partition, if that is the host.
    pub(super) fn uplink_status(&self, key: PartitionKey) -> Option<UplinkStatus> {
        let outer = self.outer.as_ref().filter(|outer| outer.key == key)?;
        let (state, welcome, reason) = match &outer.state {
            UplinkState::Connecting => (model::UplinkState::Connecting, None, None),
            UplinkState::Open(welcome) => (model::UplinkState::Open, Some(welcome), None),
            UplinkState::Down(why) => (model::UplinkState::Down, None, Some(why.to_string())),
        };
        Some(UplinkStatus {
            state,
            age_seconds: outer.since.elapsed().as_secs_f64(),
            name_at_host: welcome.map(|welcome| welcome.machine_name.clone()),
            id_at_host: welcome.map(|welcome| welcome.machine),
            reason,
        })
    }

    /// Listens at the vsock port of a service for the host, if a listener of the own partition accepts from it.
    ///
    /// # Errors
    ///
    /// If the port cannot be had; [`Refusal::ServiceNotMappable`] if the service has none.
    pub(super) fn open_own_port(
        &mut self,
        id: ListenerId,
        from: PartitionKey,
        address: SockAddrHv,
    ) -> Result<(), Refusal> {
        let own = self.fabric.root();
        let Some(outer) = &mut self.outer else {
            return Ok(());
        };
        let host = self.fabric.partition(outer.key);
        let of_host = host.is_some_and(|host| host.vm_id() == address.vm);
        let is_for_host = match address.vm {
            VmId::WILDCARD | VmId::PARENT => true,
            _ => of_host,
        };
        if from != own || !is_for_host {
            return Ok(());
        }
        let Some(port) = address.service.port_for_guests() else {
            // Others than the host may still connect to the wildcard.
            return match address.vm {
                VmId::WILDCARD => Ok(()),
                _ => Err(Refusal::ServiceNotMappable),
            };
        };
        outer.client.open_port(port, address.service)?;
        outer.ports.add(port, id);
        Ok(())
    }

    /// Stops listening for a listener that is gone.
    pub(super) fn close_own_port(&mut self, id: ListenerId) {
        if let Some(outer) = &mut self.outer
            && let Some(port) = outer.ports.remove(id)
        {
            outer.client.close_port(port);
        }
    }
}

/// A container's state for the host.
fn child_state(state: PartitionState) -> ChildState {
    match state {
        PartitionState::Defined | PartitionState::Connected => ChildState::Defined,
        PartitionState::Running => ChildState::Running,
        PartitionState::Paused => ChildState::Paused,
        PartitionState::Exited | PartitionState::Off => ChildState::Exited,
        PartitionState::Unknown => ChildState::Unknown,
    }
}
