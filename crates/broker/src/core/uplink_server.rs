//! Serves guests at the host's port for its broker: accepts their connections, answers look-ups and explanations,
//! and passes an uplink's frames on to [`uplinks`](super::uplinks).
//!
//! The port is in no registry, and no rule keeps a guest from it. What a guest learns there is what a process of a
//! container learns at its endpoint, by the same functions.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::SockAddrHv;
use hvsock_endpoint::uplink::{
    ChildId, ExplainUp, GuestFrame, HostFrame, PRIVILEGED_PORTS, Request as RequestNumber, What,
};
use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionKey, Refusal};
use hvsock_sys::set_nonblocking;
use mio::Interest;
use mio::unix::SourceFd;

use super::guest_ends::make_socket;
use super::guest_shares::MIN_BUFFER;
use super::guests::principal_of;
use super::labels::partition_label;
use super::limits::{descriptor_limit, watch_limit};
use super::sessions::Request;
use super::state::Core;
use super::tokens::uplink_token;
use crate::budget::Owner;
use crate::callers::Caller;
use crate::data_path::{ByteCounters, ControlConnection, protocol_violation};
use crate::guest_link::{
    FIRST_OF_BROKER, GuestRequest, LinkCounters, LinkEnd, Peer, RequestId, SocketKind,
};
use crate::reply::{explained, refused};
use crate::uplink::{Client, GuestStream, MAX_CLIENTS, MAX_QUERIES, QUERY_WAIT, Received, Role};

/// Most frames read from one guest's connection in one turn, for fairness.
const FRAMES_PER_TURN: usize = 16;

/// The broker's descriptors of a connection, at most: both ends of a socket pair.
pub(super) const DESCRIPTORS: u64 = 2;

impl Core {
    /// Accepts a guest's connection to the broker.
    ///
    /// # Errors
    ///
    /// The refusal, if there are too many. The link does not know it yet.
    pub(super) fn accept_for_broker(
        &mut self,
        vm: PartitionKey,
        id: RequestId,
        request: &mut GuestRequest,
    ) -> Result<(), Refusal> {
        if request.kind != SocketKind::Stream {
            return Err(Refusal::NotSupported);
        }
        let now = Instant::now();
        if !self.uplink_clients.has_room(vm, request.source_port) {
            let silent = self
                .uplink_clients
                .most_silent(vm, request.source_port, now);
            let Some(silent) = silent else {
                let which = format!("{MAX_CLIENTS} connections of one VM to the broker");
                return Err(Refusal::LimitReached { which });
            };
            self.drop_uplink_client(silent);
        }
        let charge = self.descriptors.charge(Owner::Partition(vm), DESCRIPTORS);
        let charge = charge.map_err(|shortage| self.descriptor_share(shortage))?;
        let (socket, end) = self.own_end(vm, request)?;
        let stream = GuestStream::new(socket, charge);
        let index = self.uplink_clients.next_index();
        let fd = stream.raw_fd();
        let both = Interest::READABLE | Interest::WRITABLE;
        let watched = self
            .registry
            .register(&mut SourceFd(&fd), uplink_token(index), both);
        watched.map_err(|error| watch_limit(&error))?;
        let client = Client::new(vm, request.source_port, stream, now);
        let index = self.uplink_clients.insert(client);
        if let Some(link) = self.link_of(vm) {
            match end {
                Some(end) => {
                    let connection =
                        ConnectionId::from_u64(FIRST_OF_BROKER + self.uplink_clients.opened());
                    link.accept(id, connection, end);
                }
                None => link.taken(id),
            }
        }
        self.uplink_client_ready(index);
        Ok(())
    }

    /// The broker's socket of a guest's connection, and what the link moves bytes from and to, if it does.
    fn own_end(
        &self,
        vm: PartitionKey,
        request: &mut GuestRequest,
    ) -> Result<(OwnedFd, Option<LinkEnd>), Refusal> {
        let (socket, end) = match self.capabilities(vm).byte_counts {
            false => (request.socket.take().ok_or(Refusal::NotSupported)?, None),
            true => {
                let (socket, data) = make_socket()?;
                let mut peer = Peer::plain_socket(data);
                peer.set_control(ControlConnection::none());
                let counters: Arc<ByteCounters> = Arc::default();
                let end = LinkEnd {
                    peer,
                    counters: LinkCounters::new(counters, ConnectionEnd::Client),
                    buffer: MIN_BUFFER,
                    reports: true,
                };
                (socket, Some(end))
            }
        };
        set_nonblocking(&socket, true).map_err(|error| descriptor_limit(&error))?;
        Ok((socket, end))
    }

    /// Serves a guest's connection for a turn.
    pub(super) fn uplink_client_ready(&mut self, index: usize) {
        for _ in 0..FRAMES_PER_TURN {
            let Some(client) = self.uplink_clients.get_mut(index) else {
                return;
            };
            client.stream.flush();
            if client.role == Role::Closing {
                let guest = &mut client.stream;
                let is_read = guest.unsent() == 0;
                if is_read && (guest.finish().is_err() || guest.discard()) {
                    self.drop_uplink_client(index);
                }
                return;
            }
            let (role, vm) = (client.role, client.vm);
            if role == Role::Uplink && !self.may_read_uplink(index, Instant::now()) {
                return;
            }
            let Some(client) = self.uplink_clients.get_mut(index) else {
                return;
            };
            match client.stream.receive() {
                Received::Frame(frame) => match role {
                    Role::Uplink => self.uplink_frame(index, frame),
                    Role::Queries | Role::Closing => self.query(index, vm, frame),
                },
                Received::Later => return,
                Received::Ended => return self.close_uplink_client(index),
                Received::Failed(what) => {
                    self.fail_uplink_client(index, &what);
                    return;
                }
            }
        }
        self.uplink_clients.enqueue(index);
    }

    /// Answers a query of a guest, or passes its HELLO on.
    fn query(&mut self, index: usize, vm: PartitionKey, frame: GuestFrame) {
        if !self.uplink_clients.count_query(index) {
            let which = format!("{MAX_QUERIES} queries on one connection");
            let refusal = Refusal::LimitReached { which };
            return self.refuse_uplink_client(index, &refusal);
        }
        self.uplink_clients
            .frame_arrived(index, Instant::now(), QUERY_WAIT);
        match frame {
            GuestFrame::Lookup { kind, name } => {
                let answer = match self.find_name(vm, kind, name) {
                    Ok(guid) => HostFrame::Found { guid },
                    Err(refusal) => {
                        self.telemetry.count_refused(&refusal);
                        HostFrame::Refused(refused(&refusal))
                    }
                };
                self.send_to_guest(index, &answer);
            }
            GuestFrame::Explain(explain) => {
                let answer = self.explain_to_guest(vm, &explain);
                self.send_to_guest(index, &answer);
            }
            GuestFrame::Hello(hello) => {
                let client = self.uplink_clients.get(index);
                match client.is_some_and(Client::is_privileged) {
                    true => self.open_uplink(index, vm, &hello),
                    false => {
                        let rule = "an uplink comes from a vsock port below 1024".into();
                        self.refuse_uplink_client(index, &Refusal::Denied { rule });
                    }
                }
            }
            _ => self.fail_uplink_client(index, "a frame without an uplink"),
        }
    }

    /// Explains a request of a guest, as to a process of a container.
    fn explain_to_guest(&mut self, vm: PartitionKey, explain: &ExplainUp) -> HostFrame {
        let ExplainUp {
            request,
            child,
            what,
            address,
        } = *explain;
        let request_number: RequestNumber = request;
        let explanation = match child {
            ChildId::MACHINE => {
                // A guest's kernel has ports only, and a connect to this one would be to the service that has it.
                let service = match address.service.port() {
                    Some(port) => self.fabric.service_for_port(vm, port),
                    None => address.service,
                };
                let address = SockAddrHv { service, ..address };
                let mut principal = principal_of(Caller::UNKNOWN);
                let request = match what {
                    What::Connect => Request::Connect,
                    What::Listen => {
                        // It lets only root listen at these ports, and any user at all others.
                        let port = service.port_for_guests();
                        let is_root = port.is_some_and(|port| port < PRIVILEGED_PORTS);
                        principal.partition_uid = is_root.then_some(0);
                        Request::Listen { backlog: 1 }
                    }
                };
                explained(&self.explain_request(vm, &principal, address, request))
            }
            // Without an uplink there is no other.
            _ => refused(&Refusal::NotReachable),
        };
        HostFrame::Explained {
            request: request_number,
            explanation,
        }
    }

    /// Sends a guest a frame. It is queued until the guest reads.
    pub(super) fn send_to_guest(&mut self, index: usize, frame: &HostFrame) {
        if let Some(client) = self.uplink_clients.get_mut(index) {
            client.stream.send(frame);
        }
    }

    /// Refuses what a guest's connection is for, and ends it.
    pub(super) fn refuse_uplink_client(&mut self, index: usize, refusal: &Refusal) {
        self.telemetry.count_refused(refusal);
        self.send_to_guest(index, &HostFrame::Refused(refused(refusal)));
        self.close_uplink_client(index);
    }

    /// Ends a guest's connection that violates the protocol or is broken.
    pub(super) fn fail_uplink_client(&mut self, index: usize, what: &str) {
        if let Some(client) = self.uplink_clients.get(index) {
            let vm = partition_label(&self.fabric, client.vm);
            tracing::debug!(%vm, "ended a guest's connection to the broker: {what}");
            self.refuse_uplink_client(index, &protocol_violation(what));
        }
    }

    /// Ends a guest's connection once the guest has read what it was sent.
    pub(super) fn close_uplink_client(&mut self, index: usize) {
        let Some(client) = self.uplink_clients.get(index) else {
            return;
        };
        if client.role == Role::Uplink {
            self.uplink_ended(index);
        }
        self.uplink_clients.close(index, Instant::now());
        // What has arrived may end it already, and no event follows.
        self.uplink_clients.enqueue(index);
    }

    /// Ends a guest's connection at once.
    fn drop_uplink_client(&mut self, index: usize) {
        if let Some(client) = self.uplink_clients.get(index)
            && client.role == Role::Uplink
        {
            self.uplink_ended(index);
        }
        if let Some(client) = self.uplink_clients.remove(index) {
            let fd = client.stream.raw_fd();
            let _ = self.registry.deregister(&mut SourceFd(&fd));
        }
    }

    /// Ends all connections of a VM that is removed.
    pub(super) fn drop_uplink_clients_of(&mut self, vm: PartitionKey) {
        for index in self.uplink_clients.of_vm(vm) {
            self.drop_uplink_client(index);
        }
    }

    /// Serves the connections whose turn it is.
    pub(super) fn serve_uplink_clients(&mut self) {
        for index in self.uplink_clients.take_turns() {
            self.uplink_client_ready(index);
        }
    }

    /// Ends the connections whose time has passed.
    pub(super) fn expire_uplink_clients(&mut self, now: Instant) {
        while let Some(index) = self.uplink_clients.expired(now) {
            match self.uplink_clients.get(index).map(|client| client.role) {
                Some(Role::Queries) => self.refuse_uplink_client(index, &Refusal::TimedOut),
                Some(Role::Uplink) => self.expire_uplink(index, now),
                Some(Role::Closing) | None => self.drop_uplink_client(index),
            }
        }
    }
}
