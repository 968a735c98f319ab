//! Lets lanes take turns.
//!
//! A turn measures everything once: for each size of writes all lanes one after the other, each
//! for a slice of time; then the round trips likewise. Who begins moves on by one each turn. What
//! two lanes did in one turn they did within a fraction of a second of each other, so their ratio
//! holds on a machine whose pace changes.

use std::time::{Duration, Instant};

use super::bells::Bells;
use super::peer::{Named, Style};
use super::{Over, SIZES};
use crate::cpu;
use crate::figures::percentile;

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Turns that count; one more is made to warm up.
    pub turns: usize,
    /// Of one lane, at one size, in one turn.
    pub slice: Duration,
    /// For which the idle are looked at.
    pub idle: Duration,
    /// After which no new turn begins.
    pub limit: Duration,
    /// Whether each of the two processes stays on a processor of its own. Else the scheduler
    /// decides, as it does for programs; on a busy machine it likes to have both on one.
    pub pin: bool,
}

/// Lanes to one peer.
pub struct Suite {
    /// How they are used.
    pub style: Style,
    /// The peer's process.
    pub peer: u32,
    /// The lanes.
    pub lanes: Vec<Named>,
    /// What was measured of each, in the same order.
    pub taken: Vec<Taken>,
}

/// What was measured of one lane.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// At each of [`SIZES`]; nothing in them for a lane that is not measured so.
    pub throughput: [Throughput; SIZES.len()],
    /// Messages there and back.
    pub trips: RoundTrips,
}

/// Throughput at one size.
#[derive(Clone, Debug, Default)]
pub struct Throughput {
    /// Bytes a second, of each turn.
    pub rates: Vec<f64>,
    /// In all turns together.
    pub bytes: u64,
    /// Likewise; `None` if it cannot be told.
    pub bells: Option<Bells>,
    /// Bytes a second as last seen.
    pace: f64,
}

/// Round trips.
#[derive(Clone, Debug, Default)]
pub struct RoundTrips {
    /// Microseconds below which a half of a turn's trips stayed, for each turn.
    pub p50_us: Vec<f64>,
    /// Nine tenths.
    pub p90_us: Vec<f64>,
    /// All but one in a hundred.
    pub p99_us: Vec<f64>,
    /// In all turns together.
    pub count: u64,
    /// Likewise; `None` if it cannot be told.
    pub bells: Option<Bells>,
    /// Trips a second as last seen, rests included.
    pace: f64,
}

/// CPU time used while nothing was sent.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// By this process.
    pub here: Duration,
    /// By the peer.
    pub peer: Duration,
    /// By the broker.
    pub broker: Duration,
}

impl Taken {
    /// Of all that was measured, together.
    pub fn bells(&self) -> Option<Bells> {
        let cells = self.throughput.iter().filter_map(|cell| cell.bells);
        cells.chain(self.trips.bells).reduce(Bells::and)
    }
}

impl Suite {
    /// A suite of which nothing was measured yet.
    pub fn new(style: Style, peer: u32, lanes: Vec<Named>) -> Self {
        let taken = vec![Taken::default(); lanes.len()];
        Self {
            style,
            peer,
            lanes,
            taken,
        }
    }

    /// Keeps the peer's threads on one processor.
    pub fn keep_peer_on(&mut self, cpu: usize) -> anyhow::Result<()> {
        let mut lanes = self.lanes.iter_mut();
        lanes.try_for_each(|lane| lane.lane.keep_peer_on(cpu))
    }

    /// The place of the lane over this, if there is one.
    pub fn place(&self, over: Over) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.over == over)
    }

    /// What all three processes use while the ends of all lanes wait, and here the one over
    /// `over`.
    pub fn idle(&mut self, over: Over, broker: u32, time: Duration) -> anyhow::Result<Idle> {
        let lane = self.lanes.iter_mut().find(|lane| lane.over == over);
        let lane = lane.ok_or_else(|| anyhow::anyhow!("no lane over {over:?}"))?;
        let processes = [std::process::id(), self.peer, broker];
        let mut used = |time: Duration| -> anyhow::Result<[Duration; 3]> {
            let before = all_used(processes)?;
            lane.lane.wait(time)?;
            let after = all_used(processes)?;
            Ok([0, 1, 2].map(|place| after[place].saturating_sub(before[place])))
        };
        // Beginning, ending and looking at it cost something too.
        let around = used(Duration::from_millis(1))?;
        let whole = used(time)?;
        let [here, peer, broker] =
            [0, 1, 2].map(|place| whole[place].saturating_sub(around[place]));
        Ok(Idle { here, peer, broker })
    }

    fn turn(&mut self, turn: usize, slice: Duration) -> anyhow::Result<()> {
        let count = self.lanes.len();
        let order = |first: usize| (0..count).map(move |place| (first + turn + place) % count);
        for (at, &size) in SIZES.iter().enumerate() {
            for place in order(at) {
                let Named { lane, over, .. } = &mut self.lanes[place];
                if over.is_for_trips_only() {
                    continue;
                }
                let cell = &mut self.taken[place].throughput[at];
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
                cell.bells = add(cell.bells, sent.bells);
            }
        }
        for place in order(0) {
            let lane = &mut self.lanes[place].lane;
            let cell = &mut self.taken[place].trips;
            if turn == 0 {
                cell.pace = warm_up(slice, 16, |count| {
                    let start = Instant::now();
                    lane.go_and_return(count)?;
                    Ok(start.elapsed().as_secs_f64())
                })?;
                continue;
            }
            let count = (cell.pace * slice.as_secs_f64()).ceil() as u64;
            let start = Instant::now();
            let mut trips = lane.go_and_return(count)?;
            cell.pace = count as f64 / start.elapsed().as_secs_f64();
            cell.p50_us.push(percentile(&mut trips.each_us, 0.5));
            cell.p90_us.push(percentile(&mut trips.each_us, 0.9));
            cell.p99_us.push(percentile(&mut trips.each_us, 0.99));
            cell.count += count;
            cell.bells = add(cell.bells, trips.bells);
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

/// The sum of what was told.
fn add(sum: Option<Bells>, more: Option<Bells>) -> Option<Bells> {
    more.map(|more| sum.map_or(more, |sum| sum.and(more)))
}

/// Does ever more until it takes a fair part of a slice; how many a second.
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

/// Measures all suites in turns; how many turns counted.
pub fn run(
    suites: &mut [Suite],
    effort: Effort,
    mut progress: impl FnMut(usize),
) -> anyhow::Result<usize> {
    let start = Instant::now();
    for turn in 0..=effort.turns {
        if turn > 1 && start.elapsed() > effort.limit {
            return Ok(turn - 1);
        }
        progress(turn);
        for suite in &mut *suites {
            suite.turn(turn, effort.slice)?;
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
    fn every_lane_has_a_figure_of_every_turn() {
        let lanes = [Over::Unix, Over::Ours, Over::OursParked, Over::UnixRested].map(|over| {
            let (near, far) = UnixStream::pair().unwrap();
            std::thread::spawn(move || serve(far));
            Named {
                name: String::new(),
                over,
                lane: Box::new(Blocking::new(near, over).unwrap()),
            }
        });
        let mut suite = Suite::new(Style::Blocking, std::process::id(), lanes.into());
        let effort = Effort {
            turns: 2,
            slice: Duration::from_millis(1),
            idle: Duration::ZERO,
            limit: Duration::from_secs(60),
            pin: false,
        };
        let suites = std::slice::from_mut(&mut suite);
        assert_eq!(run(suites, effort, |_| ()).unwrap(), 2);
        for place in [0, 1] {
            let taken = &suite.taken[place];
            assert!(taken.throughput.iter().all(|cell| cell.rates.len() == 2));
            assert_eq!(taken.trips.p99_us.len(), 2);
        }
        for place in [2, 3] {
            let taken = &suite.taken[place];
            assert!(taken.throughput.iter().all(|cell| cell.rates.is_empty()));
            assert_eq!(taken.trips.p50_us.len(), 2);
        }
        let pid = std::process::id();
        suite
            .idle(Over::Unix, pid, Duration::from_millis(2))
            .unwrap();
    }
}
