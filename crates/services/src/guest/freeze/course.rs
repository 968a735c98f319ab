//! The course of one freeze: which filesystem comes next, until when, and what to thaw in the end.
//!
//! Freezing one may take long, and the end may come meanwhile, so two ask: the thread that
//! freezes ([`Course::next`], [`Course::froze`]) and whoever ends it ([`Course::end`]). Whatever the
//! order of their calls, each filesystem that was frozen is thawed once, and none stays frozen.

use std::time::{Duration, Instant};

/// Filesystems by their place in the list of those to freeze.
#[derive(Clone, Debug)]
pub struct Course {
    count: usize,
    begin: Instant,
    limit: Duration,
    next: usize,
    /// In the order in which they were frozen.
    frozen: Vec<usize>,
    over: bool,
}

/// What the thread that freezes is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Freeze this one.
    Freeze(usize),
    /// Nothing more: all are frozen.
    Complete,
    /// Nothing more: it is over.
    Over,
}

/// What becomes of one that has just been frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays frozen for now.
    Keep,
    /// The end came meanwhile: whoever froze it thaws it.
    Thaw,
}

impl Course {
    /// Of `count` filesystems, from `begin` on and for so long at the most.
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

    /// What to do next.
    pub fn next(&mut self, now: Instant) -> Next {
        if self.over || now >= self.due() {
            return Next::Over;
        }
        if self.next == self.count {
            return Next::Complete;
        }
        self.next += 1;
        Next::Freeze(self.next - 1)
    }

    /// One is frozen.
    pub fn froze(&mut self, which: usize) -> Fate {
        if self.over {
            return Fate::Thaw;
        }
        self.frozen.push(which);
        Fate::Keep
    }

    /// When it has to end.
    pub fn due(&self) -> Instant {
        self.begin + self.limit
    }

    /// For how long it has been going on.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begin)
    }

    /// Ends it. What is frozen is to be thawed, the last one that was frozen first: what lies on
    /// another can only be written to once that is.
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
    fn all_are_frozen_in_order_and_thawed_the_other_way_round() {
        let now = Instant::now();
        let mut course = Course::new(2, now, LIMIT);
        for which in [0, 1] {
            assert_eq!(course.next(now), Next::Freeze(which));
            assert_eq!(course.froze(which), Fate::Keep);
        }
        assert_eq!(course.next(now), Next::Complete);
        assert_eq!(course.due(), now + LIMIT);
        assert_eq!(course.age(now + LIMIT / 2), LIMIT / 2);
        assert_eq!(course.end(), [1, 0]);
        assert_eq!(course.end(), [0; 0]);
    }

    #[test]
    fn none_is_begun_once_the_time_is_over() {
        let now = Instant::now();
        let mut course = Course::new(2, now, LIMIT);
        assert_eq!(course.next(now), Next::Freeze(0));
        assert_eq!(course.froze(0), Fate::Keep);
        assert_eq!(course.next(now + LIMIT), Next::Over);
        assert_eq!(course.end(), [0]);
    }

    #[test]
    fn one_that_is_frozen_after_the_end_does_not_stay_so() {
        let now = Instant::now();
        let mut course = Course::new(2, now, LIMIT);
        assert_eq!(course.next(now), Next::Freeze(0));
        assert_eq!(course.end(), [0; 0]);
        assert_eq!(course.froze(0), Fate::Thaw);
        assert_eq!(course.next(now), Next::Over);
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        /// The thread goes on: it asks, or its call comes back, well or not.
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
        /// Against what the kernel would know: a flag for each filesystem.
        #[test]
        fn whatever_happens_nothing_stays_frozen(
            count in 0..6usize,
            ops in proptest::collection::vec(op(), 0..40),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut course = Course::new(count, begin, LIMIT);
            let mut kernel = vec![false; count];
            let mut under_way = None;
            let mut ended = false;
            for op in ops.into_iter().chain([Op::End, Op::Step { fails: false }]) {
                match op {
                    Op::Wait(by) => now += Duration::from_millis(by),
                    Op::End => {
                        ended = true;
                        for which in course.end() {
                            prop_assert!(kernel[which], "thawed twice, or never frozen");
                            kernel[which] = false;
                        }
                    }
                    Op::Step { fails } => match under_way.take() {
                        Some(_) if fails => {}
                        Some(which) => {
                            kernel[which] = true;
                            if course.froze(which) == Fate::Thaw {
                                kernel[which] = false;
                            }
                        }
                        None => match course.next(now) {
                            Next::Freeze(which) => {
                                prop_assert!(!kernel[which] && !ended);
                                under_way = Some(which);
                            }
                            Next::Complete => prop_assert!(!ended),
                            Next::Over => {
                                let late = now >= course.due();
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
