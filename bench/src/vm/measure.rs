//! Measures lanes in alternating turns, like [`stream::measure`](crate::stream::measure).

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use hvsock_testkit::guest::GuestStream;

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

/// A lane that can be measured.
pub trait Measurable {
    /// Bytes per second in this direction, with writes of the size `SIZES[at]`, over about `slice`.
    fn throughput(
        &mut self,
        direction: Direction,
        at: usize,
        slice: Duration,
    ) -> anyhow::Result<f64>;

    /// Median and 99th percentile of round trips in microseconds, over about `slice`.
    fn round_trips(&mut self, slice: Duration) -> anyhow::Result<[f64; 2]>;
}

/// A lane with what it did before, from which the count of the next writes follows.
#[derive(Debug)]
pub struct Paced<S = GuestStream> {
    lane: Lane<S>,
    paces: [[f64; SIZES.len()]; 2],
    trips: f64,
}

impl<S> Paced<S> {
    /// A lane that has not been measured.
    pub fn new(lane: Lane<S>) -> Self {
        Self {
            lane,
            paces: Default::default(),
            trips: 0.0,
        }
    }
}

impl<S: Read + Write> Measurable for Paced<S> {
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

    fn round_trips(&mut self, slice: Duration) -> anyhow::Result<[f64; 2]> {
        let count = (self.trips * slice.as_secs_f64()).ceil().max(64.0) as u64;
        let start = Instant::now();
        let mut each_us = self.lane.round_trips(count)?;
        self.trips = count as f64 / start.elapsed().as_secs_f64();
        Ok([0.5, 0.99].map(|p| percentile(&mut each_us, p)))
    }
}

/// A lane and its results.
#[derive(Debug)]
pub struct Measured<L = Paced> {
    /// The kind of lane.
    pub over: GuestLaneKind,
    lane: L,
    /// Bytes per second of each turn, by [`Direction`] and index of [`SIZES`].
    pub rates: [[Vec<f64>; SIZES.len()]; 2],
    /// Median of the round trips in microseconds, by turn.
    pub p50_us: Vec<f64>,
    /// 99th percentile in microseconds, by turn.
    pub p99_us: Vec<f64>,
}

impl<L> Measured<L> {
    /// A lane without results.
    pub fn new(over: GuestLaneKind, lane: L) -> Self {
        Self {
            over,
            lane,
            rates: Default::default(),
            p50_us: Vec::new(),
            p99_us: Vec::new(),
        }
    }

    /// The lane.
    pub fn lane(&mut self) -> &mut L {
        &mut self.lane
    }
}

/// Measures all lanes in turns. Returns the count of turns without the warm-up.
pub fn run<L: Measurable>(
    lanes: &mut [Measured<L>],
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
                    let rate = lane.lane.throughput(direction, at, effort.slice);
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
            let [p50, p99] = lane.lane.round_trips(effort.slice)?;
            if turn > 0 {
                lane.p50_us.push(p50);
                lane.p99_us.push(p99);
            }
        }
    }
    Ok(effort.turns)
}
