//! Measures throughput by size of writes, round trips and the CPU time of idle connections, blocking and
//! with tokio, against Unix sockets and TCP in alternating turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use hvsock_bench::broker::{self, BrokerProcess};
use hvsock_bench::figures::save;
use hvsock_bench::machine::Machine;
use hvsock_bench::neighbour::Neighbour;
use hvsock_bench::options::{OUT, milliseconds, positive};
use hvsock_bench::stream::goals;
use hvsock_bench::stream::limits::Limits;
use hvsock_bench::stream::measure::{self, Effort, Suite};
use hvsock_bench::stream::peer::{self, Peer, Style};
use hvsock_bench::stream::report::{Report, size_in_words};
use hvsock_bench::stream::{LaneKind, SIZES};
use hvsock_bench::{cpu, neighbour, plot};

/// Throughput, round trips and idle connections of hvsock, Unix sockets and TCP.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench stream")]
struct Arguments {
    /// Measure everything N times in alternating turns (9).
    #[arg(long, value_name = "N", visible_alias = "rounds", value_parser = positive)]
    turns: Option<usize>,
    /// Measure each lane for MS milliseconds per size and turn (60).
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    slice: Option<Duration>,
    /// 3 turns with slices of 20 ms, as a smoke test.
    #[arg(long)]
    quick: bool,
    /// Pin each of the two processes to a separate CPU.
    #[arg(long)]
    pin: bool,
    /// Run a process that copies memory on one CPU meanwhile, as a loud neighbour would.
    #[arg(long)]
    neighbour: bool,
    /// Folder for stream.json and stream.svg.
    #[arg(long, value_name = "FOLDER", default_value = OUT)]
    out: PathBuf,
}

impl Arguments {
    fn effort(&self) -> Effort {
        let (turns, slice, idle) = if self.quick {
            (3, 20, 500)
        } else {
            (9, 60, 2000)
        };
        Effort {
            turns: self.turns.unwrap_or(turns),
            slice: self.slice.unwrap_or(Duration::from_millis(slice)),
            idle: Duration::from_millis(idle),
            limit: Duration::from_secs(120),
            pin: self.pin,
            neighbour: self.neighbour,
        }
    }
}

/// Timeout of a run: after it the run is stuck, not slow.
const RUN_TIMEOUT: Duration = Duration::from_secs(175);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [broker::ROLE, folder, vms] => return broker::serve(Path::new(folder), vms.parse()?),
        [peer::ROLE, rest @ ..] => return peer::serve(rest),
        [neighbour::ROLE, rest @ ..] => return neighbour::serve(rest),
        _ => {}
    }
    let arguments = Arguments::parse();
    let (effort, out) = (arguments.effort(), arguments.out);
    std::thread::spawn(|| {
        std::thread::sleep(RUN_TIMEOUT);
        eprintln!("\nthe run timed out after {} s", RUN_TIMEOUT.as_secs());
        std::process::exit(1);
    });

    let report = measure(effort)?;
    report.print();
    save(&out.join("stream.json"), &report)?;
    draw(&out.join("stream.svg"), &report)?;
    println!(
        "\nsaved as {0}/stream.json and {0}/stream.svg",
        out.display()
    );
    Ok(())
}

fn measure(effort: Effort) -> anyhow::Result<Report> {
    let broker = BrokerProcess::start()?;
    let peers = [
        Peer::start(Style::Blocking, &broker.endpoint())?,
        Peer::start(Style::Tokio, &broker.endpoint())?,
    ];
    // Drop order: lanes, peers, broker.
    let mut suites = Vec::new();
    for peer in &peers {
        suites.push(Suite::new(peer.style(), peer.pid(), peer.lanes()?));
    }
    let machine = Machine::current();
    // Before this process is pinned to one of them.
    let processors = cpu::two()?;
    let mut limits = Limits::new()?;
    if effort.pin {
        let [here, there] = processors.context("there is only one processor")?;
        // Only after all lanes have had traffic: a process that has one processor from its start never
        // spins, and rightly so.
        for suite in &mut suites {
            suite.pin_peer(there)?;
        }
        cpu::pin_to(here)?;
    }
    let loud = match (effort.neighbour, processors) {
        (true, Some([_, there])) => Some(Neighbour::start(there, RUN_TIMEOUT)?),
        (true, None) => Some(Neighbour::start(0, RUN_TIMEOUT)?),
        (false, _) => None,
    };
    let mut processes = vec![
        std::process::id(),
        broker.pid(),
        peers[0].pid(),
        peers[1].pid(),
    ];
    processes.extend(loud.as_ref().map(Neighbour::pid));
    let others = || -> std::io::Result<Duration> {
        let own = processes.iter().copied().map(cpu::used_by);
        let own = own.sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(own))
    };
    let (start, before) = (Instant::now(), others()?);
    let turns = measure::run(&mut suites, &mut limits, effort, |turn| match turn {
        0 => eprint!("\rwarming up "),
        turn => eprint!("\rturn {turn} of {} ", effort.turns),
    })?;
    eprintln!();
    let mut report = Report::new(machine, &suites, limits.results(), turns, effort);
    let used = others()?.saturating_sub(before);
    report.others = used.as_secs_f64() / start.elapsed().as_secs_f64();
    drop(loud);
    for suite in &mut suites {
        for over in [LaneKind::Unix, LaneKind::Hvsock] {
            let idle = suite.idle(over, broker.pid(), effort.idle)?;
            report.add_idle(suite, over, effort.idle, &idle);
        }
    }
    report.goals = goals::judge(&report);
    Ok(report)
}

fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let plot_of = |style: Style| -> Vec<plot::Line> {
        let rows = || report.throughput.iter().filter(|row| row.style == style);
        let names = rows()
            .filter(|row| row.write == SIZES[0])
            .map(|row| &row.lane);
        let lanes = names.map(|name| {
            let points = rows().filter(|row| row.lane == *name);
            let points = points.map(|row| (row.write as f64, row.gb_per_s));
            (name.clone(), points.collect())
        });
        let best = report.limits.iter().filter(|row| row.is_best);
        let best = best.filter_map(|row| Some((row.write? as f64, row.gb_per_s)));
        let limit = ("the machine's best limit".to_owned(), best.collect());
        lanes.chain([limit]).collect()
    };
    plot::lines(
        path,
        |at| size_in_words(at.round() as usize),
        ("one write", "GB/s"),
        &[
            ("Throughput with Read and Write", plot_of(Style::Blocking)),
            ("Throughput with tokio", plot_of(Style::Tokio)),
        ],
    )
}
