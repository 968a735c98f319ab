//! How long a data thread busy-polls before it parks.
//!
//! A round trip through the broker takes four wakeups, and a wakeup of a parked thread costs more than all
//! else. While messages follow each other closely, a data thread that busy-polls saves two of them. It does
//! not pay while much data moves: the ends then need the processor.

use std::time::Duration;

/// The longest busy-poll: a wakeup of the other end, and its reply.
const MAX: Duration = Duration::from_micros(40);
/// The first busy-poll after a short wait.
const FIRST: Duration = Duration::from_micros(5);
/// A round that moves more bytes than this is not followed by a busy-poll.
const FEW_BYTES: u64 = 16 * 1024;

/// Adapts to how long the last waits were.
#[derive(Debug)]
pub(super) struct Spin {
    limit: Duration,
    /// A second processor, on which the ends can run meanwhile.
    may_spin: bool,
}

impl Spin {
    /// For a machine with `processors`.
    pub(super) fn new(processors: usize) -> Self {
        Self {
            limit: Duration::ZERO,
            may_spin: processors > 1,
        }
    }

    /// How long to busy-poll now, after a round that moved `bytes`.
    pub(super) fn limit(&self, bytes: u64) -> Duration {
        match self.may_spin && bytes <= FEW_BYTES {
            true => self.limit,
            false => Duration::ZERO,
        }
    }

    /// Records how long the thread waited for an event, busy-polling included.
    pub(super) fn waited(&mut self, time: Duration) {
        self.limit = match time < MAX {
            true => (self.limit * 2).clamp(FIRST, MAX),
            false if self.limit > FIRST => self.limit / 2,
            false => Duration::ZERO,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_start_busy_polling_and_long_ones_end_it() {
        let mut spin = Spin::new(2);
        assert_eq!(spin.limit(64), Duration::ZERO);
        for _ in 0..10 {
            spin.waited(Duration::from_micros(20));
        }
        assert_eq!(spin.limit(64), MAX);
        for _ in 0..4 {
            spin.waited(Duration::from_millis(1));
        }
        assert_eq!(spin.limit(64), Duration::ZERO);
    }

    #[test]
    fn much_data_or_a_single_processor_forbids_busy_polling() {
        for (processors, bytes, want) in [(1, 64, false), (2, 64, true), (2, 1 << 20, false)] {
            let mut spin = Spin::new(processors);
            spin.waited(Duration::ZERO);
            assert_eq!(!spin.limit(bytes).is_zero(), want, "{processors} {bytes}");
        }
    }
}
