//! Measures lanes in alternating turns.
//!
//! A turn measures everything once: for each size of writes all lanes in sequence, each for one slice of
//! time, beside the machine's limits at this size, then all round trips. The first lane rotates from turn to turn (round robin). Two lanes are measured
//! within a fraction of a second of each other, so their ratio holds on a machine of varying speed.

use std::time::{Duration, Instant};

use super::limits::Limits;
use super::peer::{NamedLane, Style};
use super::wakeups::WakeupCounts;
use super::{LaneKind, SIZES};
use crate::cpu;
use crate::figures::percentile;

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Count of turns, without one more to warm up.
    pub turns: usize,
    /// Time for one lane at one size in one turn.
    pub slice: Duration,
    /// Time for which idle connections are measured.
    pub idle: Duration,
    /// Time after which no new turn starts.
    pub limit: Duration,
    /// Whether each process is pinned to a separate processor. Otherwise the scheduler decides; on a busy
    /// machine it tends to run both on one.
    pub pin: bool,
    /// Whether a process copies memory on one processor meanwhile.
    pub neighbour: bool,
}

/// The lanes to one peer and their results.
pub struct Suite {
    /// The API that the lanes use.
    pub style: Style,
    /// The peer's process id.
    pub peer: u32,
    /// The lanes.
    pub lanes: Vec<NamedLane>,
    /// The results of the lanes, in the same order.
    pub results: Vec<LaneResults>,
}

/// The results of one lane.
#[derive(Clone, Debug, Default)]
pub struct LaneResults {
    /// By index of [`SIZES`]. Empty for a lane without throughput.
    pub throughput: [Throughput; SIZES.len()],
    /// Round trips.
    pub trips: RoundTrips,
}

/// Throughput at one size of writes.
#[derive(Clone, Debug, Default)]
pub struct Throughput {
    /// Bytes per second, by turn.
    pub rates: Vec<f64>,
    /// Bytes of all turns.
    pub bytes: u64,
    /// Wakeup counts of all turns, if known.
    pub wakeups: Option<WakeupCounts>,
    /// Bytes per second of the last turn.
    pace: f64,
}

/// Round trips.
#[derive(Clone, Debug, Default)]
pub struct RoundTrips {
    /// Median in microseconds, by turn.
    pub p50_us: Vec<f64>,
    /// 90th percentile, by turn.
    pub p90_us: Vec<f64>,
    /// 99th percentile, by turn.
    pub p99_us: Vec<f64>,
    /// Count of all turns.
    pub count: u64,
    /// Wakeup counts of all turns, if known.
    pub wakeups: Option<WakeupCounts>,
    /// Trips per second of the last turn, including pauses.
    pace: f64,
}

/// CPU time of idle connections.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Of this process.
    pub here: Duration,
    /// Of the peer.
    pub peer: Duration,
    /// Of the broker.
    pub broker: Duration,
}

impl LaneResults {
    /// Wakeup counts of all measurements.
    pub fn wakeups(&self) -> Option<WakeupCounts> {
        let cells = self.throughput.iter().filter_map(|cell| cell.wakeups);
        cells.chain(self.trips.wakeups).reduce(WakeupCounts::and)
    }
}

impl Suite {
    /// A suite without results.
    pub fn new(style: Style, peer: u32, lanes: Vec<NamedLane>) -> Self {
        let results = vec![LaneResults::default(); lanes.len()];
        Self {
            style,
            peer,
            lanes,
            results,
        }
    }

    /// Pins the peer's threads to one processor.
    pub fn pin_peer(&mut self, cpu: usize) -> anyhow::Result<()> {
        let mut lanes = self.lanes.iter_mut();
        lanes.try_for_each(|lane| lane.lane.pin_peer(cpu))
    }

    /// The index of the lane of a kind.
    pub fn lane_index(&self, over: LaneKind) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.over == over)
    }

    /// Measures the CPU time of all three processes while all lanes are idle and this process blocks in the
    /// lane of kind `over`.
    pub fn idle(&mut self, over: LaneKind, broker: u32, time: Duration) -> anyhow::Result<Idle> {
        let lane = self.lanes.iter_mut().find(|lane| lane.over == over);
        let lane = lane.ok_or_else(|| anyhow::anyhow!("no lane over {over:?}"))?;
        let processes = [std::process::id(), self.peer, broker];
        let mut used = |time: Duration| -> anyhow::Result<[Duration; 3]> {
            let before = all_used(processes)?;
            lane.lane.idle(time)?;
            let after = all_used(processes)?;
            Ok([0, 1, 2].map(|place| after[place].saturating_sub(before[place])))
        };
        // Subtracts the cost of the requests and of the measurement.
        let overhead = used(Duration::from_millis(1))?;
        let whole = used(time)?;
        let [here, peer, broker] =
            [0, 1, 2].map(|place| whole[place].saturating_sub(overhead[place]));
        Ok(Idle { here, peer, broker })
    }

    /// The order of the lanes in a turn.
    fn order(&self, turn: usize, first: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.lanes.len();
        (0..count).map(move |place| (first + turn + place) % count)
    }

    /// Measures the throughput of all lanes at one size of writes.
    fn throughput(&mut self, turn: usize, at: usize, slice: Duration) -> anyhow::Result<()> {
        let size = SIZES[at];
        for place in self.order(turn, at) {
            let NamedLane { lane, over, .. } = &mut self.lanes[place];
            if over.is_for_trips_only() {
                continue;
            }
            let cell = &mut self.results[place].throughput[at];
            if turn == 0 {
                cell.pace = warm_up(slice, (64 << 10) / size as u64, |count| {
                    Ok(lane.send(size, count)?.seconds)
                })? * size as f64;
                continue;
            }
            let writes = (cell.pace * slice.as_secs_f64() / size as f64).ceil() as u64;
            let sent = lane.send(size, writes)?;
            let bytes = writes * size as u64;
            cell.pace = bytes as f64 / sent.seconds;
            cell.rates.push(cell.pace);
            cell.bytes += bytes;
            cell.wakeups = add(cell.wakeups, sent.wakeups);
        }
        Ok(())
    }

    /// Measures the round trips of all lanes.
    fn trips(&mut self, turn: usize, slice: Duration) -> anyhow::Result<()> {
        for place in self.order(turn, 0) {
            let lane = &mut self.lanes[place].lane;
            let cell = &mut self.results[place].trips;
            if turn == 0 {
                cell.pace = warm_up(slice, 16, |count| {
                    let start = Instant::now();
                    lane.round_trips(count)?;
                    Ok(start.elapsed().as_secs_f64())
                })?;
                continue;
            }
            let count = (cell.pace * slice.as_secs_f64()).ceil() as u64;
            let start = Instant::now();
            let mut trips = lane.round_trips(count)?;
            cell.pace = count as f64 / start.elapsed().as_secs_f64();
            cell.p50_us.push(percentile(&mut trips.each_us, 0.5));
            cell.p90_us.push(percentile(&mut trips.each_us, 0.9));
            cell.p99_us.push(percentile(&mut trips.each_us, 0.99));
            cell.count += count;
            cell.wakeups = add(cell.wakeups, trips.wakeups);
        }
        Ok(())
    }
}

fn all_used<const N: usize>(processes: [u32; N]) -> std::io::Result<[Duration; N]> {
    let mut used = [Duration::ZERO; N];
    for (used, process) in used.iter_mut().zip(processes) {
        *used = cpu::used_by(process)?;
    }
    Ok(used)
}

/// Adds counts, if known.
fn add(sum: Option<WakeupCounts>, more: Option<WakeupCounts>) -> Option<WakeupCounts> {
    more.map(|more| sum.map_or(more, |sum| sum.and(more)))
}

/// Doubles the count until `run` takes a quarter of a slice. Returns the count per second.
fn warm_up(
    slice: Duration,
    begin: u64,
    mut run: impl FnMut(u64) -> anyhow::Result<f64>,
) -> anyhow::Result<f64> {
    let mut count = begin.max(1);
    loop {
        let seconds = run(count)?;
        if seconds * 4.0 >= slice.as_secs_f64() {
            return Ok(count as f64 / seconds);
        }
        count *= 2;
    }
}

/// The part of a slice in which one limit is measured. There are twice as many as lanes.
const LIMIT_SLICE: u32 = 4;

/// Measures all suites and the machine's limits in turns. Returns the count of turns without the warm-up.
pub fn run(
    suites: &mut [Suite],
    limits: &mut Limits,
    effort: Effort,
    mut progress: impl FnMut(usize),
) -> anyhow::Result<usize> {
    let start = Instant::now();
    for turn in 0..=effort.turns {
        if turn > 1 && start.elapsed() > effort.limit {
            return Ok(turn - 1);
        }
        progress(turn);
        let (slice, is_counted) = (effort.slice / LIMIT_SLICE, turn > 0);
        for at in 0..SIZES.len() {
            limits.streams(at, slice, is_counted)?;
            for suite in &mut *suites {
                suite.throughput(turn, at, effort.slice)?;
            }
        }
        limits.copies(slice, is_counted)?;
        for suite in &mut *suites {
            suite.trips(turn, effort.slice)?;
        }
    }
    Ok(effort.turns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::blocking::{Blocking, serve};
    use std::os::unix::net::UnixStream;

    #[test]
    fn every_lane_has_a_figure_for_every_turn() {
        let lanes = [
            LaneKind::Unix,
            LaneKind::Hvsock,
            LaneKind::HvsockNoSpin,
            LaneKind::UnixParked,
        ]
        .map(|over| {
            let (local, peer_end) = UnixStream::pair().unwrap();
            std::thread::spawn(move || serve(peer_end));
            NamedLane {
                name: String::new(),
                over,
                lane: Box::new(Blocking::new(local, over).unwrap()),
            }
        });
        let mut suite = Suite::new(Style::Blocking, std::process::id(), lanes.into());
        let effort = Effort {
            turns: 2,
            slice: Duration::from_millis(1),
            idle: Duration::ZERO,
            limit: Duration::from_secs(60),
            pin: false,
            neighbour: false,
        };
        let suites = std::slice::from_mut(&mut suite);
        let mut limits = Limits::new().unwrap();
        assert_eq!(run(suites, &mut limits, effort, |_| ()).unwrap(), 2);
        for place in [0, 1] {
            let results = &suite.results[place];
            assert!(results.throughput.iter().all(|cell| cell.rates.len() == 2));
            assert_eq!(results.trips.p99_us.len(), 2);
        }
        for place in [2, 3] {
            let results = &suite.results[place];
            assert!(results.throughput.iter().all(|cell| cell.rates.is_empty()));
            assert_eq!(results.trips.p50_us.len(), 2);
        }
        let pid = std::process::id();
        suite
            .idle(LaneKind::Unix, pid, Duration::from_millis(2))
            .unwrap();
    }
}
