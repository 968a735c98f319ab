//! Connects of processes to guests. Each is a [`PendingConnect`] until the guest accepts, and the
//! process waits.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, Connect, Connected, Transport};
use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionKey, Refusal, Route};
use hvsock_ring::RingSide;
use hvsock_sys::set_nonblocking;

use super::attaching::{AttachedPeer, Ends};
use super::connections::{ConnectionOwner, ConnectionRecord, EndRecord};
use super::guest_ends::{kept_duplicate, make_ends, make_socket, takes_hand_over, takes_socket};
use super::guest_shares::DEFAULT_BUFFER;
use super::hybrid_answers::send_accepted;
use super::limits::{descriptor_limit, in_flight_limit};
use super::offering::NotNow;
use super::outer_held::Asker;
use super::pending::{PendingConnect, ProcessPart, Stage};
use super::preference::TransportPreference;
use super::session_io::is_disconnected;
use super::sessions::Session;
use super::state::Core;
use crate::callers::Caller;
use crate::data_path::{ByteCounters, ControlConnection, ProcessSocket};
use crate::guest_link::{GuestConnect, LinkCounters, LinkEnd, Peer, Service, SocketKind, Source};
use crate::pump::{Adopted, Connection, RelayEnd};

/// The longest and the default timeout for a guest to accept.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);

/// The broker's descriptors of a connection with a guest, at most: two doorbells and their memory or a socket, the
/// guest's socket if its link hands it out, and the control connection of an accepting process.
pub(super) const GUEST_END: u64 = 4;
/// The descriptors that a connecting process gets, at most, which the broker has until the guest
/// accepts.
const PROCESS_PART: u64 = 3;

/// How long after the timeout the core gives up on a link that has not answered.
pub(super) const LINK_GRACE: Duration = Duration::from_secs(5);

/// The timeout for a guest to accept, of a process that waits for as many milliseconds. So the process
/// learns from the broker that the guest was too late, and does not take the broker for silent.
fn accept_timeout(requested_ms: u32) -> Duration {
    match requested_ms {
        0 => ACCEPT_TIMEOUT,
        ms => Duration::from_millis(ms.into()).min(ACCEPT_TIMEOUT),
    }
}

/// What the broker has of a connection that a guest has accepted, beside the process's control connection.
enum Side {
    /// The guest's link has it.
    Link,
    /// The broker's socket towards the process, and the guest's.
    Relay { data: OwnedFd, guest: OwnedFd },
    /// A duplicate of the guest's socket, which the process receives.
    HandOver(OwnedFd),
    /// The guest's socket. The broker's towards the process comes later.
    AttachedRelay(OwnedFd),
}

/// The guest's socket for the process, and the broker's duplicate.
fn hand_over(socket: Option<OwnedFd>, connections: usize) -> Result<(Vec<OwnedFd>, Side), Refusal> {
    let socket = socket.ok_or_else(no_socket)?;
    let kept = kept_duplicate(&socket, connections)?;
    Ok((vec![socket], Side::HandOver(kept)))
}

/// What the process receives, and the two ends that the broker relays between.
fn relay(
    process: Vec<OwnedFd>,
    data: OwnedFd,
    socket: Option<OwnedFd>,
) -> Result<(Vec<OwnedFd>, Side), Refusal> {
    let guest = nonblocking(socket.ok_or_else(no_socket)?)?;
    Ok((process, Side::Relay { data, guest }))
}

fn nonblocking(socket: OwnedFd) -> Result<OwnedFd, Refusal> {
    set_nonblocking(&socket, true).map_err(|error| descriptor_limit(&error))?;
    Ok(socket)
}

/// What there is of a connection between a guest and a process that brings its own socket: what the link moves
/// bytes from and to, if it does.
fn attached_ends(
    byte_counts: bool,
    counters: &Arc<ByteCounters>,
) -> (ProcessPart, Transport, Option<LinkEnd>) {
    if !byte_counts {
        return (ProcessPart::AttachedRelayed, Transport::Attached, None);
    }
    let end = LinkEnd {
        peer: Peer::attached_socket(),
        counters: LinkCounters::new(Arc::clone(counters), ConnectionEnd::Server),
        buffer: DEFAULT_BUFFER,
        reports: true,
    };
    (ProcessPart::Attached, Transport::Attached, Some(end))
}

fn no_socket() -> Refusal {
    Refusal::Reset {
        cause: "the guest's link gave no socket".into(),
    }
}

impl Core {
    /// Starts a connect to a guest: makes both ends and asks the guest's link to connect. The process
    /// waits until the guest answers. On failure the session is returned.
    #[expect(
        clippy::result_large_err,
        reason = "it is matched where it is returned and is never stored"
    )]
    pub(super) fn connect_to_guest(
        &mut self,
        session: Session<ProcessSocket>,
        connect: &Connect,
        route: Route,
    ) -> Result<(), (Session<ProcessSocket>, NotNow)> {
        let (id, vm) = (route.connection, self.carrier(route.target));
        let reply = match session.is_plain() {
            true => None,
            false => match self.reserve_reply(session.partition, session.caller) {
                Ok(reply) => Some(reply),
                Err(why) => return Err((session, why)),
            },
        };
        let owner = self.owner(session.partition, session.caller);
        // The process's part is closed once it is sent.
        let charge = match self.descriptors.charge(owner, GUEST_END + PROCESS_PART) {
            Ok(charge) => charge,
            Err(shortage) => {
                let refusal = self.descriptor_share(shortage);
                return Err((session, refusal.into()));
            }
        };
        let preference = TransportPreference {
            transports: connect.transports,
            raw_fd: connect.flags.raw_fd,
            ring_size: session.ring_size,
        };
        let counters: Arc<ByteCounters> = Arc::default();
        let made = match self.capabilities(vm).byte_counts {
            _ if session.is_plain() => self.own_ends(&session.socket, vm, &counters),
            byte_counts if session.attachment.is_some() => {
                Ok(attached_ends(byte_counts, &counters))
            }
            true => self
                .transport_for(vm, preference)
                .ok_or(Refusal::NotSupported)
                .and_then(|chosen| {
                    let ends = make_ends(chosen, RingSide::First, preference.raw_fd)?;
                    let (part, peer, buffer) = ends;
                    let end = LinkEnd {
                        peer,
                        counters: LinkCounters::new(Arc::clone(&counters), ConnectionEnd::Server),
                        buffer,
                        reports: true,
                    };
                    Ok((part, chosen.transport(), Some(end)))
                }),
            false if self.hands_over(vm) && takes_hand_over(preference) => {
                Ok((ProcessPart::HandedOver, Transport::Direct, None))
            }
            false if takes_socket(preference) => make_socket().map(|(process, data)| {
                let part = ProcessPart::Relayed(process, data);
                (part, Transport::Descriptor, None)
            }),
            false => Err(Refusal::NotSupported),
        };
        let (part, transport, end) = match made {
            Ok(made) => made,
            Err(refusal) => return Err((session, refusal.into())),
        };
        let timeout = accept_timeout(connect.timeout_ms);
        let mut deadline = Instant::now() + timeout;
        let requested = match self.is_nested(route.target) {
            true => self
                .ask_for_port(route.target, id, connect.address, timeout)
                .map(|request| Stage::Asked { request, end }),
            false => {
                deadline += LINK_GRACE;
                let connect = GuestConnect {
                    connection: id,
                    source: Source::Host,
                    container: self.container_id(session.partition),
                    service: Service::Id(connect.address.service),
                    kind: SocketKind::Stream,
                    timeout,
                    end,
                };
                let link = self.link_of(vm).ok_or(Refusal::PartitionOff);
                let requested = link.and_then(|link| link.connect(connect));
                requested.map(|()| Stage::Connecting)
            }
        };
        let stage = match requested {
            Ok(stage) => stage,
            Err(refusal) => return Err((session, refusal.into())),
        };
        let pending = PendingConnect {
            session,
            connect: *connect,
            route,
            part,
            transport,
            counters,
            charge,
            reply,
            stage,
        };
        self.connections.begin(id, pending, deadline);
        Ok(())
    }

    /// Sends the process its descriptors after the guest has accepted. `socket` is the guest's, if
    /// its link hands it out.
    pub(super) fn guest_accepted(
        &mut self,
        vm: PartitionKey,
        id: ConnectionId,
        socket: Option<OwnedFd>,
    ) {
        let Some(pending) = self.connections.take_pending(id) else {
            return;
        };
        let PendingConnect {
            session,
            connect,
            route,
            part,
            transport,
            counters,
            mut charge,
            reply,
            stage: _,
        } = pending;
        let (address, raw_fd) = (connect.address, connect.flags.raw_fd);
        let made = match part {
            ProcessPart::HandedOver => hand_over(socket, self.connections.with_guests(vm)),
            ProcessPart::Relayed(process, data) => relay(vec![process], data, socket),
            ProcessPart::OwnRelayed(data) => relay(Vec::new(), data, socket),
            ProcessPart::AttachedRelayed => {
                let guest = socket.ok_or_else(no_socket);
                let guest = guest.and_then(nonblocking);
                guest.map(|guest| (Vec::new(), Side::AttachedRelay(guest)))
            }
            part => Ok((part.into_descriptors(), Side::Link)),
        };
        let (descriptors, side) = match made {
            Ok(made) => made,
            Err(refusal) => {
                self.fabric.close_connection(id);
                return self.reject(&session, "connect", address, &refusal);
            }
        };
        self.fabric.accepted(id);
        let from = EndRecord {
            partition: session.partition,
            caller: session.caller,
        };
        let to = EndRecord {
            partition: route.target,
            caller: Caller::UNKNOWN,
        };
        if session.connected_suspend {
            self.fabric
                .set_connected_suspend(id, ConnectionEnd::Client, true);
        }
        let connected = Connected {
            transport,
            connection: id.as_u64(),
            local: route.client,
            peer: route.server,
        };
        let is_plain = session.is_plain();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let sent = match is_plain {
            true if session.is_text() => Self::send_text_connected(&session, &connected),
            true => send_accepted(&session.socket, id),
            false => {
                let connected = BrokerMessage::Connected(connected);
                self.session_io
                    .send_with(&session.socket, &connected, &borrowed)
            }
        };
        if let (Ok(()), Some(reply)) = (&sent, reply) {
            self.in_flight.sent(&session.socket, reply);
        }
        if let Err(error) = sent
            && !is_disconnected(&error)
        {
            let refusal = in_flight_limit(&error);
            self.fabric.close_connection(id);
            self.reject(&session, "connect", address, &refusal);
            if let (Side::Link, Some(link)) = (side, self.link_of(vm)) {
                link.close(id, refusal);
            }
            return;
        }
        charge.shrink(PROCESS_PART);
        // If the process is gone by now, whoever moves the bytes closes the connection.
        let ends = [from, to];
        let claim = session.claim;
        match side {
            Side::AttachedRelay(guest) => {
                let half_close = self.capabilities(vm).half_close;
                let peer = AttachedPeer::Guest {
                    socket: guest,
                    half_close,
                };
                let record = ConnectionRecord {
                    service: address.service,
                    from,
                    to,
                    transport,
                    counters,
                    owner: ConnectionOwner::Attaching,
                    started: Instant::now(),
                    _charge: Some(charge),
                    claim,
                    claimed_result: None,
                    audited: None,
                };
                self.record_connection(id, record);
                let control = session.socket;
                if let Some(attachment) = session.attachment {
                    self.await_attached(id, attachment, Ends { control, peer });
                }
            }
            Side::Relay { data, guest } => {
                let process = match is_plain {
                    true => RelayEnd::plain(data),
                    false => RelayEnd::new(session.socket, data, raw_fd),
                };
                let guest = RelayEnd::of_guest(guest, self.capabilities(vm).half_close);
                let relayed = Adopted {
                    id,
                    connection: Connection::relay(process, guest),
                    counters,
                };
                let carried = (transport, charge);
                self.adopt_guest(relayed, address.service, ends, carried, claim);
            }
            Side::HandOver(guest) => {
                let passed = Adopted {
                    id,
                    connection: Connection::hand_over(session.socket, guest, raw_fd, 0),
                    counters: Arc::new(ByteCounters::uncounted()),
                };
                let carried = (transport, charge);
                self.adopt_guest(passed, address.service, ends, carried, claim);
            }
            Side::Link => {
                let end = (transport, charge);
                self.record_link(vm, id, address.service, ends, end, &counters, claim);
                if let Some(attachment) = session.attachment {
                    let (control, peer) = (session.socket, AttachedPeer::Link(vm));
                    return self.await_attached(id, attachment, Ends { control, peer });
                }
                if let Some(link) = self.link_of(vm) {
                    let control = match is_plain {
                        true => ControlConnection::none(),
                        false => ControlConnection::new(session.socket),
                    };
                    link.establish(id, control);
                }
            }
        }
    }

    /// Aborts the connects that a link should have answered by now.
    pub(super) fn expire_pending(&mut self, now: Instant) {
        while let Some(id) = self.connections.expired(now) {
            self.abort_pending(id, &Refusal::TimedOut);
            self.apply_effects();
        }
    }

    /// Aborts a pending connect to a guest and sends the process the refusal.
    pub(super) fn abort_pending(&mut self, id: ConnectionId, refusal: &Refusal) {
        let Some(pending) = self.connections.take_pending(id) else {
            return;
        };
        self.fabric.close_connection(id);
        let target = pending.route.target;
        match pending.stage {
            Stage::Asked { request, .. } => self.cancel_incoming(self.carrier(target), request),
            Stage::Connecting => {
                if let Some(link) = self.link_of(target) {
                    link.close(id, refusal.clone());
                }
            }
        }
        let PendingConnect {
            session, connect, ..
        } = pending;
        let address = connect.address;
        match session.explains {
            Some(request) if self.is_outer(pending.route.target) => {
                self.record_refusal(&session, "connect", address, refusal);
                let explanation = self.explain_refusal(&session, address, refusal, request);
                let (from, asker) = (session.partition, Asker::Process(session));
                let refusal = Some(refusal.clone());
                self.explain_with_host(asker, from, address, explanation, refusal);
            }
            _ => self.reject(&session, "connect", address, refusal),
        }
    }
}
