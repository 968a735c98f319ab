//! Connections with the guests of VMs.
//!
//! The guest's end is virtio-vsock, kept by the VM's data thread; the other end is a process's, of
//! which the broker has one half of a ring or of a socket pair, or another guest's. A guest that
//! connects is answered when the listener has its part. A guest that is connected to has to accept
//! first: until then its connection is [`Pending`], and the process waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{BrokerMessage, Connect, Connected, Transport, Transports};
use hvsock_fabric::{ConnectRequest, ConnectionId, Destination, End, PartitionKey, Refusal, Route};
use hvsock_registry::Principal;
use hvsock_ring::{Bells, Parts, RingSize, Side};
use hvsock_sys::{message, seqpacket, set_nonblocking, stream};
use hvsock_virtio::{Cid, GuestCid, Handle, Key, SocketKind};

use super::accept::out_of_descriptors;
use super::join::{NOBODY, in_flight, is_gone};
use super::labels::partition_label;
use super::material::{Kind, Offer, out_of_maps};
use super::session::Session;
use super::{ConnectionRecord, Core, EndRecord, Place};
use crate::model::EventKind;
use crate::pump::{Control, Counters};
use crate::vm::{Command, LinkParts, Linked, VmNews, sibling_pair};

/// The first of the ports that connections to guests come from: above those that services have
/// (IANA's dynamic ports).
pub(super) const FIRST_PORT: u32 = 49_152;
const LAST_PORT: u32 = 65_535;

/// How long a guest may take to accept. A process that has less patience says so by closing.
const ACCEPT_BOUND: Duration = Duration::from_secs(30);
/// Linux's own limit, after which a guest that connects to its sibling has given up.
const SIBLING_BOUND: Duration = Duration::from_secs(2);

/// Bytes that may wait for the guests and processes of one VM, each way, as long as each
/// connection may have [`LEAST`].
const BUDGET: usize = 64 * 1024 * 1024;
const LEAST: u32 = 16 * 1024;
/// The most for one connection: what a process may ask for.
const MOST: u32 = 1024 * 1024;
/// The most for one that nobody asked for: what Linux has on the other side.
const USUAL: u32 = 256 * 1024;

/// A connection that a guest was asked for.
pub(super) struct Pending {
    session: Session,
    address: SockAddrHv,
    route: Route,
    given: Given,
    transport: Transport,
    counters: Arc<Counters>,
}

/// What a process gets.
enum Given {
    Ring { memory: OwnedFd, bells: Bells },
    Socket(OwnedFd),
}

impl Given {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Ring { memory, bells } => {
                vec![memory.as_fd(), bells.own.as_fd(), bells.peer.as_fd()]
            }
            Self::Socket(data) => vec![data.as_fd()],
        }
    }
}

/// The halves of a way for bytes: the process's, the broker's, and how many bytes from the guest
/// it holds.
fn halves(kind: Kind, process: Side, plain: bool) -> Result<(Given, LinkParts, u32), Refusal> {
    match kind {
        Kind::Ring(size) => {
            let parts = Parts::new(size).map_err(|error| out_of_descriptors(&error))?;
            let Parts {
                memory,
                first,
                second,
            } = parts;
            let (own, bells) = match process {
                Side::First => (second, first),
                Side::Second => (first, second),
            };
            let end = hvsock_ring::End::open(process.other(), &memory, own);
            let end = end.map_err(|error| out_of_maps(&error))?;
            let given = Given::Ring { memory, bells };
            Ok((given, LinkParts::Ring(Box::new(end)), size.bytes()))
        }
        Kind::Descriptor => {
            let (data, given) = stream::pair().map_err(|error| out_of_descriptors(&error))?;
            set_nonblocking(&data, true).map_err(|error| out_of_descriptors(&error))?;
            Ok((
                Given::Socket(given),
                LinkParts::Socket { data, plain },
                USUAL,
            ))
        }
    }
}

impl Core {
    /// Takes in what a VM's data thread says.
    pub(super) fn hear_vm(&mut self, vm: PartitionKey, news: VmNews) {
        match news {
            VmNews::State(state) => self.vmm_state(vm, state),
            VmNews::Request { handle, key } => self.guest_connects(vm, handle, key),
            VmNews::Connected(id) => self.guest_accepted(vm, id),
            VmNews::Failed(id, refusal) => self.give_up(id, &refusal),
            VmNews::Fault(what) => {
                let name = partition_label(&self.fabric, vm);
                let told = self.vms.get_mut(&vm).map(|vm| vm.words.may_speak());
                if let Some(Some(silenced)) = told {
                    tracing::warn!(vm = %name, silenced, "{what}");
                }
            }
        }
    }

    /// Tells a VM's data thread something; a VM that is no more needs no telling.
    pub(super) fn command_vm(&self, vm: PartitionKey, command: Command) {
        let threads = self.vms.get(&vm).and_then(|vm| vm.threads.as_ref());
        if let Some(threads) = threads {
            threads.command(command);
        }
    }

    /// Connects a guest to what it asks for, or has it refused at once.
    fn guest_connects(&mut self, vm: PartitionKey, handle: Handle, key: Key) {
        let (address, joined) = match self.address_for(vm, &key) {
            Ok(address) => (Some(address), self.join_guest(vm, handle, &key, address)),
            Err(refusal) => (None, Err(refusal)),
        };
        if let Err(refusal) = joined {
            self.command_vm(vm, Command::Refuse { handle });
            self.refuse_guest(vm, &key, address, &refusal);
        }
        self.carry_out();
    }

    /// Says where everybody can see it why a guest was turned down, which hears nothing of it.
    fn refuse_guest(
        &mut self,
        vm: PartitionKey,
        key: &Key,
        address: Option<SockAddrHv>,
        refusal: &Refusal,
    ) {
        self.tally.refused(refusal);
        let from = partition_label(&self.fabric, vm);
        let address = address.map_or_else(
            || format!("CID {} port {}", key.peer, key.peer_port),
            |address| address.to_string(),
        );
        let told = self.vms.get_mut(&vm).map(|vm| vm.words.may_speak());
        if let Some(Some(silenced)) = told {
            let port = key.peer_port;
            tracing::info!(%from, %address, port, silenced, reason = refusal.label(),
                "a guest was refused: {refusal}");
        }
        self.events.publish(|| EventKind::Refused {
            from,
            address,
            reason: refusal.label().into(),
            message: refusal.to_string(),
        });
    }

    /// What a guest means by a context id and a port.
    fn address_for(&self, vm: PartitionKey, key: &Key) -> Result<SockAddrHv, Refusal> {
        let partition = if key.peer == Cid::HOST {
            VmId::PARENT
        } else {
            // Guests must not learn which ids there are.
            let cid = GuestCid::try_from(key.peer.0).map_err(|_| Refusal::NotReachable)?;
            let sibling = self.by_cid(cid).ok_or(Refusal::NotReachable)?;
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
        // Nobody in a guest is anybody here.
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
        let (offer, to, keep) = (
            listener.offer,
            EndRecord {
                partition: listener.partition,
                caller: listener.caller,
            },
            listener.connected_suspend,
        );
        let kind = self.kind_for(vm, offer).ok_or(Refusal::NotSupported)?;
        let (given, parts, alloc) = halves(kind, Side::Second, offer.plain)?;
        let (control, control_given) =
            seqpacket::pair().map_err(|error| out_of_descriptors(&error))?;
        set_nonblocking(&control, true).map_err(|error| out_of_descriptors(&error))?;
        let mut descriptors = given.descriptors();
        descriptors.push(control_given.as_fd());
        self.announce(route, kind.transport(), vm, NOBODY, &descriptors)?;
        let id = route.connection;
        if keep {
            self.fabric.set_connected_suspend(id, End::Server, true);
        }
        let from = EndRecord {
            partition: vm,
            caller: NOBODY,
        };
        let counters: Arc<Counters> = Arc::default();
        self.book_with_vm(vm, id, service, [from, to], kind.transport(), &counters);
        let linked = Linked {
            connection: id,
            parts,
            control: Some(Control::new(control)),
            counters,
            alloc,
            guest: End::Client,
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
        let own = self.vms.get(&vm).ok_or(Refusal::NotReachable)?.cid;
        let (id, counters): (_, Arc<Counters>) = (route.connection, Arc::default());
        let alloc = self.budget(vm).min(self.budget(route.target)).min(USUAL);
        let (from, to) = sibling_pair();
        let end = |partition| EndRecord {
            partition,
            caller: NOBODY,
        };
        let ends = [end(vm), end(route.target)];
        self.book_with_vm(vm, id, service, ends, Transport::Descriptor, &counters);
        let linked = |parts, guest, counters, reports| Linked {
            connection: id,
            parts: LinkParts::Sibling(parts),
            control: None,
            counters,
            alloc,
            guest,
            reports,
        };
        let connecting = linked(from, End::Client, counters, true);
        // The bytes are counted once, by the guest that connected.
        let accepting = linked(to, End::Server, Arc::default(), false);
        let linked = connecting;
        self.command_vm(vm, Command::Accept { handle, linked });
        let key = Key {
            guest_port: key.peer_port,
            peer: Cid::from(own),
            peer_port: key.guest_port,
            kind: key.kind,
        };
        let (linked, timeout) = (accepting, SIBLING_BOUND);
        let connect = Command::Connect {
            key,
            linked,
            timeout,
        };
        self.command_vm(route.target, connect);
        Ok(())
    }

    /// Asks a guest for a connection; its process waits until the guest has answered.
    pub(super) fn connect_to_guest(&mut self, session: Session, connect: &Connect, route: Route) {
        let (id, address) = (route.connection, connect.address);
        let offer = Offer {
            transports: connect.transports,
            plain: connect.flags.plain,
            ring_size: session.ring_size,
        };
        let made = match (
            self.kind_for(route.target, offer),
            address.service.port_for_guests(),
        ) {
            (None, _) => Err(Refusal::NotSupported),
            (Some(_), None) => Err(Refusal::ServiceNotMappable),
            (Some(kind), Some(port)) => {
                halves(kind, Side::First, offer.plain).map(|halves| (kind, port, halves))
            }
        };
        let (kind, guest_port, (given, parts, alloc)) = match made {
            Ok(made) => made,
            Err(refusal) => {
                self.fabric.close_connection(id);
                return self.turned_down(&session, address, &refusal);
            }
        };
        let key = Key {
            guest_port,
            peer: Cid::HOST,
            peer_port: self.port(),
            kind: SocketKind::Stream,
        };
        let counters: Arc<Counters> = Arc::default();
        let linked = Linked {
            connection: id,
            parts,
            control: None,
            counters: Arc::clone(&counters),
            alloc,
            guest: End::Server,
            reports: true,
        };
        let (vm, timeout) = (route.target, ACCEPT_BOUND);
        let pending = Pending {
            session,
            address,
            route,
            given,
            transport: kind.transport(),
            counters,
        };
        self.pending.insert(id, pending);
        let connect = Command::Connect {
            key,
            linked,
            timeout,
        };
        self.command_vm(vm, connect);
    }

    /// A guest has accepted a connection: its process gets its part.
    fn guest_accepted(&mut self, vm: PartitionKey, id: ConnectionId) {
        let Some(pending) = self.pending.remove(&id) else {
            return;
        };
        let Pending {
            session,
            address,
            route,
            given,
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
            caller: NOBODY,
        };
        if session.connected_suspend {
            self.fabric.set_connected_suspend(id, End::Client, true);
        }
        let connected = BrokerMessage::Connected(Connected {
            transport,
            connection: id.as_u64(),
            local: route.client,
            peer: route.server,
        });
        connected.encode(&mut self.buffer);
        if let Err(error) = message::send(&session.socket, &self.buffer, &given.descriptors())
            && !is_gone(&error)
        {
            let refusal = in_flight(&error);
            let connection = id;
            self.fabric.close_connection(id);
            self.turned_down(&session, address, &refusal);
            let cut = Command::Cut {
                connection,
                refusal,
            };
            return self.command_vm(vm, cut);
        }
        // A process that is gone by now leaves a connection that the data thread ends.
        self.book_with_vm(vm, id, address.service, [from, to], transport, &counters);
        let (connection, control) = (id, Control::new(session.socket));
        let establish = Command::Establish {
            connection,
            control,
        };
        self.command_vm(vm, establish);
    }

    /// Gives a connection up that a guest has not accepted, and tells the process why.
    pub(super) fn give_up(&mut self, id: ConnectionId, refusal: &Refusal) {
        let Some(pending) = self.pending.remove(&id) else {
            return;
        };
        self.fabric.close_connection(id);
        let cut = Command::Cut {
            connection: id,
            refusal: refusal.clone(),
        };
        self.command_vm(pending.route.target, cut);
        self.turned_down(&pending.session, pending.address, refusal);
    }

    fn book_with_vm(
        &mut self,
        vm: PartitionKey,
        id: ConnectionId,
        service: ServiceId,
        [from, to]: [EndRecord; 2],
        transport: Transport,
        counters: &Arc<Counters>,
    ) {
        for partition in [from.partition, to.partition] {
            if let Some(vm) = self.vms.get_mut(&partition) {
                vm.connections += 1;
            }
        }
        let record = ConnectionRecord {
            service,
            from,
            to,
            transport,
            counters: Arc::clone(counters),
            place: Place::Vm(vm),
            started: Instant::now(),
        };
        self.book(id, record);
    }

    /// Takes a connection that has ended off the VMs that had it.
    pub(super) fn leave_vm(&mut self, record: &ConnectionRecord) {
        for partition in [record.from.partition, record.to.partition] {
            if let Some(vm) = self.vms.get_mut(&partition) {
                vm.connections = vm.connections.saturating_sub(1);
            }
        }
    }

    /// How the bytes of a process's connection with a guest are to move. One end is the broker's
    /// own, so that sharing memory needs nobody's consent.
    fn kind_for(&self, vm: PartitionKey, offer: Offer) -> Option<Kind> {
        let all = Transports::RING.union(Transports::DESCRIPTOR);
        let own = Offer {
            transports: all,
            plain: false,
            ring_size: RingSize::MIN.bytes(),
        };
        match Kind::between(own, offer, true)? {
            Kind::Ring(size) => {
                let bytes = size.bytes().min(self.budget(vm)).max(LEAST);
                Some(Kind::Ring(RingSize::at_least(bytes)))
            }
            Kind::Descriptor => Some(Kind::Descriptor),
        }
    }

    /// Bytes that may wait for one more connection of a VM, each way.
    fn budget(&self, vm: PartitionKey) -> u32 {
        let connections = self.vms.get(&vm).map_or(0, |vm| vm.connections);
        let share = BUDGET / (connections + 1);
        let share = u32::try_from(share).unwrap_or(MOST).clamp(LEAST, MOST);
        // Rings have sizes that are powers of two.
        1 << share.ilog2()
    }

    /// The next port for a connection to a guest.
    fn port(&mut self) -> u32 {
        let port = self.next_port;
        self.next_port = if port == LAST_PORT {
            FIRST_PORT
        } else {
            port + 1
        };
        port
    }
}
