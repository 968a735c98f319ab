//! What processes say on their endpoint connections.
//!
//! A session begins when a process connects to an endpoint and has said nothing yet. Its next
//! words make it a listener or a lease, which it stays until it closes, or a connection, which
//! takes its descriptor to a data thread. A process that says nothing, or too much, or nonsense,
//! costs the broker one descriptor for a bounded time.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_address::{ElementName, PartitionName, SockAddrHv};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Listen, Listening, LookupKind, MAX_MESSAGE, Refused, Register,
    SocketOption,
};
use hvsock_fabric::{
    Audience, ConnectionId, Destination, Explanation, ListenRequest, ListenerId, PartitionKey,
    Refusal, RegisterError,
};
use hvsock_registry::{Principal, Registration};
use hvsock_sys::message;
use mio::Interest;
use mio::unix::SourceFd;

use super::labels::{partition_label, service_label};
use super::material::Offer;
use super::{Core, LeaseRecord, ListenerRecord, endpoint_token, session_token};
use crate::callers::Caller;
use crate::model::EventKind;
use crate::pump::protocol_violation;
use crate::reply::{explained, refused};

/// Look-ups and options that one session may ask for before it says what it wants.
const MAX_QUESTIONS: u32 = 64;
/// Messages read from one session before others get their turn.
const WORDS: usize = 32;
/// As good as for ever, and not too long for a clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// The place of a session that has none in the slab yet.
const NOWHERE: usize = usize::MAX;

/// A process's connection to an endpoint.
pub(super) struct Session {
    pub(super) socket: OwnedFd,
    pub(super) partition: PartitionKey,
    pub(super) caller: Caller,
    pub(super) connected_suspend: bool,
    /// The bytes that a ring should hold; 0 is for the broker to say.
    pub(super) ring_size: u32,
    serial: u64,
    questions: u32,
    /// It may have said more than was read.
    unheard: bool,
    /// It is among [`Core::talking`], and hears nothing before its turn.
    queued: bool,
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It has not said what it wants.
    Asking,
    Listener(ListenerId),
    Lease(hvsock_address::ServiceId),
}

/// What becomes of a session after its messages were read.
pub(super) enum Next {
    /// It goes on.
    Wait(Session),
    /// It is over, or has become a connection.
    Over,
}

impl Session {
    /// Sends a message. A process that does not read its answers misses them.
    pub(super) fn tell(&self, message: &BrokerMessage, buffer: &mut Vec<u8>) -> bool {
        message.encode(buffer);
        message::send(&self.socket, buffer, &[]).is_ok()
    }
}

impl Core {
    /// How long the loop may wait for events.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let busy = !self.busy_endpoints.is_empty() || !self.talking.is_empty();
        if busy || self.young.has_ready() {
            return Some(Duration::ZERO);
        }
        let moments = [
            self.idle.next_deadline(),
            self.shortage.again,
            self.liveness.next_deadline(),
        ];
        let next = moments.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Takes a client in that has just connected.
    pub(super) fn begin(&mut self, socket: OwnedFd, partition: PartitionKey) {
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
            questions: 0,
            unheard: false,
            queued: false,
            role: Role::Asking,
        };
        // A client writes at once what it wants, so most sessions are served without ever being
        // watched.
        match self.converse(session, None) {
            Next::Wait(session) => self.keep(session),
            Next::Over => {}
        }
    }

    /// Watches a new session. What it has said by now and was not read comes as an event.
    fn keep(&mut self, session: Session) {
        let places = self.config.idle_sessions;
        if session.role == Role::Asking
            && let Some(oldest) = self.idle.pop_crowded(session.partition, places)
        {
            let which = format!("{places} processes that say nothing in one partition");
            self.send_away(oldest, &Refusal::LimitReached { which });
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
            self.dismiss(&session, &Refusal::LimitReached { which });
            self.forget(&session);
            return;
        }
        if session.role == Role::Asking {
            let deadline = Instant::now() + self.config.idle_timeout.min(LONGEST);
            self.idle
                .insert(session.partition, session.serial, index, deadline);
        }
        let role = session.role;
        entry.insert(Some(session));
        self.seat(role, index);
    }

    /// Notes where the session of a listener or lease is.
    fn seat(&mut self, role: Role, index: usize) {
        match role {
            Role::Asking => {}
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

    /// Takes an event of a watched session. One that waits for its turn has it then.
    pub(super) fn note_session(&mut self, index: usize) {
        let session = self.sessions.get(index).and_then(Option::as_ref);
        if session.is_some_and(|session| !session.queued) {
            self.session_ready(index);
        }
    }

    /// Reads what a watched session says.
    pub(super) fn session_ready(&mut self, index: usize) {
        let Some(session) = self.sessions.get_mut(index).and_then(Option::take) else {
            return;
        };
        let (asked, serial) = (session.role == Role::Asking, session.serial);
        let next = self.converse(session, Some(index));
        let asks = matches!(&next, Next::Wait(session) if session.role == Role::Asking);
        if asked && !asks {
            self.idle.remove(serial);
        }
        match next {
            Next::Wait(mut session) => {
                if session.unheard && !session.queued {
                    session.queued = true;
                    self.talking.push_back(index);
                }
                let role = session.role;
                if let Some(slot) = self.sessions.get_mut(index) {
                    *slot = Some(session);
                }
                self.seat(role, index);
            }
            Next::Over => drop(self.sessions.try_remove(index)),
        }
    }

    /// Gives one more turn to each session that has more to say.
    pub(super) fn hear_out(&mut self) {
        for _ in 0..self.talking.len() {
            let Some(index) = self.talking.pop_front() else {
                return;
            };
            if let Some(Some(session)) = self.sessions.get_mut(index) {
                session.queued = false;
                self.session_ready(index);
            }
        }
    }

    /// Ends the sessions that have not said in time what they want.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(index) = self.idle.pop_expired(now) {
            self.send_away(index, &Refusal::TimedOut);
        }
        self.expire_liveness(now);
    }

    /// Ends a session that has not said what it wants, and says why.
    fn send_away(&mut self, index: usize, refusal: &Refusal) {
        if let Some(session) = self.sessions.get_mut(index).and_then(Option::take) {
            self.dismiss(&session, refusal);
            self.sessions.try_remove(index);
        }
    }

    /// Reads and answers messages until none is left or others must have their turn. `index` is
    /// where the session is watched.
    fn converse(&mut self, mut session: Session, index: Option<usize>) -> Next {
        let mut bytes = [0; MAX_MESSAGE];
        session.unheard = false;
        for _ in 0..WORDS {
            let fault = match message::recv(&session.socket, &mut bytes) {
                Ok(received) if received.dropped_descriptors => {
                    "a message with descriptors".to_owned()
                }
                Ok(received) if received.len == 0 => {
                    self.forget(&session);
                    return Next::Over;
                }
                Ok(received) => match ClientMessage::decode(&bytes[..received.len]) {
                    Ok(message) => match self.answer(session, message, index) {
                        Next::Wait(next) => {
                            session = next;
                            continue;
                        }
                        Next::Over => return Next::Over,
                    },
                    Err(error) => error.to_string(),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait(session),
                Err(error) if error.kind() == ErrorKind::InvalidData => error.to_string(),
                Err(_) => {
                    self.forget(&session);
                    return Next::Over;
                }
            };
            self.dismiss(&session, &protocol_violation(&fault));
            self.forget(&session);
            return Next::Over;
        }
        session.unheard = true;
        Next::Wait(session)
    }

    fn answer(&mut self, mut session: Session, said: ClientMessage, index: Option<usize>) -> Next {
        match (session.role, said) {
            (Role::Asking, ClientMessage::Connect(connect)) => {
                if let Some(_watched) = index {
                    // Its descriptor goes to a data thread, which watches it from then on.
                    let mut source = SourceFd(&session.socket.as_raw_fd());
                    let _ = self.registry.deregister(&mut source);
                }
                self.connect(session, &connect);
                Next::Over
            }
            (Role::Asking, ClientMessage::Listen(listen)) => self.listen(session, &listen),
            (Role::Asking, ClientMessage::Register(register)) => self.lease(session, register),
            (Role::Asking, ClientMessage::Lookup { kind, name }) => {
                session.questions += 1;
                self.look_up(session, kind, name)
            }
            (_, ClientMessage::SetOption { option, value }) => {
                session.questions = session.questions.saturating_add(1);
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
                self.bounded(session)
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
                Next::Wait(session)
            }
            (_, _) => {
                self.dismiss(
                    &session,
                    &protocol_violation("a message that has no place here"),
                );
                self.forget(&session);
                Next::Over
            }
        }
    }

    /// Ends a session that goes on asking and never says what it wants.
    fn bounded(&mut self, session: Session) -> Next {
        if session.questions <= MAX_QUESTIONS || session.role != Role::Asking {
            return Next::Wait(session);
        }
        let which = format!("{MAX_QUESTIONS} questions on one endpoint connection");
        self.dismiss(&session, &Refusal::LimitReached { which });
        Next::Over
    }

    fn look_up(&mut self, session: Session, kind: LookupKind, name: String) -> Next {
        let guid = match kind {
            LookupKind::Service => ElementName::new(name)
                .ok()
                .and_then(|name| self.fabric.service_id_of(session.partition, &name))
                .map(hvsock_address::ServiceId::to_guid_bytes)
                .ok_or(Refusal::Unregistered),
            LookupKind::Partition => PartitionName::new(name)
                .ok()
                .and_then(|name| self.fabric.vm_id_of(session.partition, &name))
                .map(hvsock_address::VmId::to_guid_bytes)
                .ok_or_else(|| self.no_such_name(session.partition)),
        };
        match guid {
            Ok(guid) => {
                session.tell(&BrokerMessage::Found { guid }, &mut self.buffer);
                self.bounded(session)
            }
            Err(refusal) => {
                self.tally.refused(&refusal);
                self.dismiss(&session, &refusal);
                Next::Over
            }
        }
    }

    /// As for an id: only the root partition may know which names there are.
    fn no_such_name(&self, asker: PartitionKey) -> Refusal {
        if asker == self.fabric.root() {
            Refusal::PartitionUnknown
        } else {
            Refusal::NotReachable
        }
    }

    fn listen(&mut self, mut session: Session, listen: &Listen) -> Next {
        let principal = self.principal(&session);
        let request = ListenRequest {
            from: session.partition,
            principal: &principal,
            vm: listen.address.vm,
            service: listen.address.service,
            backlog: listen.backlog,
        };
        if listen.flags.dry_run {
            let explanation = self.fabric.explain_listen(&request, Audience::Asker);
            return self.explain(&session, &explanation);
        }
        let id = match self.fabric.listen(&request) {
            Ok(id) => id,
            Err(refusal) => {
                self.turned_down(&session, listen.address, &refusal);
                return Next::Over;
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
                session: NOWHERE,
                partition: session.partition,
                caller: session.caller,
                address: listen.address,
                backlog,
                offer: Offer {
                    transports: listen.transports,
                    plain: listen.flags.plain,
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
        session.tell(&BrokerMessage::Listening(listening), &mut self.buffer);
        Next::Wait(session)
    }

    fn lease(&mut self, mut session: Session, register: Register) -> Next {
        let outcome = self.grant_lease(&session, register);
        match outcome {
            Ok(id) => {
                session.role = Role::Lease(id);
                session.tell(&BrokerMessage::Registered, &mut self.buffer);
                Next::Wait(session)
            }
            Err(refusal) => {
                self.tally.refused(&refusal);
                self.dismiss(&session, &refusal);
                Next::Over
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
            let rule = "only the broker's user and root, outside containers, may register";
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
            session: NOWHERE,
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

    /// Undoes what a session did; its descriptor is closed right after.
    fn forget(&mut self, session: &Session) {
        match session.role {
            Role::Asking => {}
            Role::Listener(id) => {
                self.end_listener(id, None);
                self.carry_out();
            }
            Role::Lease(service) => {
                // Another may have the service by now.
                let lease = self.leases.get(&service);
                if lease.is_some_and(|lease| lease.serial == session.serial) {
                    self.unregister(service);
                }
            }
        }
    }

    /// Tells the process of a lease that it has ended, if that is not because the process did.
    pub(super) fn cut_lease(&mut self, lease: LeaseRecord, refusal: &Refusal) {
        self.cut_session(lease.session, refusal);
    }

    /// Ends a session that stood, and says why.
    fn cut_session(&mut self, index: usize, refusal: &Refusal) {
        if let Some(session) = self.sessions.get_mut(index).and_then(Option::take) {
            let reset = BrokerMessage::Reset(refused(refusal));
            session.tell(&reset, &mut self.buffer);
            self.sessions.try_remove(index);
        }
    }

    /// Cuts a listener, with the reason.
    pub(super) fn cut_listener(&mut self, id: ListenerId, refusal: &Refusal) {
        let Some(record) = self.listeners.get(&id) else {
            return;
        };
        self.cut_session(record.session, refusal);
        self.end_listener(id, Some(refusal));
    }

    /// Takes a listener out of the books. What that means for others is for the caller to carry
    /// out, who may be doing just that.
    fn end_listener(&mut self, id: ListenerId, reason: Option<&Refusal>) {
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

    /// Ends every session of a partition that is no more.
    pub(super) fn end_sessions_of(&mut self, partition: PartitionKey, refusal: &Refusal) {
        let of_it: Vec<usize> = self
            .sessions
            .iter()
            .filter(|(_, slot)| slot.as_ref().is_some_and(|s| s.partition == partition))
            .map(|(index, _)| index)
            .collect();
        for index in of_it {
            // The end of one may have ended others of them.
            let Some(session) = self.sessions.get_mut(index).and_then(Option::take) else {
                continue;
            };
            if session.role == Role::Asking {
                self.idle.remove(session.serial);
                self.dismiss(&session, refusal);
            } else {
                let reset = BrokerMessage::Reset(refused(refusal));
                session.tell(&reset, &mut self.buffer);
                self.forget(&session);
            }
            self.sessions.try_remove(index);
        }
    }

    /// Says to a session why it ends.
    fn dismiss(&mut self, session: &Session, refusal: &Refusal) {
        session.tell(&BrokerMessage::Refused(refused(refusal)), &mut self.buffer);
    }

    /// Refuses a connect or listen, where everybody can see it.
    pub(super) fn turned_down(
        &mut self,
        session: &Session,
        address: SockAddrHv,
        refusal: &Refusal,
    ) {
        self.dismiss(session, refusal);
        self.tally.refused(refusal);
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

    pub(super) fn explain(&mut self, session: &Session, explanation: &Explanation) -> Next {
        let explained: Refused = explained(explanation);
        session.tell(&BrokerMessage::Explained(explained), &mut self.buffer);
        Next::Over
    }

    /// What access rules may ask about the process of a session. In a child, users mean nothing.
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
