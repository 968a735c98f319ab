//! Runs the suite's two halves in two guests and parses their output.
//!
//! The suite stops at the first test that fails. To run the others, it is started again without the tests
//! that already have a verdict.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hvsock_guests::{Guest, Spawned};
use serde_json::{Value, json};

use crate::control;
use crate::expected::Expected;
use crate::kernels::Lacking;

/// Maximum time without progress. The suite's own timeouts are 10 s each, in guest time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Polling interval of the halves' output. A poll costs both guests about 100 ms of work.
const POLL_INTERVAL: Duration = Duration::from_millis(700);

/// The serving and the connecting guest.
pub struct Direction<'a> {
    pub server: &'a Guest,
    pub client: &'a Guest,
    pub server_cid: u32,
    pub client_cid: u32,
    /// The TCP port of the control connection.
    pub control: u16,
}

impl<'a> Direction<'a> {
    /// Both halves in one guest.
    pub fn loopback(guest: &'a Guest) -> Self {
        const LOCAL: u32 = 1;
        Self {
            server: guest,
            client: guest,
            server_cid: LOCAL,
            client_cid: LOCAL,
            control: control::PORT,
        }
    }

    fn is_loopback(&self) -> bool {
        std::ptr::eq(self.server, self.client)
    }
}

impl fmt::Display for Direction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, server) = (self.client.name(), self.server.name());
        write!(f, "the client in {client}, the server in {server}")
    }
}

/// One test in one direction.
pub struct Trial {
    pub id: usize,
    pub name: String,
    pub direction: String,
    pub verdict: Verdict,
}

#[derive(Debug)]
pub enum Verdict {
    Passed,
    Failed(String),
    Skipped,
    /// The kernel of a guest cannot pass it before this version.
    Kernel(&'static str),
    /// It cannot pass under `hvsock run`, for this reason.
    Impossible(&'static str),
}

impl Verdict {
    /// What a line of progress begins with.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "ok  ",
            Self::Failed(_) => "FAIL",
            Self::Skipped | Self::Kernel(_) | Self::Impossible(_) => "no  ",
        }
    }
}

impl Trial {
    pub fn passed(&self) -> bool {
        matches!(self.verdict, Verdict::Passed)
    }

    pub fn is_by_kernel(&self) -> bool {
        matches!(self.verdict, Verdict::Kernel(_))
    }

    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed(_))
    }
}

/// The names of all tests. `--list` prints them and exits with a failure status, which is ignored.
pub fn list(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).arg("--list").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    let names: Vec<String> = lines
        .filter(|(id, _)| id.parse::<usize>().is_ok())
        .map(|(_, name)| name.to_owned())
        .collect();
    if names.is_empty() {
        bail!("{} lists no tests", program.display());
    }
    Ok(names)
}

/// Runs all tests in one direction, and those that a kernel cannot pass, too, unless they hang and not `all` are to be
/// run.
pub fn run(
    direction: &Direction<'_>,
    names: &[String],
    skip: &[usize],
    lacking: &Lacking,
    all: bool,
) -> Result<Vec<Trial>> {
    let expected = |id| lacking.get(&id).copied().unwrap_or(Expected::Pass);
    let mut verdicts: Vec<Option<Verdict>> = names
        .iter()
        .enumerate()
        .map(|(id, _)| match expected(id) {
            _ if skip.contains(&id) => Some(Verdict::Skipped),
            Expected::Hang(reason) if !all => Some(reason.verdict()),
            _ => None,
        })
        .collect();
    while verdicts.iter().any(Option::is_none) {
        let decided: Vec<usize> = (0..names.len())
            .filter(|id| verdicts[*id].is_some())
            .collect();
        let (passed, failure) = attempt(direction, names, &decided)?;
        for id in passed {
            verdicts[id] = Some(expected(id).verdict(None));
        }
        let Some((id, why)) = failure else {
            break;
        };
        let verdict = expected(id).verdict(Some(why));
        eprintln!("{} {id:>3} - {}", verdict.word(), names[id]);
        verdicts[id] = Some(verdict);
    }
    let trials = names.iter().zip(verdicts).enumerate();
    Ok(trials
        .map(|(id, (name, verdict))| Trial {
            id,
            name: name.clone(),
            direction: direction.to_string(),
            verdict: verdict.unwrap_or_else(|| Verdict::Failed("not run".into())),
        })
        .collect())
}

type Failure = Option<(usize, String)>;

/// Runs the tests without a verdict, up to the first failure.
fn attempt(
    direction: &Direction<'_>,
    names: &[String],
    decided: &[usize],
) -> Result<(BTreeSet<usize>, Failure)> {
    let (server, client) = (direction.server, direction.client);
    let skip: String = decided.iter().map(|id| format!(" --skip {id}")).collect();
    let port = direction.control;
    let (server_cid, client_cid) = (direction.server_cid, direction.client_cid);
    if !direction.is_loopback() {
        control::wait_until_listening(client, port)?;
    }
    let serve = server.spawn(&format!(
        "exec vsock_test --mode server --control-port {port} --peer-cid {client_cid}{skip}"
    ))?;
    if direction.is_loopback() {
        serve.wait_for("istening", IDLE_TIMEOUT)?;
    } else {
        control::wait_until_connected(server, port)?;
    }
    let connect = client.spawn(&format!(
        "exec vsock_test --mode client --control-host 127.0.0.1 --control-port {port} \
         --peer-cid {server_cid}{skip}"
    ))?;
    let mut shown = BTreeSet::new();
    let mut last = Instant::now();
    let outcome = loop {
        let [a, b] = [half(&serve)?, half(&connect)?];
        let passed: BTreeSet<usize> = a.passed.intersection(&b.passed).copied().collect();
        for id in &passed {
            if shown.insert(*id) {
                eprintln!("ok   {id:>3} - {}", names.get(*id).map_or("?", |name| name));
                last = Instant::now();
            }
        }
        let hung = last.elapsed() > IDLE_TIMEOUT;
        match (&a.status, &b.status) {
            (Some(0), Some(0)) => break (passed, None),
            (None | Some(0), None | Some(0)) if !hung => {}
            _ => {
                // The other half notices a failure a moment later.
                let [a, b] = if hung {
                    [a, b]
                } else {
                    settled(&serve, &connect)?
                };
                let next =
                    (0..names.len()).find(|id| !passed.contains(id) && !decided.contains(id));
                let begun = a.open.into_iter().chain(b.open).min().or(next);
                let Some(id) = begun.filter(|id| *id < names.len()) else {
                    bail!(
                        "the suite failed before its first test:\n{}\n{}",
                        a.text,
                        b.text
                    );
                };
                let why = format!(
                    "{}--- server: {}\n{}\n--- client: {}\n{}",
                    if hung {
                        "timed out without progress\n"
                    } else {
                        ""
                    },
                    ended(a.status),
                    tail(&a.text),
                    ended(b.status),
                    tail(&b.text)
                );
                break (passed, Some((id, why)));
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    for half in [&serve, &connect] {
        half.kill()?;
    }
    Ok(outcome)
}

/// The progress of one half.
struct Half {
    text: String,
    status: Option<i32>,
    passed: BTreeSet<usize>,
    /// The test that is running.
    open: Option<usize>,
}

fn half(spawned: &Spawned<'_>) -> Result<Half> {
    let status = spawned.status()?;
    let text = String::from_utf8_lossy(&spawned.stdout()?).into_owned();
    let stderr = String::from_utf8_lossy(&spawned.stderr()?).into_owned();
    let mut passed = BTreeSet::new();
    let mut open = None;
    // `7 - SOCK_SEQPACKET MSG_TRUNC flag...ok`; the last word is printed when the test has ended.
    for line in text.lines() {
        let Some((id, rest)) = line.split_once(" - ") else {
            continue;
        };
        let Ok(id) = id.parse() else {
            continue;
        };
        if rest.ends_with("...ok") {
            passed.insert(id);
        } else if !rest.ends_with("...skipped") {
            open = Some(id);
        }
    }
    // A test may print other lines between its name and the last word.
    open = open.filter(|id| !passed.contains(id));
    Ok(Half {
        text: text + &stderr,
        status,
        passed,
        open,
    })
}

/// Both halves, after both have ended or 3 s have passed.
fn settled(serve: &Spawned<'_>, connect: &Spawned<'_>) -> Result<[Half; 2]> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let halves = [half(serve)?, half(connect)?];
        if halves.iter().all(|half| half.status.is_some()) || Instant::now() >= deadline {
            return Ok(halves);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn ended(status: Option<i32>) -> String {
    status.map_or("still running".into(), |status| {
        format!("exit status {status}")
    })
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.ends_with("skipped"))
        .collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// The results as JSON.
pub fn json(trials: &[Trial]) -> Value {
    let trials = trials.iter().map(|trial| {
        let (verdict, why) = match &trial.verdict {
            Verdict::Passed => ("passed", None),
            Verdict::Failed(why) => ("failed", Some(why.clone())),
            Verdict::Skipped => ("skipped", None),
            Verdict::Kernel(version) => (
                "kernel",
                Some(format!("not with a kernel older than {version}")),
            ),
            Verdict::Impossible(why) => ("impossible", Some((*why).to_owned())),
        };
        json!({
            "id": trial.id,
            "name": trial.name,
            "direction": trial.direction,
            "verdict": verdict,
            "why": why,
        })
    });
    trials.collect()
}
