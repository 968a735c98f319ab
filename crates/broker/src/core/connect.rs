//! Establishes connections between two processes.
//!
//! The transports that both support decide the [`ConnectionResources`](super::resources). Each process
//! receives its descriptors in one message. The broker's part goes to the core thread's own connection
//! set, and from there to a data thread once it has relayed many bytes.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use hvsock_endpoint::{BrokerMessage, Connect, Connected, Incoming, Transport};
use hvsock_fabric::{
    Audience, ConnectRequest, ConnectionEnd, Destination, PartitionKey, Refusal, Route,
};

use super::connections::{ConnectionOwner, ConnectionRecord, EndRecord};
use super::labels::partition_label;
use super::limits::in_flight_limit;
use super::listeners::ListenerRecord;
use super::preference::{ChosenTransport, TransportPreference};
use super::resources::BrokerPart;
use super::session_io::is_disconnected;
use super::sessions::{Request, Session};
use super::state::Core;
use crate::callers::Caller;
use crate::pump::Adopted;
use crate::reply::refused;

impl Core {
    /// Connects a session to a listener or guest, or refuses it. Either way the session ends.
    pub(super) fn connect(&mut self, mut session: Session<OwnedFd>, connect: &Connect) {
        session.explains = connect.flags.explain.then_some(Request::Connect);
        let principal = self.principal(&session);
        let request = ConnectRequest {
            from: session.partition,
            principal: &principal,
            vm: connect.address.vm,
            service: connect.address.service,
        };
        if connect.flags.dry_run {
            let explanation = self.fabric.explain_connect(&request, Audience::Requester);
            self.explain(&session, &explanation);
            return;
        }
        let outcome = match self.route(&request) {
            Ok(route) if route.destination == Destination::Guest => {
                self.connect_to_guest(session, connect, route);
                self.apply_effects();
                return;
            }
            Ok(route) => match self.join(&session, connect, &route) {
                Ok(joined) => Ok((route, joined)),
                Err(refusal) => {
                    self.fabric.close_connection(route.connection);
                    Err(refusal)
                }
            },
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok((route, joined)) => {
                self.data_threads.yield_to_peers();
                self.adopt(session, connect, &route, joined);
            }
            Err(refusal) => self.reject(&session, connect.address, &refusal),
        }
        self.apply_effects();
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

    /// Creates the descriptors, sends both processes theirs, and returns the broker's.
    fn join(
        &mut self,
        session: &Session<OwnedFd>,
        connect: &Connect,
        route: &Route,
    ) -> Result<(ChosenTransport, BrokerPart), Refusal> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        let accepting = listener.preference;
        let connecting = TransportPreference {
            transports: connect.transports,
            raw_fd: connect.flags.raw_fd,
            ring_size: session.ring_size,
        };
        let chosen =
            ChosenTransport::between(connecting, accepting, self.data_threads.may_share_memory());
        let chosen = chosen.ok_or(Refusal::NotSupported)?;
        let resources = self.data_threads.resources(chosen)?;

        let transport = chosen.transport();
        self.send_incoming(
            route,
            transport,
            session.partition,
            session.caller,
            &resources.for_server(),
        )?;

        let connected = BrokerMessage::Connected(Connected {
            transport,
            connection: route.connection.as_u64(),
            local: route.client,
            peer: route.server,
        });
        let sent = self
            .session_io
            .send_with(&session.socket, &connected, &resources.for_client());
        match sent {
            Err(error) if !is_disconnected(&error) => {
                // The listening process has received its end already.
                let refusal = in_flight_limit(&error);
                let reset = BrokerMessage::Reset(refused(&refusal));
                self.session_io.send(&resources.broker.control, &reset);
                resources.broker.reset();
                return Err(refusal);
            }
            // If the process is gone by now, the connection set resets the connection.
            Ok(()) | Err(_) => {}
        }
        Ok((chosen, resources.broker))
    }

    /// Sends the listening process its descriptors of a connection from `from`.
    pub(super) fn send_incoming(
        &mut self,
        route: &Route,
        transport: Transport,
        from: PartitionKey,
        caller: Caller,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Refusal> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        // A container may have its own PID and user namespaces, even for its own processes.
        let same_numbers = listener.partition == self.fabric.root();
        let caller = if same_numbers {
            caller
        } else {
            Caller::UNKNOWN
        };
        let incoming = BrokerMessage::Incoming(Incoming {
            transport,
            connection: route.connection.as_u64(),
            local: listener.address,
            peer: route.client,
            pid: caller.pid,
            uid: caller.uid,
            gid: caller.gid,
            partition: partition_label(&self.fabric, from),
        });
        let listening = listener.session.and_then(|index| self.sessions.get(index));
        let listening = listening.ok_or(Refusal::NoListener)?;
        self.session_io
            .send_with(&listening.socket, &incoming, descriptors)
            .map_err(|error| delivery_refusal(&error))
    }

    /// Adds a connection to the core thread's set and records it.
    fn adopt(
        &mut self,
        session: Session<OwnedFd>,
        connect: &Connect,
        route: &Route,
        (chosen, part): (ChosenTransport, BrokerPart),
    ) {
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
        let (connection, counters) =
            part.connection(session.socket, [connect.flags.raw_fd, raw_fd]);
        let place = self.data_threads.adopt(Adopted {
            id,
            connection,
            counters: Arc::clone(&counters),
        });
        let record = ConnectionRecord {
            service,
            from,
            to,
            transport: chosen.transport(),
            counters,
            owner: ConnectionOwner::DataThreads(place),
            started: Instant::now(),
        };
        self.record_connection(id, record);
    }
}

/// The refusal for a message that could not be sent to a listening process.
fn delivery_refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::WouldBlock => Refusal::BacklogFull,
        _ if is_disconnected(error) => Refusal::NoListener,
        _ => in_flight_limit(error),
    }
}
