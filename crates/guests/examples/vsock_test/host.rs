//! The suite with one half on this machine, where `hvsock run` gives it `AF_VSOCK`, and the other in a guest.
//!
//! Only the tests of `SOCK_STREAM`: hvsock has no `SOCK_SEQPACKET` between programs, and the kernel's half would skip
//! none of them. Each test runs alone, so that one that fails takes no other with it. Its control connection is TCP
//! over the guest's user network, through a relay that delays it as [`control`](crate::control) explains.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hvsock_guests::{Guest, Spawned};

use crate::backend::CIDS;
use crate::expected::{Expected, Reason};
use crate::suite::Trial;

/// The half on this machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Here {
    Server,
    Client,
}

const LOW_WATERMARK: Reason = Reason::Socket("poll of a Unix socket ignores SO_RCVLOWAT");
const SHUT_RD: Reason =
    Reason::Socket("a Unix socket does not tell the broker that its program reads no more");
const ZEROCOPY: Reason = Reason::Socket("a Unix socket has no MSG_ZEROCOPY");

/// The tests that cannot pass with a socket of the Unix family in place of the kernel's, if the half that checks it is
/// here. They pass with the other half here.
const IMPOSSIBLE: [(&str, Here, Expected); 5] = [
    (
        "SOCK_STREAM poll() + SO_RCVLOWAT",
        Here::Client,
        Expected::Failure(LOW_WATERMARK),
    ),
    // It receives without waiting after such a poll, so it fails when the data comes in parts.
    (
        "SOCK_STREAM virtio credit update + SO_RCVLOWAT",
        Here::Server,
        Expected::Either(LOW_WATERMARK),
    ),
    (
        "SOCK_STREAM SHUT_RD",
        Here::Server,
        Expected::Failure(SHUT_RD),
    ),
    (
        "SOCK_STREAM MSG_ZEROCOPY",
        Here::Client,
        Expected::Failure(ZEROCOPY),
    ),
    (
        "SOCK_STREAM MSG_ZEROCOPY empty MSG_ERRQUEUE",
        Here::Client,
        Expected::Failure(ZEROCOPY),
    ),
];

/// What is known of a test with this half here.
fn expected(name: &str, here: Here) -> Expected {
    let listed = IMPOSSIBLE
        .iter()
        .find(|(test, half, _)| *test == name && *half == here);
    listed.map_or(Expected::Pass, |(_, _, expected)| *expected)
}

/// The host's address in the guest's user network.
const HOST: &str = "10.0.2.2";
/// The TCP port of the guest's half when that serves.
pub const GUEST_PORT: u16 = 4000;
/// The host's context id for the guest.
const HOST_CID: u32 = 2;
/// A test takes a second; the suite's own timeouts are 10 s.
const LIMIT: Duration = Duration::from_secs(40);
const DELAY: Duration = Duration::from_millis(20);

/// The half on this machine, and the guest with the other.
pub struct Halves<'a> {
    pub guest: &'a Guest,
    pub suite: &'a Path,
    /// The command `hvsock`.
    pub hvsock: &'a Path,
    /// The broker's folder.
    pub folder: PathBuf,
}

/// Runs all tests of `SOCK_STREAM`, in both directions, also those that cannot pass.
pub fn run(halves: &Halves<'_>, names: &[String], skip: &[usize]) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    for here in [Here::Server, Here::Client] {
        let direction = match here {
            Here::Server => "the client in the guest, the server under hvsock run",
            Here::Client => "the client under hvsock run, the server in the guest",
        };
        eprintln!("\n== {direction}");
        for (id, name) in names.iter().enumerate() {
            if !name.starts_with("SOCK_STREAM") || skip.contains(&id) {
                continue;
            }
            let failure = halves.one(names.len(), id, here)?;
            let verdict = expected(name, here).verdict(failure);
            eprintln!("{} {id:>3} - {name}", verdict.word());
            trials.push(Trial {
                id,
                name: name.clone(),
                direction: direction.to_owned(),
                verdict,
            });
        }
    }
    Ok(trials)
}

impl Halves<'_> {
    /// Runs one test. Returns why it failed.
    fn one(&self, count: usize, id: usize, here: Here) -> Result<Option<String>> {
        let skip: Vec<String> = (0..count)
            .filter(|other| *other != id)
            .map(|other| format!("--skip={other}"))
            .collect();
        let in_guest = |words: &str| {
            let skip = skip.join(" ");
            let started = self.guest.spawn(&format!("exec vsock_test {words} {skip}"));
            started.context("cannot start the guest's half")
        };
        let (mut host, guest) = if here == Here::Server {
            let port = free_port()?;
            let host = self.start(
                &skip,
                &[
                    "--mode=server",
                    &format!("--control-port={port}"),
                    &format!("--peer-cid={}", CIDS[0]),
                ],
            )?;
            wait_until_listening(port)?;
            let relay = relay(port)?;
            let guest = in_guest(&format!(
                "--mode=client --control-host={HOST} --control-port={relay} --peer-cid={HOST_CID}"
            ))?;
            (host, guest)
        } else {
            let guest = in_guest(&format!(
                "--mode=server --control-port={GUEST_PORT} --peer-cid={HOST_CID}"
            ))?;
            guest.wait_for("istening", LIMIT)?;
            let port = self.guest.forwarded(GUEST_PORT).context("no network")?;
            let relay = relay(port)?;
            let host = self.start(
                &skip,
                &[
                    "--mode=client",
                    "--control-host=127.0.0.1",
                    &format!("--control-port={relay}"),
                    &format!("--peer-cid={}", CIDS[0]),
                ],
            )?;
            (host, guest)
        };
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match host.try_wait()? {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => thread::sleep(Duration::from_millis(20)),
            }
        };
        if status.is_none() {
            host.kill()?;
        }
        let output = host.wait_with_output()?;
        let rest = deadline.saturating_duration_since(Instant::now());
        let other = ended(&guest, rest.max(Duration::from_secs(5)))?;
        if status.is_some_and(|status| status.success()) && other == Some(0) {
            return Ok(None);
        }
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let lines = text.lines().filter(|line| !line.ends_with("skipped"));
            lines.collect::<Vec<_>>().join("\n")
        };
        Ok(Some(format!(
            "--- here: {status:?}\n{}\n{}\n--- in the guest: {other:?}\n{}\n{}",
            text(&output.stdout),
            text(&output.stderr),
            text(&guest.stdout()?),
            text(&guest.stderr()?)
        )))
    }

    fn start(&self, skip: &[String], words: &[&str]) -> Result<Child> {
        let mut command = Command::new(self.hvsock);
        command.arg("--dir").arg(&self.folder);
        command.args(["run", "--seccomp", "--"]).arg(self.suite);
        command.args(words).args(skip);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.stderr(Stdio::piped()).spawn();
        child.with_context(|| format!("cannot start {}", self.hvsock.display()))
    }
}

/// The exit status of the guest's half, which is killed after `limit`.
fn ended(guest: &Spawned<'_>, limit: Duration) -> Result<Option<i32>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = guest.status()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            guest.kill()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A TCP port that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Waits until a process of this machine listens at this TCP port, without a connection to it.
fn wait_until_listening(port: u16) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let wanted = format!(":{port:04X} ");
    let listens = |line: &str| line.contains(&wanted) && line.contains(" 0A ");
    loop {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
        if tables
            .into_iter()
            .flatten()
            .any(|table| table.lines().any(listens))
        {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the host's half does not listen");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Relays one connection to this port of the loopback, with the delay. Returns the port to connect to.
fn relay(to: u16) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || -> io::Result<()> {
        let (near, _) = listener.accept()?;
        let far = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
        }
        let back = (far.try_clone()?, near.try_clone()?);
        thread::spawn(move || copy(back.0, back.1));
        copy(near, far)
    });
    Ok(port)
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while let count @ 1.. = from.read(&mut buffer)? {
        thread::sleep(DELAY);
        to.write_all(&buffer[..count])?;
    }
    to.shutdown(std::net::Shutdown::Write)
}

/// Fails if the program is not there.
pub fn check(hvsock: &Path) -> Result<()> {
    if !hvsock.is_file() {
        bail!("{} is not the command hvsock", hvsock.display());
    }
    Ok(())
}
