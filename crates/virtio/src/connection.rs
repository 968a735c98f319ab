//! One connection: where it is in its life, and what there is to tell the guest of it.
//!
//! ```text
//!        guest's REQUEST                          connect()
//!              │                                      │
//!          Requested ── refuse() ──┐      ┌── RST ─ Connecting
//!              │ accept()          │      │           │ guest's RESPONSE
//!              └──────────────▶ Open ◀────┼───────────┘
//!                       close() │  │ RST, SHUTDOWN(both), fault, reset()
//!                            Closing ──┐  │
//!                    RST, SHUTDOWN(both), time │
//!                                     Ended   (only if an RST has to be sent first)
//! ```
//!
//! Control packets are not queued but remembered as [`Pending`] bits, so a connection owes the
//! guest a handful of packets at most, whatever happens on it.

use std::time::Instant;

use crate::credit::{Incoming, Lie, Outgoing};
use crate::muxer::{Handle, Key, MessageEnd};
use crate::{GuestCid, Header, Operation, SocketKind, message, shutdown};

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest asked for it; the owner has not answered.
    Requested,
    /// The owner asked for it; the guest has not answered.
    Connecting,
    /// Data may flow.
    Open,
    /// The owner closed it, and waits for the guest to say that it did, too.
    Closing,
    /// Over and forgotten by the owner; waits for its RST to be sent.
    Ended,
}

/// Control packets that have to be sent: one bit for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending(u8);

impl Pending {
    pub(crate) const RESET: Self = Self(1);
    pub(crate) const REQUEST: Self = Self(2);
    pub(crate) const RESPONSE: Self = Self(4);
    pub(crate) const CREDIT_UPDATE: Self = Self(8);
    pub(crate) const CREDIT_REQUEST: Self = Self(16);
    pub(crate) const SHUTDOWN: Self = Self(32);

    /// What is sent first: RST stands alone, an answer goes before all that follows from it, and
    /// SHUTDOWN after all else.
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
    /// Tells this connection from those that had its place before; 0 once it has no handle.
    pub(crate) serial: u64,
    pub(crate) phase: Phase,
    pub(crate) pending: Pending,
    /// Directions that the guest has shut down: [`shutdown`] bits.
    pub(crate) guest_shut: u8,
    /// Directions that the owner has shut down.
    pub(crate) owner_shut: u8,
    /// Directions that the guest was told are shut down.
    pub(crate) told_shut: u8,
    /// The link has bytes for the guest.
    pub(crate) has_data: bool,
    /// A CREDIT_REQUEST was sent since there was plenty of credit last.
    pub(crate) asked: bool,
    /// Bytes of data that it may still send in its turn; what was sent beyond if negative.
    pub(crate) deficit: i32,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    /// When its timer runs out, if it has one.
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
            told_shut: 0,
            has_data: false,
            asked: false,
            deficit: 0,
            outgoing: Outgoing::new(first),
            incoming: Incoming::new(first, alloc),
            deadline: None,
        }
    }

    /// The name that the owner knows it by.
    pub(crate) fn handle(&self, index: u32) -> Handle {
        Handle {
            index,
            serial: self.serial,
        }
    }

    /// Does the guest know of it? Not while the REQUEST to it is unsent.
    pub(crate) fn is_known_to_guest(&self) -> bool {
        !self.pending.has(Pending::REQUEST)
    }

    /// May the guest send data, and shut down what it may send? From the RESPONSE on, whichever
    /// side sent that.
    pub(crate) fn is_established(&self) -> bool {
        self.phase == Phase::Open && !self.pending.has(Pending::RESPONSE)
    }

    /// Shut down both ways by the owner, an open connection is a closed one: the guest may forget it
    /// on hearing so, and use its ports for another, so that nothing but RST may follow.
    pub(crate) fn close_if_shut(&mut self) {
        if self.phase == Phase::Open && u32::from(self.owner_shut) == shutdown::BOTH {
            self.phase = Phase::Closing;
        }
    }

    /// Takes what the guest says of room in a header.
    pub(crate) fn hear_credit(&mut self, header: &Header) -> Result<(), Lie> {
        self.incoming.heard(header);
        self.outgoing.heard(header)
    }

    /// Is it time for a CREDIT_UPDATE that nobody asked for? Never for a guest that may not write.
    pub(crate) fn owes_credit(&self) -> bool {
        self.phase == Phase::Open
            && u32::from(self.owner_shut) & shutdown::RECEIVE == 0
            && self.incoming.is_worth_telling()
    }

    /// Would data of the link be sent, if there were credit?
    pub(crate) fn wants_to_send(&self) -> bool {
        let shut = u32::from(self.owner_shut) & shutdown::SEND != 0
            || u32::from(self.guest_shut) & shutdown::RECEIVE != 0;
        self.has_data && self.phase == Phase::Open && !shut
    }

    /// The control packet that is to be sent next, which is thereby sent.
    pub(crate) fn take_packet(&mut self, guest: GuestCid) -> Option<Header> {
        let operation = self.pending.take_next()?;
        let mut header = self.header(guest, operation);
        if operation == Operation::Shutdown {
            self.told_shut = self.owner_shut;
            header.flags = u32::from(self.owner_shut);
        }
        Some(header)
    }

    /// The header of `len` bytes of data, which are thereby sent.
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
            self.incoming.tell(&mut header);
        }
        header
    }
}
