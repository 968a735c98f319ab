//! What to do about a clock that is off: step it, slew it, or leave it.
//!
//! The clock's rate is learnt from how it drifts between two measurements: what is left of an offset
//! after what was corrected of it is the rate's fault. So in a machine at rest there is ever less to
//! slew. Time comes in as an argument.

use std::time::Duration;

use super::sample::Offset;

/// From here on an offset is stepped, since slewing it would take minutes.
const STEP: u64 = 100_000_000;

/// The same for a clock of which nothing is known yet, or that stood still.
const STEP_FRESH: u64 = 1_000_000;

/// The same for a clock that another program keeps.
const STEP_OTHERS: u64 = 1_000_000_000;

/// How many nanoseconds a second the kernel slews (`adjtime`).
const SLEW_RATE: i64 = 500_000;

/// The kernel's limit for a rate, in billionths.
const FASTEST: i64 = 500_000;

/// An offset below this is good: measurements become rarer.
const GOOD: u64 = 1_000_000;

/// From one measurement to the next: at first, between good ones at first, and in the end.
const SOON: Duration = Duration::from_secs(4);
const OFTEN: Duration = Duration::from_secs(16);
const SELDOM: Duration = Duration::from_secs(64);

/// The shortest time over which a drift means something, and one over which it means what it says.
const LONG_ENOUGH: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(32);

/// Who keeps the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// This program.
    Us,
    /// Another one, such as an NTP client.
    Other,
    /// The host: it is its own clock.
    Host,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Correction {
    /// Nothing.
    Leave,
    /// Set it by so many nanoseconds.
    Step(i64),
    /// Let it run so many nanoseconds faster or slower for a while, and at this rate for good, in
    /// billionths.
    Slew { ns: i64, rate: i64 },
}

/// What is known of a clock.
#[derive(Debug)]
pub(super) struct Discipline {
    /// The rate that the kernel was given, in billionths.
    rate: i64,
    /// The next offset says nothing of the rate, and may be stepped even if it is small.
    fresh: bool,
    last: Option<Last>,
    pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Duration,
    /// The offset that was left, once the slewing is done.
    left: i64,
    slew: i64,
}

impl Discipline {
    /// A clock that runs at the kernel's `rate`, of which nothing else is known.
    pub(super) fn new(rate: i64) -> Self {
        Self {
            rate: rate.clamp(-FASTEST, FASTEST),
            fresh: true,
            last: None,
            pause: SOON,
        }
    }

    /// The clock may have stood still, or somebody set it.
    pub(super) fn disturbed(&mut self) {
        self.fresh = true;
        self.last = None;
        self.pause = SOON;
    }

    /// How long to wait for the next measurement.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// What to do about an offset that was measured at `now`, by a clock that nobody sets.
    pub(super) fn decide(&mut self, now: Duration, offset: Offset, keeper: Keeper) -> Correction {
        let size = offset.ns.unsigned_abs();
        let certain = size > offset.error_ns;
        if keeper != Keeper::Us {
            self.disturbed();
            self.pause = OFTEN;
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
        // What the error allows to be nothing is believed in part, since it hardly ever is all error.
        let part = if certain { 1 } else { 2 };
        if let Some(last) = self.last.filter(|last| now >= last.at + LONG_ENOUGH) {
            let elapsed = now.saturating_sub(last.at);
            let left = offset.ns - last.remaining(elapsed);
            let part = if left.unsigned_abs() > offset.error_ns {
                2
            } else {
                4
            };
            // What is uncertain of an offset weighs the more, the shorter the time: so the drift is taken
            // for what it would be over a longer one.
            let drift = per_billion(left, elapsed.max(LONG));
            self.rate = (self.rate - drift / part).clamp(-FASTEST, FASTEST);
        }
        let ns = -offset.ns / part;
        self.last = Some(Last {
            at: now,
            left: offset.ns + ns,
            slew: ns,
        });
        self.pause = match size {
            _ if self.fresh => SOON,
            GOOD.. => OFTEN.min(self.pause * 2),
            _ => SELDOM.min(self.pause * 2),
        };
        self.fresh = false;
        let rate = self.rate;
        Correction::Slew { ns, rate }
    }

    fn step(&mut self, offset: Offset) -> Correction {
        // What is left is measured at once, and slewed.
        (self.fresh, self.last, self.pause) = (false, None, SOON);
        Correction::Step(-offset.ns)
    }
}

impl Last {
    /// The offset that a clock of the right rate would have now.
    fn remaining(self, elapsed: Duration) -> i64 {
        let slewed = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX / SLEW_RATE);
        let slewed = slewed.saturating_mul(SLEW_RATE / 1000);
        let undone = (self.slew.abs() - slewed).max(0) * self.slew.signum();
        self.left - undone
    }
}

/// Nanoseconds over some time, in billionths.
fn per_billion(ns: i64, over: Duration) -> i64 {
    let over = i128::try_from(over.as_nanos()).unwrap_or(i128::MAX).max(1);
    let rate = i128::from(ns) * 1_000_000_000 / over;
    let limit = i128::from(FASTEST) * 4;
    i64::try_from(rate.clamp(-limit, limit)).unwrap_or_default()
}

#[cfg(test)]
#[path = "discipline_tests.rs"]
mod tests;
