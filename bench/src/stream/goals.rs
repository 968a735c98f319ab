//! The performance goals of the shared ring, and whether a run met them.

use super::LaneKind;
use super::peer::Style;
use super::report::{Goal, IdleRow, Report, TripRow, size_in_words};
use super::wakeups::WakeupCounts;
use crate::figures::Spread;

const KIB: usize = 1024;
/// Sizes of writes at which the Unix socket is fastest.
const MIDDLE: [usize; 3] = [4 * KIB, 16 * KIB, 64 * KIB];
const LARGE: [usize; 2] = [256 * KIB, 1024 * KIB];
const MIDDLE_AND_LARGE: [usize; 5] = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB];
/// Fraction of one processor's time that the kernel's housekeeping may take in three processes.
const MAX_IDLE: f64 = 0.001;

/// Least ratio to the Unix socket beside a loud neighbour.
const BESIDE_NEIGHBOUR: f64 = 0.9;

/// Evaluates all goals, by the medians.
pub fn judge(report: &Report) -> Vec<Goal> {
    if report.neighbour {
        return vec![ratios(report, Style::Blocking, BESIDE_NEIGHBOUR, &LARGER)];
    }
    vec![
        ratios(report, Style::Blocking, 3.0, &MIDDLE),
        rate(report, 2.0, KIB),
        ratios(report, Style::Blocking, 2.0, &LARGE),
        ratios(report, Style::Tokio, 2.0, &MIDDLE_AND_LARGE),
        limit(report),
        spinning(report),
        no_slower(report, LaneKind::HvsockParked, "both ends parked"),
        no_slower(
            report,
            LaneKind::HvsockNoSpin,
            "back to back without spinning",
        ),
        idle(report),
        notifications(report),
    ]
}

fn ratios(report: &Report, style: Style, least: f64, sizes: &[usize]) -> Goal {
    let with = match style {
        Style::Blocking => "",
        Style::Tokio => " with tokio",
    };
    let found: Vec<(usize, Spread)> = sizes
        .iter()
        .filter_map(|&size| {
            let mut rows = report.throughput.iter();
            let row = rows.find(|row| {
                row.style == style && row.over == LaneKind::Hvsock && row.write == size
            })?;
            Some((size, row.to_unix))
        })
        .collect();
    let all: Vec<String> = sizes.iter().copied().map(size_in_words).collect();
    Goal {
        goal: format!(
            "at least {least} times the Unix socket at {}{with}",
            all.join(", ")
        ),
        met: (found.len() == sizes.len())
            .then(|| found.iter().all(|(_, ratio)| ratio.median >= least)),
        found: found
            .iter()
            .map(|(_, ratio)| format!("{ratio:.1}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// The least share of the best limit.
const OF_LIMIT: f64 = 0.9;
const LARGER: [usize; 4] = [16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB];

fn limit(report: &Report) -> Goal {
    let found: Vec<f64> = LARGER
        .iter()
        .filter_map(|&size| {
            let mut rows = report.throughput.iter();
            let row = rows.find(|row| {
                row.style == Style::Blocking && row.over == LaneKind::Hvsock && row.write == size
            })?;
            Some(row.to_limit.median).filter(|share| !share.is_nan())
        })
        .collect();
    let sizes = LARGER.map(size_in_words);
    let shares = found.iter().map(|share| format!("{:.0} %", share * 100.0));
    Goal {
        goal: format!(
            "at least {:.0} % of the machine's best limit at {}",
            OF_LIMIT * 100.0,
            sizes.join(", ")
        ),
        met: (found.len() == LARGER.len()).then(|| found.iter().all(|share| *share >= OF_LIMIT)),
        found: shares.collect::<Vec<_>>().join(", "),
    }
}

fn rate(report: &Report, least: f64, size: usize) -> Goal {
    let mut rows = report.throughput.iter();
    let row = rows.find(|row| {
        row.style == Style::Blocking && row.over == LaneKind::Hvsock && row.write == size
    });
    Goal {
        goal: format!("at least {least} GB/s at {}", size_in_words(size)),
        met: row.map(|row| row.gb_per_s.median >= least),
        found: row.map_or(String::new(), |row| format!("{:.2} GB/s", row.gb_per_s)),
    }
}

fn spinning(report: &Report) -> Goal {
    let row = trips(report, LaneKind::Hvsock);
    Goal {
        goal: "round trip of 64 bytes within 0.4 µs at p50, spinning".to_owned(),
        met: row.map(|row| row.p50_us.median <= 0.4),
        found: row.map_or(String::new(), |row| format!("{:.2} µs", row.p50_us)),
    }
}

fn no_slower(report: &Report, over: LaneKind, how: &str) -> Goal {
    let row = trips(report, over);
    Goal {
        goal: format!("no slower than the Unix socket at p50, {how}"),
        met: row.map(|row| row.p50_to_unix.median <= 1.0),
        found: row.map_or(String::new(), |row| {
            format!(
                "{:.2} times its time, {:.2} µs",
                row.p50_to_unix, row.p50_us
            )
        }),
    }
}

fn idle(report: &Report) -> Goal {
    let hvsock = || {
        report
            .idle
            .iter()
            .filter(|row| row.over == LaneKind::Hvsock)
    };
    let within = |row: &IdleRow| row.all_ms() <= row.seconds * 1e3 * MAX_IDLE;
    let found = hvsock().map(|row| format!("{:.2} ms in {} s", row.all_ms(), row.seconds));
    Goal {
        goal: "no CPU time used by an idle connection".to_owned(),
        met: hvsock().next().map(|_| hvsock().all(within)),
        found: found.collect::<Vec<_>>().join(", "),
    }
}

/// Evaluates each ring separately: many parks of one must not hide surplus notifications of another.
fn notifications(report: &Report) -> Goal {
    let rows = || {
        let rows = report.wakeups.iter();
        rows.filter_map(|row| Some((row, row.wakeups.match_parks()?)))
    };
    let found = rows().map(|(row, _)| {
        let WakeupCounts {
            notifications,
            parks,
        } = row.wakeups;
        format!(
            "{}: {notifications} for {} parks",
            row.lane,
            parks.unwrap_or(0)
        )
    });
    Goal {
        goal: "no notification of a peer that is not parked".to_owned(),
        met: rows().next().map(|_| rows().all(|(_, met)| met)),
        found: found.collect::<Vec<_>>().join("; "),
    }
}

fn trips(report: &Report, over: LaneKind) -> Option<&TripRow> {
    let mut rows = report.round_trips.iter();
    rows.find(|row| row.style == Style::Blocking && row.over == over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::stream::report::{ThroughputRow, WakeupRow};

    fn empty() -> Report {
        Report {
            machine: Machine::current(),
            turns: 1,
            slice_ms: 1,
            pinned: false,
            neighbour: false,
            others: 0.0,
            limits: Vec::new(),
            throughput: Vec::new(),
            round_trips: Vec::new(),
            wakeups: Vec::new(),
            idle: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Whether the goal that contains this text was met.
    fn met(report: &Report, goal: &str) -> Option<bool> {
        let goals = judge(report);
        let found = goals.iter().find(|each| each.goal.contains(goal));
        found.unwrap_or_else(|| panic!("no {goal}")).met
    }

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        let mut report = empty();
        let add = |report: &mut Report, write, ratio| {
            report.throughput.push(ThroughputRow {
                style: Style::Blocking,
                write,
                lane: String::new(),
                over: LaneKind::Hvsock,
                gb_per_s: Spread::of([2.0]),
                to_unix: Spread::of([ratio]),
                to_limit: Spread::of([ratio / 2.0]),
                notifications_per_mib: None,
                parks_per_mib: None,
            });
        };
        let large = "256 KiB, 1 MiB";
        add(&mut report, KIB, 1.0);
        add(&mut report, 256 * KIB, 2.5);
        assert_eq!(met(&report, large), None);
        add(&mut report, 1024 * KIB, 1.9);
        assert_eq!(met(&report, "GB/s at 1 KiB"), Some(true));
        assert_eq!(met(&report, large), Some(false));
        assert!(judge(&report)[2].to_string().starts_with("MISSED"));
        assert_eq!(met(&report, "no CPU time"), None);
    }

    #[test]
    fn parked_and_back_to_back_round_trips_are_separate_goals() {
        let mut report = empty();
        for (over, ratio) in [(LaneKind::HvsockParked, 0.9), (LaneKind::HvsockNoSpin, 1.2)] {
            let one = Spread::of([1.0]);
            report.round_trips.push(TripRow {
                style: Style::Blocking,
                lane: String::new(),
                over,
                p50_us: one,
                p90_us: one,
                p99_us: one,
                p50_to_unix: Spread::of([ratio]),
                notifications_per_trip: None,
                parks_per_trip: None,
            });
        }
        assert_eq!(met(&report, "both ends parked"), Some(true));
        assert_eq!(met(&report, "back to back"), Some(false));
    }

    #[test]
    fn notifications_are_judged_per_ring_if_parks_are_counted() {
        let mut report = empty();
        let add = |report: &mut Report, notifications, parks| {
            report.wakeups.push(WakeupRow {
                style: Style::Blocking,
                lane: "ring".to_owned(),
                over: LaneKind::Hvsock,
                wakeups: WakeupCounts {
                    notifications,
                    parks,
                },
            });
        };
        let goal = "no notification of";
        assert_eq!(met(&report, goal), None);
        add(&mut report, 1000, None);
        assert_eq!(met(&report, goal), None);
        add(&mut report, 1000, Some(1000));
        assert_eq!(met(&report, goal), Some(true));
        let found = &judge(&report).pop().unwrap().found;
        assert_eq!(found, "ring: 1000 for 1000 parks");
        add(&mut report, 100, Some(10));
        assert_eq!(met(&report, goal), Some(false));
    }

    #[test]
    fn a_share_of_the_limit_is_judged_at_every_larger_size() {
        let mut report = empty();
        let goal = "of the machine's best limit";
        for (at, write) in LARGER.into_iter().enumerate() {
            assert_eq!(met(&report, goal), None, "{at} of the sizes");
            report.throughput.push(ThroughputRow {
                style: Style::Blocking,
                write,
                lane: String::new(),
                over: LaneKind::Hvsock,
                gb_per_s: Spread::of([2.0]),
                to_unix: Spread::of([2.0]),
                to_limit: Spread::of([0.95]),
                notifications_per_mib: None,
                parks_per_mib: None,
            });
        }
        assert_eq!(met(&report, goal), Some(true));
        report.throughput[2].to_limit = Spread::of([0.85]);
        assert_eq!(met(&report, goal), Some(false));
    }

    #[test]
    fn beside_a_neighbour_only_the_ratio_to_the_unix_socket_is_judged() {
        let mut report = empty();
        report.neighbour = true;
        assert_eq!(judge(&report).len(), 1);
        assert_eq!(met(&report, "at least 0.9 times the Unix socket"), None);
    }
}
