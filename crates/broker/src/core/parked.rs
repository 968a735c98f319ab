//! Connects that wait because processes leave too many descriptors in flight unread.
//!
//! In a burst, many processes of one owner wait for their turn on a processor with an unread message.
//! That passes within milliseconds, so a connect is not refused for it at once. It is tried again soon,
//! and refused when that has not helped for [`TIMEOUT`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::budget::Owner;

/// How long a connect waits.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the oldest connect of each owner is tried at first, and later if that has not helped.
const INTERVAL: Duration = Duration::from_millis(1);
const LATER_INTERVAL: Duration = Duration::from_millis(10);
/// Rounds without an effect until the later interval applies.
const FIRST_ROUNDS: u32 = 16;
/// Most connects that wait for one owner.
const MAX_PER_OWNER: usize = 256;

/// The waiting connects by the owner of the unread messages, the oldest first.
#[derive(Debug)]
pub(super) struct Parked<T> {
    queues: BTreeMap<Owner, VecDeque<(Instant, T)>>,
    next_try: Option<Instant>,
    /// Consecutive rounds in which no connect left.
    futile: u32,
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            next_try: None,
            futile: 0,
        }
    }
}

impl<T> Parked<T> {
    /// Adds a connect. Returns it if too many wait for this owner already.
    pub(super) fn add(&mut self, owner: Owner, connect: T, now: Instant) -> Result<(), T> {
        let queue = self.queues.entry(owner).or_default();
        if queue.len() >= MAX_PER_OWNER {
            return Err(connect);
        }
        queue.push_back((now + TIMEOUT, connect));
        self.next_try.get_or_insert(now + INTERVAL);
        Ok(())
    }

    /// Puts a connect back that [`next`](Self::next) returned, before the others of this owner.
    pub(super) fn put_back(&mut self, owner: Owner, deadline: Instant, connect: T) {
        let queue = self.queues.entry(owner).or_default();
        queue.push_front((deadline, connect));
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// All waiting connects.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let queues = self.queues.values().flatten();
        queues.map(|(_, connect)| connect)
    }

    /// When to start the next round.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.next_try
    }

    /// Starts a round: the owners that connects wait for. Empty if it is too early.
    pub(super) fn start_round(&mut self, now: Instant) -> Vec<Owner> {
        if self.next_try.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.queues.keys().copied().collect()
    }

    /// Ends a round, in which connects left or none did.
    pub(super) fn end_round(&mut self, now: Instant, some_left: bool) {
        self.futile = match some_left {
            true => 0,
            false => self.futile.saturating_add(1),
        };
        let interval = match self.futile < FIRST_ROUNDS {
            true => INTERVAL,
            false => LATER_INTERVAL,
        };
        self.next_try = (!self.queues.is_empty()).then(|| now + interval);
    }

    /// Takes the oldest connect that waits for an owner, with its deadline.
    pub(super) fn next(&mut self, owner: Owner) -> Option<(Instant, T)> {
        let queue = self.queues.get_mut(&owner)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&owner);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner::User(1000);

    #[test]
    fn connects_are_tried_in_order_and_no_more_often_than_necessary() {
        let (mut parked, now) = (Parked::default(), Instant::now());
        assert_eq!(parked.next_try(), None);
        for number in 0..3 {
            parked.add(OWNER, number, now).unwrap();
        }
        assert!(parked.start_round(now).is_empty());
        let later = now + INTERVAL;
        assert_eq!(parked.start_round(later), [OWNER]);
        let (deadline, first) = parked.next(OWNER).unwrap();
        assert_eq!((deadline, first), (now + TIMEOUT, 0));
        parked.put_back(OWNER, deadline, first);
        for _ in 1..FIRST_ROUNDS {
            parked.end_round(later, false);
            assert_eq!(parked.next_try(), Some(later + INTERVAL));
        }
        parked.end_round(later, false);
        assert_eq!(parked.next_try(), Some(later + LATER_INTERVAL));
        parked.end_round(later, true);
        assert_eq!(parked.next_try(), Some(later + INTERVAL));
        let order: Vec<i32> = std::iter::from_fn(|| Some(parked.next(OWNER)?.1)).collect();
        assert_eq!(order, [0, 1, 2]);
        parked.end_round(later, true);
        assert_eq!(parked.next_try(), None);
    }

    #[test]
    fn an_owner_has_a_bounded_number_of_waiting_connects() {
        let (mut parked, now) = (Parked::default(), Instant::now());
        for number in 0..MAX_PER_OWNER {
            parked.add(OWNER, number, now).unwrap();
        }
        assert_eq!(parked.add(OWNER, 1, now), Err(1));
        assert_eq!(parked.add(Owner::User(1001), 1, now), Ok(()));
    }
}
