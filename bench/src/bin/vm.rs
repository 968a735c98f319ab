//! What a virtual machine's connections do: throughput, round trips and connections of a guest on
//! our device and on vhost-device-vsock, in turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hvsock_bench::broker;
use hvsock_bench::figures::{Spread, keep};
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{Options, positive};
use hvsock_bench::stream::report::size_in_words;
use hvsock_bench::vm::crowd;
use hvsock_bench::vm::device::{Kind, Set};
use hvsock_bench::vm::host;
use hvsock_bench::vm::lane::Lane;
use hvsock_bench::vm::measure::{self, Effort, Measured};
use hvsock_bench::vm::report::{ConnectionRow, Report};
use hvsock_bench::vm::scale::{self, Wish};
use hvsock_bench::vm::{Over, Way};
use hvsock_bench::{cpu, plot};

const OPTIONS: Options = Options {
    bench: "vm",
    about: "A guest's connections on hvsock's device, beside vhost-device-vsock.",
    all: &[
        ("--turns", "N", "measure everything N times, in turns (9)"),
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
        ("--queue", "N", "give the guests queues of N entries (128)"),
        (
            "--spin",
            "US",
            "let the guests look for US microseconds before they sleep (0)",
        ),
        (
            "--scale",
            "",
            "see, too, how far our device goes: connections, machines, fairness",
        ),
        ("--only-scale", "", "see that only"),
        ("--connections", "N", "of them so many (10000)"),
        ("--machines", "N", "so many (256)"),
        (
            "--peer",
            "PROGRAM",
            "vhost-device-vsock (the one that cargo xtask installs)",
        ),
        (
            "--out",
            "FOLDER",
            "where to keep vm.json and vm.svg (target/bench)",
        ),
    ],
};

/// After this much a run is not slow but stuck.
const STUCK: Duration = Duration::from_secs(400);
/// Connections at once.
const CROWD: usize = 1000;
/// How often they are made.
const CROWDS: usize = 3;

struct Asked {
    effort: Effort,
    kind: Kind,
    wish: Wish,
    scale: bool,
    lanes: bool,
    peer: PathBuf,
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [broker::ROLE, folder, vms] => return broker::serve(Path::new(folder), vms.parse()?),
        [host::ROLE, rest @ ..] => return host::serve(rest),
        _ => {}
    }
    let asked = asked(&words);
    std::thread::spawn(|| {
        std::thread::sleep(STUCK);
        eprintln!("\nnothing came of it in {} s", STUCK.as_secs());
        std::process::exit(1);
    });
    hvsock_sys::limits::raise_descriptors()?;
    let mut report = if asked.lanes {
        measure(&asked)?
    } else {
        Report::new(Machine::this(), &[], 0, asked.effort, asked.kind)
    };
    if asked.scale {
        report.scale = Some(scale::measure(asked.wish, asked.kind)?);
    }
    report.judge();
    report.print();
    keep(&asked.out.join("vm.json"), &report)?;
    if asked.lanes {
        draw(&asked.out.join("vm.svg"), &report)?;
    }
    println!("\nkept in {}", asked.out.display());
    Ok(())
}

fn asked(words: &[&str]) -> Asked {
    let mut asked = Asked {
        effort: Effort {
            turns: 9,
            slice: Duration::from_millis(60),
            limit: Duration::from_secs(120),
        },
        kind: Kind {
            queue: 128,
            spin: Duration::ZERO,
        },
        wish: Wish {
            connections: 10_000,
            machines: 256,
            busy: Duration::from_secs(3),
            idle: Duration::from_secs(2),
        },
        scale: false,
        lanes: true,
        peer: PathBuf::from("target/vhost-device-vsock/bin/vhost-device-vsock"),
        out: PathBuf::from("target/bench"),
    };
    OPTIONS.take_or_exit(words, |word, value| {
        match word {
            "--slice" => asked.effort.slice = Duration::from_millis(positive(value)? as u64),
            "--quick" => {
                asked.effort.turns = 3;
                asked.effort.slice = Duration::from_millis(20);
            }
            "--queue" => {
                let wanted = "a power of two from 4 to 1024";
                let size = value.parse().map_err(|_| wanted)?;
                if !(4..=1024_u16).contains(&size) || !size.is_power_of_two() {
                    return Err(wanted);
                }
                asked.kind.queue = size;
            }
            "--spin" => {
                asked.kind.spin = Duration::from_micros(value.parse().map_err(|_| "a number")?);
            }
            "--scale" => asked.scale = true,
            "--only-scale" => (asked.scale, asked.lanes) = (true, false),
            "--connections" => asked.wish.connections = positive(value)?,
            "--machines" => asked.wish.machines = positive(value)?,
            "--peer" => asked.peer = PathBuf::from(value),
            "--out" => asked.out = PathBuf::from(value),
            _ => asked.effort.turns = positive(value)?,
        }
        Ok(())
    });
    asked
}

fn measure(asked: &Asked) -> anyhow::Result<Report> {
    let ours = Set::ours(asked.kind)?;
    let peer = Set::peer(&asked.peer, asked.kind)?;
    let set = |over: Over| if over == Over::Peer { &peer } else { &ours };
    let mut lanes = Vec::new();
    for over in Over::ALL {
        lanes.push(Measured::new(over, Lane::connect(&set(over).guest, over)?));
    }
    let machine = Machine::this();
    let processes = [ours.processes(), peer.processes()].concat();
    let others = || -> std::io::Result<Duration> {
        let here = std::iter::once(std::process::id()).chain(processes.iter().copied());
        let here = here.map(cpu::used_by).sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(here))
    };
    let (start, before) = (Instant::now(), others()?);
    let turns = measure::run(&mut lanes, asked.effort, |turn| match turn {
        0 => eprint!("\rwarming up "),
        turn => eprint!("\rturn {turn} of {} ", asked.effort.turns),
    })?;
    eprintln!();
    let mut report = Report::new(machine, &lanes, turns, asked.effort, asked.kind);
    let used = others()?.saturating_sub(before);
    report.others = used.as_secs_f64() / start.elapsed().as_secs_f64();
    drop(lanes);
    report.connections = connections(set, asked.effort);
    for set in [&ours, &peer] {
        for fault in set.guest.faults() {
            eprintln!("the device of process {}: {fault}", set.device_pid());
        }
    }
    Ok(report)
}

/// Makes connections over both devices, in turns. What one cannot do says so in its row.
fn connections<'a>(set: impl Fn(Over) -> &'a Set, effort: Effort) -> Vec<ConnectionRow> {
    let overs = [Over::Ring, Over::Peer];
    let mut rates = [const { Vec::new() }; 2];
    let mut crowds = [const { Vec::new() }; 2];
    let mut failed = [const { None }; 2];
    for turn in 0..effort.turns.max(CROWDS) {
        for place in 0..overs.len() {
            let place = (turn + place) % overs.len();
            let over = overs[place];
            let guest = &set(over).guest;
            let mut attempt = || -> anyhow::Result<()> {
                if turn < effort.turns {
                    rates[place].push(crowd::rate(guest, over, effort.slice)?);
                }
                if turn < CROWDS {
                    eprint!("\r{CROWD} connections over {:<20} ", over.name());
                    crowds[place].push(crowd::many(guest, over, CROWD)?);
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
    let rows = overs.into_iter().zip(rates).zip(crowds).zip(failed);
    rows.map(|(((over, rates), crowds), failed)| ConnectionRow {
        over,
        per_second: some(rates),
        at_once: CROWD,
        connect_ms: some(crowds.iter().map(|crowd| crowd.connect * 1e3).collect()),
        messages_per_second: some(crowds.iter().map(|crowd| crowd.messages).collect()),
        failed,
    })
    .collect()
}

fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let picture = |way: Way| -> Vec<plot::Line> {
        let line = |over: Over| {
            let rows = report.throughput.iter();
            let points = rows.filter(|row| row.over == over && row.way == way);
            let points = points.map(|row| (row.write as f64, row.gb_per_s));
            (over.name().to_owned(), points.collect())
        };
        Over::ALL.into_iter().map(line).collect()
    };
    plot::lines(
        path,
        |at| size_in_words(at.round() as usize),
        ("one write", "GB/s"),
        &Way::BOTH.map(|way| (way.name(), picture(way))),
    )
}
