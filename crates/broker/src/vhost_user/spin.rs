//! How long a data thread spins before it parks.

use std::time::Duration;

/// The longest that the thread spins before it parks.
const MAX: Duration = Duration::from_micros(20);
/// A shorter spin is none.
const MIN: Duration = Duration::from_micros(2);
/// A park shorter than this may have been one that spinning would have saved: its time includes that of the
/// wakeup.
const SHORT_PARK: Duration = Duration::from_micros(60);
/// Short parks after which a thread whose spinning found nothing tries it again: at first, and at most.
const RETRIES: [u32; 2] = [4, 256];

/// The time to spin, which follows whether spinning has found work. A thread that spins in vain keeps the
/// processor from those that it waits for.
#[derive(Debug)]
pub(super) struct SpinLimit {
    limit: Duration,
    /// Short parks until the next try.
    retry: u32,
    /// Those after that try, if it finds nothing.
    backoff: u32,
    /// Spinning needs a second processor on which the guest or process can run meanwhile.
    may_spin: bool,
}

impl SpinLimit {
    pub(super) fn new(may_spin: bool) -> Self {
        Self {
            limit: Duration::ZERO,
            retry: 1,
            backoff: RETRIES[0],
            may_spin,
        }
    }

    /// How long to spin now; `None` to park at once.
    pub(super) fn get(&self) -> Option<Duration> {
        (self.may_spin && !self.limit.is_zero()).then_some(self.limit)
    }

    /// Adapts to whether a spin has found work.
    pub(super) fn spun(&mut self, found: bool) {
        if found {
            self.limit = (self.limit * 2).min(MAX);
            self.backoff = RETRIES[0];
            return;
        }
        self.limit /= 2;
        if self.limit < MIN {
            self.limit = Duration::ZERO;
            self.retry = self.backoff;
            self.backoff = (self.backoff * 2).min(RETRIES[1]);
        }
    }

    /// Adapts to how long a park took.
    pub(super) fn parked(&mut self, time: Duration) {
        if time >= SHORT_PARK {
            self.limit /= 2;
        } else if self.limit.is_zero() {
            self.retry = self.retry.saturating_sub(1);
            if self.retry == 0 {
                self.limit = MAX;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_spins_as_long_as_that_finds_work_and_tries_it_rarely_otherwise() {
        const SHORT: Duration = Duration::from_micros(10);
        let mut limit = SpinLimit::new(true);
        assert_eq!(limit.get(), None);
        limit.parked(SHORT);
        assert_eq!(limit.get(), Some(MAX));
        (0..10).for_each(|_| limit.spun(true));
        assert_eq!(limit.get(), Some(MAX));
        let mut spins = 0;
        for _ in 0..10_000 {
            if limit.get().is_some() {
                spins += 1;
                limit.spun(false);
            }
            limit.parked(SHORT);
        }
        assert!((5..200).contains(&spins), "{spins}");
        // Work that comes soon again is found at the next try.
        let tries = (0..=RETRIES[1]).take_while(|_| {
            limit.parked(SHORT);
            limit.get().is_none()
        });
        assert!(tries.count() <= RETRIES[1] as usize);
        assert!(limit.get().is_some());
        assert_eq!(SpinLimit::new(false).get(), None);
    }
}
