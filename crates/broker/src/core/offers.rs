//! Connections that are offered to listeners: those that a listener's process has in its socket, and
//! those that wait here until it reads them.
//!
//! The broker passes a process the descriptors of few connections ahead of what it accepts
//! ([`InFlight`](super::in_flight::InFlight)). The others are held with their descriptors. While one is
//! held, another is in the socket, so a listener is readable as long as an offer waits.

pub(super) mod snapshot;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use hvsock_fabric::{ConnectionId, ListenerId};

use super::in_flight::MessageKind;
use crate::budget::Charge;

/// The offers by listener.
#[derive(Debug, Default)]
pub(super) struct Offers {
    queues: HashMap<ListenerId, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Passed, and not confirmed (`ACCEPTED`).
    passed: Vec<ConnectionId>,
    held: VecDeque<Offer>,
}

/// A connection for a listener.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) connection: ConnectionId,
    pub(super) kind: MessageKind,
    /// The encoded message.
    pub(super) message: Vec<u8>,
    /// The descriptors that go with it, in the order of the endpoint protocol.
    pub(super) descriptors: Vec<OwnedFd>,
    /// For the descriptors while they are held.
    pub(super) _charge: Option<Charge>,
}

impl Offers {
    /// Number of connections that were passed to a listener and not confirmed.
    pub(super) fn passed(&self, listener: ListenerId) -> usize {
        self.queues
            .get(&listener)
            .map_or(0, |queue| queue.passed.len())
    }

    /// Number of connections that are held for a listener.
    pub(super) fn held(&self, listener: ListenerId) -> usize {
        self.queues
            .get(&listener)
            .map_or(0, |queue| queue.held.len())
    }

    /// Records that a connection was passed.
    pub(super) fn pass(&mut self, listener: ListenerId, connection: ConnectionId) {
        self.queues
            .entry(listener)
            .or_default()
            .passed
            .push(connection);
    }

    /// The listener's process has read all that was passed.
    pub(super) fn all_read(&mut self, listener: ListenerId) {
        if let Some(queue) = self.queues.get_mut(&listener) {
            queue.passed.clear();
            self.forget_empty(listener);
        }
    }

    /// The process has confirmed a connection. Returns `false` if it cannot have received it.
    pub(super) fn confirm(&mut self, listener: ListenerId, connection: ConnectionId) -> bool {
        let Some(queue) = self.queues.get_mut(&listener) else {
            return true;
        };
        if queue
            .held
            .iter()
            .any(|offer| offer.connection == connection)
        {
            return false;
        }
        queue.passed.retain(|passed| *passed != connection);
        self.forget_empty(listener);
        true
    }

    /// Holds an offer behind the others.
    pub(super) fn hold(&mut self, listener: ListenerId, offer: Offer) {
        self.queues
            .entry(listener)
            .or_default()
            .held
            .push_back(offer);
    }

    /// The kind of message that the oldest held offer is.
    pub(super) fn next_kind(&self, listener: ListenerId) -> Option<MessageKind> {
        Some(self.queues.get(&listener)?.held.front()?.kind)
    }

    /// Takes the oldest held offer.
    pub(super) fn next(&mut self, listener: ListenerId) -> Option<Offer> {
        let next = self.queues.get_mut(&listener)?.held.pop_front();
        self.forget_empty(listener);
        next
    }

    /// Puts an offer back that [`next`](Self::next) returned.
    pub(super) fn put_back(&mut self, listener: ListenerId, offer: Offer) {
        let queue = self.queues.entry(listener).or_default();
        queue.held.push_front(offer);
    }

    /// Drops the held offers for whose connections `is_wanted` returns false.
    pub(super) fn retain(
        &mut self,
        listener: ListenerId,
        is_wanted: impl Fn(ConnectionId) -> bool,
    ) {
        if let Some(queue) = self.queues.get_mut(&listener) {
            queue.held.retain(|offer| is_wanted(offer.connection));
            self.forget_empty(listener);
        }
    }

    /// Drops everything of a listener that is closed.
    pub(super) fn remove(&mut self, listener: ListenerId) {
        self.queues.remove(&listener);
    }

    fn forget_empty(&mut self, listener: ListenerId) {
        let queue = self.queues.get(&listener);
        if queue.is_some_and(|queue| queue.passed.is_empty() && queue.held.is_empty()) {
            self.queues.remove(&listener);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTENER: ListenerId = ListenerId::from_u64(1);

    fn id(number: u64) -> ConnectionId {
        ConnectionId::from_u64(number)
    }

    fn offer(number: u64) -> Offer {
        Offer {
            connection: id(number),
            kind: MessageKind::Offer,
            message: Vec::new(),
            descriptors: Vec::new(),
            _charge: None,
        }
    }

    #[test]
    fn offers_leave_in_order_and_a_held_one_cannot_be_confirmed() {
        let mut offers = Offers::default();
        offers.pass(LISTENER, id(1));
        for number in 2..5 {
            offers.hold(LISTENER, offer(number));
        }
        assert_eq!((offers.passed(LISTENER), offers.held(LISTENER)), (1, 3));
        assert!(!offers.confirm(LISTENER, id(3)));
        // What is neither held nor passed is none of its business.
        assert!(offers.confirm(LISTENER, id(9)) && offers.confirm(LISTENER, id(1)));
        assert_eq!(offers.passed(LISTENER), 0);
        let next = offers.next(LISTENER).unwrap();
        assert_eq!(next.connection, id(2));
        offers.put_back(LISTENER, next);
        offers.retain(LISTENER, |held| held != id(3));
        let rest = [(); 2].map(|()| offers.next(LISTENER).unwrap().connection);
        assert_eq!(rest, [id(2), id(4)]);
        assert!(offers.next(LISTENER).is_none());
        assert!(offers.queues.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_listener_whose_process_has_read_everything_has_nothing_in_flight() {
        let mut offers = Offers::default();
        for number in 1..4 {
            offers.pass(LISTENER, id(number));
        }
        offers.all_read(LISTENER);
        assert_eq!(offers.passed(LISTENER), 0);
        assert!(offers.queues.is_empty());
    }
}
