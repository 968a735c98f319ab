//! The answers to clients of the text protocol: one line each.

use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;

use hvsock_address::VmId;
use hvsock_endpoint::{Bound, Connected, Incoming, ListenerToken, TextReply};
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::stream;

use super::hybrid_answers::{number, send_last};
use super::sessions::TextEntry;
use crate::audit;

/// Most bytes of a reason.
const MAX_REASON: usize = 3800;

/// Sends an answer. Never blocks, and a client that reads nothing misses it.
///
/// # Errors
///
/// As [`stream::send`].
pub(super) fn send(socket: impl AsFd, text: impl Display) -> io::Result<()> {
    let line = TextReply::Ok(text.to_string()).to_line();
    stream::send(&socket, line.as_bytes()).map(drop)
}

/// Sends the last answer. The caller closes the socket.
pub(super) fn send_last_answer(socket: impl AsFd, text: impl Display) {
    send_last(&socket, &TextReply::Ok(text.to_string()).to_line());
}

/// Sends the refusal of a request. The caller closes the socket.
pub(super) fn send_text_refusal(socket: impl AsFd, refusal: &Refusal) {
    send_refused(socket, refusal.label(), &refusal.to_string());
}

/// Sends why a request is refused. The caller closes the socket.
pub(super) fn send_refused(socket: impl AsFd, label: &str, reason: &str) {
    send_last(&socket, &refused(label, reason).to_line());
}

/// A refusal as a line.
pub(super) fn refused(label: &str, reason: &str) -> TextReply {
    TextReply::Refused {
        label: label.to_owned(),
        reason: audit::visible(reason, MAX_REASON),
    }
}

/// Sends a listener's program that a connection for it was reset. A program that reads nothing misses it.
pub(super) fn send_reset(socket: impl AsFd, connection: u64, cause: &str) {
    let cause = audit::visible(cause, MAX_REASON);
    let line = format!("RESET connection={connection} {cause}\n");
    let _ = stream::send(&socket, line.as_bytes());
}

/// Sends that a connection is established.
pub(super) fn send_connected(
    socket: impl AsFd,
    entry: &TextEntry,
    connected: &Connected,
) -> io::Result<()> {
    if entry.by_port {
        let id = ConnectionId::from_u64(connected.connection);
        return send(socket, number(id));
    }
    let Connected {
        connection,
        local,
        peer,
        ..
    } = connected;
    let text = format!(
        "connection={connection} local={} peer={} service={}",
        local.vm, peer.vm, peer.service
    );
    send(socket, text)
}

/// Sends that a listener is established.
pub(super) fn send_bound(socket: impl AsFd, bound: &Bound, token: ListenerToken) -> io::Result<()> {
    let text = format!(
        "backlog={} listener={} service={} token={}",
        bound.listening.backlog,
        bound.listening.listener,
        bound.address.service,
        VmId::from_guid_bytes(token)
    );
    send(socket, text)
}

/// Sends that a connection has come for an ACCEPT.
pub(super) fn send_incoming(socket: impl AsFd, incoming: &Incoming) -> io::Result<()> {
    let Incoming {
        connection,
        peer,
        pid,
        uid,
        gid,
        partition,
        ..
    } = incoming;
    let text = format!(
        "connection={connection} partition={partition} peer={} pid={pid} uid={uid} gid={gid}",
        peer.vm
    );
    send(socket, text)
}
