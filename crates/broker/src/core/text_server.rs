//! Serves the text protocol: processes that know only stream sockets send a line and get a connection on the
//! same socket, a listener, or an answer.
//!
//! Such a client is a session until its request is complete. A connect is one of a process then: the same
//! rules, explanations, events and audit. It differs in what it is answered, in lines instead of messages, and
//! in its end of the connection, which is the client's own socket. Listeners are in
//! [`text_accepts`](super::text_accepts).

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, ConnectNamed, Connected, Flags, IdOrName, LookupKind,
    NamedAddress, TextPartition, TextReply, TextRequest, Transports,
};
use hvsock_fabric::{Explanation, Refusal};

use super::hybrid_answers::send_last;
use super::line_requests::{Received, receive};
use super::sessions::{Entry, Session};
use super::state::Core;
use super::text_answers::{refused, send_connected, send_last_answer, send_refused};
use crate::data_path::ProcessSocket;
use crate::reply::explained;

impl Core {
    /// Reads a client's request, and serves it once that is complete. `index` is the index of a watched
    /// session. Returns the session while the request is incomplete.
    pub(super) fn read_text_request(
        &mut self,
        mut session: Session<ProcessSocket>,
        index: Option<usize>,
    ) -> Option<(Session<ProcessSocket>, bool)> {
        let Entry::Text(entry) = &mut session.entry else {
            return None;
        };
        match receive(&session.socket, &mut entry.request) {
            Received::Incomplete => return Some((session, false)),
            Received::Closed => {}
            Received::Invalid(error) => {
                let label = TextReply::INVALID_REQUEST;
                send_refused(&session.socket, label, &error.to_string());
            }
            Received::Request(request) => self.serve_text_request(session, request, index),
        }
        None
    }

    fn serve_text_request(
        &mut self,
        mut session: Session<ProcessSocket>,
        request: TextRequest,
        index: Option<usize>,
    ) {
        let connect = |timeout_ms, dry_run, address| {
            ClientMessage::ConnectNamed(ConnectNamed {
                flags: Flags {
                    dry_run,
                    ..Flags::default()
                },
                timeout_ms,
                transports: Transports::ATTACHED,
                address,
            })
        };
        let message = match request {
            TextRequest::Connect(wanted) => self
                .text_address(&session, wanted.partition, wanted.service)
                .map(|address| connect(wanted.timeout_ms, false, address)),
            TextRequest::ConnectPort(port) => {
                if let Entry::Text(entry) = &mut session.entry {
                    entry.by_port = true;
                }
                Ok(connect(
                    0,
                    false,
                    NamedAddress {
                        partition: IdOrName::Id(VmId::PARENT),
                        service: IdOrName::Id(ServiceId::from_port(port)),
                    },
                ))
            }
            TextRequest::Why { partition, service } => self
                .text_address(&session, partition, service)
                .map(|address| connect(0, true, address)),
            TextRequest::LookupPartition(TextPartition::Named(IdOrName::Id(id))) => {
                return send_last_answer(&session.socket, id);
            }
            TextRequest::LookupService(IdOrName::Id(id)) => {
                return send_last_answer(&session.socket, id);
            }
            TextRequest::LookupPartition(TextPartition::Named(IdOrName::Name(name))) => {
                let kind = LookupKind::Partition;
                Ok(ClientMessage::Lookup { kind, name })
            }
            TextRequest::LookupPartition(TextPartition::Cid(cid)) => {
                let (kind, name) = (LookupKind::Cid, cid.to_string());
                Ok(ClientMessage::Lookup { kind, name })
            }
            TextRequest::LookupService(IdOrName::Name(name)) => {
                let kind = LookupKind::Service;
                Ok(ClientMessage::Lookup { kind, name })
            }
            TextRequest::Cid(partition) => {
                let found = self.text_partition(&session, partition);
                let found = found.and_then(|partition| match partition {
                    IdOrName::Id(id) => Ok(id),
                    IdOrName::Name(name) => self
                        .find_name(session.partition, LookupKind::Partition, name)
                        .map(VmId::from_guid_bytes),
                });
                found.map(|partition| ClientMessage::CidOf { partition })
            }
            TextRequest::Listen(listen) => return self.text_listen(session, listen, index),
            TextRequest::Accept(token) => return self.text_accept(session, token, index),
        };
        match message {
            // A session of the text protocol ends with its request.
            Ok(message) => drop(self.handle_message(session, message, index)),
            Err(refusal) => drop(self.refuse_name(&session, &refusal)),
        }
    }

    /// The address of a request. A CID is resolved at once, names with the request.
    pub(super) fn text_address(
        &self,
        session: &Session<ProcessSocket>,
        partition: TextPartition,
        service: IdOrName<ServiceId>,
    ) -> Result<NamedAddress, Refusal> {
        let partition = self.text_partition(session, partition)?;
        Ok(NamedAddress { partition, service })
    }

    fn text_partition(
        &self,
        session: &Session<ProcessSocket>,
        partition: TextPartition,
    ) -> Result<IdOrName<VmId>, Refusal> {
        match partition {
            TextPartition::Named(partition) => Ok(partition),
            TextPartition::Cid(cid) => {
                let id = self.partition_with_cid(session.partition, &cid.to_string())?;
                Ok(IdOrName::Id(id))
            }
        }
    }

    /// Answers a session of either protocol with a message that has no descriptors. Returns whether the session
    /// goes on.
    pub(super) fn answer(
        &mut self,
        session: &Session<ProcessSocket>,
        message: &BrokerMessage,
    ) -> bool {
        if !session.is_text() {
            self.session_io.send(&session.socket, message);
            return true;
        }
        match message {
            BrokerMessage::Found { guid } => {
                send_last_answer(&session.socket, VmId::from_guid_bytes(*guid));
            }
            BrokerMessage::Cid { cid } => send_last_answer(&session.socket, cid),
            _ => {}
        }
        false
    }

    /// Sends a client of the text protocol what its connect would come to.
    pub(super) fn explain_as_text(session: &Session<ProcessSocket>, explanation: &Explanation) {
        let first = match &explanation.verdict {
            Ok(_) => TextReply::Ok(String::new()),
            Err(refusal) => refused(refusal.label(), &refusal.to_string()),
        };
        let detail = explained(explanation).detail;
        let lines = detail.split_once('\n').map_or("", |(_, lines)| lines);
        let end = if lines.is_empty() || lines.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        send_last(&session.socket, &format!("{}{lines}{end}", first.to_line()));
    }

    /// Sends a client of the text protocol that its connection is established.
    pub(super) fn send_text_connected(
        session: &Session<ProcessSocket>,
        connected: &Connected,
    ) -> std::io::Result<()> {
        match &session.entry {
            Entry::Text(entry) => send_connected(&session.socket, entry, connected),
            Entry::Endpoint | Entry::Hybrid(_) => Ok(()),
        }
    }
}
