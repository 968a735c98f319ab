//! Requests that wait for what the host will say.
//!
//! The host tells of its changes without being asked, but a moment later. A process that has registered a
//! service there and then uses its name here must not be told that there is none. So before a request is
//! refused because of what the host has not said, the host is asked to say all. One question serves all
//! who began to wait before it was sent.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a request waits.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
/// The most requests that wait for what the host has changed, and the most for an explanation.
const MAX_WAITING: usize = 512;

/// Those that wait: `S` for what the host has changed, `E` for its explanation.
#[derive(Debug)]
pub(super) struct Waits<S, E> {
    /// With the number of the question that answers each.
    syncs: VecDeque<(u64, Instant, S)>,
    last_sync: u64,
    explains: BTreeMap<u64, (Instant, E)>,
    last_explain: u64,
    /// A request that has waited is being handled. It does not wait again.
    pub(super) is_last_try: bool,
}

impl<S, E> Default for Waits<S, E> {
    fn default() -> Self {
        Self {
            syncs: VecDeque::new(),
            last_sync: 0,
            explains: BTreeMap::new(),
            last_explain: 0,
            is_last_try: false,
        }
    }
}

impl<S, E> Waits<S, E> {
    /// Whether one more request may wait for what the host has changed.
    pub(super) fn has_room(&self) -> bool {
        !self.is_last_try && self.syncs.len() < MAX_WAITING
    }

    /// Adds a request. Returns the number of the question that the host is to be asked for it.
    pub(super) fn add(&mut self, request: S, now: Instant) -> u64 {
        self.last_sync += 1;
        self.syncs
            .push_back((self.last_sync, now + TIMEOUT, request));
        self.last_sync
    }

    /// Takes the oldest request that the answer to this question serves.
    pub(super) fn take_synced(&mut self, number: u64) -> Option<S> {
        let is_served = |(asked, ..): &(u64, Instant, S)| *asked <= number;
        self.syncs.front().filter(|front| is_served(front))?;
        Some(self.syncs.pop_front()?.2)
    }

    /// Takes the request with this number.
    pub(super) fn take(&mut self, number: u64) -> Option<S> {
        let at = self.syncs.iter().position(|(asked, ..)| *asked == number)?;
        Some(self.syncs.remove(at)?.2)
    }

    /// Takes the oldest request that has waited for long enough.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<S> {
        let is_due = |(_, at, _): &(u64, Instant, S)| *at <= now;
        self.syncs.front().filter(|front| is_due(front))?;
        Some(self.syncs.pop_front()?.2)
    }

    /// The numbers of the questions that are to be asked again on a new uplink: one serves all.
    pub(super) fn unanswered(&self) -> Option<u64> {
        self.syncs.back().map(|(number, ..)| *number)
    }

    /// Adds one that waits for an explanation, by a number. Returns it if too many wait.
    pub(super) fn add_explain(&mut self, waiting: E, now: Instant) -> Result<u64, E> {
        if self.explains.len() >= MAX_WAITING {
            return Err(waiting);
        }
        self.last_explain += 1;
        let number = self.last_explain;
        self.explains.insert(number, (now + TIMEOUT, waiting));
        Ok(number)
    }

    /// Takes one that waits for an explanation.
    pub(super) fn take_explain(&mut self, number: u64) -> Option<E> {
        self.explains.remove(&number).map(|(_, waiting)| waiting)
    }

    /// Takes the oldest that has waited for an explanation for long enough, with its number.
    pub(super) fn take_unexplained(&mut self, now: Instant) -> Option<(u64, E)> {
        let (number, (at, _)) = self.explains.first_key_value()?;
        let number = (*at <= now).then_some(*number)?;
        Some((number, self.take_explain(number)?))
    }

    /// Takes the oldest that waits for an explanation.
    pub(super) fn take_any_explain(&mut self) -> Option<E> {
        Some(self.explains.pop_first()?.1.1)
    }

    /// When the next one has waited for long enough.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let sync = self.syncs.front().map(|(_, at, _)| *at);
        let explain = self.explains.first_key_value().map(|(_, (at, _))| *at);
        sync.into_iter().chain(explain).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_serves_all_who_waited_when_it_was_asked_for() {
        let (mut waits, now) = (Waits::<char, ()>::default(), Instant::now());
        let [a, b, c] = ['a', 'b', 'c'].map(|request| waits.add(request, now));
        assert!(a < b && b < c);
        assert_eq!(waits.take_synced(a - 1), None);
        let served: Vec<char> = std::iter::from_fn(|| waits.take_synced(b)).collect();
        assert_eq!(served, ['a', 'b']);
        assert_eq!(waits.unanswered(), Some(c));
        assert_eq!(waits.take_expired(now), None);
        assert_eq!(waits.next_deadline(), Some(now + TIMEOUT));
        assert_eq!(waits.take_expired(now + TIMEOUT), Some('c'));
        assert_eq!((waits.unanswered(), waits.next_deadline()), (None, None));
        let [d, e] = ['d', 'e'].map(|request| waits.add(request, now));
        assert_eq!((waits.take(e), waits.take(e)), (Some('e'), None));
        assert_eq!(waits.take_synced(d), Some('d'));
    }

    #[test]
    fn who_waits_for_an_explanation_gets_one_or_gives_up_and_their_number_is_bounded() {
        let (mut waits, now) = (Waits::<(), usize>::default(), Instant::now());
        for n in 0..MAX_WAITING {
            waits.add_explain(n, now).unwrap();
        }
        assert_eq!(waits.add_explain(9999, now), Err(9999));
        assert_eq!(waits.take_explain(2), Some(1));
        assert_eq!(waits.take_explain(2), None);
        assert_eq!(waits.take_unexplained(now), None);
        assert_eq!(waits.take_unexplained(now + TIMEOUT), Some((1, 0)));
        assert_eq!(waits.take_any_explain(), Some(2));
    }
}
