//! The state machine of one connection, and the control packets it has to send.
//!
//! ```text
//!        guest's REQUEST                          connect()
//!              │                                      │
//!          Requested ── refuse() ──┐      ┌── RST ─ Connecting
//!              │ accept()          │      │           │ guest's RESPONSE
//!              └──────────────▶ Open ◀────┼───────────┘
//!                       close() │  │ RST, SHUTDOWN(both), fault, reset()
//!                            Closing ──┐  │
//!                 RST, SHUTDOWN(both), timeout │
//!                                     Ended   (only if an RST has to be sent first)
//! ```
//!
//! Control packets are not queued but kept as [`Pending`] bits. So a connection has at most one packet
//! of each kind to send, whatever the guest does.

use std::time::Instant;

use crate::credit::{Incoming, Outgoing, ProtocolViolation};
use crate::{GuestCid, Handle, Header, Key, MessageEnd, Operation, SocketKind, message, shutdown};

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest sent REQUEST; the owner has not answered.
    Requested,
    /// The owner called `connect`; the guest has not answered.
    Connecting,
    /// Data may flow.
    Open,
    /// The owner closed it and waits for the guest's RST or SHUTDOWN.
    Closing,
    /// Ended, and its handle is invalid; an RST waits to be sent.
    Ended,
}

/// Control packets to send: one bit for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending(u8);

impl Pending {
    pub(crate) const RESET: Self = Self(1);
    pub(crate) const REQUEST: Self = Self(2);
    pub(crate) const RESPONSE: Self = Self(4);
    pub(crate) const CREDIT_UPDATE: Self = Self(8);
    pub(crate) const CREDIT_REQUEST: Self = Self(16);
    pub(crate) const SHUTDOWN: Self = Self(32);

    /// Order of sending: RST excludes all others, RESPONSE comes before what depends on it, and
    /// SHUTDOWN comes last.
    const ORDER: [(Self, Operation); 6] = [
        (Self::RESET, Operation::Reset),
        (Self::REQUEST, Operation::Request),
        (Self::RESPONSE, Operation::Response),
        (Self::CREDIT_UPDATE, Operation::CreditUpdate),
        (Self::CREDIT_REQUEST, Operation::CreditRequest),
        (Self::SHUTDOWN, Operation::Shutdown),
    ];

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) fn remove(&mut self, others: &[Self]) {
        others.iter().for_each(|other| self.0 &= !other.0);
    }

    fn take_next(&mut self) -> Option<Operation> {
        let (bit, operation) = Self::ORDER.into_iter().find(|(bit, _)| self.has(*bit))?;
        self.0 &= !bit.0;
        Some(operation)
    }
}

/// One connection of the guest.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) key: Key,
    /// Distinguishes this connection from earlier ones in the same slot; 0 once it has no handle.
    pub(crate) serial: u64,
    pub(crate) phase: Phase,
    pub(crate) pending: Pending,
    /// Directions that the guest has shut down: [`shutdown`] bits.
    pub(crate) guest_shut: u8,
    /// Directions that the owner has shut down.
    pub(crate) owner_shut: u8,
    /// Directions that were sent to the guest in a SHUTDOWN.
    pub(crate) sent_shut: u8,
    /// The link has bytes for the guest.
    pub(crate) has_data: bool,
    /// A CREDIT_REQUEST was sent since credit was last above the low watermark.
    pub(crate) credit_requested: bool,
    /// Bytes left in its turn of the round robin; negative if the last packet exceeded the turn.
    pub(crate) deficit: i32,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    /// When its timer expires, if one is armed.
    pub(crate) deadline: Option<Instant>,
}

impl Connection {
    pub(crate) fn new(key: Key, serial: u64, phase: Phase, first: u32, alloc: u32) -> Self {
        Self {
            key,
            serial,
            phase,
            pending: Pending::default(),
            guest_shut: 0,
            owner_shut: 0,
            sent_shut: 0,
            has_data: false,
            credit_requested: false,
            deficit: 0,
            outgoing: Outgoing::new(first),
            incoming: Incoming::new(first, alloc),
            deadline: None,
        }
    }

    /// The handle that the owner uses.
    pub(crate) fn handle(&self, index: u32) -> Handle {
        Handle {
            index,
            serial: self.serial,
        }
    }

    /// Whether the guest has state of the connection: not while the REQUEST to it is unsent.
    pub(crate) fn is_known_to_guest(&self) -> bool {
        !self.pending.has(Pending::REQUEST)
    }

    /// Whether the guest may send RW and SHUTDOWN: from the RESPONSE on, whichever side sent that.
    pub(crate) fn is_established(&self) -> bool {
        self.phase == Phase::Open && !self.pending.has(Pending::RESPONSE)
    }

    /// Closes an open connection whose directions the owner has both shut down. On that SHUTDOWN the
    /// guest may forget the connection and reuse its ports, so only an RST may follow.
    pub(crate) fn close_if_shut(&mut self) {
        if self.phase == Phase::Open && u32::from(self.owner_shut) == shutdown::BOTH {
            self.phase = Phase::Closing;
        }
    }

    /// Applies `buf_alloc` and `fwd_cnt` of a header from the guest.
    pub(crate) fn update_credit(&mut self, header: &Header) -> Result<(), ProtocolViolation> {
        self.incoming.update(header);
        self.outgoing.update(header)
    }

    /// Whether an unsolicited CREDIT_UPDATE is due. Never if the guest may not write.
    pub(crate) fn needs_credit_update(&self) -> bool {
        self.phase == Phase::Open
            && u32::from(self.owner_shut) & shutdown::RECEIVE == 0
            && self.incoming.needs_update()
    }

    /// Whether the link has data and both sides' shutdowns allow sending it. Ignores credit.
    pub(crate) fn wants_to_send(&self) -> bool {
        let shut = u32::from(self.owner_shut) & shutdown::SEND != 0
            || u32::from(self.guest_shut) & shutdown::RECEIVE != 0;
        self.has_data && self.phase == Phase::Open && !shut
    }

    /// Whether data may be sent now: the connection is in the round robin.
    pub(crate) fn may_send_now(&self) -> bool {
        self.wants_to_send() && self.outgoing.available() > 0
    }

    /// Takes the next control packet, which then counts as sent.
    pub(crate) fn take_packet(&mut self, guest: GuestCid) -> Option<Header> {
        let operation = self.pending.take_next()?;
        let mut header = self.header(guest, operation);
        if operation == Operation::Shutdown {
            self.sent_shut = self.owner_shut;
            header.flags = u32::from(self.owner_shut);
        }
        Some(header)
    }

    /// Makes the header of `len` bytes of data, which then count as sent.
    pub(crate) fn data_packet(&mut self, guest: GuestCid, len: u32, end: MessageEnd) -> Header {
        let within_message = self.key.kind == SocketKind::Seqpacket && !end.message;
        self.outgoing.sent(len, within_message);
        let mut header = self.header(guest, Operation::Data);
        header.len = len;
        if self.key.kind == SocketKind::Seqpacket {
            header.flags |= if end.message { message::END } else { 0 };
            header.flags |= if end.record { message::RECORD } else { 0 };
        }
        header
    }

    fn header(&mut self, guest: GuestCid, operation: Operation) -> Header {
        let mut header = self.key.header(guest, operation);
        if operation != Operation::Reset {
            self.incoming.advertise(&mut header);
        }
        header
    }
}
