//! What a command in a guest costs, `hvsock exec` beside ssh over the same link, in turns.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hvsock::{Endpoint, PartitionRef};
use hvsock_bench::figures::{Spread, keep, percentile};
use hvsock_bench::machine::Machine;
use hvsock_bench::options::{Options, positive};
use hvsock_bench::plot;
use hvsock_services::host::session::{self, Event, Exec};
use hvsock_services::link::Target;
use serde::Serialize;

const OPTIONS: Options = Options {
    bench: "exec",
    about: "What `true` in a container costs by hvsock exec and by ssh over the same link.",
    all: &[
        ("--turns", "N", "measure everything N times, in turns (25)"),
        ("--runs", "N", "run the command N times in each turn (40)"),
        (
            "--out",
            "FOLDER",
            "where to keep exec.json and exec.svg (target/bench)",
        ),
    ],
};

/// The container.
const BOX: &str = "box";
const SSHD: &str = "/usr/sbin/sshd";
/// The longest that anything takes to be there.
const PATIENCE: Duration = Duration::from_secs(30);

/// By what the command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Lane {
    /// On this machine, with no container: what a process costs.
    Local,
    /// By the library, in a process that runs already; a new connection each.
    Library,
    /// `hvsock exec`.
    Exec,
    /// `ssh`, whose connection `hvsock nc` makes to an sshd that the agent starts.
    Ssh,
    /// `ssh` by a connection that stands (`ControlMaster`).
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
            Self::Library => "host::session, a process that runs",
            Self::Exec => "hvsock exec",
            Self::SshShared => "ssh, by a connection that stands",
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
    /// How much longer ssh takes, turn by turn, by the medians.
    ssh_to_exec: Spread,
}

#[derive(Serialize)]
struct Figure {
    lane: Lane,
    p50_ms: f64,
    p95_ms: f64,
    /// Of the turns' medians.
    turns_ms: Spread,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (mut turns, mut runs, mut out) = (25, 40, PathBuf::from("target/bench"));
    OPTIONS.take_or_exit(&words, |word, value| {
        match word {
            "--turns" => turns = positive(value)?,
            "--runs" => runs = positive(value)?,
            _ => out = PathBuf::from(value),
        }
        Ok(())
    });
    let figures = measure(turns, runs)?;
    print(&figures);
    keep(&out.join("exec.json"), &figures)?;
    let bars = figures.lanes.iter();
    let bars: Vec<_> = bars
        .map(|figure| (figure.lane.name(), figure.turns_ms))
        .collect();
    plot::bars(&out.join("exec.svg"), "`true` in a container", "ms", &bars)?;
    println!("\nkept as {0}/exec.json and {0}/exec.svg", out.display());
    Ok(())
}

fn measure(turns: usize, runs: usize) -> anyhow::Result<Figures> {
    let scene = Scene::start()?;
    let mut all = Lane::ALL.map(|_| Vec::new());
    let mut medians = Lane::ALL.map(|_| Vec::new());
    for turn in 0..=turns {
        eprint!("\rturn {turn} of {turns} ");
        for at in 0..Lane::ALL.len() {
            // Whoever comes first after something else has it harder.
            let at = (at + turn) % Lane::ALL.len();
            let mut took = Vec::with_capacity(runs);
            for _ in 0..runs {
                took.push(scene.once(Lane::ALL[at])?.as_secs_f64() * 1e3);
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
        machine: Machine::this(),
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
    println!("{:<36} {:>8} {:>8}   turns' medians", "ms", "p50", "p95");
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

/// A broker and an agent in its container, which are the programs that ship, and ssh's keys.
struct Scene {
    runtime: tokio::runtime::Runtime,
    hvsock: PathBuf,
    // In this order: each needs the next.
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

impl Scene {
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
        let output = broker.0.stdout.take().context("it has no output")?;
        BufReader::new(output).read_line(&mut String::new())?;
        let mut add = Command::new(&hvsock);
        add.arg("--dir").arg(folder.path());
        done(add.args(["-q", "container", "add", BOX]))?;

        for name in ["host_key", "client_key"] {
            let mut generate = Command::new("ssh-keygen");
            generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            done(generate.arg(at(name)))?;
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
        let deadline = Instant::now() + PATIENCE;
        while done(ssh(false).arg("true")).is_err() {
            ensure!(Instant::now() < deadline, "ssh never works");
            thread::sleep(Duration::from_millis(100));
        }
        let mut master = ssh(true);
        let master = master.args(["-o", "ControlMaster=yes", "-N"]).spawn()?;
        let master = Process(master);
        while !at("master").exists() {
            ensure!(Instant::now() < deadline, "ssh's master never works");
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

    /// Runs the command once; how long it took.
    fn once(&self, lane: Lane) -> anyhow::Result<Duration> {
        let began = Instant::now();
        match lane {
            Lane::Local => done(&mut Command::new("true"))?,
            Lane::Library => self.runtime.block_on(self.library())?,
            Lane::Exec => {
                let mut exec = Command::new(&self.hvsock);
                exec.arg("--dir").arg(self.folder.path());
                done(exec.args(["exec", BOX, "--", "true"]))?;
            }
            Lane::Ssh => done(ssh(&self.hvsock, self.folder.path(), false).arg("true"))?,
            Lane::SshShared => done(ssh(&self.hvsock, self.folder.path(), true).arg("true"))?,
        }
        Ok(began.elapsed())
    }

    async fn library(&self) -> anyhow::Result<()> {
        let endpoint = Endpoint::in_dir(self.folder.path());
        let partition: PartitionRef = BOX.parse()?;
        let target = Target::new(endpoint, partition);
        let mut running = session::start(&target, Exec::new(["true"])).await?;
        loop {
            if let Event::Exited(exit) = running.output.next().await? {
                ensure!(exit.code() == 0, "it failed");
                return Ok(());
            }
        }
    }
}

/// `ssh` to the container; with `master`, by the connection that stands.
fn ssh(hvsock: &Path, folder: &Path, master: bool) -> Command {
    let mut ssh = Command::new("ssh");
    let proxy = format!(
        "{} --dir {} nc {BOX} ssh",
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

/// A program of this build, beside this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "{} is not built; run this with `cargo xtask bench exec`",
        path.display()
    );
    Ok(path)
}

fn done(command: &mut Command) -> anyhow::Result<()> {
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
