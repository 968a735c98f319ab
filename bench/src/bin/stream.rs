//! What a stream does with bytes: throughput by size of writes, round trips, and what an idle
//! connection uses; with `Read` and `Write` and with tokio, against a Unix socket and TCP, in turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock_bench::broker::{self, BrokerProcess};
use hvsock_bench::figures::keep;
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{Options, positive};
use hvsock_bench::stream::measure::{self, Effort, Suite};
use hvsock_bench::stream::peer::{self, Peer, Style};
use hvsock_bench::stream::report::{Report, size_in_words};
use hvsock_bench::stream::{Over, SIZES};
use hvsock_bench::{cpu, plot};

const OPTIONS: Options = Options {
    bench: "stream",
    about: "Throughput, round trips and idle connections of hvsock, beside Unix sockets and TCP.",
    all: &[
        ("--turns", "N", "measure everything N times, in turns (9)"),
        ("--rounds", "N", "the same"),
        (
            "--slice",
            "MS",
            "measure each lane for MS milliseconds, at each size in each turn (60)",
        ),
        (
            "--quick",
            "",
            "3 turns with slices of 20 ms: to see that it runs",
        ),
        (
            "--pin",
            "",
            "keep each of the two processes on a processor of its own",
        ),
        (
            "--out",
            "FOLDER",
            "where to keep stream.json and stream.svg (target/bench)",
        ),
    ],
};

/// After this much a run is not slow but stuck.
const STUCK: Duration = Duration::from_secs(175);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [broker::ROLE, folder, vms] => return broker::serve(Path::new(folder), vms.parse()?),
        [peer::ROLE, rest @ ..] => return peer::serve(rest),
        _ => {}
    }
    let (effort, out) = asked(&words);
    std::thread::spawn(|| {
        std::thread::sleep(STUCK);
        eprintln!("\nnothing came of it in {} s", STUCK.as_secs());
        std::process::exit(1);
    });

    let report = measure(effort)?;
    report.print();
    keep(&out.join("stream.json"), &report)?;
    draw(&out.join("stream.svg"), &report)?;
    println!(
        "\nkept as {0}/stream.json and {0}/stream.svg",
        out.display()
    );
    Ok(())
}

fn asked(words: &[&str]) -> (Effort, PathBuf) {
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
    // The lanes end before their peers, and these before the broker.
    let mut suites = Vec::new();
    for peer in &peers {
        suites.push(Suite::new(peer.style(), peer.pid(), peer.lanes()?));
    }
    let machine = Machine::this();
    if effort.pin {
        let [here, there] = cpu::two()?.context("there is one processor only")?;
        // Not before all lanes have said something: a process that has only one processor from
        // its beginning does not look for its peer's answer before it sleeps, and rightly.
        for suite in &mut suites {
            suite.keep_peer_on(there)?;
        }
        cpu::stay_on(here)?;
    }
    let processes = [
        std::process::id(),
        broker.pid(),
        peers[0].pid(),
        peers[1].pid(),
    ];
    let others = || -> std::io::Result<Duration> {
        let ours = processes.into_iter().map(cpu::used_by);
        let ours = ours.sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(ours))
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
        for over in [Over::Unix, Over::Ours] {
            let idle = suite.idle(over, broker.pid(), effort.idle)?;
            report.add_idle(suite, over, effort.idle, &idle);
        }
    }
    report.judge();
    Ok(report)
}

fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let picture = |style: Style| -> Vec<plot::Line> {
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
            ("Throughput with Read and Write", picture(Style::Blocking)),
            ("Throughput with tokio", picture(Style::Tokio)),
        ],
    )
}
