//! Real OCI containers, started by runc. Their rootfs contains only the static `hvsock`, and they share only
//! the folder that `hvsock container add` printed as a mount.

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

/// The bound on every wait; longer than any operation takes.
const TIMEOUT: Duration = Duration::from_secs(30);
const NAME: &str = "HV Socket Demo";

/// The programs that these tests need.
struct Tools {
    runc: PathBuf,
    hvsock: PathBuf,
}

impl Tools {
    /// Skips the test (`None`) if one is missing.
    fn find() -> Option<Self> {
        let (runc, hvsock) = (require::runc()?, require::static_hvsock()?);
        Some(Self { runc, hvsock })
    }
}

/// A broker, and commands that talk to it.
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
        process::output(command.args(arguments), b"", TIMEOUT).expect("no timeout")
    }

    /// Runs a command that must succeed. Returns its stdout.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            output_text(&output)
        );
        String::from_utf8(output.stdout).expect("text")
    }

    fn register(&self, name: &str) {
        self.run(&["service", "register", name]);
    }

    /// Adds a container. Returns a bundle with the mount that the command printed.
    fn add(&self, tools: &Tools, name: &str) -> Bundle {
        let mount = self.run(&["-q", "container", "add", name, "--format", "oci"]);
        let mut bundle = Bundle::new(&tools.runc, &tools.hvsock).expect("a bundle");
        bundle.mount(serde_json::from_str(&mount).expect("JSON"));
        bundle
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::in_dir(self.folder.path())
    }

    fn listen(&self, from: &str, name: &str) -> HvListener {
        let options = HvListener::options().endpoint(self.endpoint());
        options.listen((from, name)).expect("listening")
    }

    fn connect(&self, to: &str, name: &str) -> HvStream {
        let options = HvStream::options().endpoint(self.endpoint());
        let stream = options.connect((to, name)).expect("connected");
        stream
            .set_read_timeout(Some(TIMEOUT))
            .expect("a timeout set");
        stream
    }

    /// Kills the broker, and starts another on its folder.
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
    printed.wait_for("ready", TIMEOUT).expect("a ready broker");
    broker
}

fn output_text(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|s| String::from_utf8_lossy(s));
    format!("{stdout}{stderr}")
}

/// Starts the program in a container and waits until it listens.
fn listening(bundle: &Bundle, arguments: &[&str]) -> Container {
    let mut container = bundle.start(arguments).expect("started");
    let stderr = CapturedOutput::from(container.running.take_stderr().expect("a pipe"));
    stderr
        .wait_for("listening for", TIMEOUT)
        .expect("listening");
    container
}

/// Starts a container that runs until it is killed, for [`Container::exec`]. It runs a broker, because that
/// is the only command of its one program that needs nothing else.
fn idle_container(bundle: &Bundle) -> Container {
    let mut container = bundle
        .start(&["--dir", "/tmp/own", "broker"])
        .expect("started");
    let printed = CapturedOutput::from(container.running.take_stdout().expect("a pipe"));
    printed.wait_for("ready", TIMEOUT).expect("a ready broker");
    container
}

/// Accepts one connection, checks its peer, reads to the end, and sends the answer. Returns what it has read.
fn answer(listener: &HvListener, partition: &str, answer: &[u8]) -> Vec<u8> {
    let (mut stream, _) = listener.accept_timeout(TIMEOUT).expect("a connection");
    assert_eq!(stream.peer().expect("a peer").partition(), partition);
    stream
        .set_read_timeout(Some(TIMEOUT))
        .expect("a timeout set");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("a clean end");
    stream.write_all(answer).expect("answered");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    received
}

/// Sends `input` and a half-close. Returns all that it receives.
fn exchange(mut stream: HvStream, input: &[u8]) -> Vec<u8> {
    stream.write_all(input).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("a clean end");
    received
}

/// More than all buffers on the path hold.
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
        let received = scope.spawn(|| answer(&listener, "web", &back));
        let output = web.run(&["connect", "parent", NAME], &sent);
        let output = output.expect("the container ends");
        assert!(received.join().expect("answered") == sent, "data differs");
        output
    });
    assert!(output.status.success(), "{}", output_text(&output));
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
        let received = exchange(host.connect(target, NAME), b"from the host");
        assert_eq!(received, b"from the container", "{target}");
        assert!(container.wait(TIMEOUT).expect("no timeout").success());
        let printed = stdout.finish(Instant::now() + TIMEOUT);
        assert_eq!(printed, b"from the host", "{target}");
    }
}

#[test]
fn a_listener_in_a_container_runs_a_command_for_each_connection() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    host.register(NAME);
    host.register("Source");
    let web = host.add(&tools, "web");
    // The command connects to another service of the host, so each byte enters and leaves the container.
    let command = ["--", "/program", "connect", "parent", "Source"];
    let arguments = [&["listen", NAME, "--keep"], &command[..]].concat();
    let _container = listening(&web, &arguments);
    let source = host.listen("web", "Source");
    for turn in 0..3 {
        let back = format!("answer {turn}");
        std::thread::scope(|scope| {
            let received = scope.spawn(|| answer(&source, "web", back.as_bytes()));
            let answered = exchange(host.connect("web", NAME), &much());
            assert_eq!(answered, back.as_bytes());
            assert!(received.join().expect("answered") == much());
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

    let guest = idle_container(&web);
    let id = host.run(&["container", "id", "db"]);
    let refused = || {
        for target in ["db", id.trim()] {
            let output = guest
                .exec(&["connect", target, NAME], b"")
                .expect("no timeout");
            assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
            let output = guest.exec(&["why", target, NAME, "--json"], b"");
            let output = output.expect("no timeout");
            assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
            let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(verdict["refusal"]["reason"], "not_reachable", "{verdict}");
        }
    };
    refused();
    host.run(&["container", "groups", "web", "backend"]);
    refused();
    host.run(&["container", "groups", "db", "backend"]);
    let output = guest.exec(&["connect", "db", NAME], b"select");
    let output = output.expect("no timeout");
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!(output.stdout, b"rows");
    assert!(container.wait(TIMEOUT).expect("no timeout").success());
}

#[test]
fn why_works_in_a_container() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    let web = host.add(&tools, "web");
    let guest = idle_container(&web);
    let why = |arguments: &[&str], status: i32, words: &str| {
        let arguments = [&["why"], arguments].concat();
        let output = guest.exec(&arguments, b"").expect("no timeout");
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(text.contains(words), "{text}");
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
    // The container has no access to the control API.
    let output = guest.exec(&["status"], b"").expect("no timeout");
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
}

#[test]
fn a_running_container_connects_again_after_a_restart_of_the_broker() {
    let Some(tools) = Tools::find() else { return };
    let mut host = Host::new();
    host.register(NAME);
    let web = host.add(&tools, "web");
    let guest = idle_container(&web);
    for turn in 0..3 {
        let listener = host.listen("children", NAME);
        let output = std::thread::scope(|scope| {
            let received = scope.spawn(|| answer(&listener, "web", b"welcome"));
            let output = guest.exec(&["connect", "parent", NAME], b"hello");
            assert_eq!(received.join().expect("answered"), b"hello");
            output.expect("no timeout")
        });
        assert!(
            output.status.success(),
            "turn {turn}: {}",
            output_text(&output)
        );
        assert_eq!(output.stdout, b"welcome");
        host.restart();
    }
}

#[test]
fn a_killed_container_is_an_error_and_no_end_of_data() {
    let Some(tools) = Tools::find() else { return };
    let host = Host::new();
    host.register(NAME);
    let web = host.add(&tools, "web");
    let listener = host.listen("web", NAME);
    let mut container = web.start(&["connect", "parent", NAME]).expect("started");
    let mut stdin = container.running.take_stdin().expect("a pipe");
    stdin.write_all(b"half of ").expect("written");
    let (mut stream, _) = listener.accept_timeout(TIMEOUT).expect("a connection");
    stream
        .set_read_timeout(Some(TIMEOUT))
        .expect("a timeout set");
    let mut received = [0; 8];
    stream.read_exact(&mut received).expect("the first half");
    container.kill().expect("killed");
    let error = stream.read(&mut received).expect_err("no clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}
