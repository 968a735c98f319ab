//! Adaptive spinning before a wait: of an acceptor for the next connect, of a client for the broker's reply.
//!
//! A wait and a wakeup cost more than most peers need for what is awaited. A spin that finds nothing
//! takes time from a peer on the same processor. So its length doubles after a spin that succeeded and
//! halves after one that failed; now and then a full one detects that peers have become faster.

use std::hint;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The shortest spin, in nanoseconds.
const SHORTEST: u32 = 500;
/// After so many failures one spin is a full one.
const RETRY: u32 = 32;
/// Checks between two readings of the clock.
const CHECKS: u32 = 8;

/// The length of the next spin.
#[derive(Debug)]
pub(super) struct Spin {
    /// The longest spin, in nanoseconds.
    longest: u32,
    bound: AtomicU32,
    failures: AtomicU32,
}

impl Spin {
    /// Spins of up to `longest`.
    pub(super) const fn up_to(longest: Duration) -> Self {
        let longest = longest.subsec_nanos();
        Self {
            longest,
            bound: AtomicU32::new(longest),
            failures: AtomicU32::new(0),
        }
    }

    /// Spins until `found` returns true, for the present length. Returns whether it did.
    pub(super) fn until(&self, found: impl Fn() -> bool) -> bool {
        has_many_processors() && self.until_by(found, Instant::now)
    }

    fn until_by(&self, found: impl Fn() -> bool, clock: impl Fn() -> Instant) -> bool {
        let (bound, failures) = (
            self.bound.load(Ordering::Relaxed),
            self.failures.load(Ordering::Relaxed),
        );
        let is_full = failures != 0 && failures.is_multiple_of(RETRY);
        let length = Duration::from_nanos(if is_full { self.longest } else { bound }.into());
        let start = clock();
        loop {
            for _ in 0..CHECKS {
                if found() {
                    let next = bound.saturating_mul(2).min(self.longest);
                    self.bound.store(next, Ordering::Relaxed);
                    self.failures.store(0, Ordering::Relaxed);
                    return true;
                }
                hint::spin_loop();
            }
            if clock() - start >= length {
                break;
            }
        }
        self.failures
            .store(failures.wrapping_add(1), Ordering::Relaxed);
        self.bound
            .store((bound / 2).max(SHORTEST), Ordering::Relaxed);
        false
    }
}

/// With one processor the client cannot connect while this thread spins.
fn has_many_processors() -> bool {
    static MANY: OnceLock<bool> = OnceLock::new();
    *MANY.get_or_init(|| std::thread::available_parallelism().is_ok_and(|many| many.get() > 1))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_spin_gets_shorter_while_it_fails_and_longer_when_it_succeeds() {
        let time = Cell::new(Instant::now());
        let clock = || time.replace(time.get() + Duration::from_nanos(100));
        const LONGEST: Duration = Duration::from_micros(20);
        let spin = Spin::up_to(LONGEST);
        let lengths: Vec<_> = (0..RETRY)
            .map(|_| {
                let start = time.get();
                assert!(!spin.until_by(|| false, clock));
                (time.get() - start).as_nanos()
            })
            .collect();
        assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
        assert!(lengths[RETRY as usize - 1] < 1_000, "{lengths:?}");
        let start = time.get();
        assert!(!spin.until_by(|| false, clock));
        assert!(time.get() - start >= LONGEST);
        assert!(spin.until_by(|| true, clock));
        assert_eq!(spin.bound.load(Ordering::Relaxed), 2 * SHORTEST);
    }
}
