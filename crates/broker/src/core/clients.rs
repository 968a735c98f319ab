//! Accepts clients, and reads the messages of their sessions.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Instant;

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE};
use hvsock_fabric::{PartitionKey, Refusal};
use hvsock_sys::message;

use super::endpoints::{Accepted, EndpointKind, send_refusal};
use super::hybrid_answers::send_refused;
use super::limits::watch_limit;
use super::requests::SessionState;
use super::sessions::{Entry, Role, Session, TextEntry};
use super::state::Core;
use super::text_answers;
use crate::callers::Caller;
use crate::data_path::{ProcessSocket, protocol_violation};
use crate::reply::refused;

/// Most messages read from one session in one turn, for fairness.
const MESSAGES_PER_TURN: usize = 32;

impl Core {
    /// Accepts clients from every busy endpoint, a bounded number from each.
    pub(super) fn accept_clients(&mut self) {
        let (busy, limit) = self.endpoints.start_round();
        for index in busy {
            let more = self.accept_from(index, limit);
            self.endpoints.end_turn(index, more);
        }
    }

    /// Accepts up to `limit` clients from one endpoint. Returns whether more may be pending.
    fn accept_from(&mut self, index: usize, limit: usize) -> bool {
        for _ in 0..limit {
            match self.endpoints.accept(index) {
                Accepted::Client(socket, kind, partition) => {
                    self.open_session(socket, kind, partition);
                }
                Accepted::Refused(refusal) => self.telemetry.count_refused(&refusal),
                Accepted::Nothing => return false,
            }
        }
        true
    }

    /// Opens a session for a client of a socket of a partition.
    fn open_session(&mut self, socket: OwnedFd, kind: EndpointKind, partition: PartitionKey) {
        let (partition, entry) = match kind {
            EndpointKind::Endpoint => (partition, Entry::Endpoint),
            EndpointKind::Text => (partition, Entry::Text(TextEntry::default())),
            // Only processes of the host can reach a VM's socket.
            EndpointKind::Hybrid => (self.fabric.root(), Entry::hybrid(partition)),
        };
        let Ok(caller) = Caller::of(&socket) else {
            return;
        };
        let owner = self.owner(partition, caller);
        let charge = match self.descriptors.charge(owner, 1) {
            Ok(charge) => charge,
            Err(shortage) => {
                let refusal = self.descriptor_share(shortage);
                self.telemetry.count_refused(&refusal);
                return send_refusal(&socket, kind, &refusal);
            }
        };
        let socket = ProcessSocket::charged(socket, charge);
        let session = self.sessions.open(socket, partition, caller, entry);
        // A client sends its request at once, so most sessions are served without a registration in
        // epoll.
        if let Some((session, _more)) = self.read_session(session, None) {
            self.watch_session(session);
        }
    }

    /// Adds a new session to the table and to epoll. Unread messages cause an event.
    pub(super) fn watch_session(&mut self, session: Session<ProcessSocket>) {
        if session.is_idle()
            && let Some(oldest) = self.sessions.evict_idle(session.socket_of())
        {
            let slots = self.sessions.limits().idle_slots;
            let which = match oldest.is_hybrid() {
                true => format!("{slots} clients of one VM's socket that have sent no request"),
                false => format!("{slots} idle endpoint connections in one partition"),
            };
            self.send_refusal(&oldest, &Refusal::LimitReached { which });
        }
        let index = self.sessions.next_index();
        if let Err(error) = self.session_io.watch(&session.socket, index) {
            self.send_refusal(&session, &watch_limit(&error));
            self.teardown_session(&session);
            return;
        }
        let role = session.role();
        self.sessions.insert(session, Instant::now());
        self.set_session_index(role, index);
    }

    /// Records the index of a listener's or lease's session.
    fn set_session_index(&mut self, role: Role, index: usize) {
        match role {
            Role::Idle => {}
            Role::Listener(id) => self.listeners.set_session(id, index),
            Role::Lease(id) => self.leases.set_session(id, index),
        }
    }

    /// Handles an event of a session, unless it waits for its turn.
    pub(super) fn session_event(&mut self, index: usize) {
        if self.sessions.handles_events(index) {
            self.session_ready(index);
        }
    }

    /// Reads and handles messages of a watched session.
    pub(super) fn session_ready(&mut self, index: usize) {
        let Some(session) = self.sessions.take(index) else {
            return;
        };
        match self.read_session(session, Some(index)) {
            Some((session, more)) => {
                let role = session.role();
                self.sessions.give_back(index, session, more);
                self.set_session_index(role, index);
                if let Role::Listener(id) = role {
                    self.pass_offers(id);
                }
            }
            None => self.sessions.close(index),
        }
    }

    /// Gives one turn to each session with unread messages.
    pub(super) fn resume_sessions(&mut self) {
        for _ in 0..self.sessions.unfinished() {
            let Some(index) = self.sessions.next_turn() else {
                return;
            };
            self.session_ready(index);
        }
    }

    /// Closes the sessions whose idle timeout has passed.
    pub(super) fn expire_sessions(&mut self, now: Instant) {
        while let Some(session) = self.sessions.pop_expired(now) {
            let reason = "no request arrived in time";
            let label = Refusal::TimedOut.label();
            match &session.entry {
                Entry::Hybrid(_) => send_refused(&session.socket, reason),
                Entry::Text(_) => text_answers::send_refused(&session.socket, label, reason),
                Entry::Endpoint => self.send_refusal(&session, &Refusal::TimedOut),
            }
        }
    }

    /// Reads what a session's process has sent, by the protocol of the socket that it came by, as
    /// [`read_messages`](Self::read_messages).
    fn read_session(
        &mut self,
        session: Session<ProcessSocket>,
        index: Option<usize>,
    ) -> Option<(Session<ProcessSocket>, bool)> {
        match &session.entry {
            Entry::Hybrid(_) => self.read_hybrid_request(session, index),
            Entry::Text(_) => self.read_text_request(session, index),
            Entry::Endpoint => self.read_messages(session, index),
        }
    }

    /// Reads and handles messages until none is left or the turn is over. `index` is the index of a
    /// watched session. Returns the session, and whether there may be more messages; `None` if it is
    /// closed or has become a connection.
    fn read_messages(
        &mut self,
        mut session: Session<ProcessSocket>,
        index: Option<usize>,
    ) -> Option<(Session<ProcessSocket>, bool)> {
        let mut bytes = [0; MAX_MESSAGE];
        for _ in 0..MESSAGES_PER_TURN {
            let fault = match message::recv(&session.socket, &mut bytes) {
                Ok(received) if received.dropped_descriptors => {
                    "a message with descriptors".to_owned()
                }
                Ok(received) if received.len == 0 => {
                    self.teardown_session(&session);
                    return None;
                }
                Ok(received) => match ClientMessage::decode(&bytes[..received.len]) {
                    Ok(message) => match self.handle_message(session, message, index) {
                        SessionState::Open(next) => {
                            session = next;
                            continue;
                        }
                        SessionState::Closed => return None,
                    },
                    Err(error) => error.to_string(),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Some((session, false));
                }
                Err(error) if error.kind() == ErrorKind::InvalidData => error.to_string(),
                Err(_) => {
                    self.teardown_session(&session);
                    return None;
                }
            };
            self.send_refusal(&session, &protocol_violation(&fault));
            self.teardown_session(&session);
            return None;
        }
        Some((session, true))
    }

    /// Removes the listener or lease of a session that ends.
    pub(super) fn teardown_session(&mut self, session: &Session<ProcessSocket>) {
        match session.role() {
            Role::Idle => {}
            Role::Listener(id) => {
                self.remove_listener(id, None);
                self.apply_effects();
            }
            Role::Lease(service) => {
                if self.leases.is_held_by(service, session.serial()) {
                    self.unregister(service);
                }
            }
        }
    }

    /// Closes a listener's or lease's session with a reset.
    pub(super) fn reset_session(&mut self, index: Option<usize>, refusal: &Refusal) {
        if let Some(session) = index.and_then(|index| self.sessions.withdraw(index)) {
            self.send_reset(&session, refusal);
        }
    }

    /// Closes every session of a partition that is being removed.
    pub(super) fn close_sessions_of(&mut self, partition: PartitionKey, refusal: &Refusal) {
        for index in self.sessions.of_partition(partition) {
            // Closing one session may have closed others.
            let Some(session) = self.sessions.withdraw(index) else {
                continue;
            };
            if session.is_idle() {
                self.send_refusal(&session, refusal);
            } else {
                self.send_reset(&session, refusal);
                self.teardown_session(&session);
            }
        }
    }

    /// Sends a refusal to a session.
    pub(super) fn send_refusal(&mut self, session: &Session<ProcessSocket>, refusal: &Refusal) {
        match &session.entry {
            Entry::Hybrid(_) => {
                return send_refusal(&session.socket, EndpointKind::Hybrid, refusal);
            }
            Entry::Text(_) => return send_refusal(&session.socket, EndpointKind::Text, refusal),
            Entry::Endpoint => {}
        }
        let message = BrokerMessage::Refused(refused(refusal));
        self.session_io.send(&session.socket, &message);
    }

    /// Sends a reset to a listener's or lease's session.
    fn send_reset(&mut self, session: &Session<ProcessSocket>, refusal: &Refusal) {
        let message = BrokerMessage::Reset(refused(refusal));
        self.session_io.send(&session.socket, &message);
    }
}
