//! A connection as a set sees it, whichever way its bytes move.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::{End, Refusal};
use hvsock_ring::Monitor;
use mio::Interest;
use mio::event::Event;

use super::Counters;
use super::control::Control;
use super::pumped::{Pumped, Side};
use super::ring::Ring;
use crate::reply::refused;

/// The descriptors of a connection that a set can watch: of each side data, then control.
pub(super) const PLACES: usize = 4;

/// How a turn ended.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Nothing can be done until a descriptor is ready.
    Waiting,
    /// There is more to do than one turn allows.
    Again,
    /// The connection is over, with the reason if it was not a clean end.
    Over(Option<Refusal>),
}

/// A connection that stands.
pub(crate) enum Connection {
    /// The broker moves its bytes.
    Pumped(Pumped),
    /// Its ends move them; the broker looks on.
    Ring(Ring),
}

impl Connection {
    /// One whose bytes the broker moves between two data descriptors.
    pub(crate) fn pumped(from: Side, to: Side) -> Self {
        Self::Pumped(Pumped::new(from, to))
    }

    /// One whose ends share memory, with the control descriptors of who connected and of who
    /// accepted.
    pub(crate) fn ring(controls: [OwnedFd; 2], monitor: Arc<Monitor>) -> Self {
        Self::Ring(Ring::new(controls, monitor))
    }

    /// Whether it can ever be worth a thread's while.
    pub(super) fn is_pumped(&self) -> bool {
        matches!(self, Self::Pumped(_))
    }

    /// What to watch: each descriptor with its place below [`PLACES`].
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, Interest)> {
        let data = |side: usize| match self {
            Self::Pumped(pumped) => {
                let side = &pumped.sides()[side];
                Some((side.data.as_fd(), interest(side.watched_for_room)))
            }
            Self::Ring(_) => None,
        };
        let control = |side: usize| Some((self.control(side).as_fd(), Interest::READABLE));
        let all: [_; PLACES] = [data(0), control(0), data(1), control(1)];
        let placed = all.into_iter().enumerate();
        placed.filter_map(|(place, watched)| watched.map(|(fd, interest)| (place, fd, interest)))
    }

    /// The data descriptors that have come to have no room and are to be watched for some, too;
    /// once each.
    pub(super) fn out_of_room(
        &mut self,
    ) -> impl Iterator<Item = (usize, BorrowedFd<'_>, Interest)> {
        let sides = match self {
            Self::Pumped(pumped) => pumped.sides_mut().as_mut_slice(),
            Self::Ring(_) => &mut [],
        };
        sides.iter_mut().enumerate().filter_map(|(index, side)| {
            let is_new = side.full() && !side.watched_for_room;
            side.watched_for_room |= is_new;
            is_new.then(|| (index * 2, side.data.as_fd(), interest(true)))
        })
    }

    /// Notes that the descriptor at a place may be ready.
    pub(super) fn ready(&mut self, place: usize, event: &Event) {
        let side = place / 2;
        match self {
            Self::Pumped(pumped) if place.is_multiple_of(2) => pumped.data_ready(side, event),
            _ => self.control_mut(side).readable = true,
        }
    }

    /// Moves forward as far as one turn goes, with `scratch` as the buffer.
    pub(super) fn turn(&mut self, scratch: &mut [u8], counters: &Counters) -> Turn {
        match self {
            Self::Pumped(pumped) => pumped.turn(scratch, counters),
            Self::Ring(ring) => ring.turn(),
        }
    }

    /// Lets data move or stand still.
    pub(super) fn suspend(&mut self, suspended: bool) {
        match self {
            Self::Pumped(pumped) => pumped.suspend(suspended),
            Self::Ring(ring) => ring.suspend(suspended),
        }
    }

    /// Ends the connection for both ends and tells them why. Dropping it afterwards closes the
    /// descriptors.
    pub(super) fn reset(&self, refusal: &Refusal) {
        let message = BrokerMessage::Reset(refused(refusal));
        for side in 0..2 {
            self.control(side).tell(&message);
        }
        if let Self::Ring(ring) = self {
            // An end that sees it finds the reason said already.
            ring.cut();
        }
    }

    /// Bytes that wait in the broker's memory.
    pub(super) fn waiting(&self) -> usize {
        match self {
            Self::Pumped(pumped) => pumped.waiting(),
            Self::Ring(_) => 0,
        }
    }

    /// The end that set `HVSOCKET_CONNECTED_SUSPEND`, and to what; once for each time.
    pub(super) fn take_option(&mut self) -> Option<(End, bool)> {
        [End::Client, End::Server]
            .into_iter()
            .enumerate()
            .find_map(|(side, end)| Some((end, self.control_mut(side).option.take()?)))
    }

    fn control(&self, side: usize) -> &Control {
        match self {
            Self::Pumped(pumped) => &pumped.sides()[side & 1].control,
            Self::Ring(ring) => &ring.controls[side & 1],
        }
    }

    fn control_mut(&mut self, side: usize) -> &mut Control {
        match self {
            Self::Pumped(pumped) => &mut pumped.sides_mut()[side & 1].control,
            Self::Ring(ring) => &mut ring.controls[side & 1],
        }
    }
}

fn interest(room: bool) -> Interest {
    if room {
        Interest::READABLE | Interest::WRITABLE
    } else {
        Interest::READABLE
    }
}
