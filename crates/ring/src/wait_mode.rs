//! Chooses how a writer waits that finds the ring full, and a reader that finds it empty, while they move a
//! stream.
//!
//! Two ways move bytes fast, and which of them is the faster one depends on the machine and on what else
//! runs on it:
//!
//! - [`WaitMode::Spin`]: both ends run on two processors and spin. The bytes cross from one cache to the
//!   other, at a rate that a busy neighbour can lower several-fold.
//! - [`WaitMode::Park`]: the end that waits parks at once. Where the scheduler wakes it on the processor of the
//!   other end, they alternate, and the bytes stay in that processor's cache: from then on neither spins.
//!
//! Nobody can tell in advance, so the faster end, which is the one that waits, measures: it compares the rates
//! of both, keeps the better one, and tries the other one again now and then. An idle connection, and one that
//! moves messages, is never measured.

use std::time::{Duration, Instant};

/// How an end waits for the other one to move on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitMode {
    /// Spins before it parks.
    Spin,
    /// Parks at once; a writer until half of the ring is free.
    Park,
}

impl WaitMode {
    fn other(self) -> Self {
        match self {
            Self::Spin => Self::Park,
            Self::Park => Self::Spin,
        }
    }
}

/// The shortest time over which a rate is measured.
const WINDOW: Duration = Duration::from_micros(500);
/// A longer time between two waits is a pause of the program, over which no rate is measured, unless many
/// bytes were moved in it.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes that a program which pauses does not move between two waits.
const MANY: u64 = 8 << 20;
/// The longest time between two trials, unless a trial takes long.
const INTERVAL: Duration = Duration::from_millis(64);
/// The time before the first trial, and before the one after a change.
const FIRST_INTERVAL: Duration = Duration::from_millis(8);
/// A trial may take one part in so many of the time. Both ends of a stream may make trials.
const TRIAL_SHARE: u32 = 80;
/// The other mode is taken if its rate is higher by this factor, twice in sequence. Smaller differences
/// are within the noise.
const BETTER: f64 = 1.15;

/// The choice of one end for one direction.
#[derive(Debug)]
pub(crate) struct Choice {
    current: WaitMode,
    /// The rate of the current mode in bytes per second: an average in which the last windows weigh most.
    rate: Option<f64>,
    /// The number of windows of the other mode that were better; `None` while the current one is used.
    trial: Option<u32>,
    /// The begin of the window: time and position in the stream.
    begin: Option<(Instant, u64)>,
    /// The last wait: time and position in the stream.
    last: Option<(Instant, u64)>,
    /// The position at the last pause.
    paused_at: u64,
    /// The time of the next trial.
    next_trial: Option<Instant>,
    /// The time between the last trial and the next one.
    interval: Duration,
}

impl Choice {
    pub(crate) fn new() -> Self {
        Self {
            current: WaitMode::Spin,
            rate: None,
            trial: None,
            begin: None,
            last: None,
            paused_at: 0,
            next_trial: None,
            interval: FIRST_INTERVAL,
        }
    }

    /// The end is about to wait, after it has moved `position` bytes in all, modulo 2^64. Returns how to wait.
    pub(crate) fn wait(&mut self, now: Instant, position: u64) -> WaitMode {
        let paused = self.last.is_none_or(|(last, from)| {
            since(now, last) > PAUSE && position.wrapping_sub(from) < MANY
        });
        self.last = Some((now, position));
        if paused {
            self.paused_at = position;
            // Either the program has paused, or a trial has shown that the other mode is useless now.
            if self.trial.take().is_some() {
                self.next_trial = Some(now + PAUSE * 64);
            }
            self.restart(now, position);
        } else if let Some((begin, from)) = self.begin
            && since(now, begin) >= WINDOW
        {
            let (time, bytes) = (since(now, begin), position.wrapping_sub(from));
            self.measured(now, time, bytes as f64 / time.as_secs_f64());
            self.restart(now, position);
        }
        match self.trial {
            Some(_) => self.current.other(),
            None => self.current,
        }
    }

    /// Bytes moved since the last pause, at a wait with the same position.
    pub(crate) fn streamed(&self, position: u64) -> u64 {
        position.wrapping_sub(self.paused_at)
    }

    fn restart(&mut self, now: Instant, position: u64) {
        self.begin = Some((now, position));
        self.next_trial.get_or_insert(now + self.interval);
    }

    /// A window has ended.
    fn measured(&mut self, now: Instant, time: Duration, rate: f64) {
        let Some(better) = self.trial else {
            self.rate = Some(self.rate.map_or(rate, |known| (known + rate) / 2.0));
            if self.next_trial.is_some_and(|at| now >= at) {
                self.trial = Some(0);
            }
            return;
        };
        let is_better = self.rate.is_some_and(|known| rate > known * BETTER);
        if is_better && better == 0 {
            self.trial = Some(1);
            return;
        }
        self.trial = None;
        if is_better {
            self.current = self.current.other();
            self.rate = Some(rate);
            self.interval = FIRST_INTERVAL;
        } else {
            self.interval = (self.interval * 2).clamp(FIRST_INTERVAL, INTERVAL);
        }
        self.next_trial = Some(now + self.interval.max(time * TRIAL_SHARE));
    }
}

/// The time between two readings of a clock; zero if it went backwards.
fn since(now: Instant, then: Instant) -> Duration {
    now.saturating_duration_since(then)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RING: u64 = 1 << 20;

    /// A machine on which each mode has a rate in bytes per second.
    struct Machine {
        choice: Choice,
        now: Instant,
        written: u64,
        noise: u64,
        percent: u64,
    }

    /// What a writer did in some time.
    #[derive(Default)]
    struct Used {
        spin: Duration,
        park: Duration,
        switches: u32,
    }

    impl Machine {
        fn new(noise: u64, percent: u64) -> Self {
            Self {
                choice: Choice::new(),
                now: Instant::now(),
                written: 0,
                noise: noise | 1,
                percent,
            }
        }

        /// A factor of 1 plus or minus the noise.
        fn factor(&mut self) -> f64 {
            self.noise ^= self.noise << 13;
            self.noise ^= self.noise >> 7;
            self.noise ^= self.noise << 17;
            let range = 2 * self.percent + 1;
            (100 + self.noise % range - self.percent) as f64 / 100.0
        }

        /// Writes for `time`. Each wait is for half a ring.
        fn write(&mut self, time: Duration, spin: f64, park: f64) -> Used {
            let mut used = Used::default();
            let until = self.now + time;
            while self.now < until {
                let current = self.choice.current;
                let mode = self.choice.wait(self.now, self.written);
                used.switches += u32::from(self.choice.current != current);
                let rate = match mode {
                    WaitMode::Spin => spin,
                    WaitMode::Park => park,
                };
                let seconds = RING as f64 / 2.0 / (rate * self.factor());
                let step = Duration::from_secs_f64(seconds);
                self.written = self.written.wrapping_add(RING / 2);
                self.now += step;
                match mode {
                    WaitMode::Spin => used.spin += step,
                    WaitMode::Park => used.park += step,
                }
            }
            used
        }
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(32)))]

        #[test]
        fn the_better_mode_is_in_use_within_100_ms_of_a_change(
            rate in 1e9..9e9,
            factor in 1.5..5.0,
            noise: u64,
            spin_is_better: bool,
        ) {
            let mut machine = Machine::new(noise, 5);
            let rates = |spin: bool| if spin { (rate * factor, rate) } else { (rate, rate * factor) };
            let mut spin = spin_is_better;
            for _ in 0..4 {
                let (spin_rate, park_rate) = rates(spin);
                machine.write(MS(100), spin_rate, park_rate);
                let wanted = if spin { WaitMode::Spin } else { WaitMode::Park };
                prop_assert_eq!(machine.choice.current, wanted);
                machine.write(MS(300), spin_rate, park_rate);
                prop_assert_eq!(machine.choice.current, wanted);
                spin = !spin;
            }
        }

        #[test]
        fn trials_of_the_worse_mode_take_at_most_1_5_percent_of_the_time(
            rate in 1e9..20e9,
            factor in 1.3..8.0,
            noise: u64,
        ) {
            let mut machine = Machine::new(noise, 5);
            machine.write(MS(500), rate, rate / factor);
            let used = machine.write(MS(4000), rate, rate / factor);
            prop_assert_eq!(used.switches, 0);
            prop_assert!(used.park.as_secs_f64() / 4.0 < 0.015, "{:?}", used.park);
        }

        #[test]
        fn equal_modes_do_not_alternate(rate in 1e8..20e9, noise: u64) {
            let mut machine = Machine::new(noise, 6);
            let used = machine.write(MS(3000), rate, rate);
            prop_assert_eq!(used.switches, 0);
        }

        #[test]
        fn any_sequence_of_times_and_positions_is_accepted(
            steps in prop::collection::vec((any::<bool>(), 0_u64..200_000_000, any::<u64>()), 0..200),
        ) {
            let mut choice = Choice::new();
            let mut now = Instant::now() + Duration::from_secs(100);
            for (back, nanoseconds, position) in steps {
                let step = Duration::from_nanos(nanoseconds);
                now = if back { now.checked_sub(step / 16).unwrap() } else { now + step };
                choice.wait(now, position);
            }
        }
    }

    #[test]
    fn a_writer_that_pauses_between_waits_stays_with_its_mode() {
        let mut choice = Choice::new();
        let mut now = Instant::now();
        for position in 0..1000 {
            assert_eq!(choice.wait(now, position * RING), WaitMode::Spin);
            assert_eq!(choice.streamed(position * RING), 0);
            now += PAUSE + MS(1);
        }
        assert_eq!(choice.rate, None);
    }

    #[test]
    fn a_stream_that_hardly_ever_waits_does_not_pause() {
        let mut choice = Choice::new();
        let now = Instant::now();
        choice.wait(now, 0);
        choice.wait(now + 2 * PAUSE, MANY);
        assert_eq!(choice.streamed(MANY), MANY);
        choice.wait(now + 4 * PAUSE, MANY + 1);
        assert_eq!(choice.streamed(MANY + 1), 0);
    }

    #[test]
    fn a_counter_that_wraps_around_measures_the_same_rate() {
        let mut machine = Machine::new(1, 0);
        machine.written = u64::MAX - 5 * RING;
        machine.write(MS(5), 10e9, 10e9);
        let rate = machine.choice.rate.unwrap();
        assert!((rate - 10e9).abs() < 1e8, "{rate}");
    }
}
