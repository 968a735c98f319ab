//! How long a thread looks at the words before it sleeps.
//!
//! To sleep and be woken costs some 10 µs and more where the two ends run on different
//! processors; an answer is often there sooner. But a look that finds nothing is lost time. So the
//! bound grows when looking helped and shrinks when it did not, and now and then a whole look
//! finds out whether the peer has become quicker. Where both run on one processor the peer can do
//! nothing while this end looks; then only the whole looks are left, in which the system may find
//! another processor for it.

use std::hint;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The longest look by default.
pub(crate) const LONGEST: Duration = Duration::from_micros(20);
/// What is left of it after many that were in vain.
const SHORTEST: u32 = 2_000;
/// After so many looks in vain the next one is a whole one.
const RETRY: u32 = 16;
/// Looks at the words between looks at the clock.
const ROUND: u32 = 16;

/// The bound for one direction; in nanoseconds.
#[derive(Debug)]
pub(crate) struct Spin {
    longest: AtomicU32,
    now: AtomicU32,
    in_vain: AtomicU32,
}

impl Spin {
    pub(crate) fn new() -> Self {
        let longest = nanoseconds(LONGEST);
        Self {
            longest: AtomicU32::new(longest),
            now: AtomicU32::new(longest),
            in_vain: AtomicU32::new(0),
        }
    }

    pub(crate) fn set_longest(&self, longest: Duration) {
        let longest = nanoseconds(longest);
        self.longest.store(longest, Ordering::Relaxed);
        self.now.store(longest, Ordering::Relaxed);
    }

    /// Looks until `found`, but not for long; whether it was. `together` is whether the peer runs
    /// on the same processor.
    pub(crate) fn until(&self, together: bool, found: impl Fn() -> bool) -> bool {
        let longest = self.longest.load(Ordering::Relaxed);
        if longest == 0 || !is_worth_it() {
            return false;
        }
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        let whole = in_vain != 0 && in_vain.is_multiple_of(RETRY);
        if together && !whole {
            self.in_vain
                .store(in_vain.wrapping_add(1), Ordering::Relaxed);
            return found();
        }
        let now = self.now.load(Ordering::Relaxed);
        let bound = Duration::from_nanos(if whole { longest } else { now }.into());
        let start = Instant::now();
        loop {
            for _ in 0..ROUND {
                if found() {
                    // Twice what was needed is enough the next time.
                    let needed = nanoseconds(start.elapsed()).saturating_mul(2);
                    let next = needed.max(now).clamp(SHORTEST.min(longest), longest);
                    self.now.store(next, Ordering::Relaxed);
                    self.in_vain.store(0, Ordering::Relaxed);
                    return true;
                }
                hint::spin_loop();
            }
            if start.elapsed() >= bound {
                break;
            }
        }
        self.in_vain
            .store(in_vain.wrapping_add(1), Ordering::Relaxed);
        let next = (now / 2).max(SHORTEST.min(longest));
        self.now.store(next, Ordering::Relaxed);
        false
    }
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// Not where the peer needs the very processor that looks.
fn is_worth_it() -> bool {
    static MANY: OnceLock<bool> = OnceLock::new();
    *MANY.get_or_init(|| std::thread::available_parallelism().is_ok_and(|many| many.get() > 1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_look_in_vain_is_bounded_and_gets_shorter() {
        let spin = Spin::new();
        let start = Instant::now();
        for _ in 0..8 {
            assert!(!spin.until(false, || false));
        }
        assert!(start.elapsed() < Duration::from_millis(100));
        if is_worth_it() {
            assert_eq!(spin.now.load(Ordering::Relaxed), SHORTEST);
            assert!(spin.until(false, || true));
            assert_eq!(spin.in_vain.load(Ordering::Relaxed), 0);
        }
        // Beside its peer it looks for long only now and then.
        let long = (0..RETRY).filter(|_| {
            let start = Instant::now();
            spin.until(true, || false);
            start.elapsed() >= LONGEST
        });
        assert!(long.count() < RETRY as usize);
        spin.set_longest(Duration::ZERO);
        assert!(!spin.until(false, || true));
    }
}
