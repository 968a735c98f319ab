use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000_000;

fn offset(ns: i64) -> Offset {
    Offset {
        ns,
        error_ns: 100_000,
    }
}

#[test]
fn a_clock_is_stepped_if_it_is_far_off_or_new_and_slewed_otherwise() {
    let mut clock = Discipline::new(0);
    let at = Duration::from_secs;
    let by = |ns: i64| Correction::Slew { ns: -ns, rate: 0 };
    assert_eq!(
        clock.decide(at(0), offset(-5_000_000), Keeper::Agent),
        Correction::Step(5_000_000)
    );
    assert_eq!(
        clock.decide(at(0), offset(5_000_000), Keeper::Agent),
        by(5_000_000)
    );
    let large = 101_000_000;
    assert_eq!(
        clock.decide(at(1), offset(large), Keeper::Agent),
        Correction::Step(-large)
    );
    // An offset within the error is not stepped.
    clock.disturbed();
    let vague = Offset {
        ns: 5_000_000,
        error_ns: 6_000_000,
    };
    assert_eq!(clock.decide(at(2), vague, Keeper::Agent), by(2_500_000));
    clock.disturbed();
    assert_eq!(
        clock.decide(at(3), offset(900_000), Keeper::Agent),
        by(900_000)
    );
}

#[test]
fn a_clock_that_another_program_keeps_is_only_stepped() {
    let mut clock = Discipline::new(0);
    let at = Duration::from_secs(1);
    for (keeper, ns, want) in [
        (Keeper::Other, 900_000_000, Correction::Leave),
        (Keeper::Other, -2 * SECOND, Correction::Step(2 * SECOND)),
        (Keeper::Host, 2 * SECOND, Correction::Leave),
    ] {
        assert_eq!(clock.decide(at, offset(ns), keeper), want);
    }
}

#[test]
fn the_interval_grows_while_measurements_are_good() {
    let mut clock = Discipline::new(0);
    let mut now = Duration::ZERO;
    let mut intervals = Vec::new();
    for _ in 0..7 {
        clock.decide(now, offset(0), Keeper::Agent);
        intervals.push(clock.interval().as_secs());
        now += clock.interval();
    }
    assert_eq!(intervals, [4, 8, 16, 32, 64, 64, 64]);
    clock.decide(now, offset(2_000_000), Keeper::Agent);
    assert_eq!(clock.interval(), SHORT_INTERVAL);
    clock.disturbed();
    assert_eq!(clock.interval(), INITIAL_INTERVAL);
}

/// A clock that drifts, is slewed as by the kernel, and is measured with an error.
struct Simulated {
    now: Duration,
    offset: f64,
    drift: f64,
    rate: i64,
    slew: i64,
}

impl Simulated {
    fn run(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.now += time;
        self.offset += (self.drift + self.rate as f64) * seconds;
        let most = (SLEW_RATE as f64 * seconds) as i64;
        let slewed = self.slew.clamp(-most, most);
        self.offset += slewed as f64;
        self.slew -= slewed;
    }

    fn apply(&mut self, correction: Correction) {
        match correction {
            Correction::Leave => {}
            Correction::Step(ns) => (self.offset, self.slew) = (self.offset + ns as f64, 0),
            Correction::Slew { ns, rate } => (self.slew, self.rate) = (ns, rate),
        }
    }
}

proptest! {
    /// A clock with any drift and any initial offset, measured with an error of up to 0.25 ms, is
    /// within a millisecond after some minutes and stays there; also after a pause in which it
    /// was stopped.
    #[test]
    fn a_clock_converges_to_within_a_millisecond(
        drift in -200_000i64..200_000,
        first in -3600 * SECOND..3600 * SECOND,
        stood_still in 0..86_400 * SECOND,
        noise in proptest::collection::vec(-250_000i64..250_000, 100),
    ) {
        let mut clock = Simulated {
            now: Duration::ZERO,
            offset: first as f64,
            drift: drift as f64,
            rate: 0,
            slew: 0,
        };
        let mut discipline = Discipline::new(0);
        for (round, noise) in noise.into_iter().enumerate() {
            if round == 50 {
                clock.offset -= stood_still as f64;
                discipline.disturbed();
            }
            let measured = Offset { ns: clock.offset as i64 + noise, error_ns: 400_000 };
            clock.apply(discipline.decide(clock.now, measured, Keeper::Agent));
            clock.run(discipline.interval());
            let settled = if round < 50 { round > 12 } else { round > 54 };
            if settled {
                prop_assert!(clock.offset.abs() < 1e6, "round {round}: {} ns", clock.offset);
            }
        }
    }

    #[test]
    fn any_offset_gives_a_bounded_correction(
        steps in proptest::collection::vec((any::<i64>(), any::<u64>(), 0..1000u64, 0..4u8), 0..50),
        rate in any::<i64>(),
    ) {
        let mut clock = Discipline::new(rate);
        let mut now = Duration::ZERO;
        for (ns, error_ns, wait, keeper) in steps {
            // An offset is half a difference of two times.
            let measured = Offset { ns: ns / 4, error_ns };
            let keeper = match keeper { 0 => Keeper::Other, 1 => Keeper::Host, _ => Keeper::Agent };
            if let Correction::Slew { ns, rate } = clock.decide(now, measured, keeper) {
                prop_assert!(rate.abs() <= MAX_RATE);
                prop_assert!(ns.unsigned_abs() <= STEP || ns.unsigned_abs() <= error_ns);
            }
            prop_assert!((INITIAL_INTERVAL..=LONG_INTERVAL).contains(&clock.interval()));
            now += Duration::from_secs(wait);
        }
    }
}
