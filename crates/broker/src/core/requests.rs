//! The messages of sessions: lookups, options, listens and leases. Connects are in
//! [`connect`](super::connect).

use std::sync::Arc;
use std::time::Instant;

use hvsock_address::{ElementName, PartitionName, ServiceId, SockAddrHv, VmId};
use hvsock_control::{AuditCategory, AuditRecord};
use hvsock_endpoint::{
    Bound, BrokerMessage, ClientMessage, Connect, IdOrName, Listen, Listening, LookupKind,
    NamedAddress, Refused, Register, SocketOption,
};
use hvsock_fabric::{
    Audience, ConnectRequest, ConnectionId, Destination, Explanation, ListenRequest, PartitionKey,
    Refusal, RegisterError,
};
use hvsock_registry::{Principal, Registration};

use super::labels::{partition_label, service_label};
use super::listeners::ListenerRecord;
use super::preference::TransportPreference;
use super::sessions::{MAX_QUERIES, Request, Role, Session};
use super::state::Core;
use crate::audit::{self, MAX_TEXT};
use crate::callers::uid_in_container;
use crate::data_path::{ProcessSocket, protocol_violation};
use crate::model::EventKind;
use crate::reply::explained;

/// The name of the host of this virtual machine for a container in it. No partition can have it.
const HOST: &str = "host";

/// The state of a session after its messages were handled.
pub(super) enum SessionState {
    /// The session stays open.
    Open(Session<ProcessSocket>),
    /// The session is closed, or has become a connection.
    Closed,
}

impl Core {
    /// Handles a message. `index` is the index of a watched session.
    pub(super) fn handle_message(
        &mut self,
        mut session: Session<ProcessSocket>,
        message: ClientMessage,
        index: Option<usize>,
    ) -> SessionState {
        match (session.role(), message) {
            (Role::Idle, ClientMessage::Connect(connect)) => {
                self.connect_idle(session, &connect, index)
            }
            (Role::Idle, ClientMessage::ConnectNamed(named)) => {
                match self.resolve(session.partition, &named.address) {
                    Ok(address) => {
                        session.named = Some(Arc::new(named.address));
                        let connect = Connect {
                            flags: named.flags,
                            timeout_ms: named.timeout_ms,
                            transports: named.transports,
                            address,
                        };
                        self.connect_idle(session, &connect, index)
                    }
                    Err(refusal) if self.may_be_new(session.partition, &refusal) => {
                        self.hold_request(session, ClientMessage::ConnectNamed(named), index)
                    }
                    Err(refusal) => {
                        if !named.flags.dry_run {
                            self.audit_unknown(&session, "connect", &named.address, &refusal);
                        }
                        self.refuse_name(&session, &refusal)
                    }
                }
            }
            (Role::Idle, ClientMessage::Listen(listen))
                if self.may_be_allowed(&session, listen.address) =>
            {
                self.hold_request(session, ClientMessage::Listen(listen), index)
            }
            (Role::Idle, ClientMessage::Listen(listen)) => {
                self.listen(session, &listen, BrokerMessage::Listening)
            }
            (Role::Idle, ClientMessage::ListenNamed(named)) => {
                match self.resolve(session.partition, &named.address) {
                    Ok(address) if self.may_be_allowed(&session, address) => {
                        self.hold_request(session, ClientMessage::ListenNamed(named), index)
                    }
                    Ok(address) => {
                        let listen = Listen {
                            flags: named.flags,
                            backlog: named.backlog,
                            transports: named.transports,
                            address,
                        };
                        let bound = |listening| BrokerMessage::Bound(Bound { listening, address });
                        self.listen(session, &listen, bound)
                    }
                    Err(refusal) if self.may_be_new(session.partition, &refusal) => {
                        self.hold_request(session, ClientMessage::ListenNamed(named), index)
                    }
                    Err(refusal) => {
                        if !named.flags.dry_run {
                            self.audit_unknown(&session, "listen", &named.address, &refusal);
                        }
                        self.refuse_name(&session, &refusal)
                    }
                }
            }
            (Role::Idle, ClientMessage::Register(register)) => self.lease(session, register),
            (Role::Idle, ClientMessage::Lookup { kind, name }) => {
                session.count_query();
                self.look_up(session, kind, name, index)
            }
            (Role::Idle, ClientMessage::CidOf { partition }) => {
                session.count_query();
                self.answer_cid_of(session, partition)
            }
            (Role::Idle, ClientMessage::Attach { filler }) => {
                session.count_query();
                self.attach(session, filler)
            }
            (Role::Idle, ClientMessage::Describe(describe)) => {
                session.count_query();
                let claim = audit::claim(&describe.action, &describe.detail);
                session.claim = Some(Arc::new(claim));
                self.check_queries(session)
            }
            (_, ClientMessage::SetOption { option, value }) => {
                session.count_query();
                match option {
                    SocketOption::ConnectedSuspend => {
                        session.connected_suspend = value != 0;
                        if let Role::Listener(id) = session.role() {
                            self.listeners.set_connected_suspend(id, value != 0);
                        }
                    }
                    SocketOption::RingSize => session.ring_size = value,
                    SocketOption::ConnectTimeout
                    | SocketOption::ContainerPassthru
                    | SocketOption::HighVtl
                    | SocketOption::ConfirmEnd => {}
                }
                self.check_queries(session)
            }
            (Role::Listener(listener), ClientMessage::Accepted { connection }) => {
                self.data_threads.spare().close_now();
                let id = ConnectionId::from_u64(connection);
                // One that is held has not been received.
                if self.offers.confirm(listener, id)
                    && self
                        .fabric
                        .connection(id)
                        .is_some_and(|c| c.destination() == Destination::Listener(listener))
                {
                    self.fabric.accepted(id);
                    self.guest_accepted_by(listener, id);
                    if let Some(from) = self.connections.get(id).map(|record| record.from) {
                        let peers = &mut self.arenas.peers;
                        peers.accepted(listener, from.partition, from.caller);
                    }
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

    /// Connects an idle session, which may be watched.
    pub(super) fn connect_idle(
        &mut self,
        session: Session<ProcessSocket>,
        connect: &Connect,
        index: Option<usize>,
    ) -> SessionState {
        if let Err(refusal) = Self::check_attached(&session, connect) {
            self.send_refusal(&session, &refusal);
            return SessionState::Closed;
        }
        if let Some(_watched) = index {
            // The connection set registers the descriptor again.
            self.session_io.unwatch(&session.socket);
        }
        self.connect(session, connect);
        SessionState::Closed
    }

    /// Closes an idle session with too many queries.
    pub(super) fn check_queries(&mut self, session: Session<ProcessSocket>) -> SessionState {
        if !session.exceeds_queries() {
            return SessionState::Open(session);
        }
        let which = format!("{MAX_QUERIES} queries on one endpoint connection");
        self.send_refusal(&session, &Refusal::LimitReached { which });
        SessionState::Closed
    }

    fn look_up(
        &mut self,
        session: Session<ProcessSocket>,
        kind: LookupKind,
        name: String,
        index: Option<usize>,
    ) -> SessionState {
        let from = session.partition;
        match self.find_name(from, kind, name.clone()) {
            Ok(guid) => match self.answer(&session, &BrokerMessage::Found { guid }) {
                true => self.check_queries(session),
                false => SessionState::Closed,
            },
            Err(refusal) if self.may_be_new(from, &refusal) => {
                self.hold_request(session, ClientMessage::Lookup { kind, name }, index)
            }
            Err(refusal) => self.refuse_name(&session, &refusal),
        }
    }

    /// The GUID of a name, as processes of a partition know it.
    pub(super) fn find_name(
        &self,
        from: PartitionKey,
        kind: LookupKind,
        name: String,
    ) -> Result<[u8; 16], Refusal> {
        match kind {
            LookupKind::Service => self
                .service_named(from, None, name)
                .map(ServiceId::to_guid_bytes),
            LookupKind::Partition => self.partition_named(from, name).map(VmId::to_guid_bytes),
            LookupKind::Cid => self
                .partition_with_cid(from, &name)
                .map(VmId::to_guid_bytes),
        }
    }

    /// Refuses a request because of a name in it.
    pub(super) fn refuse_name(
        &mut self,
        session: &Session<ProcessSocket>,
        refusal: &Refusal,
    ) -> SessionState {
        self.telemetry.count_refused(refusal);
        self.send_refusal(session, refusal);
        SessionState::Closed
    }

    /// Records a request that was refused because of a name in it.
    pub(super) fn audit_unknown(
        &mut self,
        session: &Session<ProcessSocket>,
        action: &str,
        address: &NamedAddress,
        refusal: &Refusal,
    ) {
        let (service, id) = match &address.service {
            IdOrName::Id(id) => (service_label(&self.fabric, *id), Some(*id)),
            IdOrName::Name(name) => (audit::visible(name, MAX_TEXT), None),
        };
        let target = match &address.partition {
            IdOrName::Id(vm) => vm.to_string(),
            IdOrName::Name(name) => audit::visible(name, MAX_TEXT),
        };
        let record = AuditRecord {
            category: self.category_of_named(id),
            action: action.into(),
            service: Some(service),
            target: Some(target),
            claim: session.claim.as_deref().cloned(),
            ..AuditRecord::default()
        };
        self.audit_refusal(record, (session.partition, session.caller), refusal);
    }

    /// Resolves the names of an address. The caller acts on it in the same step, so no change can come
    /// between.
    fn resolve(&self, from: PartitionKey, address: &NamedAddress) -> Result<SockAddrHv, Refusal> {
        let vm = match &address.partition {
            IdOrName::Id(vm) => *vm,
            IdOrName::Name(name) => self.partition_named(from, name.clone())?,
        };
        let service = match &address.service {
            IdOrName::Id(service) => *service,
            IdOrName::Name(name) => self.service_named(from, Some(vm), name.clone())?,
        };
        Ok(SockAddrHv::new(vm, service))
    }

    /// Whether the names of an address that was given with names stand for this address now.
    pub(super) fn still_names(
        &self,
        from: PartitionKey,
        named: Option<&NamedAddress>,
        address: SockAddrHv,
    ) -> bool {
        named.is_none_or(|named| self.resolve(from, named) == Ok(address))
    }

    /// The service with a name, for a request of a partition. One at the host has the name that it has there.
    fn service_named(
        &self,
        from: PartitionKey,
        vm: Option<VmId>,
        name: String,
    ) -> Result<ServiceId, Refusal> {
        let name = ElementName::new(name).map_err(|_| Refusal::Unregistered)?;
        let is_at_host = vm.is_some_and(|vm| self.leads_to_outer(from, vm));
        let at_host = || self.service_of_outer(&name);
        let found = is_at_host.then(at_host).flatten();
        found
            .or_else(|| self.fabric.service_id_by_name(from, &name))
            .or_else(|| (vm.is_none() && from == self.fabric.root()).then(at_host)?)
            .ok_or(Refusal::Unregistered)
    }

    fn partition_named(&self, from: PartitionKey, name: String) -> Result<VmId, Refusal> {
        if name == HOST {
            return self
                .host_of(from)
                .ok_or_else(|| self.unknown_partition(from));
        }
        let name = PartitionName::new(name).ok();
        name.and_then(|name| self.fabric.vm_id_by_name(from, &name))
            .ok_or_else(|| self.unknown_partition(from))
    }

    /// The id of the host of this virtual machine, for a container in it.
    fn host_of(&self, from: PartitionKey) -> Option<VmId> {
        let outer = self.fabric.outer()?;
        let is_container = from != outer && from != self.fabric.root();
        let host = self.fabric.partition(outer).filter(|_| is_container)?;
        Some(host.vm_id())
    }

    /// The refusal for an unknown partition name or CID. Only the root partition may learn which exist,
    /// as with ids.
    pub(super) fn unknown_partition(&self, from: PartitionKey) -> Refusal {
        if from == self.fabric.root() {
            Refusal::PartitionUnknown
        } else {
            Refusal::NotReachable
        }
    }

    /// Creates a listener and sends the message that `reply` makes of it.
    fn listen(
        &mut self,
        mut session: Session<ProcessSocket>,
        listen: &Listen,
        reply: impl FnOnce(Listening) -> BrokerMessage,
    ) -> SessionState {
        let backlog = listen.backlog;
        session.explains = listen.flags.explain.then_some(Request::Listen { backlog });
        let principal = self.principal_of_listener(&session);
        let request = ListenRequest {
            from: session.partition,
            principal: &principal,
            vm: listen.address.vm,
            service: listen.address.service,
            backlog: listen.backlog,
        };
        if listen.flags.dry_run {
            let from = session.partition;
            let explain = |core: &mut Self| {
                let request = Request::Listen { backlog };
                core.explain_request(from, &principal, listen.address, request)
            };
            let mut explanation = explain(self);
            if matches!(explanation.refusal(), Some(Refusal::AddressInUse))
                && self.close_gone_listeners(from, listen.address.service)
            {
                explanation = explain(self);
            }
            return self.explain(&session, &explanation);
        }
        let mut listening = self.fabric.listen(&request);
        if matches!(listening, Err(Refusal::AddressInUse))
            && self.close_gone_listeners(session.partition, listen.address.service)
        {
            listening = self.fabric.listen(&request);
        }
        let id = match listening {
            Ok(id) => id,
            Err(refusal) => {
                self.reject(&session, "listen", listen.address, &refusal);
                return SessionState::Closed;
            }
        };
        if let Err(refusal) = self.open_own_port(id, session.partition, listen.address) {
            self.fabric.close_listener(id);
            self.reject(&session, "listen", listen.address, &refusal);
            return SessionState::Closed;
        }
        session.assume(Role::Listener(id));
        let backlog = self
            .fabric
            .listener(id)
            .map_or(0, hvsock_fabric::Listener::backlog);
        self.listeners.insert(
            id,
            ListenerRecord {
                session: None,
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
        let caller = (session.partition, session.caller);
        self.audit_listening(id.as_u64(), caller, listen.address);
        self.telemetry.publish(|| EventKind::ListenerOpened {
            listener: id.as_u64(),
            service: service_label(&self.fabric, listen.address.service),
            partition: partition_label(&self.fabric, session.partition),
        });
        let listening = Listening {
            backlog,
            listener: id.as_u64(),
        };
        // Connects that reach this listener from now on must not reach another one in an arena.
        self.judge_arenas();
        self.session_io.send(&session.socket, &reply(listening));
        SessionState::Open(session)
    }

    fn lease(&mut self, mut session: Session<ProcessSocket>, register: Register) -> SessionState {
        let name = audit::visible(&register.name, MAX_TEXT);
        let caller = (session.partition, session.caller);
        let outcome = self.grant_lease(&session, register);
        match outcome {
            Ok(id) => {
                self.audit_lease(caller, &name);
                session.assume(Role::Lease(id));
                // Grants depend on the registration and its name.
                self.judge_arenas();
                let registered = BrokerMessage::Registered;
                self.session_io.send(&session.socket, &registered);
                SessionState::Open(session)
            }
            Err(refusal) => {
                let record = AuditRecord {
                    category: AuditCategory::Change,
                    action: "lease".into(),
                    service: Some(name),
                    ..AuditRecord::default()
                };
                self.audit_refusal(record, caller, &refusal);
                self.telemetry.count_refused(&refusal);
                self.send_refusal(&session, &refusal);
                SessionState::Closed
            }
        }
    }

    fn grant_lease(
        &mut self,
        session: &Session<ProcessSocket>,
        register: Register,
    ) -> Result<ServiceId, Refusal> {
        let principal = self.principal(session);
        self.fabric.check_lease(session.partition, &principal)?;
        let invalid = |error: &dyn std::fmt::Display| protocol_violation(&error.to_string());
        let name = ElementName::new(register.name).map_err(|error| invalid(&error))?;
        let mut registration = Registration::new(register.service, name);
        registration.lease = true;
        registration.owner = Some(self.user_label(session.caller.uid));
        registration.creator = Some(format!("process {}", session.caller.pid));
        registration.purpose = Some(register.purpose).filter(|purpose| !purpose.is_empty());
        let id = registration.id;
        let mut registered = self.register(registration.clone());
        if let Err(RegisterError::Clash(clash)) = &registered
            && let Some(existing) = clash.removable()
            && self.close_gone_lease(existing)
        {
            registered = self.register(registration);
        }
        registered.map_err(|error| match error {
            RegisterError::LimitReached { which } => Refusal::LimitReached {
                which: which.into(),
            },
            other => Refusal::Denied {
                rule: format!("the registry: {other}"),
            },
        })?;
        self.leases.grant(id, session.serial());
        Ok(id)
    }

    /// Refuses a connect or listen: sends the refusal, explained if the process wants that, counts it,
    /// logs it, and publishes an event.
    pub(super) fn reject(
        &mut self,
        session: &Session<ProcessSocket>,
        action: &str,
        address: SockAddrHv,
        refusal: &Refusal,
    ) {
        self.record_refusal(session, action, address, refusal);
        match session.explains {
            None => self.send_refusal(session, refusal),
            Some(request) => {
                let explanation = self.explain_refusal(session, address, refusal, request);
                self.explain(session, &explanation);
            }
        }
    }

    /// Counts a refusal, logs it, and publishes an event.
    pub(super) fn record_refusal(
        &mut self,
        session: &Session<ProcessSocket>,
        action: &str,
        address: SockAddrHv,
        refusal: &Refusal,
    ) {
        let (caller, claim) = (
            (session.partition, session.caller),
            session.claim.as_deref(),
        );
        self.audit_refused(action, caller, address, claim, refusal);
        self.telemetry.count_refused(refusal);
        let from = partition_label(&self.fabric, session.partition);
        tracing::debug!(%from, pid = session.caller.pid, uid = session.caller.uid, %address,
            reason = refusal.label(), "refused: {refusal}");
        self.telemetry.publish(|| EventKind::Refused {
            from,
            address: address.to_string(),
            reason: refusal.label().into(),
            message: refusal.to_string(),
        });
    }

    /// The explanation of a refusal. The checks are made again, in the state in which it was refused.
    pub(super) fn explain_refusal(
        &mut self,
        session: &Session<ProcessSocket>,
        address: SockAddrHv,
        refusal: &Refusal,
        request: Request,
    ) -> Explanation {
        let principal = match request {
            Request::Connect => self.principal(session),
            Request::Listen { .. } => self.principal_of_listener(session),
        };
        let mut explanation = self.explain_request(session.partition, &principal, address, request);
        // What refused it may not be a check: a lack of descriptors, or the guest itself.
        if explanation.refusal() != Some(refusal) {
            explanation.verdict = Err(refusal.clone());
            explanation.fix = None;
        }
        explanation
    }

    /// Explains to a process of a partition what a request of it would come to now.
    pub(super) fn explain_request(
        &self,
        from: PartitionKey,
        principal: &Principal,
        address: SockAddrHv,
        request: Request,
    ) -> Explanation {
        let audience = Audience::Requester;
        let SockAddrHv { vm, service, .. } = address;
        let mut explanation = match request {
            Request::Connect => {
                let request = ConnectRequest {
                    from,
                    principal,
                    vm,
                    service,
                };
                self.fabric.explain_connect(&request, audience)
            }
            Request::Listen { backlog } => {
                let request = ListenRequest {
                    from,
                    principal,
                    vm,
                    service,
                    backlog,
                };
                self.fabric.explain_listen(&request, audience)
            }
        };
        self.fit_start_to_link(&mut explanation, from == self.fabric.root());
        explanation
    }

    pub(super) fn explain(
        &mut self,
        session: &Session<ProcessSocket>,
        explanation: &Explanation,
    ) -> SessionState {
        if session.is_text() {
            Self::explain_as_text(session, explanation);
            return SessionState::Closed;
        }
        let explained: Refused = explained(explanation);
        let explained = BrokerMessage::Explained(explained);
        self.session_io.send(&session.socket, &explained);
        SessionState::Closed
    }

    /// The identity of a session's process that wants to listen. In a container it may have to be
    /// root there.
    pub(super) fn principal_of_listener(&mut self, session: &Session<ProcessSocket>) -> Principal {
        let principal = self.principal(session);
        if session.partition == self.fabric.root() {
            return principal;
        }
        let broker = self.broker_uid;
        Principal {
            partition_uid: uid_in_container(session.caller, session.identity(), broker),
            ..principal
        }
    }

    /// The identity of a session's process for access rules. A child's user and group names are
    /// unknown to the host, so only the uid counts there.
    pub(super) fn principal(&mut self, session: &Session<ProcessSocket>) -> Principal {
        if session.partition == self.fabric.root() {
            self.callers.principal(session.caller, session.identity())
        } else {
            Principal {
                uid: session.caller.uid,
                ..Principal::default()
            }
        }
    }
}
