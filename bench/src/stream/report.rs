//! What a run found: rows for people, for programs and for plots.

use std::time::Duration;

use serde::Serialize;

use super::bells::Bells;
use super::goals::{self, Goal};
use super::measure::{Effort, Idle, Suite};
use super::peer::Style;
use super::{Over, SIZES};
use crate::figures::Spread;
use crate::machine::Machine;

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Turns that count.
    pub turns: usize,
    /// How long each lane was measured in one turn at one size.
    pub slice_ms: u64,
    /// Whether each process stayed on a processor of its own.
    pub pinned: bool,
    /// Processors that others used meanwhile, on average: figures of a run with much of it say
    /// more about the others.
    pub others: f64,
    /// Throughput of every lane at every size.
    pub throughput: Vec<ThroughputRow>,
    /// Round trips of every lane.
    pub round_trips: Vec<TripRow>,
    /// How often the ends of each ring slept and rang, over the whole run.
    pub bells: Vec<BellRow>,
    /// What is used where nothing is sent.
    pub idle: Vec<IdleRow>,
    /// What was to be reached.
    pub goals: Vec<Goal>,
}

/// Throughput of one lane at one size.
#[derive(Clone, Debug, Serialize)]
pub struct ThroughputRow {
    /// How it was used.
    pub style: Style,
    /// Bytes of one write.
    pub write: usize,
    /// Its name.
    pub lane: String,
    /// What it goes over.
    pub over: Over,
    /// 10⁹ bytes a second.
    pub gb_per_s: Spread,
    /// By the Unix socket's, turn by turn.
    pub to_unix: Spread,
    /// System calls of either end to wake the other, for each MiB.
    pub bells_per_mib: Option<f64>,
    /// Times that a thread of either end slept, likewise.
    pub sleeps_per_mib: Option<f64>,
}

/// Round trips of one lane.
#[derive(Clone, Debug, Serialize)]
pub struct TripRow {
    /// How it was used.
    pub style: Style,
    /// Its name.
    pub lane: String,
    /// What it goes over.
    pub over: Over,
    /// Median of a turn, in microseconds.
    pub p50_us: Spread,
    /// Likewise, nine tenths.
    pub p90_us: Spread,
    /// Likewise, all but one in a hundred.
    pub p99_us: Spread,
    /// The medians by those of the Unix socket that rests, or does not, as this does, turn by
    /// turn.
    pub p50_to_unix: Spread,
    /// System calls of either end to wake the other, for each trip.
    pub bells_per_trip: Option<f64>,
    /// Times that a thread of either end slept, likewise.
    pub sleeps_per_trip: Option<f64>,
}

/// What the two ends of one lane did to wake each other, in all turns together.
#[derive(Clone, Debug, Serialize)]
pub struct BellRow {
    /// How it was used.
    pub style: Style,
    /// Its name.
    pub lane: String,
    /// What it goes over.
    pub over: Over,
    /// Of both ends.
    #[serde(flatten)]
    pub bells: Bells,
}

/// CPU time used while nothing is sent.
#[derive(Clone, Debug, Serialize)]
pub struct IdleRow {
    /// How it was used.
    pub style: Style,
    /// Its name.
    pub lane: String,
    /// What it goes over.
    pub over: Over,
    /// For how long.
    pub seconds: f64,
    /// By this process, in milliseconds.
    pub here_ms: f64,
    /// By the peer.
    pub peer_ms: f64,
    /// By the broker.
    pub broker_ms: f64,
}

impl IdleRow {
    /// By all of them.
    pub fn all_ms(&self) -> f64 {
        self.here_ms + self.peer_ms + self.broker_ms
    }
}

impl Report {
    /// A report of what was measured so far.
    pub fn new(machine: Machine, suites: &[Suite], turns: usize, effort: Effort) -> Self {
        Self {
            machine,
            turns,
            slice_ms: effort.slice.as_millis() as u64,
            pinned: effort.pin,
            others: 0.0,
            throughput: suites.iter().flat_map(throughput).collect(),
            round_trips: suites.iter().flat_map(round_trips).collect(),
            bells: suites.iter().flat_map(bells).collect(),
            idle: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Adds what was used while nothing was sent.
    pub fn add_idle(&mut self, suite: &Suite, over: Over, time: Duration, idle: &Idle) {
        let lane = suite.place(over).and_then(|place| suite.lanes.get(place));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.idle.push(IdleRow {
            style: suite.style,
            lane: lane.map(|lane| lane.name.clone()).unwrap_or_default(),
            over,
            seconds: time.as_secs_f64(),
            here_ms: ms(idle.here),
            peer_ms: ms(idle.peer),
            broker_ms: ms(idle.broker),
        });
    }

    /// Looks at what was to be reached; the last thing to do.
    pub fn judge(&mut self) {
        self.goals = goals::judge(self);
    }

    /// Prints all of it.
    pub fn print(&self) {
        println!("{}", self.machine);
        println!(
            "one interleaved run of {} turns, {} ms each time: median (least to most)",
            self.turns, self.slice_ms
        );
        println!("others used {:.2} processors meanwhile", self.others);
        if self.pinned {
            println!("the two processes stayed on a processor each");
        }
        for style in [Style::Blocking, Style::Tokio] {
            let with = match style {
                Style::Blocking => "Read and Write",
                Style::Tokio => "tokio",
            };
            println!("\nthroughput with {with}, GB/s");
            let mut last = 0;
            for row in self.throughput.iter().filter(|row| row.style == style) {
                let size = if row.write == last {
                    String::new()
                } else {
                    size_in_words(row.write)
                };
                last = row.write;
                let rate = format!("{:.2}", row.gb_per_s);
                let ratio = ratio(row.over, &row.to_unix);
                let bells = each(row.bells_per_mib, row.sleeps_per_mib, "MiB");
                let line = format!(
                    "  {size:<8} {:<26} {rate:<22} {ratio:<30} {bells}",
                    row.lane
                );
                println!("{}", line.trim_end());
            }
            println!("\n64 bytes there and back with {with}, µs at p50, p90, p99");
            for row in self.round_trips.iter().filter(|row| row.style == style) {
                let times = [row.p50_us, row.p90_us, row.p99_us];
                let [p50, p90, p99] = times.map(|time| format!("{time:.2}"));
                let ratio = ratio(row.over, &row.p50_to_unix);
                let bells = each(row.bells_per_trip, row.sleeps_per_trip, "trip");
                let line = format!(
                    "  {:<26} {p50:<24} {p90:<24} {p99:<26} {ratio:<33} {bells}",
                    row.lane
                );
                println!("{}", line.trim_end());
            }
        }
        println!("\nCPU time while nothing is sent, ms: this process, the peer, the broker");
        for row in &self.idle {
            let used = format!(
                "{:.2}, {:.2}, {:.2}",
                row.here_ms, row.peer_ms, row.broker_ms
            );
            println!(
                "  {:<26} {used:<22} in {} s, {}",
                row.lane,
                row.seconds,
                match row.style {
                    Style::Blocking => "waiting in read",
                    Style::Tokio => "waiting in tokio",
                }
            );
        }
        println!();
        for goal in &self.goals {
            println!("{goal}");
        }
    }
}

fn throughput(suite: &Suite) -> impl Iterator<Item = ThroughputRow> + '_ {
    let unix = suite.place(Over::Unix);
    SIZES.iter().enumerate().flat_map(move |(at, &write)| {
        let lanes = suite.lanes.iter().zip(&suite.taken);
        lanes.filter_map(move |(lane, taken)| {
            let cell = &taken.throughput[at];
            let unix = &suite.taken[unix?].throughput[at];
            let mib = cell.bytes as f64 / f64::from(1 << 20);
            (!cell.rates.is_empty()).then(|| ThroughputRow {
                style: suite.style,
                write,
                lane: lane.name.clone(),
                over: lane.over,
                gb_per_s: Spread::of(cell.rates.iter().map(|rate| rate / 1e9)),
                to_unix: Spread::of_ratio(&cell.rates, &unix.rates),
                bells_per_mib: rings(cell.bells).map(|rings| rings / mib),
                sleeps_per_mib: sleeps(cell.bells).map(|sleeps| sleeps / mib),
            })
        })
    })
}

fn round_trips(suite: &Suite) -> impl Iterator<Item = TripRow> + '_ {
    let lanes = suite.lanes.iter().zip(&suite.taken);
    lanes.filter_map(move |(lane, taken)| {
        let trips = &taken.trips;
        let unix = &suite.taken[suite.place(lane.over.unix_alike())?].trips;
        let count = trips.count as f64;
        Some(TripRow {
            style: suite.style,
            lane: lane.name.clone(),
            over: lane.over,
            p50_us: Spread::of(trips.p50_us.iter().copied()),
            p90_us: Spread::of(trips.p90_us.iter().copied()),
            p99_us: Spread::of(trips.p99_us.iter().copied()),
            p50_to_unix: Spread::of_ratio(&trips.p50_us, &unix.p50_us),
            bells_per_trip: rings(trips.bells).map(|rings| rings / count),
            sleeps_per_trip: sleeps(trips.bells).map(|sleeps| sleeps / count),
        })
    })
}

fn bells(suite: &Suite) -> impl Iterator<Item = BellRow> + '_ {
    let lanes = suite.lanes.iter().zip(&suite.taken);
    lanes.filter_map(|(lane, taken)| {
        Some(BellRow {
            style: suite.style,
            lane: lane.name.clone(),
            over: lane.over,
            bells: taken.bells()?,
        })
    })
}

fn rings(bells: Option<Bells>) -> Option<f64> {
    Some(bells?.rings as f64)
}

fn sleeps(bells: Option<Bells>) -> Option<f64> {
    Some(bells?.sleeps? as f64)
}

fn ratio(over: Over, ratio: &Spread) -> String {
    match over {
        Over::Unix | Over::UnixRested => String::new(),
        _ if over.rest().is_some() => format!("{ratio:.2} × Unix rested"),
        _ => format!("{ratio:.2} × Unix"),
    }
}

fn each(rings: Option<f64>, sleeps: Option<f64>, what: &str) -> String {
    match (rings, sleeps) {
        (Some(rings), Some(sleeps)) => format!("{rings:.4} bells, {sleeps:.4} sleeps/{what}"),
        (Some(rings), None) => format!("{rings:.4} bells/{what}"),
        (None, _) => String::new(),
    }
}

/// A number of bytes as people say it.
pub fn size_in_words(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}
