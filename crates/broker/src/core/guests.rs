//! Connections with the guests of VMs: what their links report, and the requests of the guests.
//!
//! A [`GuestLink`](crate::guest_link::GuestLink) carries the guest's end. The other end is another
//! guest, or a process, for which the broker has one end of a ring or of a socket pair. A request of
//! a guest is answered once the listener has its descriptors.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_control::{AuditRecord, Claim};
use hvsock_endpoint::Transport;
use hvsock_fabric::{
    self as fabric, ConnectRequest, ConnectionEnd, ConnectionId, PartitionKey, PartitionKind,
    Refusal, Route,
};
use hvsock_registry::Principal;
use hvsock_ring::RingSide;
use hvsock_sys::{seqpacket, set_nonblocking};
use hvsock_virtio::GuestCid;

use super::connections::{ConnectionOwner, ConnectionRecord, EndRecord};
use super::guest_connects::GUEST_END;
use super::guest_ends::{kept_duplicate, make_ends, make_socket, takes_hand_over, takes_socket};
use super::guest_shares::DEFAULT_BUFFER;
use super::in_flight::MessageKind;
use super::labels::partition_label;
use super::limits::descriptor_limit;
use super::offering::NotNow;
use super::offers::Offer;
use super::pending::{ProcessPart, Stage};
use super::state::Core;
use crate::budget::{Charge, Owner};
use crate::callers::Caller;
use crate::data_path::{ByteCounters, ControlConnection};
use crate::guest_link::{
    Capabilities, Destination, GuestConnect, GuestLink, GuestRequest, LinkCounters, LinkEnd,
    LinkEvent, Peer, RequestId, Service, SocketKind, Source, pipe,
};
use crate::model::{EventKind, ProblemKind};
use crate::pump::{Adopted, Connection, RelayEnd};
use crate::uplink::is_for_broker;

/// Timeout of a connect between sibling guests, as Linux's `VSOCK_DEFAULT_CONNECT_TIMEOUT`.
const SIBLING_TIMEOUT: Duration = Duration::from_secs(2);

/// The descriptors that an accepting process gets, at most.
const OFFERED: u64 = 4;

/// An accepted request's connection and its other end. `None` if the broker relays its bytes, or the process
/// has the socket, and the link has nothing more to do with it.
pub(super) type Joined = Option<(ConnectionId, LinkEnd)>;

impl Core {
    /// Handles an event of a VM's link.
    pub(super) fn handle_link_event(&mut self, vm: PartitionKey, event: LinkEvent) {
        match event {
            LinkEvent::State(state) => self.link_state(vm, state),
            LinkEvent::Request(id, request) => self.guest_requests(vm, id, request),
            LinkEvent::NoSlot(id, request) => self.guest_connects(vm, id, request),
            LinkEvent::Refused(request, refusal) => {
                let address = self.address_for(vm, &request).ok();
                self.refuse_guest(vm, &request, address, &refusal);
            }
            LinkEvent::Opened(opened) => self.guest_opened(vm, opened),
            LinkEvent::WantsSlots(arena) => {
                self.grow_guest_arena(vm, arena);
            }
            LinkEvent::ArenaEnded(arena) => self.guest_arena_ended(vm, arena),
            // A link is believed about its own connections only.
            LinkEvent::Connected(id, socket) if self.awaits(vm, id) => {
                self.guest_accepted(vm, id, socket);
            }
            LinkEvent::Failed(id, refusal) if self.awaits(vm, id) => {
                self.abort_pending(id, &refusal);
            }
            LinkEvent::ConnectedSuspend(id, value) if self.moves_bytes_of(vm, id) => {
                if let Some(record) = self.connections.get(id) {
                    let in_guest = self.carrier(record.from.partition) == vm;
                    let end = record.end_facing_guest(in_guest);
                    self.fabric.set_connected_suspend(id, end, value);
                }
            }
            LinkEvent::Closed(id, reason) if self.moves_bytes_of(vm, id) => {
                self.closed(id, reason.as_ref());
            }
            LinkEvent::Connected(..)
            | LinkEvent::Failed(..)
            | LinkEvent::ConnectedSuspend(..)
            | LinkEvent::Closed(..) => {}
            LinkEvent::PortProblem(port, problem) => self.port_problem(vm, port, problem),
            LinkEvent::Stranger(stranger) => self.stranger(stranger),
            LinkEvent::Fault(what) => {
                let name = partition_label(&self.fabric, vm);
                tracing::warn!(vm = %name, "{what}");
            }
            // The link of a VM that has just been removed may still report one.
            LinkEvent::Problem(_) if !self.vms.contains(vm) => {}
            LinkEvent::Problem(problem) => {
                let name = partition_label(&self.fabric, vm);
                match problem {
                    Some(what) => {
                        let text = format!("the VM {name}: {what}");
                        self.raise(ProblemKind::VmLink, name, text, None);
                    }
                    None => self.clear(ProblemKind::VmLink, &name),
                }
            }
        }
        self.apply_effects();
    }

    /// Whether a connect waits for the guest of this VM.
    fn awaits(&self, vm: PartitionKey, id: ConnectionId) -> bool {
        let pending = self.connections.pending(id);
        pending.is_some_and(|pending| {
            matches!(pending.stage, Stage::Connecting) && self.carrier(pending.route.target) == vm
        })
    }

    /// Whether the link of this VM moves the bytes of an established connection, and reports its end.
    fn moves_bytes_of(&self, vm: PartitionKey, id: ConnectionId) -> bool {
        self.connections.owner(id) == Some(ConnectionOwner::Link(vm))
    }

    /// What a VM's link can do; nothing if the VM has been removed.
    pub(super) fn capabilities(&self, vm: PartitionKey) -> Capabilities {
        let link = self.link_of(vm);
        link.map_or_else(Capabilities::default, GuestLink::capabilities)
    }

    /// Whether a VM's link gives its sockets to the processes.
    pub(super) fn hands_over(&self, vm: PartitionKey) -> bool {
        self.link_of(vm).is_some_and(GuestLink::hands_over)
    }

    /// Has a guest's request answered in an arena, or judges it.
    fn guest_requests(&mut self, vm: PartitionKey, id: RequestId, mut request: GuestRequest) {
        if is_for_broker(&request) {
            if let Err(refusal) = self.accept_for_broker(vm, id, &mut request) {
                self.refuse_request(vm, id, &request, &refusal);
            }
            return;
        }
        if let Some(expected) = self.take_expected(vm, &request) {
            return self.expected_arrived(vm, id, request, expected);
        }
        let answered = match self.address_for(vm, &request) {
            Ok(address) => self.connect_in_arena(vm, id, &request, address),
            Err(_) => Ok(false),
        };
        match answered {
            Ok(true) => {}
            Ok(false) => self.guest_connects(vm, id, request),
            Err(refusal) => self.refuse_request(vm, id, &request, &refusal),
        }
    }

    /// Refuses a request before any rule was applied to it.
    fn refuse_request(
        &mut self,
        vm: PartitionKey,
        id: RequestId,
        request: &GuestRequest,
        refusal: &Refusal,
    ) {
        if let Some(link) = self.link_of(vm) {
            link.refuse(id, None);
        }
        let address = self.address_for(vm, request).ok();
        self.refuse_guest(vm, request, address, refusal);
    }

    /// Connects a guest to the requested address, or has its connect refused.
    fn guest_connects(&mut self, vm: PartitionKey, id: RequestId, mut request: GuestRequest) {
        let (address, joined) = match self.address_for(vm, &request) {
            Ok(address) => {
                let joined = self.join_guest((vm, vm), &mut request, address);
                (Some(address), joined)
            }
            Err(refusal) => (None, Err(refusal)),
        };
        match joined {
            Ok(joined) => self.answer_joined(vm, id, joined),
            Err(refusal) => {
                if let Some(link) = self.link_of(vm) {
                    let reason = link.capabilities().refusal_reason.then_some(&refusal);
                    link.refuse(id, reason);
                }
                self.refuse_guest(vm, &request, address, &refusal);
            }
        }
    }

    /// Answers a request that is connected.
    pub(super) fn answer_joined(&self, vm: PartitionKey, id: RequestId, joined: Joined) {
        if let Some(link) = self.link_of(vm) {
            match joined {
                Some((connection, end)) => link.accept(id, connection, end),
                None => link.taken(id),
            }
        }
    }

    /// Counts, logs and publishes why a guest was refused. Most guests only see a reset.
    pub(super) fn refuse_guest(
        &mut self,
        from: PartitionKey,
        request: &GuestRequest,
        address: Option<SockAddrHv>,
        refusal: &Refusal,
    ) {
        self.telemetry.count_refused(refusal);
        let caller = caller_of(request, self.capabilities(from));
        match address {
            Some(address) => self.audit_refused("connect", (from, caller), address, None, refusal),
            None => self.audit_refusal(
                AuditRecord {
                    action: "connect".into(),
                    target: Some(label(request)),
                    ..AuditRecord::default()
                },
                (from, caller),
                refusal,
            ),
        }
        let from = partition_label(&self.fabric, from);
        let address = address.map_or_else(|| label(request), |address| address.to_string());
        let port = request.service.port();
        tracing::info!(%from, %address, port, reason = refusal.label(),
            "refused a guest's connect: {refusal}");
        self.telemetry.publish(|| EventKind::Refused {
            from,
            address,
            reason: refusal.label().into(),
            message: refusal.to_string(),
        });
    }

    /// The address that a guest's destination and service map to.
    fn address_for(&self, vm: PartitionKey, request: &GuestRequest) -> Result<SockAddrHv, Refusal> {
        let partition = match request.destination {
            // The host connects to this machine.
            Destination::Host if self.is_outer(vm) => {
                let own = self.fabric.partition(self.fabric.root());
                own.ok_or(Refusal::NotReachable)?.vm_id()
            }
            Destination::Host => VmId::PARENT,
            Destination::Partition(id) => id,
            Destination::Cid(cid) => {
                // A guest must not learn which CIDs exist.
                let sibling = self.sibling_with_cid(cid).ok_or(Refusal::NotReachable)?;
                let sibling = self.fabric.partition(sibling);
                sibling.ok_or(Refusal::NotReachable)?.vm_id()
            }
        };
        let service = match request.service {
            Service::Port(port) => self.fabric.service_for_port(vm, port),
            Service::Id(id) => id,
        };
        Ok(SockAddrHv::new(partition, service))
    }

    /// The partition that guests name by this CID: a VM to which the broker has given it, or a container of the host.
    fn sibling_with_cid(&self, cid: u64) -> Option<PartitionKey> {
        let cid = GuestCid::try_from(cid).ok()?;
        self.vms.sibling(cid).or_else(|| {
            let key = self.cids.partition(cid.get())?;
            let is_container = self.fabric.partition(key)?.kind() == PartitionKind::Container;
            (is_container && !self.is_nested(key)).then_some(key)
        })
    }

    /// Connects a request that came over the link of a VM. `from` is the VM, or a container in it.
    pub(super) fn join_guest(
        &mut self,
        (vm, from): (PartitionKey, PartitionKey),
        request: &mut GuestRequest,
        address: SockAddrHv,
    ) -> Result<Joined, Refusal> {
        let capabilities = self.capabilities(vm);
        if request.kind == SocketKind::Seqpacket
            && (!capabilities.seqpacket || request.destination == Destination::Host)
        {
            return Err(Refusal::NotSupported);
        }
        let caller = caller_of(request, capabilities);
        let connect = ConnectRequest {
            from,
            principal: &principal_of(caller),
            vm: address.vm,
            service: address.service,
        };
        let route = self.route(&connect)?;
        let joined = match route.destination {
            fabric::Destination::Listener(_) if request.kind == SocketKind::Seqpacket => {
                Err(Refusal::NotSupported)
            }
            fabric::Destination::Listener(_) => {
                self.guest_to_process((vm, from), request, caller, &route, address.service)
            }
            // Of two guests' kernels, neither knows a container.
            fabric::Destination::Guest if from != vm || self.is_nested(route.target) => {
                Err(Refusal::NotSupported)
            }
            fabric::Destination::Guest => {
                self.guest_to_guest(vm, request, caller, &route, address.service)
            }
        };
        if joined.is_err() {
            self.fabric.close_connection(route.connection);
        }
        joined
    }

    fn guest_to_process(
        &mut self,
        (vm, partition): (PartitionKey, PartitionKey),
        request: &mut GuestRequest,
        caller: Caller,
        route: &Route,
        service: ServiceId,
    ) -> Result<Joined, Refusal> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        let (preference, keep) = (listener.preference, listener.connected_suspend);
        let to = EndRecord {
            partition: listener.partition,
            caller: listener.caller,
        };
        let from = EndRecord { partition, caller };
        let id = route.destination.listener().ok_or(Refusal::NoListener)?;
        let placement = self.place_offer(id, partition, MessageKind::Offer);
        let placement = placement.map_err(NotNow::into_refusal)?;
        let charged = self.charge_connection(Owner::Partition(vm), GUEST_END, OFFERED, &placement);
        let (charge, held) = charged?;
        let capabilities = self.capabilities(vm);
        let (control, control_sent) =
            seqpacket::pair().map_err(|error| descriptor_limit(&error))?;
        set_nonblocking(&control, true).map_err(|error| descriptor_limit(&error))?;
        let made = match capabilities.byte_counts {
            true => {
                let chosen = self.transport_for(vm, preference);
                let chosen = chosen.ok_or(Refusal::NotSupported)?;
                let (part, peer, buffer) = make_ends(chosen, RingSide::Second, preference.raw_fd)?;
                (part, chosen.transport(), Side::Link(peer, buffer))
            }
            false => {
                let socket = request.socket.take().ok_or(Refusal::NotSupported)?;
                if self.hands_over(vm) && takes_hand_over(preference) {
                    let kept = kept_duplicate(&socket, self.connections.with_guests(vm))?;
                    let part = ProcessPart::Socket(socket);
                    (part, Transport::Direct, Side::HandOver(kept))
                } else if takes_socket(preference) {
                    set_nonblocking(&socket, true).map_err(|error| descriptor_limit(&error))?;
                    let guest = RelayEnd::of_guest(socket, capabilities.half_close);
                    let (process, data) = make_socket()?;
                    let part = ProcessPart::Socket(process);
                    (part, Transport::Descriptor, Side::Relay(guest, data))
                } else {
                    return Err(Refusal::NotSupported);
                }
            }
        };
        let (part, transport, side) = made;
        let mut descriptors = part.into_descriptors();
        descriptors.push(control_sent);
        // A guest's numbers mean nothing to the host's processes.
        let message = self.incoming(route, transport, partition, Caller::UNKNOWN)?;
        let offer = Offer {
            connection: route.connection,
            kind: MessageKind::Offer,
            message,
            descriptors,
            _charge: held,
        };
        if !self.pass_offer(id, &offer, placement)? {
            self.hold_offer(id, offer);
        }
        let id = route.connection;
        if keep {
            self.fabric
                .set_connected_suspend(id, ConnectionEnd::Server, true);
        }
        let counters: Arc<ByteCounters> = Arc::default();
        let ends = [from, to];
        match side {
            Side::Link(mut peer, buffer) => {
                self.record_link(vm, id, service, ends, (transport, charge), &counters, None);
                peer.set_control(ControlConnection::new(control));
                let end = LinkEnd {
                    peer,
                    counters: LinkCounters::new(counters, ConnectionEnd::Client),
                    buffer,
                    reports: true,
                };
                Ok(Some((id, end)))
            }
            Side::Relay(guest, data) => {
                let process = RelayEnd::new(control, data, preference.raw_fd);
                let relayed = Adopted {
                    id,
                    connection: Connection::relay(guest, process),
                    counters,
                };
                self.adopt_guest(relayed, service, ends, (transport, charge), None);
                Ok(None)
            }
            Side::HandOver(guest) => {
                let passed = Adopted {
                    id,
                    connection: Connection::hand_over(control, guest, preference.raw_fd, 1),
                    counters: Arc::new(ByteCounters::uncounted()),
                };
                self.adopt_guest(passed, service, ends, (transport, charge), None);
                Ok(None)
            }
        }
    }

    fn guest_to_guest(
        &mut self,
        vm: PartitionKey,
        request: &GuestRequest,
        caller: Caller,
        route: &Route,
        service: ServiceId,
    ) -> Result<Joined, Refusal> {
        let (own, other) = (self.capabilities(vm), self.capabilities(route.target));
        let carries = |one: Capabilities| {
            one.byte_counts && (one.seqpacket || request.kind == SocketKind::Stream)
        };
        if !carries(own) || !carries(other) {
            return Err(Refusal::NotSupported);
        }
        let record = self.vms.get(vm).ok_or(Refusal::NotReachable)?;
        let source = Source::Sibling {
            cid: record.settings().cid.ok_or(Refusal::NotSupported)?.get(),
            port: request.source_port,
        };
        let charge = self.descriptors.charge(Owner::Partition(vm), GUEST_END);
        let charge = charge.map_err(|shortage| self.descriptor_share(shortage))?;
        let target = self.link_of(route.target).ok_or(Refusal::NotReachable)?;
        let (id, counters): (_, Arc<ByteCounters>) = (route.connection, Arc::default());
        let buffer = self
            .buffer_share(vm)
            .min(self.buffer_share(route.target))
            .min(DEFAULT_BUFFER);
        let (from, to) = pipe::pair(buffer);
        let end = |end, counters, guest, reports| LinkEnd {
            peer: Peer::sibling(end),
            counters: LinkCounters::new(counters, guest),
            buffer,
            reports,
        };
        // Only the connecting guest's link counts the bytes, so that they are counted once.
        target.connect(GuestConnect {
            connection: id,
            source,
            container: None,
            service: request.service,
            kind: request.kind,
            timeout: SIBLING_TIMEOUT,
            end: Some(end(to, Arc::default(), ConnectionEnd::Server, false)),
        })?;
        let from_record = EndRecord {
            partition: vm,
            caller,
        };
        let to_record = EndRecord {
            partition: route.target,
            caller: Caller::UNKNOWN,
        };
        let ends = [from_record, to_record];
        let transport = (Transport::Descriptor, charge);
        self.record_link(vm, id, service, ends, transport, &counters, None);
        let end = end(from, counters, ConnectionEnd::Client, true);
        Ok(Some((id, end)))
    }

    /// Records a connection whose bytes the VM's link moves.
    #[allow(clippy::too_many_arguments, reason = "the parts of one record")]
    pub(super) fn record_link(
        &mut self,
        vm: PartitionKey,
        id: ConnectionId,
        service: ServiceId,
        [from, to]: [EndRecord; 2],
        (transport, charge): (Transport, Charge),
        counters: &Arc<ByteCounters>,
        claim: Option<Arc<Claim>>,
    ) {
        let record = ConnectionRecord {
            service,
            from,
            to,
            transport,
            counters: Arc::clone(counters),
            owner: ConnectionOwner::Link(vm),
            started: Instant::now(),
            _charge: Some(charge),
            claim,
            claimed_result: None,
            audited: None,
        };
        self.record_connection(id, record);
    }

    /// Relays or follows a connection with a guest whose link handed out a socket, and records it.
    pub(super) fn adopt_guest(
        &mut self,
        adopted: Adopted,
        service: ServiceId,
        [from, to]: [EndRecord; 2],
        (transport, charge): (Transport, Charge),
        claim: Option<Arc<Claim>>,
    ) {
        let (id, counters) = (adopted.id, Arc::clone(&adopted.counters));
        let place = self.data_threads.adopt(adopted);
        let record = ConnectionRecord {
            service,
            from,
            to,
            transport,
            counters,
            owner: ConnectionOwner::DataThreads(place),
            started: Instant::now(),
            _charge: Some(charge),
            claim,
            claimed_result: None,
            audited: None,
        };
        self.record_connection(id, record);
    }
}

/// The broker's side of a connection between a guest and a process.
enum Side {
    /// What the guest's link moves bytes from and to, and its buffer's size in bytes.
    Link(Peer, u32),
    /// The guest's end of a relay, and the socket of the process.
    Relay(RelayEnd, OwnedFd),
    /// A duplicate of the guest's socket, which the process receives.
    HandOver(OwnedFd),
}

/// The process in the guest that made a request, if the link identifies it.
fn caller_of(request: &GuestRequest, capabilities: Capabilities) -> Caller {
    match request.identity.filter(|_| capabilities.identity) {
        Some(peer) => Caller {
            pid: peer.pid,
            uid: peer.uid,
            gid: peer.gid,
        },
        None => Caller::UNKNOWN,
    }
}

/// What access rules see of a guest's process. Its users and groups have no names here.
pub(super) fn principal_of(caller: Caller) -> Principal {
    let is_known = caller.gid != Caller::UNKNOWN.gid;
    Principal {
        uid: caller.uid,
        user: None,
        groups: is_known.then_some((caller.gid, None)).into_iter().collect(),
        partition_uid: is_known.then_some(caller.uid),
    }
}

/// Names the address of a request that maps to none.
fn label(request: &GuestRequest) -> String {
    let partition = match request.destination {
        Destination::Host => "host".to_owned(),
        Destination::Cid(cid) => format!("CID {cid}"),
        Destination::Partition(id) => id.to_string(),
    };
    match request.service {
        Service::Port(port) => format!("{partition} port {port}"),
        Service::Id(id) => format!("{partition} service {id}"),
    }
}
