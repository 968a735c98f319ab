//! Measures throughput by size of writes, round trips and the CPU time of idle connections, blocking and
//! with tokio, against Unix sockets and TCP in alternating turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock_bench::broker::{self, BrokerProcess};
use hvsock_bench::figures::save;
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{Options, positive};
use hvsock_bench::stream::measure::{self, Effort, Suite};
use hvsock_bench::stream::peer::{self, Peer, Style};
use hvsock_bench::stream::report::{Report, size_in_words};
use hvsock_bench::stream::{LaneKind, SIZES};
use hvsock_bench::{cpu, plot};

const OPTIONS: Options = Options {
    bench: "stream",
    about: "Throughput, round trips and idle connections of hvsock, Unix sockets and TCP.",
    all: &[
        (
            "--turns",
            "N",
            "measure everything N times in alternating turns (9)",
        ),
        ("--rounds", "N", "the same as --turns"),
        (
            "--slice",
            "MS",
            "measure each lane for MS milliseconds per size and turn (60)",
        ),
        (
            "--quick",
            "",
            "3 turns with slices of 20 ms, as a smoke test",
        ),
        (
            "--pin",
            "",
            "pin each of the two processes to a separate CPU",
        ),
        (
            "--out",
            "FOLDER",
            "folder for stream.json and stream.svg (target/bench)",
        ),
    ],
};

/// Timeout of a run: after it the run is stuck, not slow.
const RUN_TIMEOUT: Duration = Duration::from_secs(175);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [broker::ROLE, folder, vms] => return broker::serve(Path::new(folder), vms.parse()?),
        [peer::ROLE, rest @ ..] => return peer::serve(rest),
        _ => {}
    }
    let (effort, out) = parse(&words);
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

fn parse(words: &[&str]) -> (Effort, PathBuf) {
    let mut effort = Effort {
        turns: 9,
        slice: Duration::from_millis(60),
        idle: Duration::from_secs(2),
        limit: Duration::from_secs(120),
        pin: false,
    };
    let mut out = PathBuf::from("target/bench");
    OPTIONS.take_or_exit(words, |word, value| {
        match word {
            "--slice" => effort.slice = Duration::from_millis(positive(value)? as u64),
            "--quick" => {
                effort.turns = 3;
                effort.slice = Duration::from_millis(20);
                effort.idle = Duration::from_millis(500);
            }
            "--pin" => effort.pin = true,
            "--out" => out = PathBuf::from(value),
            _ => effort.turns = positive(value)?,
        }
        Ok(())
    });
    (effort, out)
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
    if effort.pin {
        let [here, there] = cpu::two()?.context("there is only one processor")?;
        // Only after all lanes have had traffic: a process that has one processor from its start never
        // spins, and rightly so.
        for suite in &mut suites {
            suite.pin_peer(there)?;
        }
        cpu::pin_to(here)?;
    }
    let processes = [
        std::process::id(),
        broker.pid(),
        peers[0].pid(),
        peers[1].pid(),
    ];
    let others = || -> std::io::Result<Duration> {
        let own = processes.into_iter().map(cpu::used_by);
        let own = own.sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(own))
    };
    let (start, before) = (Instant::now(), others()?);
    let turns = measure::run(&mut suites, effort, |turn| match turn {
        0 => eprint!("\rwarming up "),
        turn => eprint!("\rturn {turn} of {} ", effort.turns),
    })?;
    eprintln!();
    let mut report = Report::new(machine, &suites, turns, effort);
    let used = others()?.saturating_sub(before);
    report.others = used.as_secs_f64() / start.elapsed().as_secs_f64();
    for suite in &mut suites {
        for over in [LaneKind::Unix, LaneKind::Hvsock] {
            let idle = suite.idle(over, broker.pid(), effort.idle)?;
            report.add_idle(suite, over, effort.idle, &idle);
        }
    }
    report.judge();
    Ok(report)
}

fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let plot_of = |style: Style| -> Vec<plot::Line> {
        let rows = || report.throughput.iter().filter(|row| row.style == style);
        let names = rows()
            .filter(|row| row.write == SIZES[0])
            .map(|row| &row.lane);
        names
            .map(|name| {
                let points = rows().filter(|row| row.lane == *name);
                let points = points.map(|row| (row.write as f64, row.gb_per_s));
                (name.clone(), points.collect())
            })
            .collect()
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
