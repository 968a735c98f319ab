//! A connection of a set: relayed, ring, direct, handed over, or an arena with many.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::{ConnectionEnd, Refusal};
use hvsock_ring::{ArenaMonitor, Monitor, SlotId};
use mio::Interest;
use mio::event::Event;

use super::arena::{ArenaNews, MonitoredArena};
use super::buffers::Buffers;
use super::direct::{Direct, DirectEnd};
use super::hand_over::HandOver;
use super::relay::{Relay, RelayEnd};
use super::ring::MonitoredRing;
use super::turn::Turn;
use crate::data_path::{ByteCounters, ControlConnection, ProcessSocket};
use crate::reply::refused;

/// The watched descriptors of a connection: for each side the data, then the control descriptor.
pub(super) const SLOTS: usize = 4;

/// An established connection.
pub(crate) enum Connection {
    /// The broker relays its bytes.
    Relay(Relay),
    /// Its ends share memory; the broker monitors it.
    Ring(MonitoredRing),
    /// Its ends share memory for many connections; the broker monitors it.
    Arena(MonitoredArena),
    /// Its ends share a socket pair, which the broker can only close.
    Direct(Direct),
    /// A process has the socket of a guest, which the broker can only close.
    HandOver(HandOver),
}

impl Connection {
    /// A relayed connection between two data descriptors.
    pub(crate) fn relay(client: RelayEnd, server: RelayEnd) -> Self {
        Self::Relay(Relay::new(client, server))
    }

    /// A ring connection, with the control descriptors of the client and of the server, and its memory.
    pub(crate) fn ring(
        controls: [ProcessSocket; 2],
        memory: OwnedFd,
        monitor: Arc<Monitor>,
    ) -> Self {
        Self::Ring(MonitoredRing::new(controls, memory, monitor))
    }

    /// An arena, with the control descriptors of the client and of the server.
    pub(crate) fn arena(controls: [ProcessSocket; 2], monitor: Arc<ArenaMonitor>) -> Self {
        Self::Arena(MonitoredArena::new(controls, monitor))
    }

    /// A direct connection.
    pub(crate) fn direct(client: DirectEnd, server: DirectEnd) -> Self {
        Self::Direct(Direct::new(client, server))
    }

    /// A connection with a guest whose socket a process has. `side` is 0 if the process connected to the
    /// guest, and 1 if the guest connected to it.
    pub(crate) fn hand_over(
        control: impl Into<ProcessSocket>,
        socket: OwnedFd,
        raw_fd: bool,
        side: usize,
    ) -> Self {
        Self::HandOver(HandOver::new(control, socket, raw_fd, side))
    }

    /// Whether it can be suspended.
    pub(super) fn can_suspend(&self) -> bool {
        !matches!(self, Self::Direct(_) | Self::HandOver(_))
    }

    /// Whether the broker relays its bytes, so that moving it to a data thread is useful.
    pub(super) fn is_relay(&self) -> bool {
        matches!(self, Self::Relay(_))
    }

    /// Whether it may make progress, or has something to report, without another event.
    pub(super) fn has_work(&self) -> bool {
        let is_ready = match self {
            Self::Relay(relay) => relay.has_work(),
            Self::Arena(arena) => arena.has_news(),
            Self::Ring(_) | Self::Direct(_) | Self::HandOver(_) => false,
        };
        let mut controls = (0..2).filter_map(|side| self.control(side));
        is_ready || controls.any(ControlConnection::has_work)
    }

    /// The descriptors to watch, each with its slot below [`SLOTS`].
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, Interest)> {
        let data = |side: usize| match self {
            Self::Relay(relay) => {
                let end = &relay.ends()[side];
                Some((end.data.as_fd(), interest(end.watches_writable)))
            }
            // Errors and hang-ups are reported whatever the interest is.
            Self::HandOver(passed) if side == passed.guest_side() => {
                Some((passed.socket().as_fd(), Interest::PRIORITY))
            }
            Self::Ring(_) | Self::Arena(_) | Self::Direct(_) | Self::HandOver(_) => None,
        };
        let control = |side: usize| Some((self.control(side)?.descriptor()?, Interest::READABLE));
        let all: [_; SLOTS] = [data(0), control(0), data(1), control(1)];
        let slots = all.into_iter().enumerate();
        slots.filter_map(|(slot, watched)| watched.map(|(fd, interest)| (slot, fd, interest)))
    }

    /// The data descriptors whose send buffer became full, to be watched for writability as well.
    /// Returns each one once.
    pub(super) fn newly_full(&mut self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, Interest)> {
        let ends = match self {
            Self::Relay(relay) => relay.ends_mut().as_mut_slice(),
            Self::Ring(_) | Self::Arena(_) | Self::Direct(_) | Self::HandOver(_) => &mut [],
        };
        ends.iter_mut().enumerate().filter_map(|(index, end)| {
            let is_new = end.is_full() && !end.watches_writable;
            end.watches_writable |= is_new;
            is_new.then(|| (index * 2, end.data.as_fd(), interest(true)))
        })
    }

    /// Records that the descriptor in a slot may be ready.
    pub(super) fn ready(&mut self, slot: usize, event: &Event) {
        let side = slot / 2;
        match self {
            Self::Relay(relay) if slot.is_multiple_of(2) => relay.data_ready(side, event),
            _ => {
                if let Some(control) = self.control_mut(side) {
                    control.readable = true;
                }
            }
        }
    }

    /// Runs one turn.
    pub(super) fn turn(&mut self, buffers: &mut Buffers, counters: &ByteCounters) -> Turn {
        match self {
            Self::Relay(relay) => relay.turn(buffers, counters),
            Self::Ring(ring) => ring.turn(),
            Self::Arena(arena) => arena.turn(),
            Self::Direct(direct) => direct.turn(),
            Self::HandOver(passed) => passed.turn(),
        }
    }

    /// Suspends or resumes the data transfer, if that is possible ([`can_suspend`](Self::can_suspend)).
    pub(super) fn suspend(&mut self, suspended: bool) {
        match self {
            Self::Relay(relay) => relay.suspend(suspended),
            Self::Ring(ring) => ring.suspend(suspended),
            Self::Arena(arena) => arena.suspend(suspended),
            Self::Direct(_) | Self::HandOver(_) => {}
        }
    }

    /// Resets the connection and sends both ends the reason. Dropping it afterwards closes the
    /// descriptors.
    pub(super) fn reset(&self, refusal: &Refusal) {
        let message = BrokerMessage::Reset(refused(refusal));
        for control in (0..2).filter_map(|side| self.control(side)) {
            control.send(&message);
        }
        // After the messages, so that an end that sees the reset can read the reason.
        match self {
            Self::Relay(_) => {}
            Self::Ring(ring) => ring.reset(),
            Self::Arena(arena) => arena.reset(),
            Self::Direct(direct) => direct.close(),
            Self::HandOver(passed) => passed.close(),
        }
    }

    /// Resets one connection of an arena and sends both ends the reason.
    pub(super) fn reset_slot(&self, id: SlotId, refusal: &Refusal) {
        if let Self::Arena(arena) = self {
            arena.reset_slot(id, refusal);
        }
    }

    /// Takes what the ends of an arena have reported.
    pub(super) fn take_news(&mut self) -> ArenaNews {
        match self {
            Self::Arena(arena) => arena.take_news(),
            Self::Relay(_) | Self::Ring(_) | Self::Direct(_) | Self::HandOver(_) => {
                ArenaNews::default()
            }
        }
    }

    /// Bytes buffered in the broker's memory.
    pub(super) fn buffered(&self) -> usize {
        match self {
            Self::Relay(relay) => relay.buffered(),
            Self::Ring(_) | Self::Arena(_) | Self::Direct(_) | Self::HandOver(_) => 0,
        }
    }

    /// Takes the next change of `HVSOCKET_CONNECTED_SUSPEND`: the end that set it, and its value.
    pub(super) fn take_option(&mut self) -> Option<(ConnectionEnd, bool)> {
        [ConnectionEnd::Client, ConnectionEnd::Server]
            .into_iter()
            .enumerate()
            .find_map(|(side, end)| Some((end, self.control_mut(side)?.option.take()?)))
    }

    fn control(&self, side: usize) -> Option<&ControlConnection> {
        match self {
            Self::Relay(relay) => relay.ends()[side & 1].control.as_ref(),
            Self::Ring(ring) => Some(&ring.controls[side & 1]),
            Self::Arena(arena) => Some(&arena.controls[side & 1]),
            Self::Direct(direct) => Some(direct.control(side)),
            Self::HandOver(passed) => passed.control(side & 1),
        }
    }

    fn control_mut(&mut self, side: usize) -> Option<&mut ControlConnection> {
        match self {
            Self::Relay(relay) => relay.ends_mut()[side & 1].control.as_mut(),
            Self::Ring(ring) => Some(&mut ring.controls[side & 1]),
            Self::Arena(arena) => Some(&mut arena.controls[side & 1]),
            Self::Direct(direct) => Some(direct.control_mut(side)),
            Self::HandOver(passed) => passed.control_mut(side & 1),
        }
    }
}

fn interest(writable: bool) -> Interest {
    if writable {
        Interest::READABLE | Interest::WRITABLE
    } else {
        Interest::READABLE
    }
}
