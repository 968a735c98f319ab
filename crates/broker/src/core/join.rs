//! Establishes connections between two processes.
//!
//! The transports that both support decide the [`ConnectionResources`]. Each process receives its
//! descriptors in one message. The broker's part goes to the core thread's own connection set, and
//! from there to a data thread once it has relayed many bytes.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, Connect, Connected, Incoming, Transport};
use hvsock_fabric::{
    Audience, ConnectRequest, ConnectionEnd, ConnectionId, Destination, PartitionKey, Refusal,
    Route,
};
use hvsock_sys::message;

use super::labels::{partition_label, registered, service_label};
use super::resources::{BrokerPart, ChosenTransport, ConnectionResources, TransportPreference};
use super::session::Session;
use super::{ConnectionOwner, ConnectionRecord, Core, EndRecord, ListenerRecord};
use crate::callers::Caller;
use crate::model::EventKind;
use crate::pump::{Adopted, Report};
use crate::reply::refused;
use crate::vhost_user::Command;

/// The credentials that a listener receives for a process whose pid and uid mean nothing in the
/// listener's partition.
pub(super) const UNKNOWN_CALLER: Caller = Caller {
    pid: 0,
    uid: u32::MAX,
    gid: u32::MAX,
};

/// Connects with a longer gap between them do not count as a burst.
const BURST_GAP: Duration = Duration::from_micros(200);

impl Core {
    /// Preallocates the descriptors of the next connection, which are the most expensive part of a
    /// connect. A connect with another transport, or without a preallocated one, creates its own.
    pub(super) fn preallocate(&mut self) {
        if self.spare.is_none() {
            let transport = match self.config.shared_memory {
                true => ChosenTransport::DEFAULT,
                false => ChosenTransport::Descriptor,
            };
            self.spare = ConnectionResources::new(transport).ok();
        }
    }

    fn resources(&mut self, transport: ChosenTransport) -> Result<ConnectionResources, Refusal> {
        match self.spare.take_if(|spare| spare.transport == transport) {
            Some(spare) => Ok(spare),
            None => ConnectionResources::new(transport),
        }
    }

    /// Connects a session to a listener or guest, or refuses it. Either way the session ends.
    pub(super) fn connect(&mut self, session: Session, connect: &Connect) {
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
                self.yield_to_peers();
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

    /// Yields the processor so that both processes of a new connection can run first. Not during a
    /// burst of connects: then the core thread is the bottleneck and a yield costs throughput.
    fn yield_to_peers(&mut self) {
        let now = Instant::now();
        let last = self.last_connect.replace(now);
        if last.is_none_or(|last| now.duration_since(last) > BURST_GAP) {
            std::thread::yield_now();
        }
    }

    /// Reads the messages of a full listener's process, which may have accepted connections in the
    /// meantime: accepts run ahead of session events. Returns whether there is such a listener.
    fn poll_listener(&mut self, request: &ConnectRequest<'_>) -> bool {
        let listener = self.fabric.listener_for(request);
        let record = listener.and_then(|id| self.listeners.get(&id));
        let session = record.map(|record| record.session);
        if let Some(index) = session {
            self.session_ready(index);
        }
        session.is_some()
    }

    /// The listener that a connection goes to.
    pub(super) fn listener_of(&self, route: &Route) -> Option<&ListenerRecord> {
        self.listeners.get(&route.destination.listener()?)
    }

    /// Creates the descriptors, sends both processes theirs, and returns the broker's.
    fn join(
        &mut self,
        session: &Session,
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
        let chosen = ChosenTransport::between(connecting, accepting, self.config.shared_memory);
        let chosen = chosen.ok_or(Refusal::NotSupported)?;
        let resources = self.resources(chosen)?;

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
        connected.encode(&mut self.buffer);
        match message::send(&session.socket, &self.buffer, &resources.for_client()) {
            Err(error) if !is_disconnected(&error) => {
                // The listening process has received its end already.
                let refusal = in_flight_limit(&error);
                let reset = BrokerMessage::Reset(refused(&refusal));
                reset.encode(&mut self.buffer);
                let _ = message::send(&resources.broker.control, &self.buffer, &[]);
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
        let caller = if same_numbers { caller } else { UNKNOWN_CALLER };
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
        let index = listener.session;
        let listening = self.sessions.get(index).and_then(Option::as_ref);
        let listening = listening.ok_or(Refusal::NoListener)?;
        incoming.encode(&mut self.buffer);
        message::send(&listening.socket, &self.buffer, descriptors)
            .map_err(|error| delivery_refusal(&error))
    }

    /// Adds a connection to the core thread's set and records it.
    fn adopt(
        &mut self,
        session: Session,
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
        self.core_set.adopt(Adopted {
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
            owner: ConnectionOwner::Core,
            started: Instant::now(),
        };
        self.record_connection(id, record);
    }

    /// Records an established connection, counts it, and publishes an event.
    pub(super) fn record_connection(&mut self, id: ConnectionId, record: ConnectionRecord) {
        let service = record.service;
        self.counters.opened(registered(&self.fabric, service));
        self.events.publish(|| EventKind::ConnectionOpened {
            connection: id.as_u64(),
            service: service_label(&self.fabric, service),
            from: partition_label(&self.fabric, record.from.partition),
            to: partition_label(&self.fabric, record.to.partition),
        });
        self.connections.insert(id, record);
    }

    /// Handles a report of a connection set or data thread.
    pub(super) fn handle_report(&mut self, report: Report) {
        match report {
            Report::ConnectedSuspend {
                connection,
                end,
                value,
            } => {
                self.fabric.set_connected_suspend(connection, end, value);
            }
            Report::Closed { connection, reason } => self.closed(connection, reason.as_ref()),
            Report::Busy { connection } => self.promote(connection),
        }
        self.apply_effects();
    }

    /// Moves a busy connection to a data thread, round robin.
    fn promote(&mut self, id: ConnectionId) {
        let Some(record) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(adopted) = self.core_set.release(id) else {
            return;
        };
        let thread = self.next_thread;
        self.next_thread = (thread + 1) % self.threads.len();
        record.owner = ConnectionOwner::DataThread(thread);
        self.threads[thread].adopt(adopted);
    }

    pub(super) fn closed(&mut self, id: ConnectionId, reason: Option<&Refusal>) {
        self.fabric.close_connection(id);
        let Some(record) = self.connections.remove(&id) else {
            return;
        };
        self.release_vm(&record);
        let (sent, received) = (record.counters.sent(), record.counters.received());
        let service = registered(&self.fabric, record.service);
        self.counters.closed(service, sent, received);
        self.events.publish(|| EventKind::ConnectionClosed {
            connection: id.as_u64(),
            service: service_label(&self.fabric, record.service),
            bytes_sent: sent,
            bytes_received: received,
            reason: reason.map(ToString::to_string),
        });
    }

    /// Resets a connection through the thread that owns it, which sends both ends the reason.
    pub(crate) fn reset_connection(&mut self, id: ConnectionId, refusal: Refusal) {
        match self.connections.get(&id).map(|record| record.owner) {
            Some(ConnectionOwner::Core) => self.core_set.reset(id, refusal),
            Some(ConnectionOwner::DataThread(thread)) => self.threads[thread].reset(id, refusal),
            Some(ConnectionOwner::Vm(vm)) => {
                let connection = id;
                self.command_vm(
                    vm,
                    Command::Reset {
                        connection,
                        refusal,
                    },
                );
            }
            None => self.abort_pending(id, &refusal),
        }
    }

    /// Suspends or resumes a connection.
    pub(super) fn suspend_connection(&mut self, id: ConnectionId, suspended: bool) {
        match self.connections.get(&id).map(|record| record.owner) {
            Some(ConnectionOwner::Core) => self.core_set.suspend(id, suspended),
            Some(ConnectionOwner::DataThread(thread)) => {
                self.threads[thread].suspend(id, suspended);
            }
            Some(ConnectionOwner::Vm(vm)) => {
                let connection = id;
                self.command_vm(
                    vm,
                    Command::Suspend {
                        connection,
                        suspended,
                    },
                );
            }
            None => {}
        }
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

/// The refusal for too many descriptors in flight (`ETOOMANYREFS`, unix(7)).
pub(super) fn in_flight_limit(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("descriptors in flight ({error})"),
    }
}

/// Whether the error means that the process has closed its socket.
pub(super) fn is_disconnected(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
