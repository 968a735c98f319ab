//! Two processes become the ends of a connection.
//!
//! What both offer decides how their bytes move, and so of what [`Material`] the connection is
//! made. Each process gets its part in one message; the broker's part goes to the core's own set
//! of connections, and from there to a data thread if the broker has much to move.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, Connect, Connected, Incoming, Transport};
use hvsock_fabric::{
    Audience, ConnectRequest, ConnectionId, Destination, End, PartitionKey, Refusal, Route,
};
use hvsock_sys::message;

use super::labels::{partition_label, registered, service_label};
use super::material::{Kept, Kind, Material, Offer};
use super::session::Session;
use super::{ConnectionRecord, Core, EndRecord, ListenerRecord, Place};
use crate::callers::Caller;
use crate::model::EventKind;
use crate::pump::{Adopted, Report};
use crate::reply::refused;
use crate::vm::Command;

/// What a listening process learns of one whose numbers mean nothing in its partition.
pub(super) const NOBODY: Caller = Caller {
    pid: 0,
    uid: u32::MAX,
    gid: u32::MAX,
};

/// Connects further apart than this do not follow one another.
const QUIET: Duration = Duration::from_micros(200);

impl Core {
    /// Makes the descriptors of the next connection before anybody asks for it: they cost more
    /// than all else that the core does about a connect. One for which there are none, or that is
    /// of another kind, makes its own.
    pub(super) fn make_spare(&mut self) {
        if self.spare.is_none() {
            let usual = match self.config.shared_memory {
                true => Kind::USUAL,
                false => Kind::Descriptor,
            };
            self.spare = Material::new(usual).ok();
        }
    }

    fn material(&mut self, kind: Kind) -> Result<Material, Refusal> {
        match self.spare.take_if(|spare| spare.kind == kind) {
            Some(spare) => Ok(spare),
            None => Material::new(kind),
        }
    }

    /// Connects a session to a listener, or tells it why not. Either way the session is over.
    pub(super) fn connect(&mut self, session: Session, connect: &Connect) {
        let principal = self.principal(&session);
        let request = ConnectRequest {
            from: session.partition,
            principal: &principal,
            vm: connect.address.vm,
            service: connect.address.service,
        };
        if connect.flags.dry_run {
            let explanation = self.fabric.explain_connect(&request, Audience::Asker);
            self.explain(&session, &explanation);
            return;
        }
        let outcome = match self.route(&request) {
            Ok(route) if route.destination == Destination::Guest => {
                self.connect_to_guest(session, connect, route);
                self.carry_out();
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
                self.give_way();
                self.adopt(session, connect, &route, joined);
            }
            Err(refusal) => self.turned_down(&session, connect.address, &refusal),
        }
        self.carry_out();
    }

    /// Where a connection goes, if it may.
    pub(super) fn route(&mut self, request: &ConnectRequest<'_>) -> Result<Route, Refusal> {
        match self.fabric.connect(request) {
            Err(Refusal::BacklogFull) if self.hear_listener(request) => {
                self.fabric.connect(request)
            }
            routed => routed,
        }
    }

    /// Lets both processes of a new connection run before the core does what is left to do,
    /// where there is no processor to spare for them. Not while connects come one after the
    /// other: then the core is what they wait for, and giving way costs it its turn.
    fn give_way(&mut self) {
        let now = Instant::now();
        let last = self.last_connect.replace(now);
        if last.is_none_or(|last| now.duration_since(last) > QUIET) {
            std::thread::yield_now();
        }
    }

    /// Reads what the process of a full listener has said by now, which may be that it accepted:
    /// clients are taken in quicker than sessions are watched. Whether there is such a listener.
    fn hear_listener(&mut self, request: &ConnectRequest<'_>) -> bool {
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

    /// Makes the descriptors, gives both processes theirs, and keeps the broker's.
    fn join(
        &mut self,
        session: &Session,
        connect: &Connect,
        route: &Route,
    ) -> Result<(Kind, Kept), Refusal> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        let accepting = listener.offer;
        let connecting = Offer {
            transports: connect.transports,
            plain: connect.flags.plain,
            ring_size: session.ring_size,
        };
        let kind = Kind::between(connecting, accepting, self.config.shared_memory);
        let kind = kind.ok_or(Refusal::NotSupported)?;
        let material = self.material(kind)?;

        let transport = kind.transport();
        self.announce(
            route,
            transport,
            session.partition,
            session.caller,
            &material.for_server(),
        )?;

        let connected = BrokerMessage::Connected(Connected {
            transport,
            connection: route.connection.as_u64(),
            local: route.client,
            peer: route.server,
        });
        connected.encode(&mut self.buffer);
        match message::send(&session.socket, &self.buffer, &material.for_client()) {
            Err(error) if !is_gone(&error) => {
                // The listening process has its end already.
                let refusal = in_flight(&error);
                let reset = BrokerMessage::Reset(refused(&refusal));
                reset.encode(&mut self.buffer);
                let _ = message::send(&material.kept.control, &self.buffer, &[]);
                material.kept.cut();
                return Err(refusal);
            }
            // A process that is gone by now leaves a connection that the set resets.
            Ok(()) | Err(_) => {}
        }
        Ok((kind, material.kept))
    }

    /// Gives the listening process its part of a connection from a partition.
    pub(super) fn announce(
        &mut self,
        route: &Route,
        transport: Transport,
        from: PartitionKey,
        caller: Caller,
        parts: &[BorrowedFd<'_>],
    ) -> Result<(), Refusal> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        // A container may have numbers of its own for processes and users, even for those in it.
        let same_numbers = listener.partition == self.fabric.root();
        let caller = if same_numbers { caller } else { NOBODY };
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
        message::send(&listening.socket, &self.buffer, parts).map_err(|error| undelivered(&error))
    }

    /// Takes a connection into the core's set and into the books.
    fn adopt(
        &mut self,
        session: Session,
        connect: &Connect,
        route: &Route,
        (kind, kept): (Kind, Kept),
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
        let (plain, accepted_suspend) = (listener.offer.plain, listener.connected_suspend);
        let options = [
            (End::Client, session.connected_suspend),
            (End::Server, accepted_suspend),
        ];
        for (end, _) in options.into_iter().filter(|(_, set)| *set) {
            self.fabric.set_connected_suspend(id, end, true);
        }
        let (connection, counters) = kept.connection(session.socket, [connect.flags.plain, plain]);
        self.young.adopt(Adopted {
            id,
            connection,
            counters: Arc::clone(&counters),
        });
        let record = ConnectionRecord {
            service,
            from,
            to,
            transport: kind.transport(),
            counters,
            place: Place::Own,
            started: Instant::now(),
        };
        self.book(id, record);
    }

    /// Takes a connection into the books.
    pub(super) fn book(&mut self, id: ConnectionId, record: ConnectionRecord) {
        let service = record.service;
        self.tally.opened(registered(&self.fabric, service));
        self.events.publish(|| EventKind::ConnectionOpened {
            connection: id.as_u64(),
            service: service_label(&self.fabric, service),
            from: partition_label(&self.fabric, record.from.partition),
            to: partition_label(&self.fabric, record.to.partition),
        });
        self.connections.insert(id, record);
    }

    /// Takes in what a set says of its connections.
    pub(super) fn take_report(&mut self, report: Report) {
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
            Report::Vm { partition, news } => self.hear_vm(partition, news),
        }
        self.carry_out();
    }

    /// Hands a connection that moves much to a data thread, each in its turn.
    fn promote(&mut self, id: ConnectionId) {
        let Some(record) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(adopted) = self.young.release(id) else {
            return;
        };
        let thread = self.next_thread;
        self.next_thread = (thread + 1) % self.threads.len();
        record.place = Place::Thread(thread);
        self.threads[thread].adopt(adopted);
    }

    fn closed(&mut self, id: ConnectionId, reason: Option<&Refusal>) {
        self.fabric.close_connection(id);
        let Some(record) = self.connections.remove(&id) else {
            return;
        };
        self.leave_vm(&record);
        let (sent, received) = (record.counters.sent(), record.counters.received());
        let service = registered(&self.fabric, record.service);
        self.tally.closed(service, sent, received);
        self.events.publish(|| EventKind::ConnectionClosed {
            connection: id.as_u64(),
            service: service_label(&self.fabric, record.service),
            bytes_sent: sent,
            bytes_received: received,
            reason: reason.map(ToString::to_string),
        });
    }

    /// Has a connection cut by whoever has it, which tells both ends why.
    pub(crate) fn cut_connection(&mut self, id: ConnectionId, refusal: Refusal) {
        match self.connections.get(&id).map(|record| record.place) {
            Some(Place::Own) => self.young.reset(id, refusal),
            Some(Place::Thread(thread)) => self.threads[thread].reset(id, refusal),
            Some(Place::Vm(vm)) => {
                let connection = id;
                self.command_vm(
                    vm,
                    Command::Cut {
                        connection,
                        refusal,
                    },
                );
            }
            None => self.give_up(id, &refusal),
        }
    }

    /// Stops a connection's data, or lets it flow again.
    pub(super) fn suspend_connection(&mut self, id: ConnectionId, suspended: bool) {
        match self.connections.get(&id).map(|record| record.place) {
            Some(Place::Own) => self.young.suspend(id, suspended),
            Some(Place::Thread(thread)) => self.threads[thread].suspend(id, suspended),
            Some(Place::Vm(vm)) => {
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

/// Why a listening process did not get its message.
fn undelivered(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::WouldBlock => Refusal::BacklogFull,
        _ if is_gone(error) => Refusal::NoListener,
        _ => in_flight(error),
    }
}

/// The kernel passes no more descriptors on.
pub(super) fn in_flight(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("descriptors in flight ({error})"),
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
