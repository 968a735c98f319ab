//! Measures lanes in alternating turns, like [`stream::measure`](crate::stream::measure).

use std::time::{Duration, Instant};

use super::lane::Lane;
use super::{Direction, GuestLaneKind, SIZES};
use crate::figures::percentile;

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Count of turns, without one more to warm up.
    pub turns: usize,
    /// Time for one lane at one size in one turn.
    pub slice: Duration,
    /// Time after which no new turn starts.
    pub limit: Duration,
}

/// A lane and its results.
#[derive(Debug)]
pub struct Measured {
    /// The kind of lane.
    pub over: GuestLaneKind,
    lane: Lane,
    /// Bytes per second of each turn, by [`Direction`] and index of [`SIZES`].
    pub rates: [[Vec<f64>; SIZES.len()]; 2],
    /// Median of the round trips in microseconds, by turn.
    pub p50_us: Vec<f64>,
    /// 99th percentile in microseconds, by turn.
    pub p99_us: Vec<f64>,
    paces: [[f64; SIZES.len()]; 2],
    trips: f64,
}

impl Measured {
    /// A lane without results.
    pub fn new(over: GuestLaneKind, lane: Lane) -> Self {
        Self {
            over,
            lane,
            rates: Default::default(),
            p50_us: Vec::new(),
            p99_us: Vec::new(),
            paces: Default::default(),
            trips: 0.0,
        }
    }

    fn throughput(
        &mut self,
        direction: Direction,
        at: usize,
        slice: Duration,
    ) -> anyhow::Result<f64> {
        let (size, pace) = (SIZES[at], &mut self.paces[direction as usize][at]);
        let mut writes = (*pace * slice.as_secs_f64() / size as f64).ceil().max(64.0) as u64;
        let warm = *pace > 0.0;
        loop {
            let seconds = self.lane.move_bytes(direction, size, writes)?;
            *pace = (writes * size as u64) as f64 / seconds;
            if warm || seconds * 4.0 >= slice.as_secs_f64() {
                return Ok(*pace);
            }
            writes *= 2;
        }
    }

    fn round_trips(&mut self, slice: Duration) -> anyhow::Result<Vec<f64>> {
        let count = (self.trips * slice.as_secs_f64()).ceil().max(64.0) as u64;
        let start = Instant::now();
        let each_us = self.lane.round_trips(count)?;
        self.trips = count as f64 / start.elapsed().as_secs_f64();
        Ok(each_us)
    }
}

/// Measures all lanes in turns. Returns the count of turns without the warm-up.
pub fn run(
    lanes: &mut [Measured],
    effort: Effort,
    mut progress: impl FnMut(usize),
) -> anyhow::Result<usize> {
    let start = Instant::now();
    let count = lanes.len();
    for turn in 0..=effort.turns {
        if turn > 1 && start.elapsed() > effort.limit {
            return Ok(turn - 1);
        }
        progress(turn);
        for direction in Direction::BOTH {
            for at in 0..SIZES.len() {
                for place in 0..count {
                    let lane = &mut lanes[(turn + at + place) % count];
                    let rate = lane.throughput(direction, at, effort.slice);
                    let rate = rate.map_err(|error| {
                        let (name, size) = (lane.over.name(), SIZES[at]);
                        error.context(format!("{name}, {size} bytes {}", direction.name()))
                    })?;
                    if turn > 0 {
                        lane.rates[direction as usize][at].push(rate);
                    }
                }
            }
        }
        for place in 0..count {
            let lane = &mut lanes[(turn + place) % count];
            let mut each_us = lane.round_trips(effort.slice)?;
            if turn > 0 {
                lane.p50_us.push(percentile(&mut each_us, 0.5));
                lane.p99_us.push(percentile(&mut each_us, 0.99));
            }
        }
    }
    Ok(effort.turns)
}
