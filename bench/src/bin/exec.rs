//! Measures the time of a command in a container by `hvsock exec`, against ssh over the same link in
//! alternating turns.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use hvsock::{Endpoint, PartitionRef};
use hvsock_bench::figures::{Spread, percentile, save};
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{OUT, positive};
use hvsock_bench::plot;
use hvsock_services::host::session::{self, Event, Exec};
use hvsock_services::link::Target;
use serde::Serialize;

/// Time of `true` in a container by hvsock exec and by ssh over the same link.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench exec")]
struct Arguments {
    /// Measure everything N times in alternating turns.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "25")]
    turns: usize,
    /// Run the command N times per turn.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "40")]
    runs: usize,
    /// Folder for exec.json and exec.svg.
    #[arg(long, value_name = "FOLDER", default_value = OUT)]
    out: PathBuf,
}

/// Name of the container.
const CONTAINER: &str = "box";
const SSHD: &str = "/usr/sbin/sshd";
/// Timeout for the start of all processes.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The way to run the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Lane {
    /// On this machine without a container: the cost of a process.
    Local,
    /// By the library in a running process, with a new connection for each command.
    Library,
    /// `hvsock exec`.
    Exec,
    /// `ssh` to an sshd that the agent starts, connected by `hvsock nc`.
    Ssh,
    /// `ssh` over an established connection (`ControlMaster`).
    SshShared,
}

impl Lane {
    const ALL: [Self; 5] = [
        Self::Local,
        Self::Library,
        Self::Exec,
        Self::SshShared,
        Self::Ssh,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Local => "true, on this machine",
            Self::Library => "host::session, in a running process",
            Self::Exec => "hvsock exec",
            Self::SshShared => "ssh, over an established connection",
            Self::Ssh => "ssh",
        }
    }
}

#[derive(Serialize)]
struct Figures {
    machine: Machine,
    runs: usize,
    turns: usize,
    lanes: Vec<Figure>,
    /// Ratio of the medians of ssh and exec, turn by turn.
    ssh_to_exec: Spread,
}

#[derive(Serialize)]
struct Figure {
    lane: Lane,
    p50_ms: f64,
    p95_ms: f64,
    /// Spread of the turns' medians.
    turns_ms: Spread,
}

fn main() -> anyhow::Result<()> {
    let Arguments { turns, runs, out } = Arguments::parse();
    let figures = measure(turns, runs)?;
    print(&figures);
    save(&out.join("exec.json"), &figures)?;
    let bars = figures.lanes.iter();
    let bars: Vec<_> = bars
        .map(|figure| (figure.lane.name(), figure.turns_ms))
        .collect();
    plot::bars(&out.join("exec.svg"), "`true` in a container", "ms", &bars)?;
    println!("\nsaved as {0}/exec.json and {0}/exec.svg", out.display());
    Ok(())
}

fn measure(turns: usize, runs: usize) -> anyhow::Result<Figures> {
    let test_bed = TestBed::start()?;
    let mut all = Lane::ALL.map(|_| Vec::new());
    let mut medians = Lane::ALL.map(|_| Vec::new());
    for turn in 0..=turns {
        eprint!("\rturn {turn} of {turns} ");
        for at in 0..Lane::ALL.len() {
            // Rotates the first lane (round robin), because it starts with cold caches.
            let at = (at + turn) % Lane::ALL.len();
            let mut took = Vec::with_capacity(runs);
            for _ in 0..runs {
                took.push(test_bed.once(Lane::ALL[at])?.as_secs_f64() * 1e3);
            }
            if turn > 0 {
                all[at].extend_from_slice(&took);
                medians[at].push(percentile(&mut took, 0.5));
            }
        }
    }
    eprintln!();
    let of = |lane| Lane::ALL.iter().position(|one| *one == lane).unwrap_or(0);
    let ssh_to_exec = Spread::of_ratio(&medians[of(Lane::Ssh)], &medians[of(Lane::Exec)]);
    let lanes = Lane::ALL.into_iter().zip(all.iter_mut().zip(&medians));
    Ok(Figures {
        machine: Machine::current(),
        runs,
        turns,
        lanes: lanes
            .map(|(lane, (all, medians))| Figure {
                lane,
                p50_ms: percentile(all, 0.5),
                p95_ms: percentile(all, 0.95),
                turns_ms: Spread::of(medians.iter().copied()),
            })
            .collect(),
        ssh_to_exec,
    })
}

fn print(figures: &Figures) {
    println!("{}", figures.machine);
    println!(
        "one interleaved run of {} turns, {} commands each, a new connection for each command\n",
        figures.turns, figures.runs
    );
    println!(
        "{:<36} {:>8} {:>8}   medians of the turns: median (min to max)",
        "ms", "p50", "p95"
    );
    for figure in &figures.lanes {
        println!(
            "{:<36} {:>8.2} {:>8.2}   {}",
            figure.lane.name(),
            figure.p50_ms,
            figure.p95_ms,
            figure.turns_ms
        );
    }
    println!(
        "\nssh takes {} times as long as hvsock exec",
        figures.ssh_to_exec
    );
}

/// A broker, an agent in its container (both as they ship), and ssh's keys.
struct TestBed {
    runtime: tokio::runtime::Runtime,
    hvsock: PathBuf,
    // In drop order: each process needs the next one.
    _master: Process,
    _agent: Process,
    _broker: Process,
    folder: tempfile::TempDir,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl TestBed {
    fn start() -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root() && Path::new(SSHD).exists(),
            "this bench needs root and OpenSSH's server"
        );
        let (hvsock, agent) = (program("hvsock")?, program("hvsock-agent")?);
        let folder = tempfile::Builder::new().prefix("hve").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let broker = Command::new(&hvsock)
            .arg("--dir")
            .arg(folder.path())
            .arg("broker")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut broker = Process(broker);
        let output = broker.0.stdout.take().context("the broker has no stdout")?;
        BufReader::new(output).read_line(&mut String::new())?;
        let mut add = Command::new(&hvsock);
        add.arg("--dir").arg(folder.path());
        run_quietly(add.args(["-q", "container", "add", CONTAINER]))?;

        for name in ["host_key", "client_key"] {
            let mut generate = Command::new("ssh-keygen");
            generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            run_quietly(generate.arg(at(name)))?;
        }
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n",
            at("host_key").display(),
            at("client_key.pub").display()
        );
        fs::write(at("sshd_config"), config)?;
        let script = format!(
            "#!/bin/sh\nexec {SSHD} -f {} \"$@\"\n",
            at("sshd_config").display()
        );
        fs::write(at("sshd"), script)?;
        fs::set_permissions(at("sshd"), PermissionsExt::from_mode(0o755))?;

        let agent = Command::new(agent)
            .env("HVSOCK_ENDPOINT", at("containers/box/endpoint"))
            .env("HVSOCK_SSHD", at("sshd"))
            .env("HVSOCK_KVP_DIR", at("kvp"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let agent = Process(agent);
        let ssh = |master: bool| ssh(&hvsock, folder.path(), master);
        let deadline = Instant::now() + START_TIMEOUT;
        while run_quietly(ssh(false).arg("true")).is_err() {
            ensure!(Instant::now() < deadline, "ssh does not connect");
            thread::sleep(Duration::from_millis(100));
        }
        let mut master = ssh(true);
        let master = master.args(["-o", "ControlMaster=yes", "-N"]).spawn()?;
        let master = Process(master);
        while !at("master").exists() {
            ensure!(Instant::now() < deadline, "ssh's master does not connect");
            thread::sleep(Duration::from_millis(100));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            _master: master,
            _agent: agent,
            _broker: broker,
            hvsock,
            folder,
        })
    }

    /// Runs the command once and returns its time.
    fn once(&self, lane: Lane) -> anyhow::Result<Duration> {
        let began = Instant::now();
        match lane {
            Lane::Local => run_quietly(&mut Command::new("true"))?,
            Lane::Library => self.runtime.block_on(self.library())?,
            Lane::Exec => {
                let mut exec = Command::new(&self.hvsock);
                exec.arg("--dir").arg(self.folder.path());
                run_quietly(exec.args(["exec", CONTAINER, "--", "true"]))?;
            }
            Lane::Ssh => run_quietly(ssh(&self.hvsock, self.folder.path(), false).arg("true"))?,
            Lane::SshShared => {
                run_quietly(ssh(&self.hvsock, self.folder.path(), true).arg("true"))?;
            }
        }
        Ok(began.elapsed())
    }

    async fn library(&self) -> anyhow::Result<()> {
        let endpoint = Endpoint::in_dir(self.folder.path());
        let partition: PartitionRef = CONTAINER.parse()?;
        let target = Target::new(endpoint, partition);
        let mut running = session::start(&target, Exec::new(["true"])).await?;
        loop {
            if let Event::Exited(exit) = running.output.next().await? {
                ensure!(exit.code() == 0, "`true` failed");
                return Ok(());
            }
        }
    }
}

/// `ssh` to the container; with `master`, over the shared connection.
fn ssh(hvsock: &Path, folder: &Path, master: bool) -> Command {
    let mut ssh = Command::new("ssh");
    let proxy = format!(
        "{} --dir {} nc {CONTAINER} ssh",
        hvsock.display(),
        folder.display()
    );
    let known = folder.join("known_hosts");
    ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o"])
        .arg(format!("ProxyCommand={proxy}"))
        .args(["-o", "StrictHostKeyChecking=accept-new", "-o"])
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .args(["-o", "LogLevel=ERROR", "-i"])
        .arg(folder.join("client_key"));
    if master {
        ssh.arg("-S").arg(folder.join("master"));
    }
    ssh.arg("root@box");
    ssh
}

/// Path of a program in the folder of this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "{} is not built; run this with `cargo xtask bench exec`",
        path.display()
    );
    Ok(path)
}

fn run_quietly(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("{:?} ended with {status}", command.get_program());
    }
    Ok(())
}
