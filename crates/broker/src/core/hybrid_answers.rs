//! The answers to clients of hybrid vsock: one line each, the first thing that a client receives.

use std::io;
use std::num::NonZeroU16;
use std::os::fd::AsFd;

use hvsock_endpoint::HybridReply;
use hvsock_fabric::ConnectionId;
use hvsock_sys::stream;

/// Reads of what a refused client has sent, at most, and the bytes of each.
const READS: usize = 16;
const READ: usize = 4096;

/// Sends the answer that a connection is established. The number is the connection's id, as far as it fits
/// into the convention. Never blocks: the client's receive buffer is empty.
///
/// # Errors
///
/// As [`stream::send`].
pub(super) fn send_accepted(socket: impl AsFd, id: ConnectionId) -> io::Result<()> {
    let line = HybridReply::Connected(number(id).to_string()).to_line();
    stream::send(&socket, line.as_bytes()).map(drop)
}

/// Sends a refusal. The caller closes the socket.
pub(super) fn send_refused(socket: impl AsFd, reason: &str) {
    send_last(socket, &HybridReply::Refused(reason.to_owned()).to_line());
}

/// Sends the last line that a client gets. The caller closes the socket.
pub(super) fn send_last(socket: impl AsFd, line: &str) {
    // A client that misses it has closed its socket.
    let _ = stream::send(&socket, line.as_bytes());
    // A socket that is closed with unread bytes is a reset for the client. Without them it is the end of the
    // answer.
    let mut bytes = [0; READ];
    for _ in 0..READS {
        if !stream::recv(&socket, &mut bytes).is_ok_and(|count| count > 0) {
            break;
        }
    }
}

/// From 1 to 65,535, which repeat.
pub(super) fn number(id: ConnectionId) -> NonZeroU16 {
    let cycle = u64::from(u16::MAX);
    let number = id.as_u64().saturating_sub(1) % cycle + 1;
    let number = u16::try_from(number).ok().and_then(NonZeroU16::new);
    number.unwrap_or(NonZeroU16::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_answer_is_the_connections_id_and_has_five_digits() {
        for (id, want) in [
            (0, 1),
            (1, 1),
            (65_535, 65_535),
            (65_536, 1),
            (u64::MAX, 65_535),
        ] {
            assert_eq!(number(ConnectionId::from_u64(id)).get(), want, "{id}");
        }
    }
}
