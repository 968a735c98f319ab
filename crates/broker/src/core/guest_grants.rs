//! Arenas of guests: memory that a VM's link and a listener's process share for many connections.
//!
//! The first connections of a guest to a listener are judged one by one. Once the listener's process has
//! accepted one, the next request makes an arena, from which the link opens further connections itself: the
//! grant in the arena is the standing verdict about the guest and the listener. A change that may alter a
//! verdict has each arena judged again before it is reported as done, so a revoked rule refuses the very
//! next request.
//!
//! In the fabric an arena is one connection with the weight of its granted slots. The link reports each
//! connection that it opens, and its end, so everything else about it is as for a connection that the core
//! has made: it is counted, listed, recorded, closed and suspended by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{ARENA_IDS, Transport};
use hvsock_fabric::{
    Block, Changes, ConnectRequest, ConnectionEnd, ConnectionId, Destination, ListenerId,
    PartitionKey, Refusal,
};
use hvsock_ring::{ArenaClient, ArenaParts, Grant, RingSize};
use hvsock_sys::{seqpacket, set_nonblocking};

use super::connections::{ConnectionOwner, ConnectionRecord, EndRecord};
use super::guest_arenas::ArenaRecord;
use super::guest_shares::{GUEST_RING, first_slots, may_grow, share_of_arenas};
use super::guests::principal_of;
use super::in_flight::MessageKind;
use super::limits::{descriptor_limit, mmap_limit};
use super::offering::{NotNow, Placement};
use super::offers::Offer;
use super::state::Core;
use crate::budget::Owner;
use crate::callers::Caller;
use crate::data_path::ProcessSocket;
use crate::guest_link::{
    self, ArenaOpened, GuestArena, GuestRequest, RequestId, Service, SocketKind, Unrecorded,
};

/// The broker's descriptors of an arena: two doorbells, the control connection, the memory and the grant page.
const ARENA_DESCRIPTORS: u64 = 5;
/// The descriptors that the listener's process gets.
const OFFERED: u64 = 5;

impl Core {
    /// Has a request of a guest answered by its link, in an arena, which is made if it is due. Returns
    /// `false` if the request is to be judged by itself.
    ///
    /// # Errors
    ///
    /// The refusal, if too many connections in arenas wait for the listener.
    pub(super) fn connect_in_arena(
        &mut self,
        vm: PartitionKey,
        id: RequestId,
        request: &GuestRequest,
        address: SockAddrHv,
    ) -> Result<bool, Refusal> {
        let Service::Port(port) = request.service else {
            return Ok(false);
        };
        let takes_arenas = self.vms.link(vm).is_some_and(|link| link.takes_arenas());
        if request.kind != SocketKind::Stream
            || request.destination != guest_link::Destination::Host
            || !takes_arenas
            // Its processes may have different rights.
            || self.capabilities(vm).identity
        {
            return Ok(false);
        }
        let Ok(Destination::Listener(listener)) = self.judge_guest(vm, address) else {
            return Ok(false);
        };
        if !self.guest_arenas.acquainted.contains(&(listener, vm)) {
            return Ok(false);
        }
        // Each arena is bounded by itself; this bounds them together.
        let backlog = self
            .listeners
            .get(listener)
            .map_or(0, |record| record.backlog);
        if self.guest_arenas.waiting(listener) >= backlog {
            return Err(Refusal::BacklogFull);
        }
        let pair = self.guest_arenas.of_pair(vm, listener);
        let has_room = pair.into_iter().any(|arena| {
            let record = self.guest_arenas.arenas.get(&arena);
            record.is_some_and(ArenaRecord::has_free_slots) || self.grow_guest_arena(vm, arena)
        });
        if !has_room {
            let Ok(arena) = self.make_guest_arena(vm, port, address, listener) else {
                return Ok(false);
            };
            if let Some(link) = self.vms.link(vm) {
                link.open_arena(arena, id);
            }
        }
        if let Some(link) = self.vms.link(vm) {
            link.connect_in_arena(id);
        }
        Ok(true)
    }

    fn judge_guest(&self, vm: PartitionKey, address: SockAddrHv) -> Result<Destination, Refusal> {
        self.fabric.judge(&ConnectRequest {
            from: vm,
            principal: &principal_of(Caller::UNKNOWN),
            vm: address.vm,
            service: address.service,
        })
    }

    /// Makes an arena and offers it to the listener's process. Returns the link's end.
    fn make_guest_arena(
        &mut self,
        vm: PartitionKey,
        port: u32,
        address: SockAddrHv,
        listener: ListenerId,
    ) -> Result<GuestArena, Refusal> {
        let record = self.listeners.get(listener).ok_or(Refusal::NoListener)?;
        let (preference, backlog) = (record.preference, record.backlog);
        let to = EndRecord {
            partition: record.partition,
            caller: record.caller,
        };
        if !preference.takes_arenas() {
            return Err(Refusal::NotSupported);
        }
        let placement = self.place_offer(listener, vm, MessageKind::ArenaOffer);
        let placement = placement.map_err(NotNow::into_refusal)?;
        if matches!(placement, Placement::Hold) {
            return Err(Refusal::BacklogFull);
        }
        let owner = Owner::Partition(vm);
        let (charge, _) = self.charge_connection(owner, ARENA_DESCRIPTORS, OFFERED, &placement)?;
        let wanted = preference.ring_size();
        let limits = share_of_arenas(
            wanted.unwrap_or(RingSize::at_least(GUEST_RING)),
            self.connections.with_guests(vm),
            self.guest_arenas.granted_bytes(vm),
        );
        let granted = first_slots(limits.ring.bytes()).min(limits.slots);
        let parts = ArenaParts::new(limits, granted, backlog);
        let parts = parts.map_err(|error| descriptor_limit(&error))?;
        let client = ArenaClient::open(&parts.memory, &parts.grant, parts.client, Arc::new(|| {}));
        let client = client.map_err(|error| mmap_limit(&error))?;
        let (control, control_sent) =
            seqpacket::pair().map_err(|error| descriptor_limit(&error))?;
        set_nonblocking(&control, true).map_err(|error| descriptor_limit(&error))?;
        let principal = principal_of(Caller::UNKNOWN);
        let request = ConnectRequest {
            from: vm,
            principal: &principal,
            vm: address.vm,
            service: address.service,
        };
        let block = Block {
            weight: granted,
            ids: ARENA_IDS,
        };
        let route = self.fabric.connect_block(&request, block)?;
        let id = route.connection;
        let message = self.incoming(&route, Transport::Arena, vm, Caller::UNKNOWN);
        let offered = message.and_then(|message| {
            let server = parts.server;
            let offer = Offer {
                connection: id,
                kind: MessageKind::ArenaOffer,
                message,
                descriptors: vec![
                    parts.memory,
                    parts.grant,
                    server.own,
                    server.peer,
                    control_sent,
                ],
                _charge: None,
            };
            self.pass_offer(listener, &offer, placement)
        });
        if !matches!(offered, Ok(true)) {
            self.fabric.close_connection(id);
            return Err(offered.err().unwrap_or(Refusal::BacklogFull));
        }
        // Each of its connections has its own option, which the listener's process sets in the arena.
        self.fabric
            .set_connected_suspend(id, ConnectionEnd::Server, true);
        let (monitor, unrecorded) = (Arc::new(parts.monitor), Unrecorded::default());
        let record = ArenaRecord {
            vm,
            port,
            address,
            listener,
            to,
            limits,
            monitor: Arc::clone(&monitor),
            unrecorded: unrecorded.clone(),
            connections: BTreeMap::new(),
            is_orphaned: false,
            _charge: charge,
        };
        self.guest_arenas.arenas.insert(id, record);
        let control = ProcessSocket::from(control);
        Ok(GuestArena::new(
            id, port, client, control, monitor, unrecorded,
        ))
    }

    /// Grants an arena more slots, if there may be more connections. Returns whether it did.
    pub(super) fn grow_guest_arena(&mut self, vm: PartitionKey, id: ConnectionId) -> bool {
        let bytes = self.guest_arenas.granted_bytes(vm);
        let Some(arena) = self.guest_arenas.arenas.get(&id) else {
            return false;
        };
        let granted = arena.monitor.granted();
        let more = (granted * 2).min(arena.limits.slots);
        if arena.vm != vm
            || more <= granted
            || !may_grow(arena.limits.ring.bytes(), more - granted, bytes)
            || arena.monitor.grant() != Grant::Granted
            || self.fabric.set_weight(id, more).is_err()
        {
            return false;
        }
        arena.monitor.set_granted_slots(more);
        true
    }

    /// Records a connection that a link has opened in an arena.
    pub(super) fn guest_opened(&mut self, vm: PartitionKey, opened: ArenaOpened) {
        let ArenaOpened {
            arena: first,
            connection: id,
            slot,
            counters,
        } = opened;
        let arena = self.guest_arenas.arenas.get_mut(&first);
        let Some(arena) = arena.filter(|arena| arena.vm == vm) else {
            return;
        };
        arena.unrecorded.recorded();
        arena.connections.insert(id, slot);
        let record = ConnectionRecord {
            service: arena.address.service,
            from: EndRecord {
                partition: vm,
                caller: Caller::UNKNOWN,
            },
            to: arena.to,
            transport: Transport::Arena,
            counters: counters.shared(),
            owner: ConnectionOwner::Link(vm),
            started: Instant::now(),
            _charge: None,
            claim: None,
            claimed_result: None,
            audited: None,
        };
        let is_orphaned = arena.is_orphaned;
        self.record_connection(id, record);
        if is_orphaned {
            self.close_unaccepted(id);
        }
        let state = self.fabric.connection(first);
        if state.is_some_and(hvsock_fabric::Connection::is_suspended) {
            self.suspend_in_arena(id);
        }
    }

    /// Forgets a connection that has ended, and ends its arena if that was the last one.
    pub(super) fn closed_in_arena(&mut self, id: ConnectionId) {
        let Some((first, _, _)) = self.guest_arenas.of_connection(id) else {
            return;
        };
        if let Some(arena) = self.guest_arenas.arenas.get_mut(&first) {
            arena.connections.remove(&id);
        }
        self.shrink_guest_arena(first);
        self.end_if_unused(first);
    }

    /// Forgets an arena that its link has ended.
    pub(super) fn guest_arena_ended(&mut self, vm: PartitionKey, id: ConnectionId) {
        let arena = self.guest_arenas.arenas.get(&id);
        if arena.is_some_and(|arena| arena.vm == vm) {
            self.guest_arenas.arenas.remove(&id);
            self.fabric.close_connection(id);
        }
    }

    /// Forgets the arenas of a VM that is removed.
    pub(super) fn forget_guest_arenas(&mut self, vm: PartitionKey) {
        let arenas = &mut self.guest_arenas;
        arenas.acquainted.retain(|(_, other)| *other != vm);
        let all = arenas.arenas.iter().filter(|(_, arena)| arena.vm == vm);
        let ended: Vec<_> = all.map(|(id, _)| *id).collect();
        for id in ended {
            self.guest_arenas.arenas.remove(&id);
            self.fabric.close_connection(id);
        }
    }

    /// Ends an arena with a reason for all of its connections.
    pub(super) fn close_guest_arena(&mut self, id: ConnectionId, refusal: Refusal) {
        let Some(arena) = self.guest_arenas.arenas.get(&id) else {
            return;
        };
        arena.monitor.set_grant(Grant::Revoked);
        if let Some(link) = self.vms.link(arena.vm) {
            link.close_arena(id, refusal);
        }
    }

    /// Suspends or resumes the connections of an arena. Those that are not to be kept are reset.
    pub(super) fn suspend_guest_arena(&self, id: ConnectionId, suspended: bool) {
        let Some(arena) = self.guest_arenas.arenas.get(&id) else {
            return;
        };
        let (vm, connections) = (arena.vm, arena.connections.keys());
        for connection in connections {
            match (suspended, self.vms.link(vm)) {
                (true, _) => self.suspend_in_arena(*connection),
                (false, Some(link)) => link.suspend(*connection, false),
                (false, None) => {}
            }
        }
    }

    /// Suspends a connection in an arena if its listener's process wants that, or resets it.
    fn suspend_in_arena(&self, id: ConnectionId) {
        let Some((_, arena, slot)) = self.guest_arenas.of_connection(id) else {
            return;
        };
        let Some(link) = self.vms.link(arena.vm) else {
            return;
        };
        let is_kept = arena
            .monitor
            .connection(slot)
            .is_some_and(|view| view.keep[1]);
        match is_kept {
            true => link.suspend(id, true),
            false => link.close(id, Refusal::PartitionPaused),
        }
    }

    /// Revokes the arenas of a listener that is closed, and resets what its process has not accepted.
    pub(super) fn orphan_guest_arenas(&mut self, listener: ListenerId) {
        let arenas = &mut self.guest_arenas;
        arenas.acquainted.retain(|(other, _)| *other != listener);
        let orphaned = arenas.arenas.iter_mut();
        let orphaned = orphaned.filter(|(_, arena)| arena.listener == listener);
        let mut connections = Vec::new();
        let mut ids = Vec::new();
        for (id, arena) in orphaned {
            arena.is_orphaned = true;
            arena.monitor.set_grant(Grant::Revoked);
            connections.extend(arena.connections.keys().copied());
            ids.push(*id);
        }
        for id in connections {
            self.close_unaccepted(id);
        }
        for id in ids {
            self.end_if_unused(id);
        }
    }

    fn close_unaccepted(&self, id: ConnectionId) {
        let Some((_, arena, slot)) = self.guest_arenas.of_connection(id) else {
            return;
        };
        let view = arena.monitor.connection(slot);
        if view.is_some_and(|view| !view.accepted)
            && let Some(link) = self.vms.link(arena.vm)
        {
            link.close(id, Refusal::NoListener);
        }
    }

    /// Ends an arena without connections that is not needed: its listener is closed, the pair has another one, or it is
    /// of a broker before this one.
    pub(super) fn end_if_unused(&mut self, id: ConnectionId) {
        let arenas = &mut self.guest_arenas.arenas;
        let Some(arena) = arenas.get(&id).filter(|arena| arena.connections.is_empty()) else {
            return;
        };
        let pair = (arena.vm, arena.listener);
        let is_spare = arenas
            .range(..id)
            .any(|(_, other)| (other.vm, other.listener) == pair && other.has_free_slots());
        let Some(arena) = arenas.get_mut(&id) else {
            return;
        };
        if is_spare && !arena.is_orphaned && arena.monitor.grant() == Grant::Granted {
            // The link may have opened a connection at this moment.
            arena.monitor.set_grant(Grant::Revoked);
            match arena.monitor.scan().is_empty() {
                true => arena.is_orphaned = true,
                false => arena.monitor.set_grant(Grant::Granted),
            }
        }
        if arena.is_orphaned || !arena.monitor.can_grant() {
            self.close_guest_arena(id, Refusal::NoListener);
        }
    }

    /// Records that a listener's process has accepted a connection, which may be a guest's.
    pub(super) fn guest_accepted_by(&mut self, listener: ListenerId, id: ConnectionId) {
        let record = self.connections.get(id);
        // An arena is of the machine itself: a container in it has other rights.
        if let Some(ConnectionOwner::Link(vm)) = record.map(|record| record.owner)
            && record.is_some_and(|record| record.from.partition == vm)
        {
            self.guest_arenas.acquainted.insert((listener, vm));
        }
    }

    /// Judges the arenas of guests again.
    pub(super) fn judge_guest_arenas(&self, changes: &Changes) {
        if *changes == Changes::None {
            return;
        }
        for arena in self.guest_arenas.arenas.values() {
            // A port may stand for another service by now.
            let service = self.fabric.service_for_port(arena.vm, arena.port);
            let verdict = self.judge_guest(arena.vm, arena.address);
            let grant = match verdict {
                _ if arena.is_orphaned || service != arena.address.service => Grant::Revoked,
                Ok(Destination::Listener(id)) if id == arena.listener => Grant::Granted,
                Err(Refusal::PartitionPaused) => Grant::Suspended,
                Ok(_) | Err(_) => Grant::Revoked,
            };
            if arena.monitor.grant() != grant {
                arena.monitor.set_grant(grant);
            }
            if grant == Grant::Revoked && !arena.monitor.can_grant() {
                // Its processes may accept what was in the queue when it was handed over.
                arena.monitor.withdraw_left();
            }
        }
    }
}
