//! Requests that wait while the broker is handed over, and what else sessions have beside their sockets.
//!
//! The request of a process that waits, for a guest or for others to read their messages, is handled by the
//! successor as if it had just arrived: its session is handed over as an idle one, with the message. What the
//! guest's link knows of it is given up first. So the process waits on, and gets its answer.

use hvsock_endpoint::{ClientMessage, Connect, ConnectNamed, MAX_MESSAGE};
use hvsock_fabric::{ConnectionId, PartitionKey, Refusal};
use serde::{Deserialize, Serialize};

use super::attachments::Attachment;
use super::pending::ParkedConnect;
use super::replays::Replays;
use super::requests::SessionState;
use super::sessions::{Role, Session};
use super::state::Core;
use crate::budget::ChargeSnapshot;
use crate::data_path::ProcessSocket;
use crate::handover::snapshot::{check_version, ensure, read_version};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The version of [`WaitingSnapshot`] that this release writes.
const WAITING_SNAPSHOT_VERSION: u32 = 1;

/// The requests that wait, and what sessions have beside their sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WaitingSnapshot {
    #[serde(deserialize_with = "read_version::<_, WAITING_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order in which their sessions were opened.
    requests: Vec<RequestSnapshot>,
    /// Connections that the requests have so far, which are given up.
    given_up: Vec<GivenUpSnapshot>,
    extras: Vec<ExtraSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RequestSnapshot {
    /// The serial number of its session.
    session: u64,
    /// In the endpoint protocol.
    message: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GivenUpSnapshot {
    connection: u64,
    /// The partition of the VM whose link has been asked.
    vm: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ExtraSnapshot {
    session: u64,
    /// The socket to which the process connects its own one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attachment: Option<AttachmentSnapshot>,
    /// The socket of the process, if the session's is the broker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_behalf_of: Option<FdIndex>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AttachmentSnapshot {
    listener: FdIndex,
    /// Bytes.
    filler: u32,
    charge: ChargeSnapshot,
}

/// The request of a session as its process has sent it.
fn message_of(session: &Session<ProcessSocket>, connect: &Connect) -> ClientMessage {
    let Connect {
        flags,
        timeout_ms,
        transports,
        address: _,
    } = *connect;
    match &session.named {
        None => ClientMessage::Connect(*connect),
        Some(named) => ClientMessage::ConnectNamed(ConnectNamed {
            flags,
            timeout_ms,
            transports,
            address: named.as_ref().clone(),
        }),
    }
}

impl Core {
    /// The sessions whose requests wait, with those, in the order in which they were opened.
    pub(super) fn waiting_sessions(&self) -> Vec<(&Session<ProcessSocket>, Connect)> {
        let pending = self.connections.all_pending();
        let pending = pending.map(|(_, pending)| (&pending.session, pending.connect));
        let parked = self.parked.iter();
        let parked = parked.map(|ParkedConnect { session, connect }| (session, *connect));
        let mut all: Vec<_> = pending.chain(parked).collect();
        all.sort_by_key(|(session, _)| session.serial());
        all
    }

    /// The requests that wait as a value, and what sessions have beside their sockets.
    ///
    /// # Errors
    ///
    /// If a descriptor cannot be handed over.
    pub(super) fn hand_over_waiting(
        &self,
        exports: &mut Exports,
    ) -> Result<WaitingSnapshot, HandoverError> {
        let waiting = self.waiting_sessions();
        let requests = waiting.iter().map(|(session, connect)| {
            let mut message = Vec::new();
            message_of(session, connect).encode(&mut message);
            RequestSnapshot {
                session: session.serial(),
                message,
            }
        });
        let mut given_up: Vec<_> = self
            .connections
            .all_pending()
            .map(|(id, pending)| GivenUpSnapshot {
                connection: id.as_u64(),
                vm: self.carrier(pending.route.target).as_u64(),
            })
            .collect();
        given_up.sort_by_key(|one| one.connection);
        let mut extras = Vec::new();
        let present = self.sessions.iter().map(|(_, session)| session);
        for session in present.chain(waiting.iter().map(|(session, _)| *session)) {
            let attachment = session.attachment.as_deref();
            let attachment = attachment.map(|attachment| {
                let (filler, charge) = attachment.terms();
                Ok::<_, HandoverError>(AttachmentSnapshot {
                    listener: exports.fd(attachment)?,
                    filler,
                    charge: charge.snapshot(),
                })
            });
            let attachment = attachment.transpose()?;
            let behalf = session.on_behalf_of.as_ref();
            let on_behalf_of = behalf.map(|socket| exports.fd(socket)).transpose()?;
            if attachment.is_some() || on_behalf_of.is_some() {
                extras.push(ExtraSnapshot {
                    session: session.serial(),
                    attachment,
                    on_behalf_of,
                });
            }
        }
        Ok(WaitingSnapshot {
            version: WAITING_SNAPSHOT_VERSION,
            requests: requests.collect(),
            given_up,
            extras,
        })
    }

    /// Keeps the requests of a snapshot until [`replay`](Self::replay), and gives the sessions, which are
    /// restored, what they have beside their sockets.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged.
    pub(super) fn resume_waiting(
        &mut self,
        snapshot: WaitingSnapshot,
        imports: &mut Imports,
    ) -> Result<(), HandoverError> {
        let WaitingSnapshot {
            version,
            requests,
            given_up,
            extras,
        } = snapshot;
        check_version(version, WAITING_SNAPSHOT_VERSION)?;
        let mut replays = Replays::default();
        let mut previous = None;
        for RequestSnapshot { session, message } in requests {
            ensure(Some(session) > previous, "the requests are not in order")?;
            previous = Some(session);
            ensure(message.len() <= MAX_MESSAGE, "a request is too long")?;
            let message = ClientMessage::decode(&message);
            let message = message.map_err(|error| HandoverError::damaged(error.to_string()))?;
            let is_connect = matches!(
                message,
                ClientMessage::Connect(_) | ClientMessage::ConnectNamed(_)
            );
            ensure(is_connect, "a request waits that never does")?;
            let is_idle = self.sessions.by_serial(session).is_some_and(|index| {
                let session = self.sessions.get(index);
                session.is_some_and(Session::is_idle)
            });
            ensure(is_idle, "a request is of no idle session")?;
            replays.requests.push((session, message));
        }
        for GivenUpSnapshot { connection, vm } in given_up {
            let (id, vm) = (
                ConnectionId::from_u64(connection),
                PartitionKey::from_u64(vm),
            );
            let is_new = self.connections.get(id).is_none();
            ensure(is_new, "a connection is established and given up")?;
            self.fabric.close_connection(id);
            replays.given_up.push((vm, id));
        }
        for extra in extras {
            let ExtraSnapshot {
                session,
                attachment,
                on_behalf_of,
            } = extra;
            let index = self.sessions.by_serial(session);
            let session = index.and_then(|index| self.sessions.get_mut(index));
            let missing = || HandoverError::inconsistent("a socket is of no session");
            let session = session.ok_or_else(missing)?;
            if let Some(attachment) = attachment {
                ensure(session.attachment.is_none(), "a session has two sockets")?;
                let charge = attachment.charge;
                let charge = charge.charge(&self.descriptors, Attachment::DESCRIPTORS);
                let listener = imports.fd(attachment.listener)?;
                let attachment = Attachment::new(listener, attachment.filler, charge);
                session.attachment = Some(Box::new(attachment));
            }
            if let Some(socket) = on_behalf_of {
                ensure(session.on_behalf_of.is_none(), "a session has two sockets")?;
                session.on_behalf_of = Some(imports.fd(socket)?.into());
            }
        }
        self.replays = replays;
        Ok(())
    }

    /// Handles the requests that waited when this broker took over.
    pub(super) fn replay(&mut self) {
        let Replays { requests, given_up } = std::mem::take(&mut self.replays);
        for (vm, id) in given_up {
            if let Some(link) = self.vms.link(vm) {
                let cause = "the broker makes the request again, after an upgrade".into();
                link.close(id, Refusal::Reset { cause });
            }
        }
        for (serial, message) in requests {
            let index = self.sessions.by_serial(serial);
            let taken = index.and_then(|index| Some((index, self.sessions.take(index)?)));
            let Some((index, session)) = taken else {
                continue;
            };
            let is_plain = session.is_plain();
            match self.handle_message(session, message, Some(index)) {
                // The session of a plain socket ends with its request.
                SessionState::Open(session) if !is_plain && session.role() == Role::Idle => {
                    self.sessions.give_back(index, session, true);
                }
                SessionState::Open(_) | SessionState::Closed => self.sessions.close(index),
            }
        }
    }
}
