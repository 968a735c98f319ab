//! Connects of processes to guests. Each is a [`PendingConnect`] until the guest accepts, and the
//! process waits.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, Connect, Connected, Transport};
use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionKey, Refusal, Route};
use hvsock_ring::RingSide;
use hvsock_sys::set_nonblocking;

use super::connections::EndRecord;
use super::guest_ends::{make_ends, make_socket, takes_socket};
use super::limits::{descriptor_limit, in_flight_limit};
use super::offering::NotNow;
use super::pending::PendingConnect;
use super::preference::TransportPreference;
use super::session_io::is_disconnected;
use super::sessions::Session;
use super::state::Core;
use crate::callers::Caller;
use crate::data_path::{ByteCounters, ControlConnection, ProcessSocket};
use crate::guest_link::{GuestConnect, LinkCounters, LinkEnd, Service, SocketKind, Source};
use crate::pump::{Adopted, Connection, RelayEnd};

/// The longest and the default timeout for a guest to accept.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);

/// The broker's descriptors of a connection with a guest, at most: two doorbells or a socket, the
/// guest's socket if its link hands it out, and the control connection of an accepting process.
pub(super) const GUEST_END: u64 = 3;
/// The descriptors that a connecting process gets, at most, which the broker has until the guest
/// accepts.
const PROCESS_PART: u64 = 3;

/// How long after the timeout the core gives up on a link that has not answered.
const LINK_GRACE: Duration = Duration::from_secs(5);

/// The timeout for a guest to accept, of a process that waits for as many milliseconds. So the process
/// learns from the broker that the guest was too late, and does not take the broker for silent.
fn accept_timeout(requested_ms: u32) -> Duration {
    match requested_ms {
        0 => ACCEPT_TIMEOUT,
        ms => Duration::from_millis(ms.into()).min(ACCEPT_TIMEOUT),
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
        let (id, vm) = (route.connection, route.target);
        let reply = match self.reserve_reply(session.partition, session.caller) {
            Ok(reply) => reply,
            Err(why) => return Err((session, why)),
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
                    Ok((part, chosen.transport(), Some(end), None))
                }),
            false if takes_socket(preference) => {
                make_socket().map(|(part, data)| (part, Transport::Descriptor, None, Some(data)))
            }
            false => Err(Refusal::NotSupported),
        };
        let (part, transport, end, relayed) = match made {
            Ok(made) => made,
            Err(refusal) => return Err((session, refusal.into())),
        };
        let Some(link) = self.vms.link(vm) else {
            return Err((session, Refusal::PartitionOff.into()));
        };
        let timeout = accept_timeout(connect.timeout_ms);
        let requested = link.connect(GuestConnect {
            connection: id,
            source: Source::Host,
            service: Service::Id(connect.address.service),
            kind: SocketKind::Stream,
            timeout,
            end,
        });
        if let Err(refusal) = requested {
            return Err((session, refusal.into()));
        }
        let pending = PendingConnect {
            session,
            address: connect.address,
            route,
            part,
            transport,
            counters,
            relayed: relayed.map(|data| (data, preference.raw_fd)),
            charge,
            reply,
        };
        let deadline = Instant::now() + timeout + LINK_GRACE;
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
            address,
            route,
            part,
            transport,
            counters,
            relayed,
            mut charge,
            reply,
        } = pending;
        // The process's end of a relay, and the guest's.
        let relayed = match (relayed, socket) {
            (None, _) => None,
            (Some(process), Some(guest)) => match set_nonblocking(&guest, true) {
                Ok(()) => Some((process, guest)),
                Err(error) => {
                    self.fabric.close_connection(id);
                    return self.reject(&session, "connect", address, &descriptor_limit(&error));
                }
            },
            (Some(_), None) => {
                let cause = "the guest's link gave no socket".into();
                self.fabric.close_connection(id);
                return self.reject(&session, "connect", address, &Refusal::Reset { cause });
            }
        };
        self.fabric.accepted(id);
        let from = EndRecord {
            partition: session.partition,
            caller: session.caller,
        };
        let to = EndRecord {
            partition: vm,
            caller: Caller::UNKNOWN,
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
        if sent.is_ok() {
            self.in_flight.sent(&session.socket, reply);
        }
        if let Err(error) = sent
            && !is_disconnected(&error)
        {
            let refusal = in_flight_limit(&error);
            self.fabric.close_connection(id);
            self.reject(&session, "connect", address, &refusal);
            if let (None, Some(link)) = (relayed, self.vms.link(vm)) {
                link.close(id, refusal);
            }
            return;
        }
        charge.shrink(PROCESS_PART);
        // If the process is gone by now, whoever moves the bytes closes the connection.
        let ends = [from, to];
        let claim = session.claim;
        match relayed {
            Some(((data, raw_fd), guest)) => {
                let process = RelayEnd::new(session.socket, data, raw_fd);
                let guest = RelayEnd::of_guest(guest, self.capabilities(vm).half_close);
                let relayed = Adopted {
                    id,
                    connection: Connection::relay(process, guest),
                    counters,
                };
                self.relay_guest(relayed, address.service, ends, charge, claim);
            }
            None => {
                let end = (transport, charge);
                self.record_link(vm, id, address.service, ends, end, &counters, claim);
                if let Some(link) = self.vms.link(vm) {
                    link.establish(id, ControlConnection::new(session.socket));
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
        if let Some(link) = self.vms.link(pending.route.target) {
            link.close(id, refusal.clone());
        }
        self.reject(&pending.session, "connect", pending.address, refusal);
    }
}
