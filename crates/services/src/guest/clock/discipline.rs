//! Decides how to correct a clock: step it, slew it, or leave it.
//!
//! The clock's rate is estimated from its drift between two measurements: the part of an offset that
//! remains after the correction is an error of the rate. So a machine at rest needs ever smaller
//! slews. The time is an argument.

use std::time::Duration;

use super::sample::Offset;

/// From this offset on the clock is stepped, because slewing would take minutes. In nanoseconds.
const STEP: u64 = 100_000_000;

/// The same for the first offset, and for the first after the clock was set or suspended.
const STEP_FRESH: u64 = 1_000_000;

/// The same for a clock that another program keeps.
const STEP_OTHERS: u64 = 1_000_000_000;

/// The kernel's slew rate, in nanoseconds per second (adjtime(3)).
const SLEW_RATE: i64 = 500_000;

/// The kernel's limit for a rate, in parts per billion.
const MAX_RATE: i64 = 500_000;

/// Offsets below this are good: measurements become rarer. In nanoseconds.
const GOOD_OFFSET: u64 = 1_000_000;

/// The interval between measurements after the first one, a step or a disturbance.
const INITIAL_INTERVAL: Duration = Duration::from_secs(4);
/// The longest interval while offsets are not good, and the interval while the agent does not
/// correct the clock.
const SHORT_INTERVAL: Duration = Duration::from_secs(16);
/// The longest interval while offsets are good.
const LONG_INTERVAL: Duration = Duration::from_secs(64);

/// The shortest time over which a drift is significant.
const MIN_DRIFT_TIME: Duration = Duration::from_secs(3);
/// The time from which on a drift is fully used.
const FULL_DRIFT_TIME: Duration = Duration::from_secs(32);

/// The program that corrects the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// The agent.
    Agent,
    /// Another program, such as an NTP client.
    Other,
    /// The host: the clock is the host's.
    Host,
}

/// A correction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Correction {
    /// None.
    Leave,
    /// Step the clock by this many nanoseconds.
    Step(i64),
    /// Slew the clock by this many nanoseconds, and set its rate, in parts per billion.
    Slew { ns: i64, rate: i64 },
}

/// The state of a clock's discipline.
#[derive(Debug)]
pub(super) struct Discipline {
    /// The rate that is set in the kernel, in parts per billion.
    rate: i64,
    /// The next offset does not change the rate, and is stepped above [`STEP_FRESH`].
    fresh: bool,
    last: Option<Last>,
    interval: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Duration,
    /// The offset that remains when the slew is complete, in nanoseconds.
    left: i64,
    slew: i64,
}

impl Discipline {
    /// A clock that runs at the kernel's `rate`, of which nothing else is known.
    pub(super) fn new(rate: i64) -> Self {
        Self {
            rate: rate.clamp(-MAX_RATE, MAX_RATE),
            fresh: true,
            last: None,
            interval: INITIAL_INTERVAL,
        }
    }

    /// Handles a clock that was set or may have been suspended.
    pub(super) fn disturbed(&mut self) {
        self.fresh = true;
        self.last = None;
        self.interval = INITIAL_INTERVAL;
    }

    /// The interval until the next measurement.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Decides about an offset that was measured at `now`, by a clock that is never set.
    pub(super) fn decide(&mut self, now: Duration, offset: Offset, keeper: Keeper) -> Correction {
        let size = offset.ns.unsigned_abs();
        let certain = size > offset.error_ns;
        if keeper != Keeper::Agent {
            self.disturbed();
            self.interval = SHORT_INTERVAL;
            let step = keeper == Keeper::Other && size > STEP_OTHERS && certain;
            return if step {
                self.step(offset)
            } else {
                Correction::Leave
            };
        }
        let limit = if self.fresh { STEP_FRESH } else { STEP };
        if size > limit && certain {
            return self.step(offset);
        }
        // An offset within the error is corrected in part, because it is hardly ever all error.
        let part = if certain { 1 } else { 2 };
        if let Some(last) = self.last.filter(|last| now >= last.at + MIN_DRIFT_TIME) {
            let elapsed = now.saturating_sub(last.at);
            let left = offset.ns - last.remaining(elapsed);
            let part = if left.unsigned_abs() > offset.error_ns {
                2
            } else {
                4
            };
            // The shorter the time, the larger the share of the error: so the drift is scaled to a
            // longer time.
            let drift = per_billion(left, elapsed.max(FULL_DRIFT_TIME));
            self.rate = (self.rate - drift / part).clamp(-MAX_RATE, MAX_RATE);
        }
        let ns = -offset.ns / part;
        self.last = Some(Last {
            at: now,
            left: offset.ns + ns,
            slew: ns,
        });
        self.interval = match size {
            _ if self.fresh => INITIAL_INTERVAL,
            GOOD_OFFSET.. => SHORT_INTERVAL.min(self.interval * 2),
            _ => LONG_INTERVAL.min(self.interval * 2),
        };
        self.fresh = false;
        let rate = self.rate;
        Correction::Slew { ns, rate }
    }

    fn step(&mut self, offset: Offset) -> Correction {
        // The rest is measured at once, and slewed.
        (self.fresh, self.last, self.interval) = (false, None, INITIAL_INTERVAL);
        Correction::Step(-offset.ns)
    }
}

impl Last {
    /// The offset that a clock with the right rate would have now.
    fn remaining(self, elapsed: Duration) -> i64 {
        let slewed = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX / SLEW_RATE);
        let slewed = slewed.saturating_mul(SLEW_RATE / 1000);
        let undone = (self.slew.abs() - slewed).max(0) * self.slew.signum();
        self.left - undone
    }
}

/// Converts nanoseconds over a duration to parts per billion.
fn per_billion(ns: i64, over: Duration) -> i64 {
    let over = i128::try_from(over.as_nanos()).unwrap_or(i128::MAX).max(1);
    let rate = i128::from(ns) * 1_000_000_000 / over;
    let limit = i128::from(MAX_RATE) * 4;
    i64::try_from(rate.clamp(-limit, limit)).unwrap_or_default()
}

#[cfg(test)]
#[path = "discipline_tests.rs"]
mod tests;
