//! Connects that wait until a listener's backlog has space.
//!
//! A kernel refuses a connect to a full backlog at once, and there the program that accepts does so without waiting
//! for anyone. Here each of its calls waits for the supervisor behind the calls of those that connect. So that this
//! alone refuses no connect, those to a full backlog are held while connections are being accepted. Once none was for
//! [`STALL_TIMEOUT`], all are refused, and later ones at once.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use hvsock::SockAddrHv;
use hvsock_address::ServiceId;

/// How long no connection is accepted until the backlog counts as full because of the program that listens.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the broker is asked again for a listener of another supervisor, of whose accepts nothing tells.
const PROBE: Duration = Duration::from_millis(5);
/// The connects to one target that are tried at once at most.
const MAX_BURST: usize = 64;
/// The targets that are remembered at most.
const MAX_TARGETS: usize = 1024;

/// The targets whose backlogs are full, as far as is known.
#[derive(Debug, Default)]
pub(crate) struct Backlogs {
    full: HashMap<SockAddrHv, Full>,
}

/// A target whose backlog was full.
#[derive(Debug)]
struct Full {
    /// The numbers of the exchanges that are held, of which the lowest is the oldest.
    held: BTreeSet<u64>,
    /// When a connection was last accepted, or the first connect was held.
    progress: Instant,
    /// When to try some that are held.
    probe_at: Instant,
    /// How many.
    burst: usize,
    /// Nothing was accepted for a while: nothing is held.
    is_stalled: bool,
}

impl Backlogs {
    /// Whether a new connect has to wait behind others.
    pub(crate) fn has_held(&self, target: &SockAddrHv) -> bool {
        self.full.get(target).is_some_and(|it| !it.held.is_empty())
    }

    /// Holds a connect. Returns whether it is held: not if nothing is being accepted.
    pub(crate) fn hold(&mut self, target: SockAddrHv, number: u64, now: Instant) -> bool {
        if self.full.len() >= MAX_TARGETS && !self.full.contains_key(&target) {
            self.full.retain(|_, it| !it.held.is_empty());
            if self.full.len() >= MAX_TARGETS {
                return false;
            }
        }
        let full = self.full.entry(target).or_insert_with(|| Full {
            held: BTreeSet::new(),
            progress: now,
            probe_at: now + PROBE,
            burst: 1,
            is_stalled: false,
        });
        if full.is_stalled {
            return false;
        }
        full.burst = 1;
        full.held.insert(number)
    }

    /// A connect to a target was accepted by its backlog: there may be space for more.
    pub(crate) fn admitted(&mut self, target: &SockAddrHv, now: Instant) {
        if let Some(full) = self.full.get_mut(target) {
            (full.progress, full.is_stalled) = (now, false);
            full.burst = (full.burst * 2).min(MAX_BURST);
            if full.held.is_empty() {
                self.full.remove(target);
            }
        }
    }

    /// A program has accepted a connection of a service: there is space in its listener.
    pub(crate) fn accepted(&mut self, service: ServiceId, now: Instant) {
        for (target, full) in &mut self.full {
            if target.service == service {
                (full.progress, full.is_stalled, full.probe_at) = (now, false, now);
            }
        }
    }

    /// The targets to which connects are to be tried now.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<SockAddrHv> {
        let is_due = |full: &Full| full.probe_at <= now && !full.held.is_empty();
        let due = self.full.iter_mut().filter(|(_, full)| is_due(full));
        due.map(|(target, full)| {
            full.probe_at = now + PROBE;
            *target
        })
        .collect()
    }

    /// Takes the oldest connects to a target: as many as it has space for, if that is known.
    pub(crate) fn release(&mut self, target: &SockAddrHv, free: Option<usize>) -> Vec<u64> {
        let Some(full) = self.full.get_mut(target) else {
            return Vec::new();
        };
        let most = free.unwrap_or(full.burst).min(MAX_BURST);
        (0..most).map_while(|_| full.held.pop_first()).collect()
    }

    /// The connects that are to be refused, since nothing is being accepted.
    pub(crate) fn take_refused(&mut self, now: Instant) -> Vec<u64> {
        let mut refused = Vec::new();
        for full in self.full.values_mut() {
            if !full.held.is_empty() && now >= full.progress + STALL_TIMEOUT {
                full.is_stalled = true;
                refused.extend(std::mem::take(&mut full.held));
            }
        }
        refused
    }

    /// When a connect is to be tried or refused.
    pub(crate) fn next(&self) -> Option<Instant> {
        let held = self.full.values().filter(|it| !it.held.is_empty());
        held.map(|it| it.probe_at.min(it.progress + STALL_TIMEOUT))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::VmId;

    use super::*;

    fn target(port: u32) -> SockAddrHv {
        SockAddrHv::new(VmId::LOOPBACK, ServiceId::from_port(port))
    }

    /// What is tried now, with this much space.
    fn tried(backlogs: &mut Backlogs, free: Option<usize>, now: Instant) -> Vec<u64> {
        let due = backlogs.take_due(now);
        let numbers = due.iter().flat_map(|target| backlogs.release(target, free));
        numbers.collect()
    }

    #[test]
    fn an_accepted_connection_makes_room_for_the_oldest_connect_to_its_service() {
        let (mut backlogs, now) = (Backlogs::default(), Instant::now());
        for number in [7, 5, 6] {
            assert!(backlogs.hold(target(1), number, now));
        }
        assert!(backlogs.hold(target(2), 1, now));
        for _ in 0..2 {
            backlogs.accepted(ServiceId::from_port(1), now);
            assert_eq!(tried(&mut backlogs, Some(1), now), [5]);
            // It was refused once more, and comes first again.
            assert!(backlogs.hold(target(1), 5, now));
        }
        backlogs.accepted(ServiceId::from_port(3), now);
        assert_eq!(tried(&mut backlogs, Some(1), now), [0; 0]);
        assert!(backlogs.has_held(&target(1)) && !backlogs.has_held(&target(3)));
        backlogs.accepted(ServiceId::from_port(1), now);
        assert_eq!(tried(&mut backlogs, Some(0), now), [0; 0], "no space");
    }

    #[test]
    fn connects_to_listeners_of_others_are_tried_the_faster_the_more_are_admitted() {
        let (mut backlogs, start) = (Backlogs::default(), Instant::now());
        for number in 0..100 {
            assert!(backlogs.hold(target(1), number, start));
        }
        assert_eq!(backlogs.next(), Some(start + PROBE));
        assert_eq!(tried(&mut backlogs, None, start), [0; 0]);
        let now = start + PROBE;
        assert_eq!(tried(&mut backlogs, None, now), [0]);
        backlogs.admitted(&target(1), now);
        let now = now + PROBE;
        assert_eq!(tried(&mut backlogs, None, now), [1, 2]);
        backlogs.admitted(&target(1), now);
        // One that is refused slows them down.
        assert!(backlogs.hold(target(1), 2, now));
        assert_eq!(tried(&mut backlogs, None, now + PROBE), [2]);
    }

    #[test]
    fn connects_are_refused_when_nothing_is_accepted_and_held_again_when_something_is() {
        let (mut backlogs, start) = (Backlogs::default(), Instant::now());
        assert!(backlogs.hold(target(1), 1, start));
        assert_eq!(backlogs.take_refused(start), [0; 0]);
        let now = start + STALL_TIMEOUT;
        assert_eq!(backlogs.take_refused(now), [1]);
        assert!(!backlogs.hold(target(1), 2, now), "refused at once");
        assert_eq!(backlogs.next(), None);
        backlogs.accepted(ServiceId::from_port(1), now);
        assert!(backlogs.hold(target(1), 3, now));
        assert_eq!(backlogs.take_refused(now), [0; 0]);
    }

    #[test]
    fn any_number_of_full_targets_takes_bounded_memory() {
        let (mut backlogs, now) = (Backlogs::default(), Instant::now());
        let count = MAX_TARGETS as u32;
        let held = (0..2 * count).filter(|port| backlogs.hold(target(*port), (*port).into(), now));
        assert_eq!(held.count(), MAX_TARGETS);
        assert_eq!(
            backlogs.take_refused(now + STALL_TIMEOUT).len(),
            MAX_TARGETS
        );
        // Those without a held connect are forgotten first.
        assert!(backlogs.hold(target(count), 0, now));
        assert_eq!(backlogs.full.len(), 1);
    }
}
