//! Adaptive spinning (busy-polling) before a thread parks.
//!
//! A park and a wakeup cost 10 µs or more if the two ends run on different processors; the peer's
//! answer is often faster. But a spin that finds nothing wastes time. So the bound grows after a
//! spin that succeeded and shrinks after one that failed. After every [`RETRY`] failures one full
//! spin detects whether the peer has become faster. If both ends run on one processor, the peer
//! cannot run while this end spins. Then this end makes full spins only, after every [`RETRY_ON_ONE`]
//! failures, during which the scheduler may move one end to another processor.

use std::hint;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The default upper bound of a spin.
pub(crate) const LONGEST: Duration = Duration::from_micros(20);
/// The lower bound in nanoseconds, after many failures.
const SHORTEST: u32 = 2_000;
/// The number of failures after which one spin is a full one.
const RETRY: u32 = 16;
/// As [`RETRY`], for two ends on one processor, which each full spin stops for its time.
const RETRY_ON_ONE: u32 = 256;
/// The number of checks between two readings of the clock.
const CHECKS: u32 = 16;

/// The spin state of one direction. All times are in nanoseconds.
#[derive(Debug)]
pub(crate) struct Spin {
    longest: AtomicU32,
    bound: AtomicU32,
    failures: AtomicU32,
}

impl Spin {
    pub(crate) fn new() -> Self {
        let longest = nanoseconds(LONGEST);
        Self {
            longest: AtomicU32::new(longest),
            bound: AtomicU32::new(longest),
            failures: AtomicU32::new(0),
        }
    }

    pub(crate) fn set_longest(&self, longest: Duration) {
        let longest = nanoseconds(longest);
        self.longest.store(longest, Ordering::Relaxed);
        self.bound.store(longest, Ordering::Relaxed);
    }

    /// Whether this process ever spins.
    pub(crate) fn is_enabled(&self) -> bool {
        self.longest.load(Ordering::Relaxed) != 0 && has_many_processors()
    }

    /// Spins until `found` returns true or the bound is reached. Returns whether it was found.
    /// `same_processor` is whether the peer runs on this processor.
    pub(crate) fn until(&self, same_processor: bool, found: impl Fn() -> bool) -> bool {
        has_many_processors() && self.until_by(same_processor, found, Instant::now)
    }

    /// As [`Spin::until`], with the caller's clock.
    fn until_by(
        &self,
        same_processor: bool,
        found: impl Fn() -> bool,
        clock: impl Fn() -> Instant,
    ) -> bool {
        let longest = self.longest.load(Ordering::Relaxed);
        if longest == 0 {
            return false;
        }
        let failures = self.failures.load(Ordering::Relaxed);
        let retry = if same_processor { RETRY_ON_ONE } else { RETRY };
        let is_full = failures != 0 && failures.is_multiple_of(retry);
        if same_processor && !is_full {
            self.failures
                .store(failures.wrapping_add(1), Ordering::Relaxed);
            return found();
        }
        let bound = self.bound.load(Ordering::Relaxed);
        let limit = Duration::from_nanos(if is_full { longest } else { bound }.into());
        let start = clock();
        loop {
            for _ in 0..CHECKS {
                if found() {
                    // Twice the time needed is enough the next time.
                    let needed = nanoseconds(clock() - start).saturating_mul(2);
                    let next = needed.max(bound).clamp(SHORTEST.min(longest), longest);
                    self.bound.store(next, Ordering::Relaxed);
                    self.failures.store(0, Ordering::Relaxed);
                    return true;
                }
                hint::spin_loop();
            }
            if clock() - start >= limit {
                break;
            }
        }
        self.failures
            .store(failures.wrapping_add(1), Ordering::Relaxed);
        let next = (bound / 2).max(SHORTEST.min(longest));
        self.bound.store(next, Ordering::Relaxed);
        false
    }
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// Whether spinning can help: with a single processor the peer cannot run while this end spins.
fn has_many_processors() -> bool {
    static MANY: OnceLock<bool> = OnceLock::new();
    *MANY.get_or_init(|| std::thread::available_parallelism().is_ok_and(|many| many.get() > 1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Spins by a clock that advances 1 µs at each reading. Returns the result of the spin and the
    /// number of checks.
    fn spin(spin: &Spin, same_processor: bool, found_at: Option<u32>) -> (bool, u32) {
        let (checks, time) = (Cell::new(0), Cell::new(Instant::now()));
        let found = || {
            checks.set(checks.get() + 1);
            Some(checks.get()) == found_at
        };
        let clock = || time.replace(time.get() + Duration::from_micros(1));
        let is_found = spin.until_by(same_processor, found, clock);
        (is_found, checks.get())
    }

    #[test]
    fn a_failed_spin_is_bounded_and_halves_the_next_one() {
        let state = Spin::new();
        // 20 µs, 10 µs, 5 µs, 2.5 µs, then the minimum of 2 µs.
        for microseconds in [20, 10, 5, 3, 2, 2, 2] {
            assert_eq!(spin(&state, false, None), (false, microseconds * CHECKS));
        }
        assert_eq!(state.bound.load(Ordering::Relaxed), SHORTEST);
        // A success within twice the bound keeps it, and resets the count of failures.
        assert_eq!(spin(&state, false, Some(1)), (true, 1));
        assert_eq!(state.bound.load(Ordering::Relaxed), SHORTEST);
        assert_eq!(state.failures.load(Ordering::Relaxed), 0);
        // A later success doubles it.
        assert_eq!(spin(&state, false, Some(2 * CHECKS)), (true, 2 * CHECKS));
        assert_eq!(state.bound.load(Ordering::Relaxed), 2 * SHORTEST);
    }

    #[test]
    fn every_16_failures_there_is_one_full_spin_and_every_256_on_one_processor() {
        let full = LONGEST.as_micros() as u32 * CHECKS;
        for (same_processor, retry) in [(false, RETRY), (true, RETRY_ON_ONE)] {
            let state = Spin::new();
            let failures: Vec<u32> = (0..=2 * retry)
                .map(|_| spin(&state, same_processor, None).1)
                .collect();
            let is_full = |at: &usize| failures[*at] == full;
            let full: Vec<usize> = (1..failures.len()).filter(is_full).collect();
            assert_eq!(full, [retry as usize, 2 * retry as usize]);
            if same_processor {
                // All others check once and do not spin.
                let once = failures.iter().filter(|checks| **checks == 1).count();
                assert_eq!(once, failures.len() - 2);
            }
        }
    }

    #[test]
    fn a_bound_of_zero_disables_spinning() {
        let state = Spin::new();
        state.set_longest(Duration::ZERO);
        assert_eq!(spin(&state, false, Some(1)), (false, 0));
        assert!(!state.until(false, || true));
    }
}
