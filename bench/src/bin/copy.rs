//! Measures the speed of file copies to and from a container, against a bare stream in alternating turns.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use clap::Parser;
use hvsock_bench::copy::{self, Lane, Large, Small, TestBed};
use hvsock_bench::figures::{Spread, save};
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{OUT, positive};
use hvsock_bench::plot;
use serde::Serialize;

/// Speed of file copies to and from a container, against a bare stream.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench copy")]
struct Arguments {
    /// Measure everything N times in alternating turns.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "7")]
    turns: usize,
    /// Size of the large file in MiB.
    #[arg(long, value_name = "MIB", value_parser = positive, default_value = "1024")]
    size: usize,
    /// Count of small files.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "10000")]
    files: usize,
    /// Folder for the files.
    #[arg(long = "in", value_name = "FOLDER", default_value = "/dev/shm")]
    place: PathBuf,
    /// Folder for copy.json and copy.svg.
    #[arg(long, value_name = "FOLDER", default_value = OUT)]
    out: PathBuf,
}

#[derive(Serialize)]
struct Figures {
    machine: Machine,
    turns: usize,
    size: u64,
    files: usize,
    /// The folder of the files.
    place: PathBuf,
    /// Of the large file.
    bytes_per_second: Vec<(Lane, Spread)>,
    put_to_raw: Spread,
    put_to_raw_files: Spread,
    get_to_raw: Spread,
    get_to_raw_files: Spread,
    put_files_per_second: Spread,
    get_files_per_second: Spread,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [copy::BROKER, folder] => return copy::serve_broker(Path::new(folder)),
        [copy::AGENT, folder] => return copy::serve_agent(Path::new(folder)),
        _ => {}
    }
    let Arguments {
        turns,
        size,
        files,
        place,
        out,
    } = Arguments::parse();
    let figures = measure(turns, size as u64, files, place)?;
    print(&figures);
    save(&out.join("copy.json"), &figures)?;
    let bars = figures.bytes_per_second.iter();
    let bars: Vec<_> = bars
        .map(|(lane, spread)| (name(*lane), in_gib(*spread)))
        .collect();
    plot::bars(&out.join("copy.svg"), "One large file", "GiB/s", &bars)?;
    println!("\nsaved as {0}/copy.json and {0}/copy.svg", out.display());
    Ok(())
}

fn measure(turns: usize, mib: u64, files: usize, place: PathBuf) -> anyhow::Result<Figures> {
    let test_bed = TestBed::start()?;
    let (large, small) = (Large::new(&place, mib)?, Small::new(&place, files)?);
    let mut rates = Lane::ALL.map(|_| Vec::new());
    let (mut put_files, mut get_files) = (Vec::new(), Vec::new());
    for turn in 0..=turns {
        eprint!("\rturn {turn} of {turns} ");
        for at in 0..Lane::ALL.len() {
            // Rotates the first lane (round robin), because it starts with cold caches.
            let at = (at + turn) % Lane::ALL.len();
            let rate = copy::large(&test_bed, &large, Lane::ALL[at])?;
            if turn > 0 {
                rates[at].push(rate);
            }
        }
        for (lane, rates) in [(Lane::Put, &mut put_files), (Lane::Get, &mut get_files)] {
            let rate = copy::small(&test_bed, &small, lane)?;
            if turn > 0 {
                rates.push(rate);
            }
        }
    }
    eprintln!();
    let [raw, raw_files, _, put, get] = &rates;
    Ok(Figures {
        machine: Machine::current(),
        turns,
        size: large.size(),
        files: small.count(),
        place,
        put_to_raw: Spread::of_ratio(put, raw),
        put_to_raw_files: Spread::of_ratio(put, raw_files),
        get_to_raw: Spread::of_ratio(get, raw),
        get_to_raw_files: Spread::of_ratio(get, raw_files),
        put_files_per_second: Spread::of(put_files),
        get_files_per_second: Spread::of(get_files),
        bytes_per_second: Lane::ALL
            .into_iter()
            .zip(&rates)
            .map(|(lane, rates)| (lane, Spread::of(rates.iter().copied())))
            .collect(),
    })
}

fn name(lane: Lane) -> &'static str {
    match lane {
        Lane::Raw => "stream, memory to memory",
        Lane::RawFiles => "stream, file to file",
        Lane::Local => "no stream, file to file",
        Lane::Put => "cp to the container",
        Lane::Get => "cp from the container",
    }
}

fn in_gib(spread: Spread) -> Spread {
    let gib = f64::from(1 << 30);
    Spread {
        median: spread.median / gib,
        min: spread.min / gib,
        max: spread.max / gib,
    }
}

fn print(figures: &Figures) {
    println!("{}", figures.machine);
    println!(
        "one interleaved run of {} turns in {}: median (min to max)\n",
        figures.turns,
        figures.place.display()
    );
    println!("one file of {} MiB, GiB/s", figures.size >> 20);
    for (lane, spread) in &figures.bytes_per_second {
        println!("  {:<26} {:.2}", name(*lane), in_gib(*spread));
    }
    println!("ratio of cp to the stream, turn by turn");
    for (what, ratio) in [
        ("to, memory to memory", figures.put_to_raw),
        ("from, memory to memory", figures.get_to_raw),
        ("to, file to file", figures.put_to_raw_files),
        ("from, file to file", figures.get_to_raw_files),
    ] {
        println!("  {what:<26} {ratio:.2}");
    }
    println!("{} small files, files/s", figures.files);
    println!("  {:<26} {:.0}", "to", figures.put_files_per_second);
    println!("  {:<26} {:.0}", "from", figures.get_files_per_second);
}
