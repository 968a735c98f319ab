//! The report of a run: tables, JSON, and the goals.

use serde::Serialize;

use super::Way;
use super::measure::Values;
use crate::figures::Spread;
use crate::machine::Machine;
use crate::stream::report::Goal;

/// The most that a connect may cost under `hvsock run`, in times of the library's over the same transport.
const MAX_CONNECT: f64 = 2.0;
/// By how much data may be slower under `hvsock run`: what two runs of the same differ by.
const MAX_DATA: f64 = 1.1;

/// All results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Count of turns.
    pub turns: usize,
    /// Average count of processors used by other processes.
    pub others: f64,
    /// The figures of each way, in the order of [`Way::ALL`].
    pub ways: Vec<Row>,
    /// The goals, and whether they are met.
    pub goals: Vec<Goal>,
}

/// The figures of one way. Ratios are those of each turn.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The way.
    pub way: Way,
    /// Microseconds of `getsockname` on a TCP socket.
    pub foreign_us: Spread,
    /// How many more than without `hvsock run`.
    pub foreign_extra_us: Spread,
    /// Microseconds of `getsockname` on a socket of the way: a Unix socket's, or an emulated one's.
    pub own_us: Spread,
    /// How many more than those of a Unix socket.
    pub own_extra_us: Spread,
    /// Microseconds of a connect, accept and close.
    pub connect_us: Spread,
    /// Divided by those of a Unix socket.
    pub connect_to_unix: Spread,
    /// Divided by those of the library.
    pub connect_to_library: Spread,
    /// Divided by those of the library over the descriptor transport.
    pub connect_to_descriptor: Spread,
    /// 10⁹ bytes per second in writes of 64 KiB.
    pub gb_per_s: Spread,
    /// Divided by those of the library over the descriptor transport.
    pub throughput_to_descriptor: Spread,
    /// Microseconds of a round trip of 64 B.
    pub round_trip_us: Spread,
    /// Divided by those of the library over the descriptor transport.
    pub round_trip_to_descriptor: Spread,
}

impl Report {
    /// Computes the ratios, and evaluates the goals by the medians.
    pub fn new(machine: Machine, values: &[Values], turns: usize, others: f64) -> Self {
        let of = |way: Way| &values[way.index()];
        let (unix, library, descriptor) = (of(Way::Unix), of(Way::Library), of(Way::Descriptor));
        let ways: Vec<Row> = Way::ALL
            .into_iter()
            .map(|way| {
                let its = of(way);
                let spread = |values: &[f64]| Spread::of(values.iter().copied());
                Row {
                    way,
                    foreign_us: spread(&its.foreign_us),
                    foreign_extra_us: extra(&its.foreign_us, &unix.foreign_us),
                    own_us: spread(&its.own_us),
                    own_extra_us: extra(&its.own_us, &unix.own_us),
                    connect_us: spread(&its.connect_us),
                    connect_to_unix: Spread::of_ratio(&its.connect_us, &unix.connect_us),
                    connect_to_library: Spread::of_ratio(&its.connect_us, &library.connect_us),
                    connect_to_descriptor: Spread::of_ratio(
                        &its.connect_us,
                        &descriptor.connect_us,
                    ),
                    gb_per_s: spread(&its.gb_per_s),
                    throughput_to_descriptor: Spread::of_ratio(&its.gb_per_s, &descriptor.gb_per_s),
                    round_trip_us: spread(&its.round_trip_us),
                    round_trip_to_descriptor: Spread::of_ratio(
                        &its.round_trip_us,
                        &descriptor.round_trip_us,
                    ),
                }
            })
            .collect();
        let goals = goals(&ways);
        Self {
            machine,
            turns,
            others,
            ways,
            goals,
        }
    }

    /// Prints all tables.
    pub fn print(&self) {
        println!("{}", self.machine);
        println!(
            "one interleaved run of {} turns: median (min to max); other processes used {:.2} processors",
            self.turns, self.others
        );
        println!(
            "\ngetsockname, µs: on a TCP socket, on an emulated one (the first line: on a Unix socket)"
        );
        for row in self.with_calls() {
            let more = match row.way {
                Way::Unix => String::new(),
                _ => format!(
                    "{:.2} and {:.2} more",
                    row.foreign_extra_us, row.own_extra_us
                ),
            };
            let [foreign, own] = [row.foreign_us, row.own_us].map(|spread| spread.to_string());
            line(&format!(
                "  {:<21} {foreign:<24} {own:<24} {more}",
                row.way.name()
            ));
        }
        println!(
            "\nconnect, accept and close, µs: × Unix socket, × library, × library over descriptors"
        );
        for row in &self.ways {
            let took = format!("{:.1}", row.connect_us);
            let ratios = [
                row.connect_to_unix,
                row.connect_to_library,
                row.connect_to_descriptor,
            ];
            let [unix, library, descriptor] = ratios.map(|spread| spread.to_string());
            line(&format!(
                "  {:<21} {took:<24} {unix:<21} {library:<21} {descriptor}",
                row.way.name()
            ));
        }
        println!(
            "\nwrites of 64 KiB, 10⁹ B/s; round trips of 64 B, µs; each × library over descriptors"
        );
        for row in &self.ways {
            let figures = [
                row.gb_per_s,
                row.throughput_to_descriptor,
                row.round_trip_us,
                row.round_trip_to_descriptor,
            ];
            let [rate, rate_ratio, took, took_ratio] = figures.map(|spread| spread.to_string());
            line(&format!(
                "  {:<21} {rate:<21} {rate_ratio:<21} {took:<24} {took_ratio}",
                row.way.name()
            ));
        }
        println!("\ngoals");
        for goal in &self.goals {
            println!("  {goal}");
        }
    }

    /// The ways in which a program uses sockets, and so the calls that are measured.
    pub fn with_calls(&self) -> impl DoubleEndedIterator<Item = &Row> {
        let has_calls = |row: &&Row| !matches!(row.way, Way::Library | Way::Descriptor);
        self.ways.iter().filter(has_calls)
    }
}

fn line(text: &str) {
    println!("{}", text.trim_end());
}

/// The spread of `a - b`, pairing the values of each turn.
fn extra(a: &[f64], b: &[f64]) -> Spread {
    Spread::of(a.iter().zip(b).map(|(a, b)| a - b))
}

fn goals(ways: &[Row]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for row in ways.iter().filter(|row| row.way.option().is_some()) {
        let name = row.way.name();
        let connect = row.connect_to_descriptor;
        goals.push(Goal {
            goal: format!(
                "{name}: connect, accept and close within {MAX_CONNECT} times the library's over descriptors"
            ),
            met: Some(connect.median <= MAX_CONNECT),
            found: format!("{connect:.2} times its time, {:.1} µs", row.connect_us),
        });
        let (rate, took) = (row.throughput_to_descriptor, row.round_trip_to_descriptor);
        goals.push(Goal {
            goal: format!("{name}: data as fast as the library's over descriptors, to 10 %"),
            met: Some(rate.median >= 1.0 / MAX_DATA && took.median <= MAX_DATA),
            found: format!("{rate:.2} times its rate, {took:.2} times its round trip"),
        });
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(connect_us: f64, gb_per_s: f64, round_trip_us: f64) -> Report {
        let values = |connect_us, gb_per_s, round_trip_us| Values {
            foreign_us: vec![1.0],
            own_us: vec![1.0],
            connect_us: vec![connect_us],
            gb_per_s: vec![gb_per_s],
            round_trip_us: vec![round_trip_us],
        };
        let all = Way::ALL.map(|way| match way.option() {
            Some(_) => values(connect_us, gb_per_s, round_trip_us),
            None => values(10.0, 1.0, 10.0),
        });
        Report::new(Machine::current(), &all, 1, 0.0)
    }

    #[test]
    fn connects_meet_their_goal_at_twice_the_librarys_time_and_data_at_its_own() {
        let met = |report: Report| report.goals.iter().map(|it| it.met).collect::<Vec<_>>();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(met(report(20.0, 1.0, 10.0)), [yes; 4]);
        assert_eq!(met(report(20.1, 1.0, 10.0)), [no, yes, no, yes]);
        assert_eq!(met(report(20.0, 0.9, 10.0)), [yes, no, yes, no]);
        assert_eq!(met(report(20.0, 1.0, 11.1)), [yes, no, yes, no]);
    }

    #[test]
    fn the_cost_of_a_call_is_the_difference_to_that_of_the_same_turn() {
        let spread = extra(&[5.0, 9.0, 4.0], &[1.0, 1.0, 1.0]);
        assert_eq!([spread.min, spread.median, spread.max], [3.0, 4.0, 8.0]);
    }
}
