//! The messages with descriptors that processes have not received yet.
//!
//! The kernel counts descriptors in flight for the *sender's* user, and refuses that user's other
//! processes to pass any when there are too many (`ETOOMANYREFS`, unix(7)). So each message is charged
//! to the process that does not read it, until it does.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget::{Budget, Charge, Owner, Shortage};
use crate::data_path::{Charging, ProcessSocket, UnreadSockets, WeakProcessSocket};

/// How often sockets that the broker has closed are checked for whether their messages are read.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// Sockets of an owner that are checked whenever a message is sent to it. With two, those that have
/// been read never pile up: most processes wait for their message.
const SETTLED_PER_MESSAGE: usize = 2;

/// What a message with descriptors is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    /// The reply that a process waits for. A quarter of each share is for replies only, so listeners
    /// that accept nothing do not stop the connects of the same owner.
    Reply,
    /// A connection for a listener.
    Offer,
    /// An arena for a listener: it has more descriptors than other messages.
    ArenaOffer,
}

impl MessageKind {
    /// The messages that it counts as.
    pub(super) const fn messages(self) -> u64 {
        match self {
            Self::Reply | Self::Offer => 1,
            Self::ArenaOffer => 2,
        }
    }
}

/// The messages in flight, by owner.
#[derive(Debug)]
pub(super) struct InFlight {
    budget: Budget,
    /// The sockets with a charge, the oldest first.
    sockets: HashMap<Owner, VecDeque<WeakProcessSocket>>,
    unread: Arc<UnreadSockets>,
    next_sweep: Option<Instant>,
}

impl InFlight {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            sockets: HashMap::new(),
            unread: Arc::default(),
            next_sweep: None,
        }
    }

    /// Charges `owner` for one more message.
    ///
    /// # Errors
    ///
    /// [`Shortage`] if its processes leave too many unread.
    pub(super) fn reserve(&mut self, owner: Owner, kind: MessageKind) -> Result<Charge, Shortage> {
        self.settle(owner, SETTLED_PER_MESSAGE);
        if let Ok(charge) = self.charge(owner, kind) {
            return Ok(charge);
        }
        self.settle(owner, usize::MAX);
        self.unread.sweep();
        if let Ok(charge) = self.charge(owner, kind) {
            return Ok(charge);
        }
        // What others have read by now enlarges its share.
        let owners: Vec<Owner> = self.sockets.keys().copied().collect();
        for other in owners {
            self.settle(other, usize::MAX);
        }
        self.charge(owner, kind)
    }

    fn charge(&self, owner: Owner, kind: MessageKind) -> Result<Charge, Shortage> {
        let messages = kind.messages();
        if kind != MessageKind::Reply {
            let (used, limit) = self.budget.usage(owner);
            let limit = limit - limit / 4;
            if used + messages > limit {
                return Err(Shortage { owner, used, limit });
            }
        }
        self.budget.charge(owner, messages)
    }

    /// Records that the message of `charge` was sent on `socket`.
    pub(super) fn sent(&mut self, socket: &ProcessSocket, charge: Charge) {
        let owner = charge.owner();
        if socket.add_in_flight(charge, &self.unread) {
            let sockets = self.sockets.entry(owner).or_default();
            sockets.push_back(socket.downgrade());
        }
    }

    /// Where sockets of a broker before this one are charged. Nothing is done to them before
    /// [`release`](Self::release).
    pub(super) fn charging<'a>(&'a mut self, descriptors: &'a Budget) -> Charging<'a> {
        if self.unread.is_empty() && self.sockets.is_empty() {
            self.unread = Arc::new(UnreadSockets::held());
        }
        Charging {
            descriptors,
            messages: &self.budget,
            unread: &self.unread,
            in_flight: Vec::new(),
        }
    }

    /// Records the sockets of a broker before this one whose charges may end.
    pub(super) fn resume(&mut self, sockets: &[ProcessSocket]) {
        for socket in sockets {
            if let Some(owner) = socket.in_flight_owner() {
                let of_owner = self.sockets.entry(owner).or_default();
                of_owner.push_back(socket.downgrade());
            }
        }
    }

    /// The sockets of the broker before are this one's.
    pub(super) fn release(&mut self, now: Instant) {
        self.unread.release();
        self.next_sweep = (!self.unread.is_empty()).then(|| now + SWEEP_INTERVAL);
    }

    /// The sockets that the broker has done with, and whose messages are unread.
    pub(super) fn unread(&self) -> &UnreadSockets {
        &self.unread
    }

    /// The number of messages that may be in flight to a listener at once: several, so that a burst of
    /// connections takes few wakeups of the broker, but one if its owner leaves many unread.
    pub(super) fn window(&self, owner: Owner) -> usize {
        let (used, limit) = self.budget.usage(owner);
        if used < limit / 2 { 4 } else { 1 }
    }

    /// When to call [`sweep`](Self::sweep).
    pub(super) fn next_sweep(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// Closes sockets that were kept open and have been read by now.
    pub(super) fn sweep(&mut self, now: Instant) {
        let are_left = !self.unread.is_empty() && self.unread.sweep();
        self.next_sweep = are_left.then(|| now + SWEEP_INTERVAL);
    }

    /// The state of the budget, for operators.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Checks the oldest sockets of an owner, at most `most`.
    fn settle(&mut self, owner: Owner, most: usize) {
        let Some(sockets) = self.sockets.get_mut(&owner) else {
            return;
        };
        for _ in 0..sockets.len().min(most) {
            let Some(oldest) = sockets.pop_front() else {
                break;
            };
            if oldest.upgrade().is_some_and(|socket| socket.settle()) {
                sockets.push_back(oldest);
            }
        }
        if sockets.is_empty() {
            self.sockets.remove(&owner);
        }
    }
}
