//! Measures the socket calls, connects and data of an unmodified program under `hvsock run`, against the library
//! and Unix sockets in alternating turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;
use hvsock_bench::figures::{Spread, save};
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{OUT, positive};
use hvsock_bench::run::measure::{self, TestBed};
use hvsock_bench::run::program;
use hvsock_bench::run::report::{Report, Row};
use hvsock_bench::{broker, cpu, plot};

/// Calls, connects and data under `hvsock run`, against the library and Unix sockets.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench run")]
struct Arguments {
    /// Measure everything N times in alternating turns.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "45")]
    turns: usize,
    /// Folder for run.json, run-calls.svg, run-connect.svg and run-data.svg.
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
        [program::SERVER, rest @ ..] => return program::serve_server(rest),
        [program::CLIENT, rest @ ..] => return program::serve_client(rest),
        _ => {}
    }
    let Arguments { turns, out } = Arguments::parse();
    std::thread::spawn(|| {
        std::thread::sleep(RUN_TIMEOUT);
        eprintln!("\nthe run timed out after {} s", RUN_TIMEOUT.as_secs());
        std::process::exit(1);
    });
    let hvsock = std::env::current_exe()?.with_file_name("hvsock");
    ensure!(
        hvsock.is_file(),
        "{} is not built; run this with `cargo xtask bench run`",
        hvsock.display()
    );
    let machine = Machine::current();
    let (start, before) = (Instant::now(), cpu::used_by_all()?);
    let own_before = cpu::used_by_tree()?;
    let mut test_bed = TestBed::start(&hvsock)?;
    let values = measure::run(&mut test_bed, turns, |turn| {
        eprint!("\rturn {turn} of {turns} ");
    })?;
    eprintln!();
    // The times of processes that have ended are known, and of those only.
    drop(test_bed);
    let all = cpu::used_by_all()?.saturating_sub(before);
    let own = cpu::used_by_tree()?.saturating_sub(own_before);
    let others = all.saturating_sub(own).as_secs_f64() / start.elapsed().as_secs_f64();
    let report = Report::new(machine, &values, turns, others);
    report.print();
    save(&out.join("run.json"), &report)?;
    draw(&out, &report)?;
    println!("\nsaved in {}", out.display());
    Ok(())
}

fn draw(out: &Path, report: &Report) -> anyhow::Result<()> {
    let mut calls = Vec::new();
    for row in report.with_calls() {
        calls.push((format!("{}, TCP socket", row.way.name()), row.foreign_us));
        calls.push((format!("{}, own socket", row.way.name()), row.own_us));
    }
    draw_bars(&out.join("run-calls.svg"), "getsockname", "µs", &calls)?;
    let of = |figure: fn(&Row) -> Spread| -> Vec<(String, Spread)> {
        let rows = report.ways.iter();
        rows.map(|row| (row.way.name().to_owned(), figure(row)))
            .collect()
    };
    let title = "Connect, accept and close";
    draw_bars(
        &out.join("run-connect.svg"),
        title,
        "µs",
        &of(|row| row.connect_us),
    )?;
    draw_bars(
        &out.join("run-data.svg"),
        "Writes of 64 KiB",
        "10⁹ bytes per second",
        &of(|row| row.gb_per_s),
    )
}

fn draw_bars(
    path: &Path,
    title: &str,
    unit: &str,
    bars: &[(String, Spread)],
) -> anyhow::Result<()> {
    let bars = bars.iter().rev();
    let bars: Vec<_> = bars
        .map(|(label, spread)| (label.as_str(), *spread))
        .collect();
    plot::bars(path, title, unit, &bars)
}
