//! Real OCI containers, started by runc, whose rootfs holds the static `hvsock` and nothing else:
//! all that they have of the machine is the folder that `hvsock container add` said to mount.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hvsock::{Endpoint, HvListener, HvStream};
use hvsock_testkit::container::{Bundle, Container};
use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::{TempFolder, require};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
const NAME: &str = "HV Socket Demo";

/// What containers need beside Rust, where it is there.
struct Tools {
    runc: PathBuf,
    hvsock: PathBuf,
}

impl Tools {
    fn find() -> Option<Self> {
        let (runc, hvsock) = (require::runc()?, require::static_hvsock()?);
        Some(Self { runc, hvsock })
    }
}

/// A broker, and the command that talks to it.
struct Host {
    broker: Running,
    folder: TempFolder,
}

impl Host {
    fn new() -> Self {
        let folder = TempFolder::new();
        let broker = start_broker(&folder);
        Self { broker, folder }
    }

    fn try_run(&self, arguments: &[&str]) -> Output {
        let mut command = hvsock(&self.folder);
        process::output(command.args(arguments), b"", LONG).expect("it ends")
    }

    /// What a command prints that succeeds.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    fn register(&self, name: &str) {
        self.run(&["service", "register", name]);
    }

    /// Adds a container with the command, and gives a bundle with the mount that it printed.
    fn add(&self, tools: &Tools, name: &str) -> Bundle {
        let printed = self.run(&["-q", "container", "add", name]);
        let mount = printed.lines().nth(1).expect("the OCI mounts entry");
        let mut bundle = Bundle::new(&tools.runc, &tools.hvsock).expect("a bundle");
        bundle.mount(serde_json::from_str(mount).expect("JSON"));
        bundle
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::in_dir(self.folder.path())
    }

    fn listen(&self, from: &str, name: &str) -> HvListener {
        let options = HvListener::options().endpoint(self.endpoint());
        options.listen((from, name)).expect("it listens")
    }

    fn connect(&self, to: &str, name: &str) -> HvStream {
        let options = HvStream::options().endpoint(self.endpoint());
        let stream = options.connect((to, name)).expect("connected");
        stream.set_read_timeout(Some(LONG)).expect("a time limit");
        stream
    }

    /// Ends the broker without a word to anybody, and starts another on its folder.
    fn restart(&mut self) {
        self.broker.kill().expect("killed");
        self.broker = start_broker(&self.folder);
    }
}

fn hvsock(folder: &TempFolder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hvsock"));
    command.arg("--dir").arg(folder.path());
    command.env_remove("HVSOCK_ENDPOINT").env_remove("RUST_LOG");
    command
}

fn start_broker(folder: &TempFolder) -> Running {
    let mut command = hvsock(folder);
    command.args(["broker", "--name", "root"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut broker = Running::start(&mut command).expect("a broker");
    let printed = CapturedOutput::from(broker.take_stdout().expect("a pipe"));
    printed.wait_for("ready", LONG).expect("a ready broker");
    broker
}

fn said(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|s| String::from_utf8_lossy(s));
    format!("{stdout}{stderr}")
}

/// Starts the program in a container and waits until it listens.
fn listening(bundle: &Bundle, arguments: &[&str]) -> Container {
    let mut container = bundle.start(arguments).expect("started");
    let notes = CapturedOutput::from(container.running.take_stderr().expect("a pipe"));
    notes.wait_for("listening for", LONG).expect("it listens");
    container
}

/// A container that stays, for [`Container::exec`]: of all that the one program does, only a broker
/// asks nothing of anybody.
fn standing(bundle: &Bundle) -> Container {
    let mut container = bundle
        .start(&["--dir", "/tmp/own", "broker"])
        .expect("started");
    let printed = CapturedOutput::from(container.running.take_stdout().expect("a pipe"));
    printed.wait_for("ready", LONG).expect("it stays");
    container
}

/// Takes one connection, checks who it is, reads it to its end, and answers.
fn answer(listener: &HvListener, partition: &str, answer: &[u8]) -> Vec<u8> {
    let (mut stream, _) = listener.accept_timeout(LONG).expect("a connection");
    assert_eq!(stream.peer().expect("somebody").partition(), partition);
    stream.set_read_timeout(Some(LONG)).expect("a time limit");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("a clean end");
    stream.write_all(answer).expect("answered");
    stream.shutdown(Shutdown::Write).expect("ended");
    heard
}

/// Sends all of `input` and gives all that comes back.
fn exchange(mut stream: HvStream, input: &[u8]) -> Vec<u8> {
    stream.write_all(input).expect("sent");
    stream.shutdown(Shutdown::Write).expect("ended");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("a clean end");
    heard
}

/// More than any buffer on the way holds.
fn much() -> Vec<u8> {
    (0..500_000_u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn a_container_reaches_a_service_of_its_host() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    host.register(NAME);
    let web = host.add(&tools, "web");
    let listener = host.listen("children", NAME);
    let (sent, back) = (much(), b"from the host".repeat(100_000));
    let output = std::thread::scope(|scope| {
        let heard = scope.spawn(|| answer(&listener, "web", &back));
        let output = web.run(&["connect", "parent", NAME], &sent);
        let output = output.expect("the container ends");
        assert!(heard.join().expect("answered") == sent, "all of it came");
        output
    });
    assert!(output.status.success(), "{}", said(&output));
    assert!(output.stdout == back, "{} bytes", output.stdout.len());
}

#[test]
fn the_host_reaches_a_listener_in_a_container_by_name_and_by_id() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    host.register(NAME);
    let web = host.add(&tools, "web");
    let id = host.run(&["container", "id", "web"]);
    for target in ["web", "WEB", id.trim()] {
        let mut container = listening(&web, &["listen", NAME, "--from", "parent"]);
        let mut stdin = container.running.take_stdin().expect("a pipe");
        let stdout = CapturedOutput::from(container.running.take_stdout().expect("a pipe"));
        stdin.write_all(b"from the container").expect("written");
        drop(stdin);
        let heard = exchange(host.connect(target, NAME), b"from the host");
        assert_eq!(heard, b"from the container", "{target}");
        assert!(container.wait(LONG).expect("it ends").success());
        let printed = stdout.finish(Instant::now() + LONG);
        assert_eq!(printed, b"from the host", "{target}");
    }
}

#[test]
fn a_container_serves_many_with_a_command_for_each() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    host.register(NAME);
    host.register("Source");
    let web = host.add(&tools, "web");
    // The one command that there is connects on: each byte enters the container and leaves it.
    let command = ["--", "/program", "connect", "parent", "Source"];
    let arguments = [&["listen", NAME, "--keep"], &command[..]].concat();
    let _container = listening(&web, &arguments);
    let source = host.listen("web", "Source");
    for turn in 0..3 {
        let back = format!("answer {turn}");
        std::thread::scope(|scope| {
            let heard = scope.spawn(|| answer(&source, "web", back.as_bytes()));
            let heard_back = exchange(host.connect("web", NAME), &much());
            assert_eq!(heard_back, back.as_bytes());
            assert!(heard.join().expect("answered") == much());
        });
    }
}

#[test]
fn a_sibling_is_refused_unless_both_are_in_one_group() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    host.register(NAME);
    let (web, db) = (host.add(&tools, "web"), host.add(&tools, "db"));
    let mut container = listening(&db, &["listen", NAME]);
    let mut stdin = container.running.take_stdin().expect("a pipe");
    stdin.write_all(b"rows").expect("written");
    drop(stdin);

    let guest = standing(&web);
    let id = host.run(&["container", "id", "db"]);
    let refused = || {
        for target in ["db", id.trim()] {
            let output = guest.exec(&["connect", target, NAME], b"").expect("ends");
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            let output = guest.exec(&["why", target, NAME, "--json"], b"");
            let output = output.expect("ends");
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(told["refusal"]["reason"], "not_reachable", "{told}");
        }
    };
    refused();
    host.run(&["container", "groups", "web", "backend"]);
    refused();
    host.run(&["container", "groups", "db", "backend"]);
    let output = guest.exec(&["connect", "db", NAME], b"select");
    let output = output.expect("it ends");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(output.stdout, b"rows");
    assert!(container.wait(LONG).expect("it ends").success());
}

#[test]
fn a_container_is_told_why() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    let web = host.add(&tools, "web");
    let guest = standing(&web);
    let why = |arguments: &[&str], status: i32, words: &str| {
        let arguments = [&["why"], arguments].concat();
        let output = guest.exec(&arguments, b"").expect("it ends");
        let said = said(&output);
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(words), "{said}");
    };
    why(&["parent", NAME], 1, "hvsock service register");
    host.register(NAME);
    why(&["parent", NAME], 1, "hvsock listen");
    why(&["parent", NAME, "--listen"], 0, "would succeed");
    let listener = host.listen("web", NAME);
    why(&["parent", NAME], 0, "would succeed");
    host.run(&["service", "disable", NAME, "--vm", "web"]);
    why(&["parent", NAME], 1, "hvsock service enable");
    drop(listener);
    // It may ask, but what it is in, it cannot change or even list.
    let output = guest.exec(&["status"], b"").expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn a_running_container_connects_again_after_a_restart_of_the_broker() {
    let Some(tools) = Tools::find() else { return };
    let mut host = Host::new();
    host.register(NAME);
    let web = host.add(&tools, "web");
    let guest = standing(&web);
    for turn in 0..3 {
        let listener = host.listen("children", NAME);
        let output = std::thread::scope(|scope| {
            let heard = scope.spawn(|| answer(&listener, "web", b"welcome"));
            let output = guest.exec(&["connect", "parent", NAME], b"hello");
            assert_eq!(heard.join().expect("answered"), b"hello");
            output.expect("it ends")
        });
        assert!(output.status.success(), "turn {turn}: {}", said(&output));
        assert_eq!(output.stdout, b"welcome");
        host.restart();
    }
}

#[test]
fn a_killed_container_leaves_an_error_and_no_end_of_data() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    host.register(NAME);
    let web = host.add(&tools, "web");
    let listener = host.listen("web", NAME);
    let mut container = web.start(&["connect", "parent", NAME]).expect("started");
    let mut stdin = container.running.take_stdin().expect("a pipe");
    stdin.write_all(b"half of ").expect("written");
    let (mut stream, _) = listener.accept_timeout(LONG).expect("a connection");
    stream.set_read_timeout(Some(LONG)).expect("a time limit");
    let mut heard = [0; 8];
    stream.read_exact(&mut heard).expect("the first half");
    container.kill().expect("killed");
    let error = stream.read(&mut heard).expect_err("no clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}
