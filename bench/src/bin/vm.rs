//! Measures throughput, round trips and connects of a guest on hvsock's device, against vhost-device-vsock or
//! another build of hvsock in alternating turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use hvsock_bench::broker;
use hvsock_bench::figures::{Spread, save};
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{OUT, microseconds, milliseconds, positive};
use hvsock_bench::stream::report::size_in_words;
use hvsock_bench::vm::concurrent::{self, Concurrent};
use hvsock_bench::vm::device::{GuestConfig, TestBed};
use hvsock_bench::vm::host;
use hvsock_bench::vm::lane::Lane;
use hvsock_bench::vm::measure::{self, Effort, Measured, Paced};
use hvsock_bench::vm::report::{ConnectionRow, Report};
use hvsock_bench::vm::scale::{self, ScaleOptions};
use hvsock_bench::vm::{Direction, GuestLaneKind, nested, uml};
use hvsock_bench::{cpu, plot};

/// Throughput, round trips and connects of a guest, against vhost-device-vsock.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench vm")]
struct Arguments {
    /// Measure everything N times in alternating turns (9).
    #[arg(long, value_name = "N", value_parser = positive)]
    turns: Option<usize>,
    /// Measure each lane for MS milliseconds per size and turn (60; 150 with --uml).
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    slice: Option<Duration>,
    /// 3 turns with slices of 20 ms, as a smoke test.
    #[arg(long)]
    quick: bool,
    /// Size of the guests' virtqueues.
    #[arg(long, value_name = "N", value_parser = queue_size, default_value = "128")]
    queue: u16,
    /// Let the guests spin for US microseconds before they park.
    #[arg(long, value_name = "US", value_parser = microseconds, default_value = "0")]
    spin: Duration,
    /// Also measure scale: idle connections, idle VMs, fairness.
    #[arg(long)]
    scale: bool,
    /// Measure scale only.
    #[arg(long)]
    only_scale: bool,
    /// Measure connects only.
    #[arg(long, conflicts_with = "only_scale")]
    only_connects: bool,
    /// Idle connections.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "10000")]
    connections: usize,
    /// Idle VMs.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "256")]
    machines: usize,
    /// Measure guests in User-mode Linux instead, whose kernel is a real one; saved as vm-uml.*.
    #[arg(long, conflicts_with_all = ["queue", "spin", "scale", "only_scale"])]
    uml: bool,
    /// Measure a container in a guest in User-mode Linux, and that guest with and without its broker;
    /// saved as vm-nested.*.
    #[arg(long, conflicts_with_all = ["uml", "queue", "spin", "scale", "only_scale"])]
    nested: bool,
    /// Path of vhost-device-vsock, by default where cargo xtask installs it.
    #[arg(long, value_name = "PROGRAM", default_value = PEER, hide_default_value = true)]
    peer: PathBuf,
    /// Measure against another build of hvsock and not against vhost-device-vsock: the broker and the
    /// host program of this program, which is an earlier build of this bench.
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["peer", "uml"])]
    against: Option<PathBuf>,
    /// Folder for vm.json and vm.svg.
    #[arg(long, value_name = "FOLDER", default_value = OUT)]
    out: PathBuf,
}

const PEER: &str = "target/vhost-device-vsock/bin/vhost-device-vsock";

impl Arguments {
    /// What is measured, the baseline last.
    fn overs(&self) -> &'static [GuestLaneKind] {
        match self.against {
            None => &GuestLaneKind::WITH_PEER,
            Some(_) => &GuestLaneKind::WITH_OTHER_BUILD,
        }
    }

    fn effort(&self) -> Effort {
        let (turns, slice) = match (self.quick, self.uml || self.nested) {
            (true, _) => (3, 20),
            (false, false) => (9, 60),
            // A guest's processes switch for every system call, so short slices vary more.
            (false, true) => (9, 150),
        };
        Effort {
            turns: self.turns.unwrap_or(turns),
            slice: self.slice.unwrap_or(Duration::from_millis(slice)),
            limit: Duration::from_secs(120),
        }
    }

    fn config(&self) -> GuestConfig {
        GuestConfig {
            queue: self.queue,
            spin: self.spin,
        }
    }

    fn scale_options(&self) -> ScaleOptions {
        ScaleOptions {
            connections: self.connections,
            machines: self.machines,
            busy: Duration::from_secs(3),
            idle: Duration::from_secs(2),
        }
    }
}

fn queue_size(value: &str) -> Result<u16, &'static str> {
    let size = value.parse().ok();
    let size = size.filter(|size: &u16| (4..=1024).contains(size) && size.is_power_of_two());
    size.ok_or("expected a power of two from 4 to 1024")
}

/// Timeout of a run: after it the run is stuck, not slow.
const RUN_TIMEOUT: Duration = Duration::from_secs(400);
/// Count of concurrent connections.
const CONCURRENT: usize = 1000;
/// How often they are measured.
const CONCURRENT_RUNS: usize = 9;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [broker::ROLE, folder, vms] => return broker::serve(Path::new(folder), vms.parse()?),
        [host::ROLE, rest @ ..] => return host::serve(rest),
        [uml::ROLE, partition] => return uml::serve(partition),
        _ => {}
    }
    let arguments = Arguments::parse();
    let (effort, config) = (arguments.effort(), arguments.config());
    std::thread::spawn(|| {
        std::thread::sleep(RUN_TIMEOUT);
        eprintln!("\nthe run timed out after {} s", RUN_TIMEOUT.as_secs());
        std::process::exit(1);
    });
    hvsock_sys::limits::raise_descriptors()?;
    if arguments.nested {
        return measure_nested(effort, &arguments.out);
    }
    if arguments.uml {
        return measure_uml(&arguments.peer, effort, &arguments.out);
    }
    let lanes = !arguments.only_scale;
    let mut report = if lanes {
        measure(&arguments, effort, config)?
    } else {
        let none: [Measured; 0] = [];
        Report::new(Machine::current(), &none, 0, effort, config.queue)
    };
    if arguments.scale || arguments.only_scale {
        report.scale = Some(scale::measure(arguments.scale_options(), config)?);
    }
    report.judge();
    report.print();
    save(&arguments.out.join("vm.json"), &report)?;
    if lanes && !arguments.only_connects {
        draw(&arguments.out.join("vm.svg"), &report)?;
    }
    println!("\nsaved in {}", arguments.out.display());
    Ok(())
}

/// Measures guests in User-mode Linux.
fn measure_uml(peer: &Path, effort: Effort, out: &Path) -> anyhow::Result<()> {
    let mut report = uml::measure(peer, effort, |turn| match turn {
        0 => eprint!("\rwarming up "),
        turn => eprint!("\rturn {turn} of {} ", effort.turns),
    })?;
    eprintln!();
    report.judge();
    report.print();
    save(&out.join("vm-uml.json"), &report)?;
    draw(&out.join("vm-uml.svg"), &report)?;
    println!("\nsaved in {}", out.display());
    Ok(())
}

/// Measures a container in a guest in User-mode Linux.
fn measure_nested(effort: Effort, out: &Path) -> anyhow::Result<()> {
    let mut report = nested::measure(effort, |turn| match turn {
        0 => eprint!("\rwarming up "),
        turn => eprint!("\rturn {turn} of {} ", effort.turns),
    })?;
    eprintln!();
    report.judge();
    report.print();
    save(&out.join("vm-nested.json"), &report)?;
    draw(&out.join("vm-nested.svg"), &report)?;
    println!("\nsaved in {}", out.display());
    Ok(())
}

fn measure(arguments: &Arguments, effort: Effort, config: GuestConfig) -> anyhow::Result<Report> {
    let hvsock = TestBed::hvsock(config)?;
    let baseline = match &arguments.against {
        None => TestBed::vhost_device_vsock(&arguments.peer, config)?,
        Some(build) => TestBed::hvsock_of(build, config)?,
    };
    let overs = arguments.overs();
    let test_bed = |over: GuestLaneKind| {
        if over.is_baseline() {
            &baseline
        } else {
            &hvsock
        }
    };
    let mut lanes = Vec::new();
    for &over in overs.iter().filter(|_| !arguments.only_connects) {
        let lane = Lane::connect(&test_bed(over).guest, over)?;
        lanes.push(Measured::new(over, Paced::new(lane)));
    }
    let machine = Machine::current();
    let processes = [hvsock.processes(), baseline.processes()].concat();
    let others = || -> std::io::Result<Duration> {
        let here = std::iter::once(std::process::id()).chain(processes.iter().copied());
        let here = here.map(cpu::used_by).sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(here))
    };
    let (start, before) = (Instant::now(), others()?);
    let turns = measure::run(&mut lanes, effort, |turn| match turn {
        0 => eprint!("\rwarming up "),
        turn => eprint!("\rturn {turn} of {} ", effort.turns),
    })?;
    eprintln!();
    let mut report = Report::new(machine, &lanes, turns, effort, config.queue);
    let used = others()?.saturating_sub(before);
    report.others = used.as_secs_f64() / start.elapsed().as_secs_f64();
    drop(lanes);
    report.connections = connections(test_bed, overs, effort);
    for test_bed in [&hvsock, &baseline] {
        for violation in test_bed.guest.protocol_violations() {
            eprintln!(
                "the device of process {}: {violation}",
                test_bed.device_pid()
            );
        }
    }
    Ok(report)
}

/// Measures connects over both devices in alternating turns. A failure is reported in the device's row.
fn connections<'a>(
    test_bed: impl Fn(GuestLaneKind) -> &'a TestBed,
    overs: &[GuestLaneKind],
    effort: Effort,
) -> Vec<ConnectionRow> {
    let baseline = overs.iter().copied().find(|over| over.is_baseline());
    let overs = [GuestLaneKind::Ring, baseline.unwrap_or(GuestLaneKind::Peer)];
    let mut rates = [const { Vec::new() }; 2];
    let mut concurrent_runs = [const { Vec::new() }; 2];
    let mut failed = [const { None }; 2];
    for turn in 0..effort.turns.max(CONCURRENT_RUNS) {
        for place in 0..overs.len() {
            let place = (turn + place) % overs.len();
            let over = overs[place];
            let guest = &test_bed(over).guest;
            let mut attempt = || -> anyhow::Result<()> {
                if turn < effort.turns {
                    rates[place].push(concurrent::rate(guest, over, effort.slice)?);
                }
                if turn < CONCURRENT_RUNS {
                    eprint!("\r{CONCURRENT} connections over {:<20} ", over.name());
                    concurrent_runs[place].push(concurrent::many(guest, over, CONCURRENT)?);
                }
                Ok(())
            };
            if failed[place].is_none() {
                failed[place] = attempt().err().map(|error| format!("{error:#}"));
            }
        }
    }
    eprintln!();
    let some = |values: Vec<f64>| (!values.is_empty()).then(|| Spread::of(values));
    let of_runs =
        |runs: &[Concurrent], of: fn(&Concurrent) -> f64| some(runs.iter().map(of).collect());
    let rows = overs
        .into_iter()
        .zip(rates)
        .zip(concurrent_runs)
        .zip(failed);
    rows.map(|(((over, rates), runs), failed)| ConnectionRow {
        over,
        per_second: some(rates),
        at_once: CONCURRENT,
        connect_ms: of_runs(&runs, |run| run.connect * 1e3),
        answered_ms: of_runs(&runs, |run| run.answered * 1e3),
        messages_per_second: of_runs(&runs, |run| run.messages),
        failed,
    })
    .collect()
}

fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let plot_of = |direction: Direction| -> Vec<plot::Line> {
        let line = |over: GuestLaneKind| {
            let rows = report.throughput.iter();
            let points = rows.filter(|row| row.over == over && row.direction == direction);
            let points = points.map(|row| (row.write as f64, row.gb_per_s));
            (over.name().to_owned(), points.collect())
        };
        let measured = |over: &GuestLaneKind| {
            let mut rows = report.throughput.iter();
            rows.any(|row| row.over == *over)
        };
        let overs = GuestLaneKind::ALL.into_iter().filter(measured);
        overs.map(line).collect()
    };
    plot::lines(
        path,
        |at| size_in_words(at.round() as usize),
        ("one write", "GB/s"),
        &Direction::BOTH.map(|direction| (direction.name(), plot_of(direction))),
    )
}
