//! Sessions: the endpoint connections of processes, and the messages on them.
//!
//! A session starts idle. Its request turns it into a listener or a lease until the process closes
//! it, or into a connection, which takes the descriptor out of the session. A process that sends
//! nothing, too much, or invalid messages costs the broker one descriptor for a bounded time.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_address::{ElementName, PartitionName, SockAddrHv};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Listen, Listening, LookupKind, MAX_MESSAGE, Refused, Register,
    SocketOption,
};
use hvsock_fabric::{
    AccessExplanation, Audience, ConnectionId, Destination, ListenRequest, ListenerId,
    PartitionKey, Refusal, RegisterError,
};
use hvsock_registry::{Principal, Registration};
use hvsock_sys::message;
use mio::Interest;
use mio::unix::SourceFd;

use super::labels::{partition_label, service_label};
use super::resources::TransportPreference;
use super::{Core, LeaseRecord, ListenerRecord, endpoint_token, session_token};
use crate::callers::Caller;
use crate::data_path::protocol_violation;
use crate::model::EventKind;
use crate::reply::{explained, refused};

/// Most lookups and options on one session before its request.
const MAX_QUERIES: u32 = 64;
/// Most messages read from one session in one turn, for fairness.
const MESSAGES_PER_TURN: usize = 32;
/// Cap of the idle timeout, so that adding it to an [`Instant`] cannot overflow.
const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);
/// The index of a session that is not in the slab yet.
const NO_INDEX: usize = usize::MAX;

/// A process's connection to an endpoint.
pub(super) struct Session {
    pub(super) socket: OwnedFd,
    pub(super) partition: PartitionKey,
    pub(super) caller: Caller,
    pub(super) connected_suspend: bool,
    /// Requested ring capacity in bytes; 0 selects the broker's default.
    pub(super) ring_size: u32,
    serial: u64,
    queries: u32,
    /// The socket may contain more messages than were read.
    may_have_more: bool,
    /// The session is in [`Core::unfinished_sessions`] and is not read before its turn.
    queued: bool,
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It has not sent its request.
    Idle,
    Listener(ListenerId),
    Lease(hvsock_address::ServiceId),
}

/// The state of a session after its messages were handled.
pub(super) enum SessionState {
    /// The session stays open.
    Open(Session),
    /// The session is closed, or has become a connection.
    Closed,
}

impl Session {
    /// Sends a message; `false` on failure. Never blocks, so a process with a full receive queue misses
    /// the message.
    pub(super) fn send(&self, message: &BrokerMessage, buffer: &mut Vec<u8>) -> bool {
        message.encode(buffer);
        message::send(&self.socket, buffer, &[]).is_ok()
    }
}

impl Core {
    /// The timeout of the next poll.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let busy = !self.busy_endpoints.is_empty() || !self.unfinished_sessions.is_empty();
        if busy || self.core_set.has_ready() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.idle.next_deadline(),
            self.shortage.retry_at,
            self.liveness.next_deadline(),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Opens a session for an accepted client.
    pub(super) fn open_session(&mut self, socket: OwnedFd, partition: PartitionKey) {
        let Ok(caller) = Caller::of(&socket) else {
            return;
        };
        self.next_serial += 1;
        let session = Session {
            socket,
            partition,
            caller,
            connected_suspend: false,
            ring_size: 0,
            serial: self.next_serial,
            queries: 0,
            may_have_more: false,
            queued: false,
            role: Role::Idle,
        };
        // A client sends its request at once, so most sessions are served without a registration in
        // epoll.
        match self.read_messages(session, None) {
            SessionState::Open(session) => self.watch_session(session),
            SessionState::Closed => {}
        }
    }

    /// Adds a new session to the slab and to epoll. Unread messages cause an event.
    fn watch_session(&mut self, session: Session) {
        let slots = self.config.idle_sessions;
        if session.role == Role::Idle
            && let Some(oldest) = self.idle.evict_oldest(session.partition, slots)
        {
            let which = format!("{slots} idle endpoint connections in one partition");
            self.reject_idle(oldest, &Refusal::LimitReached { which });
        }
        let entry = self.sessions.vacant_entry();
        let index = entry.key();
        let mut source = SourceFd(&session.socket.as_raw_fd());
        let token = session_token(index);
        if let Err(error) = self
            .registry
            .register(&mut source, token, Interest::READABLE)
        {
            let which = format!("descriptors watched by the broker ({error})");
            self.send_refusal(&session, &Refusal::LimitReached { which });
            self.teardown_session(&session);
            return;
        }
        if session.role == Role::Idle {
            let deadline = Instant::now() + self.config.idle_timeout.min(MAX_IDLE_TIMEOUT);
            self.idle
                .insert(session.partition, session.serial, index, deadline);
        }
        let role = session.role;
        entry.insert(Some(session));
        self.set_session_index(role, index);
    }

    /// Records the slab index of a listener's or lease's session.
    fn set_session_index(&mut self, role: Role, index: usize) {
        match role {
            Role::Idle => {}
            Role::Listener(id) => {
                if let Some(listener) = self.listeners.get_mut(&id) {
                    listener.session = index;
                }
            }
            Role::Lease(id) => {
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.session = index;
                }
            }
        }
    }

    /// Handles an event of a session, unless it is queued for a later turn.
    pub(super) fn session_event(&mut self, index: usize) {
        let session = self.sessions.get(index).and_then(Option::as_ref);
        if session.is_some_and(|session| !session.queued) {
            self.session_ready(index);
        }
    }

    /// Reads and handles messages of a watched session.
    pub(super) fn session_ready(&mut self, index: usize) {
        let Some(session) = self.sessions.get_mut(index).and_then(Option::take) else {
            return;
        };
        let (was_idle, serial) = (session.role == Role::Idle, session.serial);
        let state = self.read_messages(session, Some(index));
        let is_idle = matches!(&state, SessionState::Open(session) if session.role == Role::Idle);
        if was_idle && !is_idle {
            self.idle.remove(serial);
        }
        match state {
            SessionState::Open(mut session) => {
                if session.may_have_more && !session.queued {
                    session.queued = true;
                    self.unfinished_sessions.push_back(index);
                }
                let role = session.role;
                if let Some(slot) = self.sessions.get_mut(index) {
                    *slot = Some(session);
                }
                self.set_session_index(role, index);
            }
            SessionState::Closed => drop(self.sessions.try_remove(index)),
        }
    }

    /// Gives one turn to each session with unread messages.
    pub(super) fn resume_sessions(&mut self) {
        for _ in 0..self.unfinished_sessions.len() {
            let Some(index) = self.unfinished_sessions.pop_front() else {
                return;
            };
            if let Some(Some(session)) = self.sessions.get_mut(index) {
                session.queued = false;
                self.session_ready(index);
            }
        }
    }

    /// Closes the sessions whose idle timeout has passed, and expires guests' heartbeats.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(index) = self.idle.pop_expired(now) {
            self.reject_idle(index, &Refusal::TimedOut);
        }
        self.expire_liveness(now);
    }

    /// Closes an idle session with a refusal.
    fn reject_idle(&mut self, index: usize, refusal: &Refusal) {
        if let Some(session) = self.sessions.get_mut(index).and_then(Option::take) {
            self.send_refusal(&session, refusal);
            self.sessions.try_remove(index);
        }
    }

    /// Reads and handles messages until none is left or the turn is over. `index` is the slab index of
    /// a watched session.
    fn read_messages(&mut self, mut session: Session, index: Option<usize>) -> SessionState {
        let mut bytes = [0; MAX_MESSAGE];
        session.may_have_more = false;
        for _ in 0..MESSAGES_PER_TURN {
            let fault = match message::recv(&session.socket, &mut bytes) {
                Ok(received) if received.dropped_descriptors => {
                    "a message with descriptors".to_owned()
                }
                Ok(received) if received.len == 0 => {
                    self.teardown_session(&session);
                    return SessionState::Closed;
                }
                Ok(received) => match ClientMessage::decode(&bytes[..received.len]) {
                    Ok(message) => match self.handle_message(session, message, index) {
                        SessionState::Open(next) => {
                            session = next;
                            continue;
                        }
                        SessionState::Closed => return SessionState::Closed,
                    },
                    Err(error) => error.to_string(),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return SessionState::Open(session);
                }
                Err(error) if error.kind() == ErrorKind::InvalidData => error.to_string(),
                Err(_) => {
                    self.teardown_session(&session);
                    return SessionState::Closed;
                }
            };
            self.send_refusal(&session, &protocol_violation(&fault));
            self.teardown_session(&session);
            return SessionState::Closed;
        }
        session.may_have_more = true;
        SessionState::Open(session)
    }

    fn handle_message(
        &mut self,
        mut session: Session,
        message: ClientMessage,
        index: Option<usize>,
    ) -> SessionState {
        match (session.role, message) {
            (Role::Idle, ClientMessage::Connect(connect)) => {
                if let Some(_watched) = index {
                    // The connection set registers the descriptor again.
                    let mut source = SourceFd(&session.socket.as_raw_fd());
                    let _ = self.registry.deregister(&mut source);
                }
                self.connect(session, &connect);
                SessionState::Closed
            }
            (Role::Idle, ClientMessage::Listen(listen)) => self.listen(session, &listen),
            (Role::Idle, ClientMessage::Register(register)) => self.lease(session, register),
            (Role::Idle, ClientMessage::Lookup { kind, name }) => {
                session.queries += 1;
                self.look_up(session, kind, name)
            }
            (_, ClientMessage::SetOption { option, value }) => {
                session.queries = session.queries.saturating_add(1);
                match option {
                    SocketOption::ConnectedSuspend => {
                        session.connected_suspend = value != 0;
                        if let Role::Listener(id) = session.role
                            && let Some(listener) = self.listeners.get_mut(&id)
                        {
                            listener.connected_suspend = value != 0;
                        }
                    }
                    SocketOption::RingSize => session.ring_size = value,
                    SocketOption::ConnectTimeout
                    | SocketOption::ContainerPassthru
                    | SocketOption::HighVtl => {}
                }
                self.check_queries(session)
            }
            (Role::Listener(listener), ClientMessage::Accepted { connection }) => {
                let id = ConnectionId::from_u64(connection);
                if self
                    .fabric
                    .connection(id)
                    .is_some_and(|c| c.destination() == Destination::Listener(listener))
                {
                    self.fabric.accepted(id);
                }
                SessionState::Open(session)
            }
            (_, _) => {
                self.send_refusal(&session, &protocol_violation("an unexpected message"));
                self.teardown_session(&session);
                SessionState::Closed
            }
        }
    }

    /// Closes an idle session that exceeds [`MAX_QUERIES`].
    fn check_queries(&mut self, session: Session) -> SessionState {
        if session.queries <= MAX_QUERIES || session.role != Role::Idle {
            return SessionState::Open(session);
        }
        let which = format!("{MAX_QUERIES} queries on one endpoint connection");
        self.send_refusal(&session, &Refusal::LimitReached { which });
        SessionState::Closed
    }

    fn look_up(&mut self, session: Session, kind: LookupKind, name: String) -> SessionState {
        let guid = match kind {
            LookupKind::Service => ElementName::new(name)
                .ok()
                .and_then(|name| self.fabric.service_id_by_name(session.partition, &name))
                .map(hvsock_address::ServiceId::to_guid_bytes)
                .ok_or(Refusal::Unregistered),
            LookupKind::Partition => PartitionName::new(name)
                .ok()
                .and_then(|name| self.fabric.vm_id_by_name(session.partition, &name))
                .map(hvsock_address::VmId::to_guid_bytes)
                .ok_or_else(|| self.unknown_name(session.partition)),
        };
        match guid {
            Ok(guid) => {
                session.send(&BrokerMessage::Found { guid }, &mut self.buffer);
                self.check_queries(session)
            }
            Err(refusal) => {
                self.counters.refused(&refusal);
                self.send_refusal(&session, &refusal);
                SessionState::Closed
            }
        }
    }

    /// The refusal for an unknown partition name. Only the root partition may learn which names exist,
    /// as with ids.
    fn unknown_name(&self, from: PartitionKey) -> Refusal {
        if from == self.fabric.root() {
            Refusal::PartitionUnknown
        } else {
            Refusal::NotReachable
        }
    }

    fn listen(&mut self, mut session: Session, listen: &Listen) -> SessionState {
        let principal = self.principal(&session);
        let request = ListenRequest {
            from: session.partition,
            principal: &principal,
            vm: listen.address.vm,
            service: listen.address.service,
            backlog: listen.backlog,
        };
        if listen.flags.dry_run {
            let explanation = self.fabric.explain_listen(&request, Audience::Requester);
            return self.explain(&session, &explanation);
        }
        let id = match self.fabric.listen(&request) {
            Ok(id) => id,
            Err(refusal) => {
                self.reject(&session, listen.address, &refusal);
                return SessionState::Closed;
            }
        };
        session.role = Role::Listener(id);
        let backlog = self
            .fabric
            .listener(id)
            .map_or(0, hvsock_fabric::Listener::backlog);
        self.listeners.insert(
            id,
            ListenerRecord {
                session: NO_INDEX,
                partition: session.partition,
                caller: session.caller,
                address: listen.address,
                backlog,
                preference: TransportPreference {
                    transports: listen.transports,
                    raw_fd: listen.flags.raw_fd,
                    ring_size: session.ring_size,
                },
                connected_suspend: session.connected_suspend,
                started: Instant::now(),
            },
        );
        self.events.publish(|| EventKind::ListenerOpened {
            listener: id.as_u64(),
            service: service_label(&self.fabric, listen.address.service),
            partition: partition_label(&self.fabric, session.partition),
        });
        let listening = Listening {
            backlog,
            listener: id.as_u64(),
        };
        session.send(&BrokerMessage::Listening(listening), &mut self.buffer);
        SessionState::Open(session)
    }

    fn lease(&mut self, mut session: Session, register: Register) -> SessionState {
        let outcome = self.grant_lease(&session, register);
        match outcome {
            Ok(id) => {
                session.role = Role::Lease(id);
                session.send(&BrokerMessage::Registered, &mut self.buffer);
                SessionState::Open(session)
            }
            Err(refusal) => {
                self.counters.refused(&refusal);
                self.send_refusal(&session, &refusal);
                SessionState::Closed
            }
        }
    }

    fn grant_lease(
        &mut self,
        session: &Session,
        register: Register,
    ) -> Result<hvsock_address::ServiceId, Refusal> {
        let own = self.fabric.root();
        let may_change = [0, rustix::process::geteuid().as_raw()].contains(&session.caller.uid);
        if session.partition != own || !may_change {
            let rule = "only the broker's user and root may register, and not from a container";
            return Err(Refusal::Denied { rule: rule.into() });
        }
        let invalid = |error: &dyn std::fmt::Display| protocol_violation(&error.to_string());
        let name = ElementName::new(register.name).map_err(|error| invalid(&error))?;
        let mut registration = Registration::new(register.service, name);
        registration.lease = true;
        registration.owner = Some(self.user_label(session.caller.uid));
        registration.creator = Some(format!("process {}", session.caller.pid));
        registration.purpose = Some(register.purpose).filter(|purpose| !purpose.is_empty());
        let id = registration.id;
        let lease = LeaseRecord {
            serial: session.serial,
            session: NO_INDEX,
        };
        self.register(registration).map_err(|error| match error {
            RegisterError::LimitReached { which } => Refusal::LimitReached {
                which: which.into(),
            },
            other => Refusal::Denied {
                rule: other.to_string(),
            },
        })?;
        self.leases.insert(id, lease);
        Ok(id)
    }

    /// Removes the listener or lease of a session that ends.
    fn teardown_session(&mut self, session: &Session) {
        match session.role {
            Role::Idle => {}
            Role::Listener(id) => {
                self.remove_listener(id, None);
                self.apply_effects();
            }
            Role::Lease(service) => {
                // Another session may hold the service by now.
                let lease = self.leases.get(&service);
                if lease.is_some_and(|lease| lease.serial == session.serial) {
                    self.unregister(service);
                }
            }
        }
    }

    /// Resets the session of a lease that ended, unless the session is closed.
    pub(super) fn reset_lease(&mut self, lease: LeaseRecord, refusal: &Refusal) {
        self.reset_session(lease.session, refusal);
    }

    /// Closes a listener's or lease's session with a reset.
    fn reset_session(&mut self, index: usize, refusal: &Refusal) {
        if let Some(session) = self.sessions.get_mut(index).and_then(Option::take) {
            let reset = BrokerMessage::Reset(refused(refusal));
            session.send(&reset, &mut self.buffer);
            self.sessions.try_remove(index);
        }
    }

    /// Closes a listener with a reset.
    pub(super) fn reset_listener(&mut self, id: ListenerId, refusal: &Refusal) {
        let Some(record) = self.listeners.get(&id) else {
            return;
        };
        self.reset_session(record.session, refusal);
        self.remove_listener(id, Some(refusal));
    }

    /// Removes a listener. The caller applies the fabric's effects, because it may be doing so already.
    fn remove_listener(&mut self, id: ListenerId, reason: Option<&Refusal>) {
        self.fabric.close_listener(id);
        let Some(record) = self.listeners.remove(&id) else {
            return;
        };
        self.events.publish(|| EventKind::ListenerClosed {
            listener: id.as_u64(),
            service: service_label(&self.fabric, record.address.service),
            partition: partition_label(&self.fabric, record.partition),
            reason: reason.map(ToString::to_string),
        });
    }

    /// Closes every session of a partition that is being removed.
    pub(super) fn close_sessions_of(&mut self, partition: PartitionKey, refusal: &Refusal) {
        let indexes: Vec<usize> = self
            .sessions
            .iter()
            .filter(|(_, slot)| slot.as_ref().is_some_and(|s| s.partition == partition))
            .map(|(index, _)| index)
            .collect();
        for index in indexes {
            // Closing one session may have closed others.
            let Some(session) = self.sessions.get_mut(index).and_then(Option::take) else {
                continue;
            };
            if session.role == Role::Idle {
                self.idle.remove(session.serial);
                self.send_refusal(&session, refusal);
            } else {
                let reset = BrokerMessage::Reset(refused(refusal));
                session.send(&reset, &mut self.buffer);
                self.teardown_session(&session);
            }
            self.sessions.try_remove(index);
        }
    }

    /// Sends a refusal to a session.
    fn send_refusal(&mut self, session: &Session, refusal: &Refusal) {
        session.send(&BrokerMessage::Refused(refused(refusal)), &mut self.buffer);
    }

    /// Refuses a connect or listen: sends the refusal, counts it, logs it, and publishes an event.
    pub(super) fn reject(&mut self, session: &Session, address: SockAddrHv, refusal: &Refusal) {
        self.send_refusal(session, refusal);
        self.counters.refused(refusal);
        let from = partition_label(&self.fabric, session.partition);
        tracing::debug!(%from, pid = session.caller.pid, uid = session.caller.uid, %address,
            reason = refusal.label(), "refused: {refusal}");
        self.events.publish(|| EventKind::Refused {
            from,
            address: address.to_string(),
            reason: refusal.label().into(),
            message: refusal.to_string(),
        });
    }

    pub(super) fn explain(
        &mut self,
        session: &Session,
        explanation: &AccessExplanation,
    ) -> SessionState {
        let explained: Refused = explained(explanation);
        session.send(&BrokerMessage::Explained(explained), &mut self.buffer);
        SessionState::Closed
    }

    /// The identity of a session's process for access rules. A child's user and group names are
    /// unknown to the host, so only the uid counts there.
    pub(super) fn principal(&mut self, session: &Session) -> Principal {
        if session.partition == self.fabric.root() {
            self.callers.principal(session.caller, &session.socket)
        } else {
            Principal {
                uid: session.caller.uid,
                ..Principal::default()
            }
        }
    }

    /// Watches an endpoint socket.
    pub(super) fn watch_endpoint(&mut self, index: usize) -> std::io::Result<()> {
        let fd = self.endpoints[index].socket.as_raw_fd();
        self.registry.register(
            &mut SourceFd(&fd),
            endpoint_token(index),
            Interest::READABLE,
        )
    }
}
