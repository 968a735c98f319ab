//! Opens listeners and connections for processes, or explains whether that would succeed.

use hvsock_address::{ServiceId, SockAddrHv, VmId};

use crate::boundary::Boundary;
use crate::limits::check_room;
use crate::partition::Partition;
use crate::plan::Plan;
use crate::tables::{Binding, Connection, Listener};
use crate::trace::{Audience, NoTrace, Recorder};
use crate::tree::Relation;
use crate::{
    Block, ConnectRequest, ConnectionId, Destination, Explanation, Fabric, ListenRequest,
    ListenerId, PartitionKey, Refusal, Route, Verdict,
};

impl Fabric {
    /// What [`connect`](Self::connect) would return, and why. Changes nothing.
    pub fn explain_connect(&self, request: &ConnectRequest<'_>, audience: Audience) -> Explanation {
        let mut recorder = Recorder::new(audience);
        let plan = self.evaluate_connect(request, Block::SINGLE.weight, &mut recorder);
        recorder.explain(plan.map(|plan| match plan.destination {
            _ if !self.sees_listeners => Verdict::SystemDecides,
            _ if Some(plan.target) == self.tree.outer() => Verdict::HostDecides,
            Destination::Listener(_) => Verdict::Connect,
            Destination::Guest => Verdict::GuestDecides,
        }))
    }

    /// What [`listen`](Self::listen) would return, and why. Changes nothing.
    pub fn explain_listen(&self, request: &ListenRequest<'_>, audience: Audience) -> Explanation {
        let mut recorder = Recorder::new(audience);
        let binding = self.evaluate_listen(request, &mut recorder);
        recorder.explain(binding.map(|_| match self.sees_listeners {
            true => Verdict::Listen,
            false => Verdict::SystemDecides,
        }))
    }

    /// Creates a listener.
    ///
    /// # Errors
    /// The [`Refusal`] of the first check that fails. Nothing is changed.
    pub fn listen(&mut self, request: &ListenRequest<'_>) -> Result<ListenerId, Refusal> {
        let binding = self.evaluate_listen(request, &mut NoTrace)?;
        let id = self.next_listener;
        self.next_listener = id.after(1);
        let listener = Listener {
            partition: request.from,
            vm: request.vm,
            binding,
            service: request.service,
            principal: request.principal.clone(),
            backlog: request.backlog.clamp(1, self.limits.backlog_max.max(1)),
            waiting: Default::default(),
            owners: self.owners_of(request.from, binding),
        };
        self.insert_listener(id, listener);
        Ok(id)
    }

    /// Creates a pending connection to a listener or a guest.
    ///
    /// # Errors
    /// The [`Refusal`] of the first check that fails. Nothing is changed.
    pub fn connect(&mut self, request: &ConnectRequest<'_>) -> Result<Route, Refusal> {
        self.connect_block(request, Block::SINGLE)
    }

    /// As [`connect`](Self::connect), for a connection that stands for many. It takes one slot of the
    /// listener's backlog.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`Refusal::LimitReached`] unless its whole weight fits.
    pub fn connect_block(
        &mut self,
        request: &ConnectRequest<'_>,
        block: Block,
    ) -> Result<Route, Refusal> {
        let weight = block.weight.max(1);
        let plan = self.evaluate_connect(request, weight, &mut NoTrace)?;
        let id = self.next_connection;
        self.next_connection = id.after(block.ids.max(1));
        let connection = Connection {
            source: request.from,
            target: plan.target,
            destination: plan.destination,
            service: request.service,
            registry: plan.registry,
            waiting: true,
            suspended: false,
            client_connected_suspend: false,
            server_connected_suspend: false,
            weight,
        };
        self.insert_connection(id, connection);
        Ok(self.route(id, request, &plan))
    }

    /// Changes how many connections a connection counts as.
    ///
    /// # Errors
    /// [`Refusal::LimitReached`] if the additional weight does not fit, [`Refusal::NoListener`] if
    /// there is no such connection. Nothing is changed then.
    pub fn set_weight(&mut self, id: ConnectionId, weight: u32) -> Result<(), Refusal> {
        let weight = weight.max(1);
        let connection = self.connections.get(&id).ok_or(Refusal::NoListener)?;
        let more = weight.saturating_sub(connection.weight);
        if more > 0 {
            let limits = &self.limits;
            check_room("connections", self.weight, more, limits.connections)?;
            let limit = limits.connections_per_partition;
            for key in [connection.source, connection.target] {
                let used = self.tree.get(key).map_or(0, |partition| partition.weight);
                check_room("connections_per_partition", used, more, limit)?;
            }
        }
        if let Some(mut connection) = self.forget_connection(id) {
            connection.weight = weight;
            self.insert_connection(id, connection);
        }
        Ok(())
    }

    fn route(&self, connection: ConnectionId, request: &ConnectRequest<'_>, plan: &Plan) -> Route {
        let id_of = |key| self.tree.get(key).map_or(VmId::ZERO, Partition::vm_id);
        let (server, client) = match plan.relation {
            Relation::Itself => (VmId::LOOPBACK, VmId::LOOPBACK),
            Relation::Parent => (VmId::PARENT, id_of(request.from)),
            Relation::Child => (id_of(plan.target), VmId::PARENT),
            Relation::Sibling | Relation::Grandparent | Relation::Grandchild => {
                (id_of(plan.target), id_of(request.from))
            }
        };
        Route {
            connection,
            destination: plan.destination,
            target: plan.target,
            server: SockAddrHv::new(server, request.service),
            client: SockAddrHv::new(client, ServiceId::ZERO),
            direct: plan.direct,
        }
    }

    /// The partitions whose registries a listener depends on, at most two.
    pub(crate) fn owners_of(
        &self,
        from: PartitionKey,
        binding: Binding,
    ) -> [Option<PartitionKey>; 2] {
        let from = self.tree.node(from);
        if binding == Binding::Loopback {
            return [from.and_then(|from| self.own_registry(from)), None];
        }
        let boundaries = from.map(|from| self.boundaries(from, binding));
        let owner = |boundary: Option<Boundary<'_>>| Some(boundary?.owner.key);
        boundaries.map_or([None, None], |boundaries| boundaries.map(owner))
    }
}
