//! The report of a run: tables, JSON, and the goals.

use serde::Serialize;

use super::idle::Idle;
use super::measure::{Effort, Measured};
use super::{Load, Subject};
use crate::figures::Spread;
use crate::machine::Machine;
use crate::stream::report::Goal;

/// All results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Count of turns.
    pub turns: usize,
    /// Average count of processors used by other processes.
    pub others: f64,
    /// Connects of pairs of processes that have talked before, at each load.
    pub loads: Vec<LoadRow>,
    /// One client's connects by the service's name.
    pub by_name: ByName,
    /// The first connect of a process.
    pub first: First,
    /// Idle connections, if measured.
    pub idle: Option<Idle>,
    /// The goals, and whether they are met.
    pub goals: Vec<Goal>,
}

/// Connects at one load.
#[derive(Clone, Debug, Serialize)]
pub struct LoadRow {
    /// The load.
    pub load: Load,
    /// Over Unix sockets.
    pub unix: SubjectRow,
    /// Over hvsock.
    pub hvsock: SubjectRow,
    /// hvsock's median time divided by the Unix sockets', turn by turn.
    pub p50_to_unix: Spread,
    /// The same of the 99th percentile.
    pub p99_to_unix: Spread,
    /// hvsock's rate divided by the Unix sockets', turn by turn.
    pub rate_to_unix: Spread,
}

/// Connects over one subject.
#[derive(Clone, Debug, Serialize)]
pub struct SubjectRow {
    /// Median microseconds until both ends have the connection.
    pub p50_us: Spread,
    /// 99th percentile.
    pub p99_us: Spread,
    /// Connections made and closed per second.
    pub per_second: Spread,
}

/// Connects by name.
#[derive(Clone, Debug, Serialize)]
pub struct ByName {
    /// Median microseconds.
    pub p50_us: Spread,
    /// Divided by those by GUID, turn by turn.
    pub to_guid: Spread,
}

/// The first connect of a process.
#[derive(Clone, Debug, Serialize)]
pub struct First {
    /// Median microseconds over a Unix socket.
    pub unix_us: Spread,
    /// Median microseconds over hvsock.
    pub hvsock_us: Spread,
    /// Their ratio, turn by turn.
    pub to_unix: Spread,
}

impl Report {
    /// Computes the ratios.
    pub fn new(machine: Machine, measured: &Measured, effort: Effort, others: f64) -> Self {
        let rows = Load::ALL.into_iter().zip(&measured.loads);
        let loads = rows.map(|(load, [unix, hvsock])| {
            let [unix_row, hvsock_row] = [unix, hvsock].map(|values| SubjectRow {
                p50_us: Spread::of(values.p50_us.iter().copied()),
                p99_us: Spread::of(values.p99_us.iter().copied()),
                per_second: Spread::of(values.per_second.iter().copied()),
            });
            LoadRow {
                load,
                unix: unix_row,
                hvsock: hvsock_row,
                p50_to_unix: Spread::of_ratio(&hvsock.p50_us, &unix.p50_us),
                p99_to_unix: Spread::of_ratio(&hvsock.p99_us, &unix.p99_us),
                rate_to_unix: Spread::of_ratio(&hvsock.per_second, &unix.per_second),
            }
        });
        let [named, by_guid] = &measured.by_name;
        let [unix, hvsock] = &measured.first_us;
        Self {
            machine,
            turns: effort.turns,
            others,
            loads: loads.collect(),
            by_name: ByName {
                p50_us: Spread::of(named.iter().copied()),
                to_guid: Spread::of_ratio(named, by_guid),
            },
            first: First {
                unix_us: Spread::of(unix.iter().copied()),
                hvsock_us: Spread::of(hvsock.iter().copied()),
                to_unix: Spread::of_ratio(hvsock, unix),
            },
            idle: None,
            goals: Vec::new(),
        }
    }

    /// Evaluates the goals, by the medians. Call it last.
    pub fn judge(&mut self) {
        let mut goals = Vec::new();
        if let Some(one) = self.loads.iter().find(|row| row.load == Load::ONE) {
            goals.push(Goal {
                goal: "connect and accept of a pair that has talked before within the Unix \
                       socket's time at p50"
                    .to_owned(),
                met: Some(one.p50_to_unix.median <= 1.0),
                found: format!(
                    "{:.2} times its time, {:.1} µs",
                    one.p50_to_unix, one.hvsock.p50_us
                ),
            });
        }
        let rate = |row: &&LoadRow| row.hvsock.per_second.median;
        let best = self.loads.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
        if let Some(best) = best {
            goals.push(Goal {
                goal: "at least 100,000 connections made and closed a second".to_owned(),
                met: Some(rate(&best) >= 100_000.0),
                found: format!(
                    "{:.0} of {}, {:.2} times the Unix socket's",
                    best.hvsock.per_second,
                    best.load.name(),
                    best.rate_to_unix
                ),
            });
        }
        if self.turns > 0 {
            goals.push(Goal {
                goal: "first connection of a process within 2.5 times the Unix socket's time"
                    .to_owned(),
                met: Some(self.first.to_unix.median <= 2.5),
                found: format!("{:.2} times its time", self.first.to_unix),
            });
        }
        if let Some(idle) = &self.idle {
            goals.extend(idle_goals(idle));
        }
        self.goals = goals;
    }

    /// Prints all tables.
    pub fn print(&self) {
        println!("{}", self.machine);
        println!(
            "one interleaved run of {} turns: median (min to max); other processes used {:.2} processors",
            self.turns, self.others
        );
        if self.turns > 0 {
            self.print_connects();
        }
        if let Some(idle) = &self.idle {
            idle.print();
        }
        println!("\ngoals");
        for goal in &self.goals {
            println!("  {goal}");
        }
    }

    fn print_connects(&self) {
        println!("\nconnect and accept of pairs that have talked before, µs: p50, p99");
        for row in &self.loads {
            for over in Subject::BOTH {
                let its = row.of(over);
                let [p50, p99] = [its.p50_us, its.p99_us].map(|spread| format!("{spread:.1}"));
                let ratio = match over {
                    Subject::Unix => String::new(),
                    _ => format!(
                        "{:.2}, {:.2} × Unix socket",
                        row.p50_to_unix, row.p99_to_unix
                    ),
                };
                let line = format!(
                    "  {:<13} {:<12} {p50:<26} {p99:<28} {ratio}",
                    row.load.name(),
                    name(over)
                );
                println!("{}", line.trim_end());
            }
        }
        println!(
            "  by name, 1 client: {:.1}, {:.2} × by GUID",
            self.by_name.p50_us, self.by_name.to_guid
        );
        println!("\nfirst connection of a process, µs");
        println!("  Unix socket  {:.1}", self.first.unix_us);
        println!(
            "  hvsock       {:.1}, {:.2} × Unix socket",
            self.first.hvsock_us, self.first.to_unix
        );
        println!("\nconnections made and closed a second");
        for row in &self.loads {
            for over in Subject::BOTH {
                let rate = format!("{:.0}", row.of(over).per_second);
                let ratio = match over {
                    Subject::Unix => String::new(),
                    _ => format!("{:.2} × Unix socket", row.rate_to_unix),
                };
                let line = format!(
                    "  {:<13} {:<12} {rate:<30} {ratio}",
                    row.load.name(),
                    name(over)
                );
                println!("{}", line.trim_end());
            }
        }
    }
}

impl LoadRow {
    /// The figures of one of [`Subject::BOTH`].
    pub fn of(&self, over: Subject) -> &SubjectRow {
        match over {
            Subject::Unix => &self.unix,
            _ => &self.hvsock,
        }
    }
}

/// The name of a subject in tables.
pub fn name(over: Subject) -> &'static str {
    match over {
        Subject::Unix => "Unix socket",
        Subject::Hvsock => "hvsock",
        Subject::HvsockByName => "hvsock by name",
    }
}

/// The count of idle connections that the goals are about.
const MANY: usize = 100_000;

fn idle_goals(idle: &Idle) -> [Goal; 4] {
    let many = idle.wanted >= MANY;
    let all = idle.connections >= MANY;
    let kib = idle.broker_bytes_each / 1024.0;
    [
        Goal {
            goal: format!(
                "{MANY} idle connections on one broker, each at most 4 KiB of its memory"
            ),
            met: many.then_some(all && kib <= 4.0),
            found: format!("{} of {kib:.2} KiB each", idle.connections),
        },
        Goal {
            goal: "at most 0.05 descriptors of the broker for an idle connection".to_owned(),
            met: (idle.connections > 0).then_some(idle.broker_descriptors_each <= 0.05),
            found: format!("{:.3}", idle.broker_descriptors_each),
        },
        Goal {
            goal: format!("{MANY} idle connections cost the broker 0.00 ms CPU time in 2 s"),
            met: many.then_some(all && idle.broker_cpu_ms < 0.005),
            found: format!("{:.2} ms, of {}", idle.broker_cpu_ms, idle.connections),
        },
        Goal {
            goal: "of these each is listed, and a sample closed, suspended and resumed".to_owned(),
            met: (idle.connections > 0).then_some(
                idle.listed == idle.connections && idle.closed.all() && idle.suspended.all(),
            ),
            found: format!(
                "{} listed, {} of {} closed, {} of {} suspended",
                idle.listed,
                idle.closed.right,
                idle.closed.of,
                idle.suspended.right,
                idle.suspended.of
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::idle::Checked;
    use super::*;

    fn report(unix_us: f64, hvsock_us: f64, hvsock_rate: f64) -> Report {
        let mut measured = Measured {
            loads: vec![Default::default(); Load::ALL.len()],
            by_name: [vec![1.0], vec![1.0]],
            first_us: [vec![10.0], vec![20.0]],
        };
        for [unix, hvsock] in &mut measured.loads {
            (unix.p50_us, unix.p99_us) = (vec![unix_us], vec![unix_us]);
            (hvsock.p50_us, hvsock.p99_us) = (vec![hvsock_us], vec![hvsock_us]);
            (unix.per_second, hvsock.per_second) = (vec![1.0], vec![hvsock_rate]);
        }
        let effort = Effort {
            turns: 1,
            slice: std::time::Duration::ZERO,
        };
        Report::new(Machine::current(), &measured, effort, 0.0)
    }

    fn met(report: &mut Report, goal: &str) -> Option<bool> {
        report.judge();
        let found = report.goals.iter().find(|each| each.goal.contains(goal));
        found.unwrap_or_else(|| panic!("no {goal}")).met
    }

    #[test]
    fn goals_of_connects_are_met_at_the_unix_sockets_time_and_a_hundred_thousand() {
        let mut good = report(30.0, 29.0, 100_000.0);
        let mut bad = report(30.0, 31.0, 99_999.0);
        assert_eq!(met(&mut good, "at p50"), Some(true));
        assert_eq!(met(&mut bad, "at p50"), Some(false));
        assert_eq!(met(&mut good, "a second"), Some(true));
        assert_eq!(met(&mut bad, "a second"), Some(false));
        assert_eq!(met(&mut good, "first connection"), Some(true));
    }

    #[test]
    fn goals_of_a_hundred_thousand_are_not_measured_with_fewer() {
        let mut idle = Idle {
            wanted: MANY,
            connections: MANY,
            of_a_pair: 1000,
            broker_bytes_each: 4096.0,
            broker_descriptors_each: 0.05,
            ends_bytes_each: 1.0,
            broker_cpu_ms: 0.0,
            seconds: 2.0,
            listed: MANY,
            list_ms: 1.0,
            closed: Checked { right: 2, of: 2 },
            suspended: Checked { right: 2, of: 2 },
            failures: Vec::new(),
        };
        let judged = |idle: &Idle| idle_goals(idle).map(|goal| goal.met);
        assert_eq!(judged(&idle), [Some(true); 4]);
        idle.connections = 10_000;
        idle.listed = 10_000;
        assert_eq!(
            judged(&idle),
            [Some(false), Some(true), Some(false), Some(true)]
        );
        idle.wanted = 10_000;
        assert_eq!(judged(&idle), [None, Some(true), None, Some(true)]);
        idle.closed.right = 1;
        idle.broker_descriptors_each = 2.0;
        assert_eq!(judged(&idle), [None, Some(false), None, Some(false)]);
    }
}
