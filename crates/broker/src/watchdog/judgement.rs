//! What heartbeats mean, without I/O: which threads are stuck, and when to look again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The number of a watched thread, which no other has.
pub(super) type ThreadId = u64;

/// A thread that is stuck for this many times its limit is given up.
const FATAL_AFTER: u32 = 3;
/// Looks during one limit.
const LOOKS: u32 = 4;

/// A thread's heartbeat at the time of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) thread: ThreadId,
    pub(super) turn: u64,
    /// It is in that turn, and does not wait.
    pub(super) works: bool,
    /// How long a turn may take.
    pub(super) limit: Duration,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The thread's turn takes longer than its limit: at least this long so far.
    Stuck(ThreadId, Duration),
    /// It does not recover by itself.
    Fatal(ThreadId, Duration),
    /// A thread that was stuck goes on, or has ended.
    Recovered(ThreadId, Duration),
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    turn: u64,
    works: bool,
    /// When the turn was seen first. It has begun before.
    since: Instant,
    found: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    Stuck,
    Fatal,
}

/// What was seen of all threads.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    seen: BTreeMap<ThreadId, Seen>,
}

impl Judgement {
    /// Looks at all threads. `late` is how much later than planned this look is: as long as the supervisor could not
    /// run, the threads may not have been able to either. Returns what is new, and whether anything has moved or
    /// works, so that there is a reason to look again.
    pub(super) fn look(
        &mut self,
        now: Instant,
        late: Duration,
        samples: &[Sample],
    ) -> (Vec<Finding>, bool) {
        let mut findings = Vec::new();
        let mut is_active = false;
        let mut before = std::mem::take(&mut self.seen);
        for sample in samples {
            let known = before.remove(&sample.thread);
            let mut seen = match known {
                Some(seen) if seen.turn == sample.turn => Seen {
                    since: (seen.since + late).min(now),
                    ..seen
                },
                _ => {
                    // A thread that waits and was not known has not moved.
                    is_active |= known.is_some();
                    if let Some(seen) = known.filter(|seen| seen.found > Found::Nothing) {
                        let took = now.saturating_duration_since(seen.since);
                        findings.push(Finding::Recovered(sample.thread, took));
                    }
                    Seen {
                        turn: sample.turn,
                        works: sample.works,
                        since: now,
                        found: Found::Nothing,
                    }
                }
            };
            is_active |= sample.works;
            if seen.works {
                let took = now.saturating_duration_since(seen.since);
                if took >= sample.limit && seen.found == Found::Nothing {
                    seen.found = Found::Stuck;
                    findings.push(Finding::Stuck(sample.thread, took));
                }
                let most = sample.limit.saturating_mul(FATAL_AFTER);
                if took >= most && seen.found == Found::Stuck {
                    seen.found = Found::Fatal;
                    findings.push(Finding::Fatal(sample.thread, took));
                }
            }
            self.seen.insert(sample.thread, seen);
        }
        for (thread, seen) in before {
            if seen.found > Found::Nothing {
                let took = now.saturating_duration_since(seen.since);
                findings.push(Finding::Recovered(thread, took));
            }
        }
        (findings, is_active)
    }

    /// Does not hold the time so far against a thread: it could not run.
    pub(super) fn excuse(&mut self, finding: Finding, now: Instant) {
        let (Finding::Stuck(thread, _) | Finding::Fatal(thread, _)) = finding else {
            return;
        };
        if let Some(seen) = self.seen.get_mut(&thread) {
            seen.since = now;
            seen.found = match seen.found {
                Found::Fatal => Found::Stuck,
                Found::Stuck | Found::Nothing => Found::Nothing,
            };
        }
    }

    /// For how long a thread is known to be in its turn; `None` if it waits.
    pub(super) fn in_turn(&self, sample: &Sample, now: Instant) -> Option<Duration> {
        let seen = self.seen.get(&sample.thread);
        let seen = seen.filter(|seen| seen.turn == sample.turn);
        let since = seen.map_or(now, |seen| seen.since);
        sample.works.then(|| now.saturating_duration_since(since))
    }

    /// Whether a thread was found to be stuck, and still is.
    pub(super) fn is_stuck(&self, sample: &Sample) -> bool {
        let seen = self.seen.get(&sample.thread);
        seen.is_some_and(|seen| seen.turn == sample.turn && seen.found > Found::Nothing)
    }
}

/// When the supervisor looks. It sleeps without a timer once nothing has moved in two looks: before the second one,
/// threads are told to wake it, and one that has begun just before cannot be missed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// There are turns: threads need not wake the supervisor.
    Armed { next: Instant },
    /// There were none: threads wake the supervisor, which looks once more.
    Disarming { next: Instant },
    /// Threads wake the supervisor.
    Asleep,
}

impl Schedule {
    /// The time between two looks, for the shortest limit.
    pub(super) fn interval(limit: Duration) -> Duration {
        limit / LOOKS
    }

    /// After a look at `now`, with or without activity; `was_woken`: a thread has begun a turn.
    pub(super) fn after(
        self,
        is_active: bool,
        was_woken: bool,
        now: Instant,
        interval: Duration,
    ) -> Self {
        let next = now + interval;
        match self {
            _ if is_active || was_woken => Self::Armed { next },
            // A look between two.
            Self::Disarming { next } if now < next => self,
            Self::Armed { .. } => Self::Disarming { next },
            Self::Disarming { .. } | Self::Asleep => Self::Asleep,
        }
    }

    /// When to look next, without being woken.
    pub(super) fn next(self) -> Option<Instant> {
        match self {
            Self::Armed { next } | Self::Disarming { next } => Some(next),
            Self::Asleep => None,
        }
    }

    /// Whether threads need not wake the supervisor.
    pub(super) fn is_armed(self) -> bool {
        matches!(self, Self::Armed { .. })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn sample(turn: u64) -> Sample {
        Sample {
            thread: 1,
            turn,
            works: turn % 2 == 1,
            limit: LIMIT,
        }
    }

    #[test]
    fn a_turn_that_takes_longer_than_its_limit_is_found_once_and_so_is_its_end() {
        let mut judgement = Judgement::default();
        let start = Instant::now();
        let mut look = |seconds, turn| {
            let now = start + Duration::from_secs(seconds);
            judgement.look(now, Duration::ZERO, &[sample(turn)]).0
        };
        let took = Duration::from_secs;
        assert_eq!(look(0, 7), []);
        assert_eq!(look(9, 7), []);
        assert_eq!(look(10, 7), [Finding::Stuck(1, took(10))]);
        assert_eq!(look(29, 7), []);
        assert_eq!(look(31, 7), [Finding::Fatal(1, took(31))]);
        assert_eq!(look(99, 7), []);
        assert_eq!(look(100, 8), [Finding::Recovered(1, took(100))]);
        assert_eq!(look(200, 8), [], "it waits");
        assert_eq!(look(201, 9), []);
        assert_eq!(look(212, 9), [Finding::Stuck(1, took(11))]);
    }

    #[test]
    fn a_stuck_thread_that_ends_has_recovered() {
        let mut judgement = Judgement::default();
        let start = Instant::now();
        judgement.look(start, Duration::ZERO, &[sample(1)]);
        judgement.look(start + LIMIT, Duration::ZERO, &[sample(1)]);
        let (findings, _) = judgement.look(start + LIMIT, Duration::ZERO, &[]);
        assert_eq!(findings, [Finding::Recovered(1, LIMIT)]);
    }

    #[test]
    fn time_in_which_the_whole_process_was_stopped_does_not_count() {
        let mut judgement = Judgement::default();
        let start = Instant::now();
        judgement.look(start, Duration::ZERO, &[sample(1)]);
        let hour = Duration::from_secs(3600);
        let (findings, _) = judgement.look(start + hour, hour - LIMIT / 4, &[sample(1)]);
        assert_eq!(findings, []);
        let (findings, _) = judgement.look(start + hour + LIMIT, Duration::ZERO, &[sample(1)]);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn a_thread_that_could_not_run_gets_its_limit_again() {
        let mut judgement = Judgement::default();
        let start = Instant::now();
        let mut look = |seconds, is_excused| {
            let now = start + Duration::from_secs(seconds);
            let (findings, _) = judgement.look(now, Duration::ZERO, &[sample(1)]);
            if is_excused {
                findings.iter().for_each(|one| judgement.excuse(*one, now));
            }
            findings
        };
        let took = Duration::from_secs;
        assert_eq!(look(0, true), []);
        assert_eq!(look(10, true), [Finding::Stuck(1, took(10))]);
        assert_eq!(look(19, true), []);
        assert_eq!(look(20, false), [Finding::Stuck(1, took(10))]);
        assert_eq!(look(40, true), [Finding::Fatal(1, took(30))]);
        assert_eq!(look(69, true), []);
        assert_eq!(look(70, false), [Finding::Fatal(1, took(30))]);
    }

    #[test]
    fn a_supervisor_without_turns_sleeps_after_one_more_look() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let armed = Schedule::Asleep.after(false, true, now, second);
        assert!(armed.is_armed());
        let disarming = armed.after(false, false, now, second);
        assert_eq!(disarming, Schedule::Disarming { next: now + second });
        assert!(disarming.after(true, false, now, second).is_armed());
        let between = now + second / 2;
        assert_eq!(disarming.after(false, false, between, second), disarming);
        let asleep = disarming.after(false, false, now + second, second);
        assert_eq!((asleep, asleep.next()), (Schedule::Asleep, None));
    }

    proptest! {
        /// Against a reference that keeps the whole history.
        #[test]
        fn a_thread_is_stuck_exactly_while_it_was_seen_in_one_turn_for_its_limit(
            steps in prop::collection::vec((0_u64..8, 0_u64..3, any::<bool>()), 1..200),
        ) {
            let mut judgement = Judgement::default();
            let (mut now, mut turn) = (Instant::now(), 0_u64);
            let mut history: Vec<(Instant, u64)> = Vec::new();
            let mut is_stuck = false;
            for (seconds, turns, ends) in steps {
                now += Duration::from_secs(seconds);
                turn = match (turns, ends) {
                    (0, _) => turn,
                    (turns, false) => (turn + 2 * turns) | 1,
                    (turns, true) => (turn + 2 * turns) & !1,
                };
                history.push((now, turn));
                let (findings, is_active) = judgement.look(now, Duration::ZERO, &[sample(turn)]);
                for finding in &findings {
                    match finding {
                        Finding::Stuck(..) => {
                            prop_assert!(!is_stuck);
                            is_stuck = true;
                        }
                        Finding::Recovered(..) => {
                            prop_assert!(is_stuck);
                            is_stuck = false;
                        }
                        Finding::Fatal(_, took) => prop_assert!(is_stuck && *took >= LIMIT * 3),
                    }
                }
                let first = history.iter().rev().take_while(|(_, then)| *then == turn).last();
                let seen_for = first.map_or(Duration::ZERO, |(at, _)| now - *at);
                prop_assert_eq!(is_stuck, turn % 2 == 1 && seen_for >= LIMIT);
                prop_assert_eq!(judgement.is_stuck(&sample(turn)), is_stuck);
                prop_assert!(is_active || turn % 2 == 0);
                let in_turn = judgement.in_turn(&sample(turn), now);
                prop_assert_eq!(in_turn, (turn % 2 == 1).then_some(seen_for));
            }
        }
    }
}
