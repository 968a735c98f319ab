//! What a run found: rows for people, for programs and for plots, and the goals beside them.

use serde::Serialize;

use super::device::Kind;
use super::measure::{Effort, Measured};
use super::scale::Scale;
use super::{Over, SIZES, Way};
use crate::figures::Spread;
use crate::machine::Machine;
use crate::stream::goals::Goal;
use crate::stream::report::size_in_words;

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Turns that count.
    pub turns: usize,
    /// How long each lane was measured in one turn at one size.
    pub slice_ms: u64,
    /// Entries of the guests' queues.
    pub queue: u16,
    /// Processors that others used meanwhile, on average.
    pub others: f64,
    /// Throughput each way at every size.
    pub throughput: Vec<ThroughputRow>,
    /// Messages there and back.
    pub round_trips: Vec<TripRow>,
    /// Connections made.
    pub connections: Vec<ConnectionRow>,
    /// How far our device goes, if it was asked for.
    pub scale: Option<Scale>,
    /// What was to be reached.
    pub goals: Vec<Goal>,
}

/// Throughput of one lane at one size.
#[derive(Clone, Debug, Serialize)]
pub struct ThroughputRow {
    /// Where the bytes go.
    pub way: Way,
    /// Bytes of a write.
    pub write: usize,
    /// What the lane goes over.
    pub over: Over,
    /// 10^9 bytes a second.
    pub gb_per_s: Spread,
    /// How many times vhost-device-vsock, turn by turn.
    pub to_peer: Spread,
}

/// Round trips of one lane.
#[derive(Clone, Debug, Serialize)]
pub struct TripRow {
    /// What the lane goes over.
    pub over: Over,
    /// Microseconds below which a half stayed.
    pub p50_us: Spread,
    /// All but one in a hundred.
    pub p99_us: Spread,
    /// How many times vhost-device-vsock's, turn by turn.
    pub p50_to_peer: Spread,
}

/// Connections over one device.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionRow {
    /// What they go over.
    pub over: Over,
    /// Made and closed in a second, one after the other.
    pub per_second: Option<Spread>,
    /// How many stood at once.
    pub at_once: usize,
    /// Milliseconds until they all stood.
    pub connect_ms: Option<Spread>,
    /// Messages there and back in a second over all of them.
    pub messages_per_second: Option<Spread>,
    /// What went wrong.
    pub failed: Option<String>,
}

impl Report {
    /// A report of what was measured so far.
    pub fn new(
        machine: Machine,
        lanes: &[Measured],
        turns: usize,
        effort: Effort,
        kind: Kind,
    ) -> Self {
        let peer = lanes.iter().find(|lane| lane.over == Over::Peer);
        let mut throughput = Vec::new();
        for way in Way::BOTH {
            for (at, &write) in SIZES.iter().enumerate() {
                for lane in lanes {
                    let rates = &lane.rates[way as usize][at];
                    let peers = peer.map_or(rates, |peer| &peer.rates[way as usize][at]);
                    throughput.push(ThroughputRow {
                        way,
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
            turns,
            slice_ms: effort.slice.as_millis() as u64,
            queue: kind.queue,
            others: 0.0,
            throughput,
            round_trips: round_trips.collect(),
            connections: Vec::new(),
            scale: None,
            goals: Vec::new(),
        }
    }

    /// Looks at what was to be reached; the last thing to do.
    pub fn judge(&mut self) {
        let mut goals = Vec::new();
        let ways = if self.turns > 0 { &Way::BOTH[..] } else { &[] };
        for &way in ways {
            for (write, least) in [(64, 4.0), (4 << 10, 2.5), (64 << 10, 2.5)] {
                let mut rows = self.throughput.iter();
                let row =
                    rows.find(|row| row.over == Over::Ring && row.way == way && row.write == write);
                let found = row.map(|row| row.to_peer);
                goals.push(Goal {
                    goal: format!(
                        "at least {least} times vhost-device-vsock at {}, {}",
                        size_in_words(write),
                        way.name()
                    ),
                    met: found.map(|ratio| ratio.median >= least),
                    found: found.map_or(String::new(), |ratio| format!("{ratio:.1}")),
                });
            }
        }
        let trips = self.round_trips.iter().find(|row| row.over == Over::Ring);
        goals.extend(trips.map(|row| Goal {
            goal: "64 bytes there and back in at most 0.7 times its time".to_owned(),
            met: Some(row.p50_to_peer.median <= 0.7),
            found: format!("{:.2}", row.p50_to_peer),
        }));
        if let Some(scale) = &self.scale {
            goals.extend(scale.goals());
        }
        self.goals = goals;
    }

    /// Prints all of it.
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
            "one interleaved run of {} turns, {} ms each time, queues of {}: median (least to most)",
            self.turns, self.slice_ms, self.queue
        );
        println!("others used {:.2} processors meanwhile", self.others);
        for way in Way::BOTH {
            println!("\n{}, GB/s", way.name());
            for row in self.throughput.iter().filter(|row| row.way == way) {
                let size = match row.over {
                    Over::Ring => size_in_words(row.write),
                    _ => String::new(),
                };
                let rate = format!("{:.3}", row.gb_per_s);
                let ratio = ratio(row.over, &row.to_peer);
                let line = format!("  {size:<8} {:<20} {rate:<26} {ratio}", row.over.name());
                println!("{}", line.trim_end());
            }
        }
        println!("\n64 bytes there and back, µs at p50, p99");
        for row in &self.round_trips {
            let [p50, p99] = [row.p50_us, row.p99_us].map(|time| format!("{time:.1}"));
            let ratio = ratio(row.over, &row.p50_to_peer);
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
                "    made and closed per second      {}",
                shown(&row.per_second)
            );
            println!(
                "    {} at once: ms to connect     {}",
                row.at_once,
                shown(&row.connect_ms)
            );
            println!(
                "    {} at once: messages a second {}",
                row.at_once,
                shown(&row.messages_per_second)
            );
            if let Some(failed) = &row.failed {
                println!("    failed: {failed}");
            }
        }
    }
}

fn ratio(over: Over, ratio: &Spread) -> String {
    match over {
        Over::Peer => String::new(),
        _ => format!("{ratio:.2} × vhost-device-vsock"),
    }
}
