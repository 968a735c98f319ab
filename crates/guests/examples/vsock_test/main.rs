//! Runs the Linux kernel's own `vsock_test` between two guests, in both directions.
//!
//! `cargo xtask vsock-test` builds the suite from the kernel's source and runs this example:
//! `vsock_test PROGRAM [--backend vhost-device-vsock] [--json] [--skip N]…`. PROGRAM is the suite, linked
//! statically or dynamically. The device is the broker's; `--backend` names another program, with the
//! command line of vhost-device-vsock. Exit status: 0 if every test passes.

#![forbid(unsafe_code)]

mod backend;
mod control;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hvsock_guests::{Config, File, Guest, Kit, Network, Vmm, Vsock};

use backend::Backend;
use suite::{Trial, Verdict};

/// The TCP port of the suite's control connection, in the serving guest.
const CONTROL: u16 = 1234;

struct Arguments {
    program: PathBuf,
    backend: Option<PathBuf>,
    json: bool,
    skip: Vec<usize>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vsock_test: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let arguments = arguments()?;
    let kit = Kit::find_for(Vmm::Qemu)?;
    let backend = Backend::start(arguments.backend.as_deref())?;
    eprintln!("device:  {}", backend.name());
    eprintln!("kernel:  {}", kit.kernel.image.display());
    let start = Instant::now();
    let guests = boot(&kit, &backend, &arguments.program)?;
    eprintln!("guests:  two, ready after {:.1?}", start.elapsed());
    let names = suite::list(&arguments.program)?;
    let mut trials = Vec::new();
    for (server, client) in [(0, 1), (1, 0)] {
        let direction = suite::Direction {
            server: &guests[server],
            client: &guests[client],
            server_cid: backend::CIDS[server],
            client_cid: backend::CIDS[client],
        };
        eprintln!("\n== {direction}");
        trials.extend(suite::run(&direction, &names, &arguments.skip)?);
    }
    let failed = trials.iter().filter(|trial| trial.failed()).count();
    if arguments.json {
        println!("{}", suite::json(&trials));
    } else {
        print_table(&names, &trials);
    }
    let seconds = start.elapsed().as_secs_f64();
    let passed = trials.iter().filter(|trial| trial.passed()).count();
    eprintln!(
        "\n{passed} passed, {failed} failed of {} in two directions, {seconds:.0} s",
        trials.len()
    );
    Ok(failed == 0)
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args().skip(1);
    let mut program = None;
    let mut found = Arguments {
        program: PathBuf::new(),
        backend: None,
        json: false,
        skip: Vec::new(),
    };
    while let Some(word) = given.next() {
        match word.as_str() {
            "--backend" => {
                found.backend = Some(given.next().context("--backend takes a program")?.into());
            }
            "--json" => found.json = true,
            "--skip" => {
                let number = given.next().context("--skip takes a test's number")?;
                found
                    .skip
                    .push(number.parse().context("--skip takes a test's number")?);
            }
            _ if word.starts_with('-') => bail!("unknown option {word}"),
            _ if program.is_none() => program = Some(PathBuf::from(word)),
            _ => bail!("more than one program given"),
        }
    }
    found.program = program.context("PROGRAM is missing: the path of the suite's vsock_test")?;
    Ok(found)
}

/// Boots both guests concurrently.
fn boot(kit: &Kit, backend: &Backend, program: &std::path::Path) -> Result<[Guest; 2]> {
    let files = File::program(program, "/bin/vsock_test")?;
    let start = |index: usize| {
        let mut config = Config::new(backend::NAMES[index]);
        config.files.clone_from(&files);
        config.vsock = Some(Vsock {
            socket: backend.socket(index),
        });
        config.network = Some(Network {
            forwarded: vec![CONTROL],
        });
        config.boot_limit = Duration::from_secs(120);
        Guest::boot(kit, &config)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| start(1));
        let one = start(0)?;
        let other = other.join().ok().context("the thread ended")??;
        Ok([one, other])
    })
}

fn print_table(names: &[String], trials: &[Trial]) {
    println!("\n{:>3}  {:<52} {:<8} b to a", "", "test", "a to b");
    for (id, name) in names.iter().enumerate() {
        let mut line = format!("{id:>3}  {name:<52}");
        for trial in trials.iter().filter(|trial| trial.id == id) {
            let verdict = match &trial.verdict {
                Verdict::Passed => "ok",
                Verdict::Failed(_) => "FAILED",
                Verdict::Skipped => "skipped",
            };
            line.push_str(&format!(" {verdict:<8}"));
        }
        println!("{}", line.trim_end());
    }
    for trial in trials {
        if let Verdict::Failed(why) = &trial.verdict {
            println!(
                "\n{} - {}, {}:\n{why}",
                trial.id, trial.name, trial.direction
            );
        }
    }
}
