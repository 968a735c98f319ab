//! A broker in a temporary folder, and commands that talk to it.

#[path = "../completed/mod.rs"]
mod completed;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;

use hvsock::Endpoint;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub use completed::Completed;
pub use hvsock_testkit::wait::{TIMEOUT, eventually};

pub const DEMO: &str = "HV Socket Demo";

/// The command, without the variables of the test's own environment that change its behaviour.
pub fn hvsock() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hvsock"));
    for name in [
        "HVSOCK_DIR",
        "HVSOCK_ENDPOINT",
        "NO_COLOR",
        "CLICOLOR_FORCE",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A command that is started without some of its standard streams, as `redirections` of the shell say, such
/// as `<&-`.
pub fn redirected(command: &Command, redirections: &str) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("exec \"$@\" {redirections}");
    shell.args(["-c", &script, "sh"]).arg(command.get_program());
    shell.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// A temporary folder that other users can read. Its path is short, because Unix socket paths have at most
/// 107 bytes.
pub fn folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::Builder::new()
        .prefix("hvcli")
        .tempdir_in("/tmp")
        .unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// A broker and its folder.
pub struct World {
    folder: TempDir,
    broker: Option<Running>,
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            folder: folder(),
            broker: None,
        };
        world.start_broker();
        world
    }

    /// As [`World::new`], but the machine has no host, also if it is a virtual one.
    #[allow(dead_code, reason = "one of the suites that share this file uses it")]
    pub fn without_host() -> Self {
        let mut world = Self {
            folder: folder(),
            broker: None,
        };
        world.start_broker_by(["broker", "--uplink", "off"], Stdio::inherit());
        world
    }

    /// As [`World::new`], but the broker writes its log to a file, which [`World::log`] reads.
    pub fn logged() -> Self {
        let mut world = Self {
            folder: folder(),
            broker: None,
        };
        let log = std::fs::File::create(world.dir().join("log")).unwrap();
        world.start_broker_with(log.into());
        world
    }

    /// The broker's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap()
    }

    pub fn start_broker(&mut self) {
        self.start_broker_with(Stdio::inherit());
    }

    fn start_broker_with(&mut self, log: Stdio) {
        self.start_broker_by(["broker", "--name", "machine"], log);
    }

    fn start_broker_by(&mut self, arguments: [&str; 3], log: Stdio) {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(log);
        let mut broker = Running::start(&mut command);
        let ready = broker.line();
        assert!(
            ready.starts_with("hvsock broker ready: endpoint /"),
            "{ready}"
        );
        self.broker = Some(broker);
    }

    pub fn broker(&mut self) -> &mut Running {
        self.broker.as_mut().unwrap()
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The command `hvsock --dir … ARGUMENTS`.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = hvsock();
        command.arg("--dir").arg(self.dir()).args(arguments);
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Completed {
        Completed::of(&mut self.command(arguments))
    }

    /// Runs a command that must succeed. Returns its stdout.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.run(arguments).ok()
    }

    /// Runs a command with `--json` that must succeed. Returns its output.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let text = self.ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Registers a service. Returns its GUID.
    pub fn register(&self, name: &str) -> String {
        self.ok(["service", "register", name]).trim().to_owned()
    }

    /// Adds a container. Returns the path of its endpoint.
    pub fn container(&self, name: &str) -> PathBuf {
        self.ok(["-q", "container", "add", name]);
        self.dir().join("containers").join(name).join("endpoint")
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::in_dir(self.dir())
    }

    /// Starts `hvsock listen ARGUMENTS`, and waits until it listens.
    pub fn listen<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        let mut command = self.command(["--quiet", "listen"]);
        command.args(arguments);
        self.listening(&mut command)
    }

    /// Starts a command, and waits until it listens.
    pub fn listening(&self, command: &mut Command) -> Running {
        let before = self.listeners();
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        eventually("the command listens", || {
            assert!(
                running.child.try_wait().unwrap().is_none(),
                "the command has ended"
            );
            self.listeners() > before
        });
        running
    }

    pub fn listeners(&self) -> u64 {
        self.json(["status", "--json"])["status"]["listeners"]
            .as_u64()
            .unwrap()
    }

    pub fn connections(&self) -> Vec<Value> {
        let Value::Array(connections) = self.json(["connections", "--json"]) else {
            panic!("connections are a list");
        };
        connections
    }
}

/// The command `hvsock ARGUMENTS` with a container's endpoint, as a process in the container has it.
pub fn in_container<S: AsRef<OsStr>>(
    endpoint: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = hvsock();
    command.env("HVSOCK_ENDPOINT", endpoint).args(arguments);
    command
}

impl Completed {
    pub fn of(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::from(command.output().unwrap())
    }

    /// Runs the command with `input` on its stdin.
    pub fn with_input(command: &mut Command, input: &[u8]) -> Self {
        Self::from(output_with_input(command, input))
    }

    /// Runs a command that must succeed with `input` on its stdin. Returns its stdout, which need not be
    /// text.
    pub fn bytes_with_input(command: &mut Command, input: &[u8]) -> Vec<u8> {
        let output = output_with_input(command, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        output.stdout
    }
}

fn output_with_input(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    output
}

/// A running command, which is killed when dropped.
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let child = command.spawn().unwrap();
        Self { child }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Closes its stdin.
    pub fn end_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for the next line of its stdout. Empty at the end of the output.
    pub fn line(&mut self) -> String {
        let stdout = self.child.stdout.as_mut().unwrap();
        let mut line = String::new();
        // Reads one byte at a time, so that the bytes after the line stay in the pipe.
        BufReader::with_capacity(1, stdout)
            .read_line(&mut line)
            .unwrap();
        line.trim_end().to_owned()
    }

    /// Reads the rest of its stdout, to the end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_end(&mut rest).unwrap();
        rest
    }

    /// Reads the rest of its stderr, to the end.
    pub fn rest_of_stderr(&mut self) -> String {
        let mut rest = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut rest).unwrap();
        rest
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the command ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

/// The exit status of a broker that was ended by a system call that a thread's allow list lacks
/// (`hvsock broker --sandbox strict`).
const DENIED: i32 = 159;

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            let is_denied = status.code() == Some(DENIED);
            assert!(!is_denied || thread::panicking(), "see its stderr");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
