//! The report of a run: printed tables, JSON and the data of plots.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::limits::{Limit, LimitRates};
use super::measure::{Effort, Idle, Suite};
use super::peer::Style;
use super::wakeups::WakeupCounts;
use super::{LaneKind, SIZES};
use crate::figures::Spread;
pub use crate::figures::size_in_words;
use crate::machine::Machine;

/// All results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Count of turns, without the warm-up.
    pub turns: usize,
    /// Time for one lane at one size in one turn, in milliseconds.
    pub slice_ms: u64,
    /// Whether each process was pinned to a separate processor.
    pub pinned: bool,
    /// Whether a process copied memory on one processor meanwhile.
    pub neighbour: bool,
    /// Average count of processors used by other processes. High values make the figures unreliable.
    pub others: f64,
    /// What the machine could move during the run.
    pub limits: Vec<LimitRow>,
    /// Throughput of every lane at every size.
    pub throughput: Vec<ThroughputRow>,
    /// Round trips of every lane.
    pub round_trips: Vec<TripRow>,
    /// Wakeup counts of each ring, over the whole run.
    pub wakeups: Vec<WakeupRow>,
    /// CPU time of idle connections.
    pub idle: Vec<IdleRow>,
    /// The goals, and whether they are met: see [`judge`](super::goals::judge).
    pub goals: Vec<Goal>,
}

/// A performance goal and its result.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// The goal in words.
    pub goal: String,
    /// Whether it is met. `None` if it was not measured.
    pub met: Option<bool>,
    /// The measured values.
    pub found: String,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        write!(f, "{met:<13} {}: {}", self.goal, self.found)
    }
}

/// One limit of the machine at one size of writes.
#[derive(Clone, Debug, Serialize)]
pub struct LimitRow {
    /// Size of a write in bytes; `None` for a copy.
    pub write: Option<usize>,
    /// The limit's name.
    pub name: String,
    /// The limit.
    #[serde(flatten)]
    pub limit: Limit,
    /// 10⁹ bytes per second.
    pub gb_per_s: Spread,
    /// Whether it has the highest median of those that a connection can reach at this size.
    pub is_best: bool,
}

/// Throughput of one lane at one size.
#[derive(Clone, Debug, Serialize)]
pub struct ThroughputRow {
    /// The API that the lane uses.
    pub style: Style,
    /// Size of a write in bytes.
    pub write: usize,
    /// The lane's name.
    pub lane: String,
    /// The kind of lane.
    pub over: LaneKind,
    /// 10⁹ bytes per second.
    pub gb_per_s: Spread,
    /// Ratio to the Unix socket, turn by turn.
    pub to_unix: Spread,
    /// Share of the best limit at this size, turn by turn.
    pub to_limit: Spread,
    /// Notifications of both ends per MiB.
    pub notifications_per_mib: Option<f64>,
    /// Parks of both ends per MiB.
    pub parks_per_mib: Option<f64>,
}

/// Round trips of one lane.
#[derive(Clone, Debug, Serialize)]
pub struct TripRow {
    /// The API that the lane uses.
    pub style: Style,
    /// The lane's name.
    pub lane: String,
    /// The kind of lane.
    pub over: LaneKind,
    /// Median of a turn in microseconds.
    pub p50_us: Spread,
    /// 90th percentile of a turn in microseconds.
    pub p90_us: Spread,
    /// 99th percentile of a turn in microseconds.
    pub p99_us: Spread,
    /// Ratio of the median to that of the Unix socket with the same pause, turn by turn.
    pub p50_to_unix: Spread,
    /// Notifications of both ends per round trip.
    pub notifications_per_trip: Option<f64>,
    /// Parks of both ends per round trip.
    pub parks_per_trip: Option<f64>,
}

/// Wakeup counts of one lane, of both ends and all turns.
#[derive(Clone, Debug, Serialize)]
pub struct WakeupRow {
    /// The API that the lane uses.
    pub style: Style,
    /// The lane's name.
    pub lane: String,
    /// The kind of lane.
    pub over: LaneKind,
    /// The counts.
    #[serde(flatten)]
    pub wakeups: WakeupCounts,
}

/// CPU time of an idle connection.
#[derive(Clone, Debug, Serialize)]
pub struct IdleRow {
    /// The API that the lane uses.
    pub style: Style,
    /// The lane's name.
    pub lane: String,
    /// The kind of lane.
    pub over: LaneKind,
    /// The duration.
    pub seconds: f64,
    /// CPU time of this process in milliseconds.
    pub here_ms: f64,
    /// CPU time of the peer in milliseconds.
    pub peer_ms: f64,
    /// CPU time of the broker in milliseconds.
    pub broker_ms: f64,
}

impl IdleRow {
    /// The sum of all three.
    pub fn all_ms(&self) -> f64 {
        self.here_ms + self.peer_ms + self.broker_ms
    }
}

impl Report {
    /// Creates a report without idle connections and goals.
    pub fn new(
        machine: Machine,
        suites: &[Suite],
        limits: &[LimitRates],
        turns: usize,
        effort: Effort,
    ) -> Self {
        Self {
            machine,
            turns,
            slice_ms: effort.slice.as_millis() as u64,
            pinned: effort.pin,
            neighbour: effort.neighbour,
            others: 0.0,
            limits: limits
                .iter()
                .map(|found| limit_row(found, limits))
                .collect(),
            throughput: suites
                .iter()
                .flat_map(|suite| throughput(suite, limits))
                .collect(),
            round_trips: suites.iter().flat_map(round_trips).collect(),
            wakeups: suites.iter().flat_map(wakeups).collect(),
            idle: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Adds the CPU time of an idle connection.
    pub fn add_idle(&mut self, suite: &Suite, over: LaneKind, time: Duration, idle: &Idle) {
        let lane = suite
            .lane_index(over)
            .and_then(|place| suite.lanes.get(place));
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

    /// Prints the report.
    pub fn print(&self) {
        println!("{}", self.machine);
        println!(
            "one interleaved run of {} turns, slices of {} ms: median (min to max)",
            self.turns, self.slice_ms
        );
        println!("CPUs used by other processes: {:.2}", self.others);
        if self.pinned {
            println!("each process pinned to one CPU");
        }
        if self.neighbour {
            println!("beside a process that copies memory on one CPU");
        }
        self.print_limits();
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
                let wakeups = each(row.notifications_per_mib, row.parks_per_mib, "MiB");
                let share = percent(&row.to_limit);
                let line = format!(
                    "  {size:<8} {:<26} {rate:<22} {share:<14} {ratio:<30} {wakeups}",
                    row.lane
                );
                println!("{}", line.trim_end());
            }
            println!("\nround trips of 64 bytes with {with}, µs: p50, p90, p99");
            for row in self.round_trips.iter().filter(|row| row.style == style) {
                let times = [row.p50_us, row.p90_us, row.p99_us];
                let [p50, p90, p99] = times.map(|time| format!("{time:.2}"));
                let ratio = ratio(row.over, &row.p50_to_unix);
                let wakeups = each(row.notifications_per_trip, row.parks_per_trip, "trip");
                let line = format!(
                    "  {:<26} {p50:<24} {p90:<24} {p99:<26} {ratio:<33} {wakeups}",
                    row.lane
                );
                println!("{}", line.trim_end());
            }
        }
        println!("\nCPU time of an idle connection, ms: this process, peer, broker");
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
                    Style::Blocking => "blocked in read",
                    Style::Tokio => "waiting in tokio",
                }
            );
        }
        println!();
        for goal in &self.goals {
            println!("{goal}");
        }
    }

    fn print_limits(&self) {
        println!("\nlimits of this machine by size of writes, GB/s (* the best)");
        let mut names: Vec<&str> = Vec::new();
        for row in &self.limits {
            if !names.contains(&row.name.as_str()) {
                names.push(&row.name);
            }
        }
        let sizes = SIZES.map(|size| format!("{:>8}", size_in_words(size)));
        println!("  {:<30} {}", "", sizes.join(""));
        for name in names {
            let rows = || self.limits.iter().filter(|row| row.name == name);
            if let Some(row) = rows().find(|row| row.write.is_none()) {
                println!("  {name:<30} {:.2}", row.gb_per_s);
                continue;
            }
            let cells = SIZES.map(|size| {
                let row = rows().find(|row| row.write == Some(size));
                row.map_or(format!("{:>8}", ""), |row| {
                    let mark = if row.is_best { "*" } else { "" };
                    format!("{:>8}", format!("{mark}{:.2}", row.gb_per_s.median))
                })
            });
            println!("  {name:<30} {}", cells.join(""));
        }
    }
}

/// The limit that a connection can reach at a size, with the highest median.
fn best(limits: &[LimitRates], at: usize) -> Option<&LimitRates> {
    let median = |found: &LimitRates| Spread::of(found.rates.iter().copied()).median;
    let here = limits.iter().filter(|found| found.size == Some(at));
    here.max_by(|a, b| median(a).total_cmp(&median(b)))
}

fn limit_row(found: &LimitRates, all: &[LimitRates]) -> LimitRow {
    let best = found.size.and_then(|at| best(all, at));
    LimitRow {
        write: found.size.map(|at| SIZES[at]),
        name: found.limit.name(),
        limit: found.limit,
        gb_per_s: Spread::of(found.rates.iter().map(|rate| rate / 1e9)),
        is_best: best.is_some_and(|best| best.limit == found.limit),
    }
}

fn throughput<'a>(
    suite: &'a Suite,
    limits: &'a [LimitRates],
) -> impl Iterator<Item = ThroughputRow> + 'a {
    let unix = suite.lane_index(LaneKind::Unix);
    SIZES.iter().enumerate().flat_map(move |(at, &write)| {
        let lanes = suite.lanes.iter().zip(&suite.results);
        let limit = best(limits, at).map_or(&[][..], |best| &best.rates);
        lanes.filter_map(move |(lane, results)| {
            let cell = &results.throughput[at];
            let unix = &suite.results[unix?].throughput[at];
            let mib = cell.bytes as f64 / f64::from(1 << 20);
            (!cell.rates.is_empty()).then(|| ThroughputRow {
                style: suite.style,
                write,
                lane: lane.name.clone(),
                over: lane.over,
                gb_per_s: Spread::of(cell.rates.iter().map(|rate| rate / 1e9)),
                to_unix: Spread::of_ratio(&cell.rates, &unix.rates),
                to_limit: Spread::of_ratio(&cell.rates, limit),
                notifications_per_mib: notifications(cell.wakeups)
                    .map(|notifications| notifications / mib),
                parks_per_mib: parks(cell.wakeups).map(|parks| parks / mib),
            })
        })
    })
}

fn round_trips(suite: &Suite) -> impl Iterator<Item = TripRow> + '_ {
    let lanes = suite.lanes.iter().zip(&suite.results);
    lanes.filter_map(move |(lane, results)| {
        let trips = &results.trips;
        let unix = &suite.results[suite.lane_index(lane.over.unix_reference())?].trips;
        let count = trips.count as f64;
        Some(TripRow {
            style: suite.style,
            lane: lane.name.clone(),
            over: lane.over,
            p50_us: Spread::of(trips.p50_us.iter().copied()),
            p90_us: Spread::of(trips.p90_us.iter().copied()),
            p99_us: Spread::of(trips.p99_us.iter().copied()),
            p50_to_unix: Spread::of_ratio(&trips.p50_us, &unix.p50_us),
            notifications_per_trip: notifications(trips.wakeups)
                .map(|notifications| notifications / count),
            parks_per_trip: parks(trips.wakeups).map(|parks| parks / count),
        })
    })
}

fn wakeups(suite: &Suite) -> impl Iterator<Item = WakeupRow> + '_ {
    let lanes = suite.lanes.iter().zip(&suite.results);
    lanes.filter_map(|(lane, results)| {
        Some(WakeupRow {
            style: suite.style,
            lane: lane.name.clone(),
            over: lane.over,
            wakeups: results.wakeups()?,
        })
    })
}

fn notifications(wakeups: Option<WakeupCounts>) -> Option<f64> {
    Some(wakeups?.notifications as f64)
}

fn parks(wakeups: Option<WakeupCounts>) -> Option<f64> {
    Some(wakeups?.parks? as f64)
}

fn ratio(over: LaneKind, ratio: &Spread) -> String {
    match over {
        LaneKind::Unix | LaneKind::UnixParked => String::new(),
        _ if over.pause().is_some() => format!("{ratio:.2} × Unix parked"),
        _ => format!("{ratio:.2} × Unix"),
    }
}

/// The share of the best limit.
fn percent(share: &Spread) -> String {
    match share.median.is_nan() {
        true => String::new(),
        false => format!("{:.0} % of limit", share.median * 100.0),
    }
}

fn each(notifications: Option<f64>, parks: Option<f64>, unit: &str) -> String {
    match (notifications, parks) {
        (Some(notifications), Some(parks)) => {
            format!("{notifications:.4} notifications, {parks:.4} parks/{unit}")
        }
        (Some(notifications), None) => format!("{notifications:.4} notifications/{unit}"),
        (None, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_limit_of_a_size_has_the_highest_median() {
        let found = |limit, size, rates: &[f64]| LimitRates {
            limit,
            size,
            rates: rates.to_vec(),
        };
        let [first, second, third, ..] = Limit::STREAMS;
        let [copy, _] = Limit::COPIES;
        let limits = [
            found(first, Some(0), &[1e9, 2e9, 9e9]),
            found(second, Some(0), &[3e9, 3e9, 3e9]),
            found(third, Some(1), &[8e9]),
            found(copy, None, &[99e9]),
        ];
        let is_best: Vec<bool> = limits
            .iter()
            .map(|found| limit_row(found, &limits).is_best)
            .collect();
        assert_eq!(is_best, [false, true, true, false]);
        let share = Spread::of_ratio(&[2e9, 1e9, 3e9], &limits[1].rates);
        assert_eq!(percent(&share), "67 % of limit");
        assert_eq!(percent(&Spread::of_ratio(&[2e9], &[])), "");
    }
}
