//! Packets to the guest.
//!
//! Answers and control packets go first: they are short, few, and others wait for them. Data goes
//! in turns of 64 KiB, counted in bytes and not in packets, so what a connection gets does not
//! depend on the size of its writes: a deficit round robin, in which a turn's last packet may go
//! beyond the turn and the next turn is shorter for it.

use super::{Handle, MessageEnd, Muxer, Transmit};
use crate::connection::Phase;
use crate::{Header, SocketKind};

/// Bytes of data in one turn.
const TURN: i32 = 64 * 1024;

/// Bytes of data in one packet: what Linux takes and gives at most
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`). Not more than a turn, so that each turn allows a packet.
const MAX_PACKET: u32 = 64 * 1024;

impl Muxer {
    /// What to send next, into a buffer that has room for so many bytes after the header.
    pub fn poll_transmit(&mut self, room: usize) -> Option<Transmit> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(Transmit::Packet(reply));
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
        let may = connection.outgoing.available().min(MAX_PACKET) as usize;
        let max = may.min(room);
        (max > 0).then_some(Transmit::Data {
            handle: connection.handle(index),
            max,
            kind: connection.key.kind,
        })
    }

    /// Is there anything to send?
    pub fn has_transmit(&self) -> bool {
        !self.replies.is_empty() || !self.control.is_empty() || !self.data.is_empty()
    }

    /// `bytes` of the link are in the buffer, at most as many as were allowed and none only for an
    /// empty message: this is their header. Without `more`, the link is empty until
    /// [`readable`](Self::readable).
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
        // An empty message takes part of a turn, too.
        connection.deficit -= (bytes as i32).max(1);
        let turn_is_over = connection.deficit <= 0;
        self.reschedule(handle.index);
        if turn_is_over && self.data.front() == Some(handle.index) {
            self.data.rotate();
        }
        Some(header)
    }

    /// The link had nothing: it is left alone until [`readable`](Self::readable).
    pub fn nothing_to_send(&mut self, handle: Handle) {
        if let Some(connection) = self.table.get_mut(handle) {
            connection.has_data = false;
            self.reschedule(handle.index);
        }
    }
}
