//! Establishes connections between two processes.
//!
//! The transports that both support decide the [`ConnectionResources`](super::resources). Each process
//! receives its descriptors in one message. The broker's part goes to the core thread's own connection
//! set, and from there to a data thread once it has relayed many bytes.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use hvsock_endpoint::{BrokerMessage, Connect, Connected, Transport};
use hvsock_fabric::{ConnectRequest, ConnectionEnd, Destination, Refusal, Route};

use super::attaching::{AttachedPeer, Ends};
use super::connections::{ConnectionOwner, ConnectionRecord, EndRecord};
use super::in_flight::MessageKind;
use super::limits::{descriptor_limit, in_flight_limit};
use super::listeners::ListenerRecord;
use super::offering::{NotNow, Placement};
use super::offers::Offer;
use super::outer_held::Asker;
use super::preference::{ChosenTransport, TransportPreference};
use super::resources::{BrokerPart, ConnectionResources};
use super::session_io::is_disconnected;
use super::sessions::{Request, Session};
use super::state::Core;
use crate::budget::{Charge, Owner};
use crate::data_path::ProcessSocket;
use crate::pump::Adopted;
use crate::reply::refused;

/// What a connection's processes and the broker get.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) transport: Transport,
    pub(super) kind: MessageKind,
    /// The broker's descriptors, without the endpoint connection of the connecting process.
    pub(super) own: u64,
    /// Those of the accepting process, which the broker has until it takes them.
    pub(super) offered: u64,
}

/// An established connection's resources of the broker.
struct Joined {
    chosen: ChosenTransport,
    part: BrokerPart,
    charge: Charge,
    /// The data of a client of the text protocol: a duplicate of its socket.
    plain: Option<OwnedFd>,
}

impl Core {
    /// Connects a session to a listener or guest, or refuses it, or has it wait. In any case the session
    /// ends.
    pub(super) fn connect(&mut self, session: Session<ProcessSocket>, connect: &Connect) {
        if let Err((session, owner, refusal)) = self.try_connect(session, connect) {
            self.park(session, connect, owner, &refusal);
        }
        self.apply_effects();
    }

    /// Connects a session to a listener or guest, or refuses it. Returns it if processes of an owner
    /// leave too many messages unread.
    #[expect(
        clippy::result_large_err,
        reason = "it is matched where it is returned and is never stored"
    )]
    pub(super) fn try_connect(
        &mut self,
        mut session: Session<ProcessSocket>,
        connect: &Connect,
    ) -> Result<(), (Session<ProcessSocket>, Owner, Refusal)> {
        session.explains = connect.flags.explain.then_some(Request::Connect);
        let principal = self.principal(&session);
        let request = ConnectRequest {
            from: session.partition,
            principal: &principal,
            vm: connect.address.vm,
            service: connect.address.service,
        };
        if connect.flags.dry_run {
            let (from, address) = (session.partition, connect.address);
            let explanation = self.explain_request(from, &principal, address, Request::Connect);
            let asked = self.explain_with_guest(session, &request, explanation);
            if let Some((session, explanation)) = asked {
                let asker = Asker::Process(session);
                self.explain_with_host(asker, from, address, explanation, None);
            }
            return Ok(());
        }
        if let Some(plan) = self.plan_arena(&session, connect, &request) {
            match self.try_arena(session, connect, &request, plan) {
                None => return Ok(()),
                Some(back) => session = back,
            }
        }
        let route = match self.route(&request) {
            Ok(route) => route,
            Err(refusal) => {
                self.reject(&session, "connect", connect.address, &refusal);
                return Ok(());
            }
        };
        let id = route.connection;
        let failed = match route.destination {
            Destination::Guest => self.connect_to_guest(session, connect, route),
            // The guest's kernel has the listeners of a VM.
            Destination::Listener(_) if session.is_hybrid() => {
                Err((session, Refusal::NotSupported.into()))
            }
            Destination::Listener(_) => match self.join(&session, connect, &route) {
                Ok(joined) => {
                    self.data_threads.yield_to_peers();
                    self.adopt(session, connect, &route, joined);
                    Ok(())
                }
                Err(why) => Err((session, why)),
            },
        };
        let Err((session, why)) = failed else {
            return Ok(());
        };
        self.fabric.close_connection(id);
        match why {
            NotNow::Refused(refusal) => {
                self.reject(&session, "connect", connect.address, &refusal);
                Ok(())
            }
            NotNow::Unread(owner, refusal) => Err((session, owner, refusal)),
        }
    }

    /// Routes a connect. If the listener's backlog is full, reads the pending messages of its
    /// process and tries once more.
    pub(super) fn route(&mut self, request: &ConnectRequest<'_>) -> Result<Route, Refusal> {
        match self.fabric.connect(request) {
            Err(Refusal::BacklogFull) if self.poll_listener(request) => {
                self.fabric.connect(request)
            }
            routed => routed,
        }
    }

    /// Reads the messages of a full listener's process, which may have accepted connections in the
    /// meantime: accepts run ahead of session events. Returns whether there is such a listener.
    fn poll_listener(&mut self, request: &ConnectRequest<'_>) -> bool {
        let listener = self.fabric.listener_for(request);
        let Some(record) = listener.and_then(|id| self.listeners.get(id)) else {
            return false;
        };
        if let Some(index) = record.session {
            self.session_ready(index);
        }
        true
    }

    /// The listener that a connection goes to.
    pub(super) fn listener_of(&self, route: &Route) -> Option<&ListenerRecord> {
        self.listeners.get(route.destination.listener()?)
    }

    /// Creates the descriptors, sends the connecting process its own, offers the listener the others,
    /// and returns the broker's.
    fn join(
        &mut self,
        session: &Session<ProcessSocket>,
        connect: &Connect,
        route: &Route,
    ) -> Result<Joined, NotNow> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        let accepting = listener.preference;
        let connecting = TransportPreference {
            transports: connect.transports,
            raw_fd: connect.flags.raw_fd,
            ring_size: session.ring_size,
        };
        let may_share = self.data_threads.may_share_memory();
        let chosen = ChosenTransport::between(connecting, accepting, route.direct, may_share);
        let chosen = chosen.ok_or(Refusal::NotSupported)?;
        let terms = Terms {
            transport: chosen.transport(),
            kind: MessageKind::Offer,
            own: chosen.descriptors() + u64::from(session.is_text()),
            offered: chosen.offered_descriptors(),
        };
        let plain = session.is_text().then(|| {
            let duplicate = session.socket.as_fd().try_clone_to_owned();
            duplicate.map_err(|error| descriptor_limit(&error))
        });
        let plain = plain.transpose()?;
        let make = |core: &mut Self| core.data_threads.spare().take(chosen);
        let (part, charge) = self.hand_over(session, route, terms, make)?;
        Ok(Joined {
            chosen,
            part,
            charge,
            plain,
        })
    }

    /// Creates the resources of a connection, sends the connecting process its own, and offers the
    /// listener the others. Returns the broker's, with the charge for its descriptors.
    pub(super) fn hand_over(
        &mut self,
        session: &Session<ProcessSocket>,
        route: &Route,
        terms: Terms,
        make: impl FnOnce(&mut Self) -> Result<ConnectionResources, Refusal>,
    ) -> Result<(BrokerPart, Charge), NotNow> {
        let id = route.destination.listener().ok_or(Refusal::NoListener)?;
        let Terms {
            transport,
            kind,
            own,
            offered,
        } = terms;
        let reply = match session.is_text() {
            true => None,
            false => Some(self.reserve_reply(session.partition, session.caller)?),
        };
        let placement = self.place_offer(id, session.partition, kind)?;
        let (charge, held) = self.charge_connection(
            self.owner(session.partition, session.caller),
            own,
            offered,
            &placement,
        )?;
        let ConnectionResources {
            broker,
            server,
            client,
            ..
        } = make(self)?;

        let offered = match transport {
            Transport::Attached => Transport::Descriptor,
            transport => transport,
        };
        let message = self.incoming(route, offered, session.partition, session.caller)?;
        let offer = Offer {
            connection: route.connection,
            kind,
            message,
            descriptors: server,
            _charge: held,
        };
        let connected = Connected {
            transport,
            connection: route.connection.as_u64(),
            local: route.client,
            peer: route.server,
        };
        let is_passed = self.pass_offer(id, &offer, placement)?;
        let descriptors = client.descriptors(&offer.descriptors);
        let sent = match session.is_text() {
            true => Self::send_text_connected(session, &connected),
            false => self.session_io.send_with(
                &session.socket,
                &BrokerMessage::Connected(connected),
                &descriptors,
            ),
        };
        match sent {
            Ok(()) => {
                if let Some(reply) = reply {
                    self.in_flight.sent(&session.socket, reply);
                }
            }
            // If the process is gone by now, the connection set resets the connection.
            Err(error) if is_disconnected(&error) => {}
            Err(error) => {
                let refusal = in_flight_limit(&error);
                if is_passed {
                    let reset = BrokerMessage::Reset(refused(&refusal));
                    self.session_io.send(&broker.control, &reset);
                    broker.reset();
                }
                return Err(refusal.into());
            }
        }
        self.data_threads.spare().close_later(client.own());
        match is_passed {
            true => self.data_threads.spare().close_later(offer.descriptors),
            false => self.hold_offer(id, offer),
        }
        Ok((broker, charge))
    }

    /// Charges an owner for `own` descriptors of a connection, and for the `offered` ones while an
    /// offer is held.
    pub(super) fn charge_connection(
        &mut self,
        owner: Owner,
        own: u64,
        offered: u64,
        placement: &Placement,
    ) -> Result<(Charge, Option<Charge>), Refusal> {
        let offered = match placement {
            Placement::Pass(_) => 0,
            Placement::Hold => offered,
        };
        let charge = self.descriptors.charge(owner, own + offered);
        let mut charge = charge.map_err(|shortage| self.descriptor_share(shortage))?;
        let held = (offered > 0).then(|| charge.split(offered));
        Ok((charge, held))
    }

    /// Adds a connection to the core thread's set and records it.
    fn adopt(
        &mut self,
        session: Session<ProcessSocket>,
        connect: &Connect,
        route: &Route,
        joined: Joined,
    ) {
        let Joined {
            chosen,
            part,
            charge,
            plain,
        } = joined;
        let id = route.connection;
        let service = connect.address.service;
        let from = EndRecord {
            partition: session.partition,
            caller: session.caller,
        };
        let Some(listener) = self.listener_of(route) else {
            return;
        };
        let to = EndRecord {
            partition: listener.partition,
            caller: listener.caller,
        };
        let (raw_fd, accepted_suspend) = (listener.preference.raw_fd, listener.connected_suspend);
        let options = [
            (ConnectionEnd::Client, session.connected_suspend),
            (ConnectionEnd::Server, accepted_suspend),
        ];
        for (end, _) in options.into_iter().filter(|(_, set)| *set) {
            self.fabric.set_connected_suspend(id, end, true);
        }
        let claim = session.claim;
        let (mut attached, mut counters) = (None, Arc::default());
        let mut owner = ConnectionOwner::Attaching;
        match (session.attachment, plain) {
            (_, Some(plain)) => {
                let Some(connection) = part.plain(plain, raw_fd) else {
                    return;
                };
                owner = ConnectionOwner::DataThreads(self.data_threads.adopt(Adopted {
                    id,
                    connection,
                    counters: Arc::clone(&counters),
                }));
            }
            (Some(attachment), None) => {
                let ends = Ends {
                    control: session.socket,
                    peer: AttachedPeer::Process { part, raw_fd },
                };
                attached = Some((attachment, ends));
            }
            (None, None) => {
                let made = part.connection(session.socket, [connect.flags.raw_fd, raw_fd]);
                let Some((connection, counted)) = made else {
                    return;
                };
                counters = counted;
                owner = ConnectionOwner::DataThreads(self.data_threads.adopt(Adopted {
                    id,
                    connection,
                    counters: Arc::clone(&counters),
                }));
            }
        }
        let record = ConnectionRecord {
            service,
            from,
            to,
            transport: chosen.transport(),
            counters,
            owner,
            started: Instant::now(),
            _charge: Some(charge),
            claim,
            claimed_result: None,
            audited: None,
        };
        self.record_connection(id, record);
        if let Some((attachment, ends)) = attached {
            self.await_attached(id, attachment, ends);
        }
    }
}
