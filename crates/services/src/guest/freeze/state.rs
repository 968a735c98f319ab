//! The state of one freeze: the next filesystem, the deadline, and what to thaw at the end.
//!
//! Freezing a filesystem may block, and the freeze may end meanwhile. So two threads use the state:
//! the one that freezes ([`FreezeState::next`], [`FreezeState::froze`]) and the one that ends the
//! freeze ([`FreezeState::end`]). In every order of these calls, each frozen filesystem is thawed
//! once, and none stays frozen.

use std::time::{Duration, Instant};

/// The filesystems of a freeze, by their index in the list of those to freeze.
#[derive(Clone, Debug)]
pub struct FreezeState {
    count: usize,
    begin: Instant,
    limit: Duration,
    next: usize,
    /// In the order of freezing.
    frozen: Vec<usize>,
    over: bool,
}

/// The next step of the thread that freezes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Freeze this filesystem.
    Freeze(usize),
    /// Stop: all are frozen.
    Complete,
    /// Stop: the freeze has ended or its time limit has passed.
    Over,
}

/// The next action for a filesystem that was just frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeOutcome {
    /// It stays frozen for now.
    Keep,
    /// The freeze has ended meanwhile: the thread that froze it thaws it.
    Thaw,
}

impl FreezeState {
    /// A freeze of `count` filesystems that begins at `begin` and lasts at most `limit`.
    pub fn new(count: usize, begin: Instant, limit: Duration) -> Self {
        Self {
            count,
            begin,
            limit,
            next: 0,
            frozen: Vec::new(),
            over: false,
        }
    }

    /// Returns the next step.
    pub fn next(&mut self, now: Instant) -> NextStep {
        if self.over || now >= self.due() {
            return NextStep::Over;
        }
        if self.next == self.count {
            return NextStep::Complete;
        }
        self.next += 1;
        NextStep::Freeze(self.next - 1)
    }

    /// Records that a filesystem was frozen.
    pub fn froze(&mut self, which: usize) -> FreezeOutcome {
        if self.over {
            return FreezeOutcome::Thaw;
        }
        self.frozen.push(which);
        FreezeOutcome::Keep
    }

    /// The deadline of the freeze.
    pub fn due(&self) -> Instant {
        self.begin + self.limit
    }

    /// How long the freeze has lasted.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begin)
    }

    /// Ends the freeze. Returns the filesystems to thaw, the last frozen first: a filesystem that
    /// is stored on another one can only be written to when the other one is thawed.
    pub fn end(&mut self) -> Vec<usize> {
        self.over = true;
        let mut frozen = std::mem::take(&mut self.frozen);
        frozen.reverse();
        frozen
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn filesystems_are_frozen_in_order_and_thawed_in_reverse() {
        let now = Instant::now();
        let mut state = FreezeState::new(2, now, LIMIT);
        for which in [0, 1] {
            assert_eq!(state.next(now), NextStep::Freeze(which));
            assert_eq!(state.froze(which), FreezeOutcome::Keep);
        }
        assert_eq!(state.next(now), NextStep::Complete);
        assert_eq!(state.due(), now + LIMIT);
        assert_eq!(state.age(now + LIMIT / 2), LIMIT / 2);
        assert_eq!(state.end(), [1, 0]);
        assert_eq!(state.end(), [0; 0]);
    }

    #[test]
    fn no_filesystem_is_frozen_after_the_deadline() {
        let now = Instant::now();
        let mut state = FreezeState::new(2, now, LIMIT);
        assert_eq!(state.next(now), NextStep::Freeze(0));
        assert_eq!(state.froze(0), FreezeOutcome::Keep);
        assert_eq!(state.next(now + LIMIT), NextStep::Over);
        assert_eq!(state.end(), [0]);
    }

    #[test]
    fn a_filesystem_frozen_after_the_end_is_thawed() {
        let now = Instant::now();
        let mut state = FreezeState::new(2, now, LIMIT);
        assert_eq!(state.next(now), NextStep::Freeze(0));
        assert_eq!(state.end(), [0; 0]);
        assert_eq!(state.froze(0), FreezeOutcome::Thaw);
        assert_eq!(state.next(now), NextStep::Over);
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        /// The thread advances: it gets the next step, or its system call returns, with or without
        /// an error.
        Step {
            fails: bool,
        },
        Wait(u64),
        End,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => any::<bool>().prop_map(|fails| Op::Step { fails }),
            1 => (0..4000u64).prop_map(Op::Wait),
            1 => Just(Op::End),
        ]
    }

    proptest! {
        /// Checks against a model of the kernel: a flag for each filesystem.
        #[test]
        fn nothing_stays_frozen_after_any_sequence(
            count in 0..6usize,
            ops in proptest::collection::vec(op(), 0..40),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut state = FreezeState::new(count, begin, LIMIT);
            let mut kernel = vec![false; count];
            let mut in_progress = None;
            let mut ended = false;
            for op in ops.into_iter().chain([Op::End, Op::Step { fails: false }]) {
                match op {
                    Op::Wait(by) => now += Duration::from_millis(by),
                    Op::End => {
                        ended = true;
                        for which in state.end() {
                            prop_assert!(kernel[which], "thawed twice, or never frozen");
                            kernel[which] = false;
                        }
                    }
                    Op::Step { fails } => match in_progress.take() {
                        Some(_) if fails => {}
                        Some(which) => {
                            kernel[which] = true;
                            if state.froze(which) == FreezeOutcome::Thaw {
                                kernel[which] = false;
                            }
                        }
                        None => match state.next(now) {
                            NextStep::Freeze(which) => {
                                prop_assert!(!kernel[which] && !ended);
                                in_progress = Some(which);
                            }
                            NextStep::Complete => prop_assert!(!ended),
                            NextStep::Over => {
                                let late = now >= state.due();
                                prop_assert!(ended || late);
                            }
                        },
                    },
                }
            }
            prop_assert!(kernel.iter().all(|frozen| !frozen));
        }
    }
}
