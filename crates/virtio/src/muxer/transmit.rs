//! Packets to the guest.
//!
//! Replies and control packets go first: they are short and few, and connections wait for them. Data
//! is scheduled by deficit round robin, in turns of 64 KiB. A turn counts bytes and not packets, so a
//! connection's share does not depend on the size of its writes (fairness). The last packet of a turn
//! may exceed it; the next turn is shorter by the excess.

use super::{Muxer, Transmit};
use crate::connection::Phase;
use crate::{Handle, Header, MessageEnd, SocketKind};

/// Bytes of data in one turn.
pub(super) const TURN: i32 = 64 * 1024;

/// Maximum bytes of data in one packet: Linux's limit (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`). Not more than
/// a turn, so that each turn allows a packet.
pub(super) const MAX_PACKET: u32 = 64 * 1024;

impl Muxer {
    /// The next packet to send, for a buffer with `space` bytes after the header.
    pub fn poll_transmit(&mut self, space: usize) -> Option<Transmit> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(Transmit::Packet(reply.header));
        }
        while let Some(index) = self.control.front() {
            let connection = self.table.at(index);
            let packet = connection.and_then(|it| {
                let packet = it.take_packet(self.config.guest)?;
                Some((packet, it.pending.is_empty(), it.phase == Phase::Ended))
            });
            let Some((packet, is_last, has_ended)) = packet else {
                self.control.remove(index);
                continue;
            };
            if is_last {
                self.control.remove(index);
            }
            if has_ended {
                self.table.remove(index);
            }
            return Some(Transmit::Packet(packet));
        }
        let index = self.data.front()?;
        let connection = self.table.at(index)?;
        if connection.deficit <= 0 {
            connection.deficit += TURN;
        }
        let credit = connection.outgoing.available().min(MAX_PACKET) as usize;
        let max = credit.min(space);
        (max > 0).then_some(Transmit::Data {
            handle: connection.handle(index),
            max,
            kind: connection.key.kind,
        })
    }

    /// Whether there is anything to send.
    pub fn has_transmit(&self) -> bool {
        !self.replies.is_empty() || !self.control.is_empty() || !self.data.is_empty()
    }

    /// Answers [`Transmit::Data`]: the owner has put `bytes` of the link into the buffer. Returns their
    /// header, or `None` if the connection is gone.
    ///
    /// `bytes` is at most the given `max`, and 0 only for an empty message. `more` is whether the link
    /// has further data; if not, no [`Transmit::Data`] follows until [`readable`](Self::readable).
    pub fn sent(
        &mut self,
        handle: Handle,
        bytes: usize,
        end: MessageEnd,
        more: bool,
    ) -> Option<Header> {
        let guest = self.config.guest;
        let connection = self.table.get_mut(handle)?;
        debug_assert!(bytes <= connection.outgoing.available().min(MAX_PACKET) as usize);
        debug_assert!(
            bytes > 0 || (connection.key.kind == SocketKind::Seqpacket && end.message),
            "only an empty message has no bytes"
        );
        let header = connection.data_packet(guest, bytes as u32, end);
        connection.has_data = more;
        // An empty message counts as one byte of the turn.
        connection.deficit -= (bytes as i32).max(1);
        let turn_is_over = connection.deficit <= 0;
        self.reschedule(handle.index);
        if turn_is_over && self.data.front() == Some(handle.index) {
            self.data.rotate();
        }
        Some(header)
    }

    /// Answers [`Transmit::Data`]: the link had no data. No [`Transmit::Data`] for it follows until
    /// [`readable`](Self::readable).
    pub fn nothing_to_send(&mut self, handle: Handle) {
        if let Some(connection) = self.table.get_mut(handle) {
            connection.has_data = false;
            self.reschedule(handle.index);
        }
    }
}
