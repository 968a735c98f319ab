//! Runs the Linux kernel's own `vsock_test` between two guests, in both directions.
//!
//! `cargo xtask vsock-test` builds the suite from the kernel's source and runs this example:
//! `vsock_test PROGRAM [--guests uml,qemu] [--all] [--backend vhost-device-vsock] [--json] [--skip N]…`. PROGRAM is the
//! suite, linked statically or dynamically. The device is the broker's; `--backend` names another program,
//! with the command line of vhost-device-vsock. Exit status: 0 if every test passes that can pass, and no other.
//!
//! `--run HVSOCK` runs one half on this machine under `hvsock run` and the other in one guest under QEMU; [`host`] has the
//! tests that cannot pass there.
//!
//! `--guests uml` runs both halves in one guest, over the loopback of its kernel. No device is involved: a test
//! that fails there, fails by the kernel. [`kernels`] lists these. They run, too, since one that passes is an error of the
//! list; only one that hangs is left out without `--all`.

#![forbid(unsafe_code)]

mod backend;
mod control;
mod expected;
mod host;
mod kernels;
mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hvsock_guests::{Config, File, Guest, Kit, Network, Vmm, Vsock};

use backend::Backend;
use suite::{Trial, Verdict};

struct Arguments {
    program: PathBuf,
    backend: Option<PathBuf>,
    json: bool,
    skip: Vec<usize>,
    /// Two guests, or one that is both.
    guests: Vec<Vmm>,
    /// The command `hvsock` under which one half runs on this machine.
    run: Option<PathBuf>,
    /// Also what hangs in the guests' kernels.
    all: bool,
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
    let kits = arguments.guests.iter().map(|vmm| Kit::find_for(*vmm));
    let kits = kits.collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let names = suite::list(&arguments.program)?;
    let mut trials = Vec::new();
    if let Some(hvsock) = &arguments.run {
        host::check(hvsock)?;
        let kit = kits.first().context("no guest")?;
        let backend = Backend::start(None)?;
        let mut config = config(backend::NAMES[0], &arguments.program)?;
        config.vsock = Some(Vsock {
            socket: backend.socket(0),
        });
        config.network = Some(Network {
            forwarded: vec![host::GUEST_PORT],
        });
        let guest = Guest::boot(kit, &config)?;
        eprintln!("guest:   ready after {:.1?}", start.elapsed());
        let halves = host::Halves {
            guest: &guest,
            suite: &arguments.program,
            hvsock,
            folder: backend.folder().to_owned(),
        };
        trials = host::run(&halves, &names, &arguments.skip)?;
    } else if let [kit] = &kits[..] {
        let guest = alone(kit, &arguments.program)?;
        let lacking = kernels::lacking(&guest, &guest, &names)?;
        trials = suite::run(
            &suite::Direction::loopback(&guest),
            &names,
            &arguments.skip,
            &lacking,
            arguments.all,
        )?;
    } else {
        let backend = Backend::start(arguments.backend.as_deref())?;
        eprintln!("device:  {}", backend.name());
        let guests = boot(&kits, &backend, &arguments.program)?;
        eprintln!("guests:  two, ready after {:.1?}", start.elapsed());
        for (control, (server, client)) in (control::PORT..).zip([(0, 1), (1, 0)]) {
            let direction = suite::Direction {
                server: &guests[server],
                client: &guests[client],
                server_cid: backend::CIDS[server],
                client_cid: backend::CIDS[client],
                control,
            };
            eprintln!("\n== {direction}");
            let (server, client) = (direction.server, direction.client);
            let lacking = kernels::lacking(server, client, &names)?;
            control::relay(direction.server, direction.client, control)?;
            let (skip, all) = (&arguments.skip, arguments.all);
            trials.extend(suite::run(&direction, &names, skip, &lacking, all)?);
        }
    }
    let failed = trials.iter().filter(|trial| trial.failed()).count();
    if arguments.json {
        println!("{}", suite::json(&trials));
    } else {
        print_table(&names, &trials);
    }
    let seconds = start.elapsed().as_secs_f64();
    let passed = trials.iter().filter(|trial| trial.passed()).count();
    let kernels = trials.iter().filter(|trial| trial.is_by_kernel()).count();
    eprintln!(
        "\n{passed} passed, {failed} failed, {kernels} not possible with a guest's kernel, of {} in {} s",
        trials.len(),
        seconds.round()
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
        run: None,
        skip: Vec::new(),
        guests: vec![Vmm::Qemu, Vmm::Qemu],
        all: false,
    };
    while let Some(word) = given.next() {
        match word.as_str() {
            "--backend" => {
                found.backend = Some(given.next().context("--backend takes a program")?.into());
            }
            "--run" => {
                found.run = Some(
                    given
                        .next()
                        .context("--run takes the command hvsock")?
                        .into(),
                );
            }
            "--json" => found.json = true,
            "--all" => found.all = true,
            "--guests" => {
                let words = given.next().context("--guests takes two VMMs, or one")?;
                let vmms = words.split(',').map(|word| match word {
                    "uml" => Ok(Vmm::Uml),
                    "qemu" => Ok(Vmm::Qemu),
                    other => bail!("no VMM {other}: uml or qemu"),
                });
                found.guests = vmms.collect::<Result<_>>()?;
                if !(1..=2).contains(&found.guests.len()) {
                    bail!("--guests takes two VMMs, or one");
                }
            }
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

fn config(name: &str, program: &Path) -> Result<Config> {
    let mut config = Config::new(name);
    config.files = File::program(program, "/bin/vsock_test")?;
    config.boot_limit = Duration::from_secs(120);
    Ok(config)
}

/// Boots both guests concurrently.
fn boot(kits: &[Kit], backend: &Backend, program: &Path) -> Result<[Guest; 2]> {
    let start = |index: usize| -> Result<Guest> {
        let mut config = config(backend::NAMES[index], program)?;
        config.vsock = Some(Vsock {
            socket: backend.socket(index),
        });
        Ok(Guest::boot(&kits[index], &config)?)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| start(1));
        let one = start(0)?;
        let other = other.join().ok().context("the thread ended")??;
        Ok([one, other])
    })
}

/// Boots a guest without a device, in which the loopback is the only transport.
fn alone(kit: &Kit, program: &Path) -> Result<Guest> {
    let mut config = config("loopback", program)?;
    let module = kit.module("vsock_loopback")?;
    config
        .files
        .push(File::bytes("/loopback.ko", 0o644, module));
    let guest = Guest::boot(kit, &config)?;
    let loaded = guest.run("insmod /loopback.ko", Duration::from_secs(60))?;
    ensure!(loaded.success(), "{}", loaded.stderr_text());
    Ok(guest)
}

fn print_table(names: &[String], trials: &[Trial]) {
    let mut directions: Vec<&str> = Vec::new();
    for trial in trials {
        if !directions.contains(&trial.direction.as_str()) {
            directions.push(&trial.direction);
        }
    }
    println!();
    for direction in directions {
        println!("column: {direction}");
    }
    let ran = |id: usize| trials.iter().any(|trial| trial.id == id);
    for (id, name) in names.iter().enumerate().filter(|(id, _)| ran(*id)) {
        let mut line = format!("{id:>3}  {name:<52}");
        for trial in trials.iter().filter(|trial| trial.id == id) {
            let verdict = match &trial.verdict {
                Verdict::Passed => "ok",
                Verdict::Failed(_) => "FAILED",
                Verdict::Skipped => "skipped",
                Verdict::Kernel(_) => "kernel",
                Verdict::Impossible(_) => "no",
            };
            line.push_str(&format!(" {verdict:<8}"));
        }
        println!("{}", line.trim_end());
    }
    for (id, name) in names.iter().enumerate() {
        let mut of_test = trials.iter().filter(|trial| trial.id == id);
        let version = of_test.find_map(|trial| match &trial.verdict {
            Verdict::Kernel(version) => Some(version),
            _ => None,
        });
        if let Some(version) = version {
            println!("{id} - {name}: not with a kernel older than {version}");
        }
        let mut of_test = trials.iter().filter(|trial| trial.id == id);
        let why = of_test.find_map(|trial| match &trial.verdict {
            Verdict::Impossible(why) => Some(why),
            _ => None,
        });
        if let Some(why) = why {
            println!("{id} - {name}: not under hvsock run: {why}");
        }
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
