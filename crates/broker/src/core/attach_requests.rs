//! Processes that bring their own socket: ATTACH, and the connections of such sockets.
//!
//! The socket may be connected before the request or after the answer. In both cases it is accepted once the
//! process has been answered, so a program never finds its socket connected before whoever connected it for
//! the program knows.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Instant;

use hvsock_endpoint::{BrokerMessage, Connect, Transport, Transports};
use hvsock_fabric::{ConnectionId, Refusal};
use mio::Interest;
use mio::unix::SourceFd;

use super::attaching::{AttachedPeer, Ends, Waiting};
use super::attachments::Attachment;
use super::limits::{descriptor_limit, in_flight_limit, watch_limit};
use super::offering::NotNow;
use super::requests::SessionState;
use super::sessions::Session;
use super::state::Core;
use super::tokens::attaching_token;
use crate::data_path::{ControlConnection, ProcessSocket, protocol_violation};
use crate::pump::{Adopted, Connection, RelayEnd};
use crate::reply::refused;

impl Core {
    /// Opens the socket to which a process will connect its own, and sends it what it connects to.
    pub(super) fn attach(
        &mut self,
        mut session: Session<ProcessSocket>,
        filler: u32,
    ) -> SessionState {
        match self.open_attachment(&mut session, filler) {
            Ok(()) => self.check_queries(session),
            Err(refusal) => self.refuse_name(&session, &refusal),
        }
    }

    fn open_attachment(
        &mut self,
        session: &mut Session<ProcessSocket>,
        filler: u32,
    ) -> Result<(), Refusal> {
        if session.attachment.is_some() {
            return Err(protocol_violation("a second ATTACH"));
        }
        let owner = self.owner(session.partition, session.caller);
        let charge = self.descriptors.charge(owner, Attachment::DESCRIPTORS);
        let charge = charge.map_err(|shortage| self.descriptor_share(shortage))?;
        let reply = self.reserve_reply(session.partition, session.caller);
        let reply = reply.map_err(|why| match why {
            NotNow::Refused(refusal) | NotNow::Unread(_, refusal) => refusal,
        })?;
        let folder = self.dirs.attached();
        let opened = self.data_threads.spare().take_unnamed(&folder);
        let (listener, path) = opened.map_err(|error| descriptor_limit(&error))?;
        let attachment = Attachment::new(listener, filler, charge);
        let sent =
            self.session_io
                .send_with(&session.socket, &BrokerMessage::Attachable, &[path.as_fd()]);
        sent.map_err(|error| in_flight_limit(&error))?;
        self.in_flight.sent(&session.socket, reply);
        self.data_threads.spare().close_later([path]);
        session.attachment = Some(Box::new(attachment));
        Ok(())
    }

    /// Whether a connect offers an attached socket exactly if its session has one.
    pub(super) fn check_attached(
        session: &Session<ProcessSocket>,
        connect: &Connect,
    ) -> Result<(), Refusal> {
        let attached = connect.transports.contains(Transport::Attached);
        let is_alone = connect.transports == Transports::ATTACHED;
        // A client of the text protocol has its socket already.
        match (session.attachment.is_some() || session.is_text(), attached) {
            (false, false) => Ok(()),
            (true, true) if is_alone => Ok(()),
            (false, true) => Err(protocol_violation("an attached socket without ATTACH")),
            (true, _) => Err(protocol_violation(
                "an attached socket beside another transport",
            )),
        }
    }

    /// Continues with an established connection when its process has connected its socket, which it may
    /// have done already. The connection is recorded.
    pub(super) fn await_attached(
        &mut self,
        id: ConnectionId,
        attachment: Box<Attachment>,
        ends: Ends,
    ) {
        let waiting = Waiting {
            id,
            attachment,
            ends,
            suspended: false,
        };
        let index = self.attaching.insert(waiting, Instant::now());
        if self.accept_attached(index) {
            return;
        }
        let watched = self.attaching.get(index).map(|waiting| {
            let fd = waiting.attachment.as_fd().as_raw_fd();
            let (token, interest) = (attaching_token(index), Interest::READABLE);
            let mut source = SourceFd(&fd);
            self.registry.register(&mut source, token, interest)
        });
        if let Some(Err(error)) = watched {
            self.reset_connection(id, watch_limit(&error));
        }
    }

    /// Handles an event of a socket that waits for a process's own.
    pub(super) fn attaching_ready(&mut self, index: usize) {
        self.accept_attached(index);
        self.apply_effects();
    }

    /// Takes the process's socket if it is connected. Returns whether the connection waits no more.
    fn accept_attached(&mut self, index: usize) -> bool {
        let Some(waiting) = self.attaching.get(index) else {
            return true;
        };
        let id = waiting.id;
        match waiting.attachment.accept() {
            Ok(None) => return false,
            Ok(Some(socket)) => {
                if let Some(waiting) = self.attaching.remove(id) {
                    self.attached(waiting, socket);
                }
            }
            Err(refusal) => self.reset_connection(id, refusal),
        }
        true
    }

    /// Has the bytes of a connection move, whose process has connected its socket.
    fn attached(&mut self, waiting: Waiting, socket: OwnedFd) {
        let Waiting { id, ends, .. } = waiting;
        let Ends { control, peer } = ends;
        let connection = match peer {
            AttachedPeer::Process { part, raw_fd } => part.attached(control, socket, raw_fd),
            AttachedPeer::Guest {
                socket: guest,
                half_close,
            } => {
                let process = RelayEnd::attached(control, socket);
                let guest = RelayEnd::of_guest(guest, half_close);
                Some(Connection::relay(process, guest))
            }
            AttachedPeer::Link(vm) => {
                if let Some(link) = self.link_of(vm) {
                    link.establish(id, ControlConnection::of_attached(control, socket));
                }
                return;
            }
        };
        let counters = self
            .connections
            .get(id)
            .map(|record| record.counters.clone());
        if let (Some(connection), Some(counters)) = (connection, counters) {
            let place = self.data_threads.adopt(Adopted {
                id,
                connection,
                counters,
            });
            self.connections.moved(id, place);
            if waiting.suspended {
                self.data_threads.suspend(place, id, true);
            }
        }
    }

    /// Forgets a connection that is closed before its process has connected its socket, and sends both ends
    /// the reason.
    pub(super) fn forget_attaching(&mut self, id: ConnectionId, reason: Option<&Refusal>) {
        let Some(waiting) = self.attaching.remove(id) else {
            return;
        };
        let Some(refusal) = reason else {
            return;
        };
        let message = BrokerMessage::Reset(refused(refusal));
        waiting.ends.control.send(&message);
        if let AttachedPeer::Process { part, .. } = &waiting.ends.peer {
            self.session_io.send(&part.control, &message);
        }
    }

    /// Resets the connections whose processes have not connected their sockets in time.
    pub(super) fn expire_attaching(&mut self, now: Instant) {
        while let Some(id) = self.attaching.pop_expired(now) {
            let cause = "the process did not connect its socket in time".into();
            self.reset_connection(id, Refusal::Reset { cause });
            self.apply_effects();
        }
    }
}
