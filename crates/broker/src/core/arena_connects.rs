//! Grants a pair of processes an arena in place of a connection.
//!
//! A process that has had a connection accepted by a listener may have an arena with it, if both offer the
//! transport. Whatever speaks against that is no refusal: the connect goes on as any other.

use std::time::Instant;

use hvsock_control::AuditCategory;
use hvsock_endpoint::{ARENA_IDS, Connect, Transport};
use hvsock_fabric::{Block, ConnectRequest, ConnectionEnd, Destination, ListenerId};
use hvsock_ring::ArenaLimits;

use super::arenas::{Arena, JudgedRequest, NewArena, SCAN_INTERVAL};
use super::audit::GRANT;
use super::connect::Terms;
use super::connections::EndRecord;
use super::in_flight::MessageKind;
use super::preference::TransportPreference;
use super::resources::{BrokerPart, ConnectionResources};
use super::sessions::Session;
use super::state::Core;
use crate::budget::Charge;
use crate::data_path::ProcessSocket;
use crate::pump::Adopted;

/// Slots of a new arena. A pair that uses most of them asks for more.
pub(super) const FIRST_SLOTS: u32 = 16;

/// Most bytes of all rings of an arena. The kernel allocates what is used of them.
const MAX_RINGS: u64 = 4 << 30;

/// An arena that both processes can have.
#[derive(Clone, Copy)]
pub(super) struct ArenaPlan {
    listener: ListenerId,
    limits: ArenaLimits,
    backlog: u32,
}

impl Core {
    /// Whether a connect is to be answered with an arena.
    pub(super) fn plan_arena(
        &self,
        session: &Session<ProcessSocket>,
        connect: &Connect,
        request: &ConnectRequest<'_>,
    ) -> Option<ArenaPlan> {
        let connecting = TransportPreference {
            transports: connect.transports,
            raw_fd: connect.flags.raw_fd,
            ring_size: session.ring_size,
        };
        if !self.data_threads.may_share_memory()
            || !connecting.supports(Transport::Arena)
            || session.claim.is_some()
        {
            return None;
        }
        // What a process of the host does in a child is recorded before it is done.
        let acts_in_child = session.partition == self.fabric.root();
        if self.audit.category(request.service, acts_in_child) == AuditCategory::Guest {
            return None;
        }
        let listener = match self.fabric.judge(request) {
            Ok(Destination::Listener(listener)) => listener,
            Ok(Destination::Guest) | Err(_) => return None,
        };
        if self.fabric.is_direct(request) {
            return None;
        }
        let record = self.listeners.get(listener)?;
        let peers = &self.arenas.peers;
        if !record.preference.supports(Transport::Arena)
            || !peers.has_accepted(listener, session.partition, session.caller)
        {
            return None;
        }
        let ring = connecting.ring_size_with(record.preference);
        let slots = MAX_RINGS / (2 * u64::from(ring.bytes()));
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        let slots = slots.clamp(FIRST_SLOTS, ArenaLimits::MAX_SLOTS);
        Some(ArenaPlan {
            listener,
            limits: ArenaLimits { slots, ring },
            backlog: record.backlog,
        })
    }

    /// Grants an arena. Returns the session, unchanged, if that is not possible now.
    pub(super) fn try_arena(
        &mut self,
        session: Session<ProcessSocket>,
        connect: &Connect,
        request: &ConnectRequest<'_>,
        plan: ArenaPlan,
    ) -> Option<Session<ProcessSocket>> {
        let owner = self.owner(session.partition, session.caller);
        let Ok(slots_charge) = self.arena_slots.charge(owner, FIRST_SLOTS.into()) else {
            return Some(session);
        };
        let block = Block {
            weight: FIRST_SLOTS,
            ids: ARENA_IDS,
        };
        let Ok(route) = self.fabric.connect_block(request, block) else {
            return Some(session);
        };
        let id = route.connection;
        let terms = Terms {
            transport: Transport::Arena,
            kind: MessageKind::ArenaOffer,
            // The control connection, the memory and the grant page.
            own: 3,
            offered: 5,
        };
        let make =
            |_: &mut Self| ConnectionResources::of_arena(plan.limits, FIRST_SLOTS, plan.backlog);
        match self.hand_over(&session, &route, terms, make) {
            Ok((part, charge)) => {
                let request = JudgedRequest {
                    from: request.from,
                    principal: request.principal.clone(),
                    vm: connect.address.vm,
                    service: request.service,
                    named: session.named.clone(),
                };
                self.adopt_arena(session, request, plan, id, part, [charge, slots_charge]);
                None
            }
            Err(_) => {
                self.fabric.close_connection(id);
                Some(session)
            }
        }
    }

    /// Adds an arena to the core thread's set and records it.
    fn adopt_arena(
        &mut self,
        session: Session<ProcessSocket>,
        request: JudgedRequest,
        plan: ArenaPlan,
        id: hvsock_fabric::ConnectionId,
        part: BrokerPart,
        [charge, slots_charge]: [Charge; 2],
    ) {
        let from = EndRecord {
            partition: session.partition,
            caller: session.caller,
        };
        let listener = self.listeners.get(plan.listener);
        let to = listener.map(|listener| EndRecord {
            partition: listener.partition,
            caller: listener.caller,
        });
        let (Some(to), Some((connection, monitor))) = (to, part.arena(session.socket)) else {
            self.fabric.close_connection(id);
            return;
        };
        // Each connection in it says itself whether it is to be kept while a partition is paused.
        self.fabric
            .set_connected_suspend(id, ConnectionEnd::Client, true);
        let service = request.service;
        let audited = self.audit_connected(GRANT, id, service, from, to.partition, None);
        let place = self.data_threads.adopt(Adopted {
            id,
            connection,
            counters: Default::default(),
        });
        let new = NewArena {
            request,
            listener: plan.listener,
            from,
            to,
            monitor,
            place,
            max_slots: plan.limits.slots,
            charge,
            slots_charge,
            audited,
        };
        let now = Instant::now();
        self.arenas.insert(id, Arena::new(new, now));
        self.arenas.scan_at(id, now + SCAN_INTERVAL);
    }
}
