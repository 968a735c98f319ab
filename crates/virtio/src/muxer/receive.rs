//! Packets from the guest.

use super::event::violation;
use super::reply::Reply;
use super::{Closed, EndNotice, Event, Muxer, Received};
use crate::connection::{Pending, Phase};
use crate::{Header, Key, MessageEnd, Operation, SocketKind, message, shutdown};

impl Muxer {
    /// Handles a packet of the tx queue. `payload` is the number of bytes that follow the header in the
    /// descriptor chain, whatever the header states.
    pub fn handle_packet(&mut self, header: &Header, payload: usize) -> Received {
        if header.src_cid != u64::from(self.config.guest.get()) {
            self.counters.spoofed += 1;
            return Received::Nothing;
        }
        let kind = header.socket_kind();
        let kind = kind.filter(|kind| self.config.seqpacket || *kind == SocketKind::Stream);
        let Some(kind) = kind else {
            self.handle_stray(header);
            return Received::Nothing;
        };
        let key = Key::of(header, kind);
        let operation = header.operation();
        let Some(index) = self.table.find(&key) else {
            match operation {
                Some(Operation::Request) => self.handle_request(key, header),
                _ => self.handle_stray(header),
            }
            return Received::Nothing;
        };
        let Some(connection) = self.table.at(index) else {
            return Received::Nothing;
        };

        match (operation, connection.phase) {
            // The packet belongs to an older connection, which must be gone before this REQUEST.
            (operation, Phase::Connecting)
                if !connection.is_known_to_guest() && operation != Some(Operation::Request) =>
            {
                self.handle_stray(header);
            }
            (Some(Operation::Reset), _) => self.handle_reset(index),
            (Some(Operation::Request), _) => {
                // The guest has forgotten the old connection. Pending packets of it would be taken
                // for the new one's.
                self.end(index, Some(Closed::Reset), EndNotice::None);
                self.handle_request(key, header);
            }
            // The pending RST answers every other packet.
            (_, Phase::Ended) => {}
            (Some(Operation::Shutdown), Phase::Closing) => self.handle_shutdown(index, header),
            // Packets that were in flight when the owner closed it.
            (_, Phase::Closing) => {}
            _ if connection.update_credit(header).is_err() => {
                self.fault(index, Closed::CreditViolation);
            }
            (Some(Operation::Response), Phase::Connecting) => self.handle_response(index),
            (_, Phase::Connecting) => self.protocol(index, violation::BEFORE_RESPONSE),
            (Some(Operation::CreditUpdate), _) => self.reschedule(index),
            (Some(Operation::CreditRequest), Phase::Requested) => {}
            (Some(Operation::CreditRequest), _) => {
                self.schedule_control(index, Pending::CREDIT_UPDATE);
                self.reschedule(index);
            }
            (Some(Operation::Response), _) => self.protocol(index, violation::UNREQUESTED_RESPONSE),
            (None, _) => self.protocol(index, violation::UNKNOWN_OPERATION),
            _ if !connection.is_established() => {
                self.protocol(index, violation::UNESTABLISHED);
            }
            (Some(Operation::Shutdown), _) => self.handle_shutdown(index, header),
            (Some(Operation::Data), _) => return self.handle_data(index, header, payload),
        }
        Received::Nothing
    }

    /// Whether another packet may be handled. If not, the tx queue must wait until
    /// [`poll_transmit`](Self::poll_transmit) has sent a queued reply.
    #[doc(alias = "backpressure")]
    pub fn may_receive(&self) -> bool {
        self.replies.len() < self.config.max_replies
    }

    /// Answers a packet of no connection with RST, unless it is an RST.
    fn handle_stray(&mut self, header: &Header) {
        if header.operation() == Some(Operation::Reset) {
            return;
        }
        self.counters.strays += 1;
        self.reply_reset(header);
    }

    fn reply_reset(&mut self, to: &Header) {
        let header = Header {
            src_cid: to.dst_cid,
            dst_cid: to.src_cid,
            src_port: to.dst_port,
            dst_port: to.src_port,
            kind: to.kind,
            op: Operation::Reset as u16,
            ..Header::default()
        };
        let refuses = to.operation() == Some(Operation::Request);
        self.replies.push_back(Reply { header, refuses });
    }

    fn handle_request(&mut self, key: Key, header: &Header) {
        // A queued RST to an earlier packet of this key would be taken for the answer.
        self.replies.retain(|Reply { header, .. }| {
            (
                header.src_cid,
                header.src_port,
                header.dst_port,
                header.kind,
            ) != (key.peer.0, key.peer_port, key.guest_port, key.kind as u16)
        });
        if self.table.len() >= self.config.max_connections {
            self.counters.over_limit += 1;
            self.reply_reset(header);
            return;
        }
        let handle = self
            .table
            .insert(key, Phase::Requested, self.first_count, 0);
        if let Some(connection) = self.table.at(handle.index)
            && connection.update_credit(header).is_err()
        {
            // The owner has not seen it, so it gets no event.
            self.counters.faults += 1;
            self.end(handle.index, None, EndNotice::Reset);
            return;
        }
        self.events.push_back(Event::Request { handle, key });
    }

    fn handle_response(&mut self, index: u32) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        connection.phase = Phase::Open;
        connection.close_if_shut();
        self.timers.clear(connection, index);
        let handle = connection.handle(index);
        let shut = connection.owner_shut;
        self.events.push_back(Event::Connected { handle });
        if shut != 0 {
            self.schedule_control(index, Pending::SHUTDOWN);
        }
        self.reschedule(index);
    }

    fn handle_reset(&mut self, index: u32) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        let reason = match connection.phase {
            Phase::Connecting => Closed::Refused,
            _ if u32::from(connection.sent_shut) == shutdown::BOTH => Closed::Clean,
            _ => Closed::Reset,
        };
        self.end(index, Some(reason), EndNotice::None);
    }

    /// Shutdown bits accumulate; none is ever cleared.
    fn handle_shutdown(&mut self, index: u32, header: &Header) {
        let Some(connection) = self.table.at(index) else {
            return;
        };
        let before = u32::from(connection.guest_shut);
        let after = before | header.flags & shutdown::BOTH;
        let new = after & !before;
        connection.guest_shut = after as u8;
        let handle = connection.handle(index);
        if connection.phase == Phase::Open {
            // In this order, so that a reader at the end of data can distinguish a close from a
            // half-close.
            if new & shutdown::RECEIVE != 0 {
                self.events.push_back(Event::ClosedRead { handle });
            }
            if new & shutdown::SEND != 0 {
                self.events.push_back(Event::Finished { handle });
            }
        }
        if after == shutdown::BOTH {
            self.end(index, Some(Closed::Clean), EndNotice::Reset);
        } else {
            self.reschedule(index);
        }
    }

    fn handle_data(&mut self, index: u32, header: &Header, payload: usize) -> Received {
        let Some(connection) = self.table.at(index) else {
            return Received::Nothing;
        };
        let len = header.len as usize;
        if u32::from(connection.guest_shut) & shutdown::SEND != 0 {
            self.protocol(index, violation::AFTER_SHUTDOWN);
            return Received::Nothing;
        }
        if len > payload {
            self.protocol(index, violation::SHORT_DATA);
            return Received::Nothing;
        }
        if connection.incoming.received(header.len).is_err() {
            self.fault(index, Closed::CreditOverrun);
            return Received::Nothing;
        }
        let end = match connection.key.kind {
            SocketKind::Stream => MessageEnd::default(),
            SocketKind::Seqpacket => MessageEnd {
                message: header.flags & message::END != 0,
                record: header.flags & message::RECORD != 0,
            },
        };
        let is_dropped = u32::from(connection.owner_shut) & shutdown::RECEIVE != 0;
        let handle = connection.handle(index);
        if is_dropped {
            connection.incoming.freed(header.len);
        }
        if connection.needs_credit_update() {
            self.schedule_control(index, Pending::CREDIT_UPDATE);
        }
        self.reschedule(index);
        if is_dropped || (len == 0 && !end.message) {
            return Received::Nothing;
        }
        Received::Payload { handle, len, end }
    }

    fn protocol(&mut self, index: u32, what: &'static str) {
        self.fault(index, Closed::Protocol(what));
    }

    fn fault(&mut self, index: u32, reason: Closed) {
        self.counters.faults += 1;
        self.end(index, Some(reason), EndNotice::Reset);
    }
}
