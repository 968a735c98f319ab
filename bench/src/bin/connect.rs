//! Measures connects of 1 to 64 clients at once, first connects of a process, and idle connections, against
//! Unix sockets in alternating turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use hvsock_bench::broker;
use hvsock_bench::connect::measure::{self, Effort, TestBed};
use hvsock_bench::connect::report::{LoadRow, Report, SubjectRow, name};
use hvsock_bench::connect::{Subject, client, idle, server};
use hvsock_bench::figures::{Spread, save};
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{OUT, milliseconds, positive};
use hvsock_bench::{cpu, plot};

/// Connects of 1 to 64 clients, first connects of a process, and idle connections, against Unix sockets.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench connect")]
struct Arguments {
    /// Measure everything N times in alternating turns (9).
    #[arg(long, value_name = "N", value_parser = positive)]
    turns: Option<usize>,
    /// Make and close connections for MS milliseconds per load and turn.
    #[arg(long, value_name = "MS", value_parser = milliseconds, default_value = "100")]
    slice: Duration,
    /// 3 turns, and 2,000 idle connections, as a smoke test.
    #[arg(long)]
    quick: bool,
    /// Hold N idle connections; 0 for none (100000).
    #[arg(long, value_name = "N")]
    idle: Option<usize>,
    /// Measure idle connections only.
    #[arg(long)]
    only_idle: bool,
    /// Folder for connect.json, connect.svg and connect-rate.svg.
    #[arg(long, value_name = "FOLDER", default_value = OUT)]
    out: PathBuf,
}

/// Timeout of a run: after it the run is stuck, not slow.
const RUN_TIMEOUT: Duration = Duration::from_secs(400);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [broker::ROLE, folder, vms] => return broker::serve(Path::new(folder), vms.parse()?),
        [server::ROLE, rest @ ..] => return server::serve(rest),
        [client::ROLE, rest @ ..] => return client::serve(rest),
        [idle::ACCEPTING, rest @ ..] => return idle::hold_accepted(rest),
        [idle::CONNECTING, rest @ ..] => return idle::hold_connected(rest),
        _ => {}
    }
    let arguments = Arguments::parse();
    let (turns, idle) = if arguments.quick {
        (3, 2000)
    } else {
        (9, 100_000)
    };
    let effort = Effort {
        turns: arguments.turns.unwrap_or(turns),
        slice: arguments.slice,
    };
    std::thread::spawn(|| {
        std::thread::sleep(RUN_TIMEOUT);
        eprintln!("\nthe run timed out after {} s", RUN_TIMEOUT.as_secs());
        std::process::exit(1);
    });
    hvsock_sys::limits::raise_descriptors()?;
    let connects = !arguments.only_idle;
    let mut report = if connects {
        measure(effort)?
    } else {
        let none = Effort { turns: 0, ..effort };
        Report::new(Machine::current(), &Default::default(), none, 0.0)
    };
    let idle = arguments.idle.unwrap_or(idle);
    if idle > 0 {
        report.idle = Some(idle::measure(idle)?);
    }
    report.judge();
    report.print();
    let out = arguments.out;
    save(&out.join("connect.json"), &report)?;
    if connects {
        draw(&out, &report)?;
    }
    println!("\nsaved in {}", out.display());
    Ok(())
}

fn measure(effort: Effort) -> anyhow::Result<Report> {
    let mut test_bed = TestBed::start()?;
    let machine = Machine::current();
    let processes = test_bed.processes();
    let others = || -> std::io::Result<Duration> {
        let own = std::iter::once(std::process::id()).chain(processes.iter().copied());
        let own = own.map(cpu::used_by).sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(own))
    };
    let (start, before) = (Instant::now(), others()?);
    let measured = measure::run(&mut test_bed, effort, |turn| {
        eprint!("\rturn {turn} of {} ", effort.turns);
    })?;
    eprintln!();
    let used = others()?.saturating_sub(before).as_secs_f64();
    let others = used / start.elapsed().as_secs_f64();
    Ok(Report::new(machine, &measured, effort, others))
}

fn draw(out: &Path, report: &Report) -> anyhow::Result<()> {
    draw_bars(
        &out.join("connect.svg"),
        "Time until both ends have a connection (p50)",
        "µs",
        &report.loads,
        |row| row.p50_us,
    )?;
    draw_bars(
        &out.join("connect-rate.svg"),
        "Connections made and closed",
        "a second",
        &report.loads,
        |row| row.per_second,
    )
}

fn draw_bars(
    path: &Path,
    title: &str,
    unit: &str,
    loads: &[LoadRow],
    figure: impl Fn(&SubjectRow) -> Spread,
) -> anyhow::Result<()> {
    let mut bars = Vec::new();
    for row in loads.iter().rev() {
        for over in Subject::BOTH.into_iter().rev() {
            let label = format!("{}, {}", name(over), row.load.name());
            bars.push((label, figure(row.of(over))));
        }
    }
    let bars: Vec<_> = bars
        .iter()
        .map(|(label, spread)| (label.as_str(), *spread))
        .collect();
    plot::bars(path, title, unit, &bars)
}
