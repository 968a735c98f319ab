//! Two processes become the ends of a connection.
//!
//! The broker makes three socket pairs: data for the connecting process, data for the accepting
//! one, and a control connection for the accepting one (the connecting one has its endpoint
//! connection for that). Each process gets its ends in one message; the broker's ends go to a
//! data thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use hvsock_endpoint::{BrokerMessage, Connect, Connected, Incoming, Transport};
use hvsock_fabric::{Audience, ConnectRequest, ConnectionId, End, Refusal, Route};
use hvsock_sys::{message, seqpacket, set_nonblocking, stream};

use super::labels::{partition_label, registered, service_label};
use super::session::Session;
use super::{ConnectionRecord, Core, EndRecord};
use crate::callers::Caller;
use crate::model::EventKind;
use crate::pump::{Adopted, Counters, Report, Side};

/// What a listening process learns of one whose numbers mean nothing in its partition.
const NOBODY: Caller = Caller {
    pid: 0,
    uid: u32::MAX,
    gid: u32::MAX,
};

/// The broker's descriptors of a connection that both processes have heard of.
struct Joined {
    connector_data: OwnedFd,
    acceptor_data: OwnedFd,
    acceptor_control: OwnedFd,
}

impl Core {
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
            self.explain(session, &explanation);
            return;
        }
        let outcome = match self.fabric.connect(&request) {
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
            Ok((route, joined)) => self.adopt(session, connect, &route, joined),
            Err(refusal) => self.turned_down(&session, connect.address, &refusal),
        }
        self.carry_out();
    }

    /// Makes the descriptors and gives both processes theirs.
    fn join(
        &mut self,
        session: &Session,
        connect: &Connect,
        route: &Route,
    ) -> Result<Joined, Refusal> {
        if !connect.transports.contains(Transport::Descriptor) {
            return Err(Refusal::NotSupported);
        }
        let (connector_data, connector_theirs) = pair(stream::pair)?;
        let (acceptor_data, acceptor_theirs) = pair(stream::pair)?;
        let (acceptor_control, control_theirs) = pair(seqpacket::pair)?;

        let connection = route.connection.as_u64();
        let transport = Transport::Descriptor;
        let listener = self
            .listeners
            .get(&route.listener)
            .ok_or(Refusal::NoListener)?;
        let same_numbers =
            listener.partition == self.fabric.root() || listener.partition == session.partition;
        let caller = if same_numbers { session.caller } else { NOBODY };
        let incoming = BrokerMessage::Incoming(Incoming {
            transport,
            connection,
            local: listener.address,
            peer: route.client,
            pid: caller.pid,
            uid: caller.uid,
            gid: caller.gid,
            partition: partition_label(&self.fabric, session.partition),
        });
        let index = listener.session;
        let listening = self.sessions.get(index).and_then(Option::as_ref);
        let listening = listening.ok_or(Refusal::NoListener)?;
        incoming.encode(&mut self.buffer);
        let descriptors = [acceptor_theirs.as_fd(), control_theirs.as_fd()];
        message::send(&listening.socket, &self.buffer, &descriptors).map_err(undelivered)?;

        // A process that is gone by now leaves a connection that its data thread resets.
        let connected = BrokerMessage::Connected(Connected {
            transport,
            connection,
            local: route.client,
            peer: route.server,
        });
        connected.encode(&mut self.buffer);
        let _ = message::send(&session.socket, &self.buffer, &[connector_theirs.as_fd()]);
        Ok(Joined {
            connector_data,
            acceptor_data,
            acceptor_control,
        })
    }

    /// Hands a connection to a data thread and takes it into the books.
    fn adopt(&mut self, session: Session, connect: &Connect, route: &Route, joined: Joined) {
        let id = route.connection;
        let service = connect.address.service;
        let from = EndRecord {
            partition: session.partition,
            caller: session.caller,
        };
        let Some(listener) = self.listeners.get(&route.listener) else {
            return;
        };
        let to = EndRecord {
            partition: listener.partition,
            caller: listener.caller,
        };
        let (plain, accepted_suspend) = (listener.plain, listener.connected_suspend);
        let options = [
            (End::Client, session.connected_suspend),
            (End::Server, accepted_suspend),
        ];
        for (end, _) in options.into_iter().filter(|(_, set)| *set) {
            self.fabric.set_connected_suspend(id, end, true);
        }
        let counters = Arc::new(Counters::default());
        let thread = self.next_thread;
        self.next_thread = (thread + 1) % self.threads.len();
        self.threads[thread].adopt(Adopted {
            connection: id,
            from: Side::new(session.socket, joined.connector_data, connect.flags.plain),
            to: Side::new(joined.acceptor_control, joined.acceptor_data, plain),
            counters: Arc::clone(&counters),
        });
        self.tally.opened(registered(&self.fabric, service));
        let started = Instant::now();
        let record = ConnectionRecord {
            service,
            from,
            to,
            counters,
            thread,
            started,
        };
        self.connections.insert(id, record);
        self.events.publish(|| EventKind::ConnectionOpened {
            connection: id.as_u64(),
            service: service_label(&self.fabric, service),
            from: partition_label(&self.fabric, from.partition),
            to: partition_label(&self.fabric, to.partition),
        });
    }

    /// Takes in what a data thread says.
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
        }
        self.carry_out();
    }

    fn closed(&mut self, id: ConnectionId, reason: Option<&Refusal>) {
        self.fabric.close_connection(id);
        let Some(record) = self.connections.remove(&id) else {
            return;
        };
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

    /// Has a connection cut by its data thread, which tells both ends why.
    pub(crate) fn cut_connection(&mut self, id: ConnectionId, refusal: Refusal) {
        if let Some(record) = self.connections.get(&id) {
            self.threads[record.thread].cut(id, refusal);
        }
    }

    /// Stops a connection's data, or lets it flow again.
    pub(super) fn suspend_connection(&mut self, id: ConnectionId, suspended: bool) {
        if let Some(record) = self.connections.get(&id) {
            self.threads[record.thread].suspend(id, suspended);
        }
    }
}

/// A socket pair whose first end, the broker's, does not block.
fn pair(
    make: impl FnOnce() -> io::Result<(OwnedFd, OwnedFd)>,
) -> Result<(OwnedFd, OwnedFd), Refusal> {
    let made = make().and_then(|(own, theirs)| {
        set_nonblocking(&own, true)?;
        Ok((own, theirs))
    });
    made.map_err(|error| Refusal::LimitReached {
        which: format!("broker descriptors ({error})"),
    })
}

/// Why a listening process did not get its message.
fn undelivered(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::WouldBlock => Refusal::BacklogFull,
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::NotConnected => Refusal::NoListener,
        _ => Refusal::LimitReached {
            which: format!("descriptors in flight ({error})"),
        },
    }
}
