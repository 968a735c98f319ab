//! The report of a run: printed tables, JSON, the data of plots, and the goals.

use serde::Serialize;

use super::measure::{Effort, Measured};
use super::scale::Scale;
use super::{Direction, GuestLaneKind, SIZES};
use crate::figures::Spread;
use crate::machine::Machine;
use crate::stream::report::{Goal, size_in_words};

/// What the guests of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestKind {
    /// A virtio driver in the bench's process.
    Native,
    /// Linux, in User-mode Linux.
    UserModeLinux,
    /// Linux, in User-mode Linux, with a broker and a container.
    Nested,
}

/// All results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// What the guests are.
    pub guest: GuestKind,
    /// Count of turns, without the warm-up.
    pub turns: usize,
    /// Time for one lane at one size in one turn, in milliseconds.
    pub slice_ms: u64,
    /// Size of the guests' virtqueues.
    pub queue: u16,
    /// Average count of processors used by other processes.
    pub others: f64,
    /// Throughput in each direction at every size.
    pub throughput: Vec<ThroughputRow>,
    /// Round trips.
    pub round_trips: Vec<TripRow>,
    /// Connects.
    pub connections: Vec<ConnectionRow>,
    /// Scale, if requested.
    pub scale: Option<Scale>,
    /// The goals, and whether they are met.
    pub goals: Vec<Goal>,
}

/// Throughput of one lane at one size.
#[derive(Clone, Debug, Serialize)]
pub struct ThroughputRow {
    /// The direction.
    pub direction: Direction,
    /// Size of a write in bytes.
    pub write: usize,
    /// The kind of lane.
    pub over: GuestLaneKind,
    /// 10⁹ bytes per second.
    pub gb_per_s: Spread,
    /// Ratio to the baseline, turn by turn.
    pub to_peer: Spread,
}

/// Round trips of one lane.
#[derive(Clone, Debug, Serialize)]
pub struct TripRow {
    /// The kind of lane.
    pub over: GuestLaneKind,
    /// Median in microseconds.
    pub p50_us: Spread,
    /// 99th percentile in microseconds.
    pub p99_us: Spread,
    /// Ratio of the medians to the baseline, turn by turn.
    pub p50_to_peer: Spread,
}

/// Connections over one device.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionRow {
    /// The kind of lane.
    pub over: GuestLaneKind,
    /// Connections per second, made and closed in sequence.
    pub per_second: Option<Spread>,
    /// Count of concurrent connections.
    pub at_once: usize,
    /// Milliseconds until all were connected, for the guest.
    pub connect_ms: Option<Spread>,
    /// Milliseconds until the host program has answered on all.
    pub answered_ms: Option<Spread>,
    /// Round trips per second over all connections, after that.
    pub messages_per_second: Option<Spread>,
    /// The error, if the measurement failed.
    pub failed: Option<String>,
}

impl Report {
    /// Creates a report without connects, scale and goals.
    pub fn new<L>(
        machine: Machine,
        lanes: &[Measured<L>],
        turns: usize,
        effort: Effort,
        queue: u16,
    ) -> Self {
        let peer = lanes.iter().find(|lane| lane.over.is_baseline());
        let mut throughput = Vec::new();
        for direction in Direction::BOTH {
            for (at, &write) in SIZES.iter().enumerate() {
                for lane in lanes {
                    let rates = &lane.rates[direction as usize][at];
                    let peers = peer.map_or(rates, |peer| &peer.rates[direction as usize][at]);
                    throughput.push(ThroughputRow {
                        direction,
                        write,
                        over: lane.over,
                        gb_per_s: Spread::of(rates.iter().map(|rate| rate / 1e9)),
                        to_peer: Spread::of_ratio(rates, peers),
                    });
                }
            }
        }
        let round_trips = lanes.iter().map(|lane| TripRow {
            over: lane.over,
            p50_us: Spread::of(lane.p50_us.iter().copied()),
            p99_us: Spread::of(lane.p99_us.iter().copied()),
            p50_to_peer: Spread::of_ratio(
                &lane.p50_us,
                peer.map_or(&lane.p50_us, |peer| &peer.p50_us),
            ),
        });
        Self {
            machine,
            guest: GuestKind::Native,
            turns,
            slice_ms: effort.slice.as_millis() as u64,
            queue,
            others: 0.0,
            throughput,
            round_trips: round_trips.collect(),
            connections: Vec::new(),
            scale: None,
            goals: Vec::new(),
        }
    }

    /// Evaluates the goals. Call it last.
    pub fn judge(&mut self) {
        if self.guest == GuestKind::UserModeLinux {
            self.goals = vec![self.throughput_goal(Direction::ToHost, 64 << 10, 5.0)];
            return;
        }
        if self.guest == GuestKind::Nested {
            let goal = |direction| self.nested_goal(direction, 64 << 10, 0.7);
            self.goals = Direction::BOTH.map(goal).into();
            return;
        }
        let mut goals = Vec::new();
        // The goals are ratios to vhost-device-vsock.
        let mut rows = self.throughput.iter();
        let has_peer = rows.any(|row| row.over == GuestLaneKind::Peer);
        let ways = if self.turns > 0 && has_peer {
            &Direction::BOTH[..]
        } else {
            &[]
        };
        for &direction in ways {
            for (write, least) in [(64, 4.0), (4 << 10, 2.5), (64 << 10, 2.5)] {
                goals.push(self.throughput_goal(direction, write, least));
            }
        }
        let trips = self
            .round_trips
            .iter()
            .find(|row| has_peer && row.over == GuestLaneKind::Ring);
        goals.extend(trips.map(|row| Goal {
            goal: "round trip of 64 bytes in at most 0.7 times its time".to_owned(),
            met: Some(row.p50_to_peer.median <= 0.7),
            found: format!("{:.2}", row.p50_to_peer),
        }));
        if let Some(scale) = &self.scale {
            goals.extend(scale.goals());
        }
        self.goals = goals;
    }

    fn throughput_goal(&self, direction: Direction, write: usize, least: f64) -> Goal {
        let mut rows = self.throughput.iter();
        let row = rows.find(|row| {
            row.over == GuestLaneKind::Ring && row.direction == direction && row.write == write
        });
        let found = row.map(|row| row.to_peer);
        Goal {
            goal: format!(
                "at least {least} times vhost-device-vsock at {}, {}",
                size_in_words(write),
                direction.name()
            ),
            met: found.map(|ratio| ratio.median >= least),
            found: found.map_or(String::new(), |ratio| format!("{ratio:.1}")),
        }
    }

    fn nested_goal(&self, direction: Direction, write: usize, least: f64) -> Goal {
        let mut rows = self.throughput.iter();
        let row = rows.find(|row| {
            row.over == GuestLaneKind::Container && row.direction == direction && row.write == write
        });
        let found = row.map(|row| row.to_peer);
        Goal {
            goal: format!(
                "a container at least {least} times its VM at {}, {}",
                size_in_words(write),
                direction.name()
            ),
            met: found.map(|ratio| ratio.median >= least),
            found: found.map_or(String::new(), |ratio| format!("{ratio:.2}")),
        }
    }

    /// Prints the report.
    pub fn print(&self) {
        println!("{}", self.machine);
        if self.turns > 0 {
            self.print_lanes();
        }
        if let Some(scale) = &self.scale {
            scale.print();
        }
        println!();
        for goal in &self.goals {
            println!("{goal}");
        }
    }

    fn print_lanes(&self) {
        println!(
            "one interleaved run of {} turns, slices of {} ms, queues of {}, {}: median (min to max)",
            self.turns,
            self.slice_ms,
            self.queue,
            match self.guest {
                GuestKind::Native => "guests at native speed",
                GuestKind::UserModeLinux => "guests in User-mode Linux",
                GuestKind::Nested => "one guest in User-mode Linux",
            }
        );
        println!("CPUs used by other processes: {:.2}", self.others);
        for direction in Direction::BOTH {
            println!("\n{}, GB/s", direction.name());
            for row in self
                .throughput
                .iter()
                .filter(|row| row.direction == direction)
            {
                let size = match row.over {
                    GuestLaneKind::Ring | GuestLaneKind::Container => size_in_words(row.write),
                    _ => String::new(),
                };
                let rate = format!("{:.3}", row.gb_per_s);
                let ratio = self.ratio(row.over, &row.to_peer);
                let line = format!("  {size:<8} {:<20} {rate:<26} {ratio}", row.over.name());
                println!("{}", line.trim_end());
            }
        }
        println!("\nround trips of 64 bytes, µs: p50, p99");
        for row in &self.round_trips {
            let [p50, p99] = [row.p50_us, row.p99_us].map(|time| format!("{time:.1}"));
            let ratio = self.ratio(row.over, &row.p50_to_peer);
            let line = format!("  {:<20} {p50:<24} {p99:<26} {ratio}", row.over.name());
            println!("{}", line.trim_end());
        }
        println!("\nconnections of a guest to the host");
        for row in &self.connections {
            println!("  {}", row.over.name());
            let shown = |spread: &Option<Spread>| {
                let spread = spread.as_ref();
                spread.map_or("-".to_owned(), |spread| format!("{spread:.0}"))
            };
            println!(
                "    connects and closes per second    {}",
                shown(&row.per_second)
            );
            if row.at_once > 0 {
                println!(
                    "    {} concurrent: ms to connect    {}",
                    row.at_once,
                    shown(&row.connect_ms)
                );
                println!(
                    "    {} concurrent: ms to answer     {}",
                    row.at_once,
                    shown(&row.answered_ms)
                );
                println!(
                    "    {} concurrent: round trips/s    {}",
                    row.at_once,
                    shown(&row.messages_per_second)
                );
            }
            if let Some(failed) = &row.failed {
                println!("    failed: {failed}");
            }
        }
    }

    fn ratio(&self, over: GuestLaneKind, ratio: &Spread) -> String {
        let mut rows = self.round_trips.iter();
        match rows.find(|row| row.over.is_baseline()) {
            Some(baseline) if baseline.over != over => {
                format!("{ratio:.2} × {}", baseline.over.name())
            }
            _ => String::new(),
        }
    }
}
