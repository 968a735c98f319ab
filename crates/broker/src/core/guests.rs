//! Connections with the guests of VMs.
//!
//! The guest's end is virtio-vsock, handled by the VM's data thread. The other end is another guest,
//! or a process, for which the broker has one end of a ring or of a socket pair. A connect by a guest
//! is answered once the listener has its descriptors. A connect to a guest is a [`PendingConnect`] until
//! the guest accepts, and the process waits.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{BrokerMessage, Connect, Connected, Transport, Transports};
use hvsock_fabric::{
    ConnectRequest, ConnectionEnd, ConnectionId, Destination, PartitionKey, Refusal, Route,
};
use hvsock_registry::Principal;
use hvsock_ring::{Parts, RingSide, RingSize};
use hvsock_sys::{seqpacket, set_nonblocking, stream};
use hvsock_virtio::{Cid, GuestCid, Handle, Key, SocketKind};

use super::connect::UNKNOWN_CALLER;
use super::connections::{ConnectionOwner, ConnectionRecord, EndRecord};
use super::labels::partition_label;
use super::limits::{descriptor_limit, in_flight_limit, mmap_limit};
use super::pending::{PendingConnect, ProcessPart};
use super::preference::{ChosenTransport, TransportPreference};
use super::session_io::is_disconnected;
use super::sessions::Session;
use super::state::Core;
use crate::data_path::{ByteCounters, ControlConnection};
use crate::model::EventKind;
use crate::vhost_user::{Command, LinkParts, Linked, VmEvent, sibling_pair};

/// Timeout for a guest to accept. A process with a shorter timeout closes its connection.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a connect between sibling guests, as Linux's `VSOCK_DEFAULT_CONNECT_TIMEOUT`.
const SIBLING_TIMEOUT: Duration = Duration::from_secs(2);

/// Buffer bytes of all connections of one VM, each way. Each connection gets an equal share, but at
/// least [`MIN_BUFFER`].
const BUFFER_BUDGET: usize = 64 * 1024 * 1024;
const MIN_BUFFER: u32 = 16 * 1024;
/// Largest buffer of one connection, and so the largest ring of a process's connection to a guest.
const MAX_BUFFER: u32 = 1024 * 1024;
/// Largest buffer of a connection without a requested size: the default of Linux guests.
const DEFAULT_BUFFER: u32 = 256 * 1024;

/// Creates both ends of a transport: the process's, the broker's, and the buffer size in bytes for
/// data from the guest, which the guest gets as credit.
fn make_ends(
    chosen: ChosenTransport,
    process: RingSide,
    raw_fd: bool,
) -> Result<(ProcessPart, LinkParts, u32), Refusal> {
    match chosen {
        ChosenTransport::Ring(size) => {
            let parts = Parts::new(size).map_err(|error| descriptor_limit(&error))?;
            let Parts {
                memory,
                first,
                second,
            } = parts;
            let (own, doorbells) = match process {
                RingSide::First => (second, first),
                RingSide::Second => (first, second),
            };
            let end = hvsock_ring::RingEnd::open(process.other(), &memory, own);
            let end = end.map_err(|error| mmap_limit(&error))?;
            let part = ProcessPart::Ring { memory, doorbells };
            Ok((part, LinkParts::Ring(Box::new(end)), size.bytes()))
        }
        ChosenTransport::Descriptor => {
            let (data, process) = stream::pair().map_err(|error| descriptor_limit(&error))?;
            set_nonblocking(&data, true).map_err(|error| descriptor_limit(&error))?;
            Ok((
                ProcessPart::Socket(process),
                LinkParts::Socket { data, raw_fd },
                DEFAULT_BUFFER,
            ))
        }
    }
}

impl Core {
    /// Handles an event of a VM's data thread.
    pub(super) fn handle_vm_event(&mut self, vm: PartitionKey, event: VmEvent) {
        match event {
            VmEvent::State(state) => self.vmm_state(vm, state),
            VmEvent::Request { handle, key } => self.guest_connects(vm, handle, key),
            VmEvent::Connected(id) => self.guest_accepted(vm, id),
            VmEvent::Failed(id, refusal) => self.abort_pending(id, &refusal),
            VmEvent::ConnectedSuspend {
                connection,
                end,
                value,
            } => {
                self.fabric.set_connected_suspend(connection, end, value);
            }
            VmEvent::Closed { connection, reason } => self.closed(connection, reason.as_ref()),
            VmEvent::Fault(what) => {
                let name = partition_label(&self.fabric, vm);
                let allowed = self.vms.allow_log(vm, Instant::now());
                if let Some(suppressed) = allowed {
                    tracing::warn!(vm = %name, suppressed, "{what}");
                }
            }
        }
        self.apply_effects();
    }

    /// Sends a command to a VM's data thread. Does nothing if the VM has been removed.
    pub(super) fn command_vm(&self, vm: PartitionKey, command: Command) {
        if let Some(threads) = self.vms.threads(vm) {
            threads.command(command);
        }
    }

    /// Connects a guest to the requested address, or has its connect refused.
    fn guest_connects(&mut self, vm: PartitionKey, handle: Handle, key: Key) {
        let (address, joined) = match self.address_for(vm, &key) {
            Ok(address) => (Some(address), self.join_guest(vm, handle, &key, address)),
            Err(refusal) => (None, Err(refusal)),
        };
        if let Err(refusal) = joined {
            self.command_vm(vm, Command::Refuse { handle });
            self.refuse_guest(vm, &key, address, &refusal);
        }
    }

    /// Counts, logs and publishes why a guest was refused. The guest itself only sees a reset.
    fn refuse_guest(
        &mut self,
        vm: PartitionKey,
        key: &Key,
        address: Option<SockAddrHv>,
        refusal: &Refusal,
    ) {
        self.telemetry.count_refused(refusal);
        let from = partition_label(&self.fabric, vm);
        let address = address.map_or_else(
            || format!("CID {} port {}", key.peer, key.peer_port),
            |address| address.to_string(),
        );
        let allowed = self.vms.allow_log(vm, Instant::now());
        if let Some(suppressed) = allowed {
            let port = key.peer_port;
            tracing::info!(%from, %address, port, suppressed, reason = refusal.label(),
                "refused a guest's connect: {refusal}");
        }
        self.telemetry.publish(|| EventKind::Refused {
            from,
            address,
            reason: refusal.label().into(),
            message: refusal.to_string(),
        });
    }

    /// The address that a guest's destination CID and port map to.
    fn address_for(&self, vm: PartitionKey, key: &Key) -> Result<SockAddrHv, Refusal> {
        let partition = if key.peer == Cid::HOST {
            VmId::PARENT
        } else {
            // A guest must not learn which CIDs exist.
            let cid = GuestCid::try_from(key.peer.0).map_err(|_| Refusal::NotReachable)?;
            let sibling = self.vms.by_cid(cid).ok_or(Refusal::NotReachable)?;
            let sibling = self.fabric.partition(sibling);
            sibling.ok_or(Refusal::NotReachable)?.vm_id()
        };
        let service = self.fabric.service_for_port(vm, key.peer_port);
        Ok(SockAddrHv::new(partition, service))
    }

    fn join_guest(
        &mut self,
        vm: PartitionKey,
        handle: Handle,
        key: &Key,
        address: SockAddrHv,
    ) -> Result<(), Refusal> {
        if key.kind == SocketKind::Seqpacket && key.peer == Cid::HOST {
            return Err(Refusal::NotSupported);
        }
        // Users of a guest are unknown on the host.
        let principal = Principal {
            uid: u32::MAX,
            ..Principal::default()
        };
        let request = ConnectRequest {
            from: vm,
            principal: &principal,
            vm: address.vm,
            service: address.service,
        };
        let route = self.route(&request)?;
        let joined = match route.destination {
            Destination::Listener(_) => self.guest_to_process(vm, handle, &route, address.service),
            Destination::Guest => self.guest_to_guest(vm, handle, key, &route, address.service),
        };
        if joined.is_err() {
            self.fabric.close_connection(route.connection);
        }
        joined
    }

    fn guest_to_process(
        &mut self,
        vm: PartitionKey,
        handle: Handle,
        route: &Route,
        service: ServiceId,
    ) -> Result<(), Refusal> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        let (preference, to, keep) = (
            listener.preference,
            EndRecord {
                partition: listener.partition,
                caller: listener.caller,
            },
            listener.connected_suspend,
        );
        let chosen = self
            .transport_for(vm, preference)
            .ok_or(Refusal::NotSupported)?;
        let (part, parts, alloc) = make_ends(chosen, RingSide::Second, preference.raw_fd)?;
        let (control, control_sent) =
            seqpacket::pair().map_err(|error| descriptor_limit(&error))?;
        set_nonblocking(&control, true).map_err(|error| descriptor_limit(&error))?;
        let mut descriptors = part.descriptors();
        descriptors.push(control_sent.as_fd());
        self.send_incoming(route, chosen.transport(), vm, UNKNOWN_CALLER, &descriptors)?;
        let id = route.connection;
        if keep {
            self.fabric
                .set_connected_suspend(id, ConnectionEnd::Server, true);
        }
        let from = EndRecord {
            partition: vm,
            caller: UNKNOWN_CALLER,
        };
        let counters: Arc<ByteCounters> = Arc::default();
        self.record_vm_connection(vm, id, service, [from, to], chosen.transport(), &counters);
        let linked = Linked {
            connection: id,
            parts,
            control: Some(ControlConnection::new(control)),
            counters,
            alloc,
            guest: ConnectionEnd::Client,
            reports: true,
        };
        self.command_vm(vm, Command::Accept { handle, linked });
        Ok(())
    }

    fn guest_to_guest(
        &mut self,
        vm: PartitionKey,
        handle: Handle,
        key: &Key,
        route: &Route,
        service: ServiceId,
    ) -> Result<(), Refusal> {
        let own = self
            .vms
            .get(vm)
            .ok_or(Refusal::NotReachable)?
            .settings()
            .cid;
        let (id, counters): (_, Arc<ByteCounters>) = (route.connection, Arc::default());
        let alloc = self
            .buffer_share(vm)
            .min(self.buffer_share(route.target))
            .min(DEFAULT_BUFFER);
        let (from, to) = sibling_pair();
        let end = |partition| EndRecord {
            partition,
            caller: UNKNOWN_CALLER,
        };
        let ends = [end(vm), end(route.target)];
        self.record_vm_connection(vm, id, service, ends, Transport::Descriptor, &counters);
        let linked = |parts, guest, counters, reports| Linked {
            connection: id,
            parts: LinkParts::Sibling(parts),
            control: None,
            counters,
            alloc,
            guest,
            reports,
        };
        let connecting = linked(from, ConnectionEnd::Client, counters, true);
        // Only the connecting guest's end counts the bytes, so that they are counted once.
        let accepting = linked(to, ConnectionEnd::Server, Arc::default(), false);
        let linked = connecting;
        self.command_vm(vm, Command::Accept { handle, linked });
        let key = Key {
            guest_port: key.peer_port,
            peer: Cid::from(own),
            peer_port: key.guest_port,
            kind: key.kind,
        };
        let (linked, timeout) = (accepting, SIBLING_TIMEOUT);
        let connect = Command::Connect {
            key,
            linked,
            timeout,
        };
        self.command_vm(route.target, connect);
        Ok(())
    }

    /// Starts a connect to a guest. The process waits until the guest answers.
    pub(super) fn connect_to_guest(
        &mut self,
        session: Session<OwnedFd>,
        connect: &Connect,
        route: Route,
    ) {
        let (id, address) = (route.connection, connect.address);
        let preference = TransportPreference {
            transports: connect.transports,
            raw_fd: connect.flags.raw_fd,
            ring_size: session.ring_size,
        };
        let made = match (
            self.transport_for(route.target, preference),
            address.service.port_for_guests(),
        ) {
            (None, _) => Err(Refusal::NotSupported),
            (Some(_), None) => Err(Refusal::ServiceNotMappable),
            (Some(chosen), Some(port)) => make_ends(chosen, RingSide::First, preference.raw_fd)
                .map(|ends| (chosen, port, ends)),
        };
        let (chosen, guest_port, (part, parts, alloc)) = match made {
            Ok(made) => made,
            Err(refusal) => {
                self.fabric.close_connection(id);
                return self.reject(&session, address, &refusal);
            }
        };
        let key = Key {
            guest_port,
            peer: Cid::HOST,
            peer_port: self.vms.next_port(),
            kind: SocketKind::Stream,
        };
        let counters: Arc<ByteCounters> = Arc::default();
        let linked = Linked {
            connection: id,
            parts,
            control: None,
            counters: Arc::clone(&counters),
            alloc,
            guest: ConnectionEnd::Server,
            reports: true,
        };
        let (vm, timeout) = (route.target, ACCEPT_TIMEOUT);
        let pending = PendingConnect {
            session,
            address,
            route,
            part,
            transport: chosen.transport(),
            counters,
        };
        self.connections.begin(id, pending);
        let connect = Command::Connect {
            key,
            linked,
            timeout,
        };
        self.command_vm(vm, connect);
    }

    /// Sends the process its descriptors after the guest has accepted.
    fn guest_accepted(&mut self, vm: PartitionKey, id: ConnectionId) {
        let Some(pending) = self.connections.take_pending(id) else {
            return;
        };
        let PendingConnect {
            session,
            address,
            route,
            part,
            transport,
            counters,
        } = pending;
        self.fabric.accepted(id);
        let from = EndRecord {
            partition: session.partition,
            caller: session.caller,
        };
        let to = EndRecord {
            partition: vm,
            caller: UNKNOWN_CALLER,
        };
        if session.connected_suspend {
            self.fabric
                .set_connected_suspend(id, ConnectionEnd::Client, true);
        }
        let connected = BrokerMessage::Connected(Connected {
            transport,
            connection: id.as_u64(),
            local: route.client,
            peer: route.server,
        });
        let sent = self
            .session_io
            .send_with(&session.socket, &connected, &part.descriptors());
        if let Err(error) = sent
            && !is_disconnected(&error)
        {
            let refusal = in_flight_limit(&error);
            let connection = id;
            self.fabric.close_connection(id);
            self.reject(&session, address, &refusal);
            let reset = Command::Reset {
                connection,
                refusal,
            };
            return self.command_vm(vm, reset);
        }
        // If the process is gone by now, the data thread closes the connection.
        self.record_vm_connection(vm, id, address.service, [from, to], transport, &counters);
        let (connection, control) = (id, ControlConnection::new(session.socket));
        let establish = Command::Establish {
            connection,
            control,
        };
        self.command_vm(vm, establish);
    }

    /// Aborts a pending connect to a guest and sends the process the refusal.
    pub(super) fn abort_pending(&mut self, id: ConnectionId, refusal: &Refusal) {
        let Some(pending) = self.connections.take_pending(id) else {
            return;
        };
        self.fabric.close_connection(id);
        let reset = Command::Reset {
            connection: id,
            refusal: refusal.clone(),
        };
        self.command_vm(pending.route.target, reset);
        self.reject(&pending.session, pending.address, refusal);
    }

    fn record_vm_connection(
        &mut self,
        vm: PartitionKey,
        id: ConnectionId,
        service: ServiceId,
        [from, to]: [EndRecord; 2],
        transport: Transport,
        counters: &Arc<ByteCounters>,
    ) {
        let record = ConnectionRecord {
            service,
            from,
            to,
            transport,
            counters: Arc::clone(counters),
            owner: ConnectionOwner::Vm(vm),
            started: Instant::now(),
        };
        self.record_connection(id, record);
    }

    /// The transport between a process and a guest's connection. The broker itself has the other end,
    /// so a ring is allowed even if processes may not share memory with each other.
    fn transport_for(
        &self,
        vm: PartitionKey,
        preference: TransportPreference,
    ) -> Option<ChosenTransport> {
        let all = Transports::RING.union(Transports::DESCRIPTOR);
        let own = TransportPreference {
            transports: all,
            raw_fd: false,
            ring_size: RingSize::MIN.bytes(),
        };
        match ChosenTransport::between(own, preference, true)? {
            ChosenTransport::Ring(size) => {
                let bytes = size.bytes().min(self.buffer_share(vm)).max(MIN_BUFFER);
                Some(ChosenTransport::Ring(RingSize::at_least(bytes)))
            }
            ChosenTransport::Descriptor => Some(ChosenTransport::Descriptor),
        }
    }

    /// The buffer bytes of one more connection of a VM, each way.
    fn buffer_share(&self, vm: PartitionKey) -> u32 {
        let share = BUFFER_BUDGET / (self.connections.with_guests(vm) + 1);
        let share = u32::try_from(share)
            .unwrap_or(MAX_BUFFER)
            .clamp(MIN_BUFFER, MAX_BUFFER);
        // Ring capacities are powers of two.
        1 << share.ilog2()
    }
}
