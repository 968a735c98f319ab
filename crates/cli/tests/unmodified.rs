//! Programs in containers that do not know hvsock: the runtime gives the listeners of their seccomp filters to
//! the broker's agent.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hvsock_testkit::container::{Bundle, Container};
use hvsock_testkit::podman::Podman;
use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::{TempFolder, go, require};
use serde_json::{Value, json};

/// The bound on every wait; longer than any operation takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A broker, and commands that talk to it.
struct Host {
    broker: Running,
    log: CapturedOutput,
    folder: TempFolder,
}

impl Host {
    fn new() -> Self {
        let folder = TempFolder::new();
        let (broker, log) = start_broker(&folder);
        let host = Self {
            broker,
            log,
            folder,
        };
        host.run(&["service", "register", "on the host", "--port", "5000"]);
        host.run(&["service", "register", "in a container", "--port", "5001"]);
        host
    }

    fn command(&self) -> Command {
        hvsock(&self.folder)
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.run_with(arguments, b"")
    }

    /// Runs a command that must succeed. Returns its stdout.
    fn run_with(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = process::output(self.command().args(arguments), input, TIMEOUT);
        let output = output.expect("no timeout");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).expect("JSON")
    }

    /// Adds a container, and returns a bundle with the programs of this machine and the profile that merges
    /// `base`.
    fn add(&self, runc: &Path, name: &str, base: &Value) -> Bundle {
        let file = self.folder.join(format!("{name}-base.json"));
        std::fs::write(&file, base.to_string()).expect("written");
        let added = self.json(&["container", "add", name, "--group", "all", "--json"]);
        let file = file.display().to_string();
        let show = ["container", "show", name, "--seccomp-profile"];
        let profile =
            self.json(&[&show[..], &["--format", "oci", "--seccomp-base", &file]].concat());
        let mut bundle = Bundle::of_host(runc).expect("a bundle");
        bundle.mount(added["oci"].clone()).seccomp(profile);
        bundle.mount(json!({
            "destination": "/dev/vsock", "type": "bind", "source": "/dev/null",
            "options": ["bind", "nosuid", "noexec"],
        }));
        bundle
    }

    /// Listens on the host and sends back what comes.
    fn echo(&self) -> Running {
        let mut listen = self.command();
        listen.args(["listen", "on the host", "--keep", "--", "cat"]);
        listen.stderr(Stdio::piped());
        let mut listen = Running::start(&mut listen).expect("a listener");
        let told = CapturedOutput::from(listen.take_stderr().expect("a pipe"));
        told.wait_for("listening for", TIMEOUT).expect("listening");
        listen
    }
}

fn hvsock(folder: &TempFolder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hvsock"));
    command.arg("--dir").arg(folder.path());
    command.env_remove("HVSOCK_ENDPOINT").env_remove("RUST_LOG");
    command
}

fn start_broker(folder: &TempFolder) -> (Running, CapturedOutput) {
    let mut command = hvsock(folder);
    command.args(["broker", "--name", "root"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut broker = Running::start(&mut command).expect("a broker");
    let printed = CapturedOutput::from(broker.take_stdout().expect("a pipe"));
    let log = CapturedOutput::from(broker.take_stderr().expect("a pipe"));
    printed.wait_for("ready", TIMEOUT).expect("a ready broker");
    (broker, log)
}

/// What the tests need: a runtime, Python, and root.
fn requirements() -> Option<(PathBuf, PathBuf)> {
    let (runc, python) = (require::runc()?, require::python3()?);
    require::root()?;
    Some((runc, python))
}

/// A profile that denies nothing.
fn open() -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW"})
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Listens on port 5001 and sends back what comes, in capitals. Until then it prints where it listens.
const SERVER: &str = r#"
import socket, fcntl, struct
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, 5001))
listener.listen()
with open("/dev/vsock") as device:
    own, = struct.unpack("I", fcntl.ioctl(device, 0x7b9, bytes(4)))
print("listening", own, flush=True)
while True:
    connection, address = listener.accept()
    while data := connection.recv(4096):
        connection.sendall(data.upper())
    connection.close()
"#;

/// Connects to the address in its arguments, says hello, and prints what comes back.
const CLIENT: &str = r#"
import socket, sys
client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
client.settimeout(20)
client.connect((int(sys.argv[1]), int(sys.argv[2])))
client.sendall(b"hello")
client.shutdown(socket.SHUT_WR)
print(client.recv(100).decode(), client.getpeername())
"#;

/// Starts the server. Returns its context id, too.
fn serve(bundle: &Bundle) -> (Container, String) {
    let mut container = bundle.start(&["python3", "-c", SERVER]).expect("started");
    let printed = CapturedOutput::from(container.running.take_stdout().expect("a pipe"));
    if let Err(error) = printed.wait_for("\n", TIMEOUT) {
        drop(container.running.take_stdin());
        let _ = container.kill();
        let mut text = String::new();
        if let Some(mut errors) = container.running.take_stderr() {
            let _ = std::io::Read::read_to_string(&mut errors, &mut text);
        }
        panic!("no server: {error}: {text}");
    }
    let line = printed.text();
    let cid = line.split_whitespace().last().expect("a context id");
    (container, cid.to_owned())
}

#[test]
fn unmodified_programs_in_containers_reach_the_host_and_each_other_and_are_reached() {
    let Some((runc, _)) = requirements() else {
        return;
    };
    let host = Host::new();
    let _listen = host.echo();
    let (web, db) = (
        host.add(&runc, "web", &open()),
        host.add(&runc, "db", &open()),
    );
    let (server, cid) = serve(&web);
    assert_eq!(
        host.json(&["container", "show", "web", "--json"])["cid"].to_string(),
        cid
    );
    // From the host, from another container, and from another process that the runtime has started there.
    assert_eq!(
        host.run_with(&["connect", "web", "5001"], b"from the host"),
        "FROM THE HOST"
    );
    let run = |arguments: &[&str]| {
        let python = ["python3", "-c", CLIENT];
        text(
            &db.run(&[&python, arguments].concat(), b"")
                .expect("no timeout"),
        )
    };
    assert_eq!(run(&[&cid, "5001"]), format!("HELLO ({cid}, 5001)\n"));
    assert_eq!(run(&["2", "5000"]), "hello (2, 5000)\n");
    let inside = server.exec(&["python3", "-c", CLIENT, "2", "5000"], b"");
    assert_eq!(text(&inside.expect("no timeout")), "hello (2, 5000)\n");
    let own = server.exec(&["python3", "-c", CLIENT, "1", "5001"], b"");
    assert_eq!(text(&own.expect("no timeout")), "HELLO (1, 5001)\n");
    if require::program("socat", &["-V"]).is_some() {
        let socat = ["socat", "-t", "20", "-", "VSOCK-CONNECT:2:5000"];
        assert_eq!(
            text(&db.run(&socat, b"socat").expect("no timeout")),
            "socat"
        );
    }
    server.kill().expect("killed");
}

#[test]
fn a_container_keeps_its_other_sockets_while_the_broker_is_restarted_and_then_all() {
    let Some((runc, _)) = requirements() else {
        return;
    };
    let mut host = Host::new();
    let mut bundle = host.add(&runc, "web", &open());
    // The broker judges by the user that the host knows.
    bundle.map_root(100_000).expect("mapped");
    // Each line is a command, so that the broker can be killed in between.
    let program = "import sys\nfor line in sys.stdin: exec(line)";
    let mut container = bundle.start(&["python3", "-c", program]).expect("started");
    let mut input = container.running.take_stdin().expect("a pipe");
    let printed = CapturedOutput::from(container.running.take_stdout().expect("a pipe"));
    let mut run = |lines: &str, output: &str| {
        std::io::Write::write_all(&mut input, lines.as_bytes()).expect("it runs");
        printed.wait_for(output, TIMEOUT).unwrap_or_else(|error| {
            panic!("{output}: {error}: {}", printed.text());
        });
    };
    let bind = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); \
                c = socket.create_connection(s.getsockname()); print(";
    run(&format!("{bind}'first', flush=True)\n"), "first");
    host.broker.kill().expect("killed");
    run(&format!("{bind}'second', flush=True)\n"), "second");
    (host.broker, host.log) = start_broker(&host.folder);
    let _listen = host.echo();
    let connect = "v = socket.socket(socket.AF_VSOCK); v.connect((2, 5000)); v.sendall(b'third'); \
                   print(v.recv(9), flush=True)\n";
    run(connect, "third");
    drop(input);
    container.wait(TIMEOUT).expect("it ends");
}

#[test]
fn what_the_profile_of_a_container_denies_stays_denied() {
    let Some((runc, _)) = requirements() else {
        return;
    };
    let host = Host::new();
    let rule = |names: &[&str], errno: i32, args: Value| json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args});
    let eq = |value: i32| json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let base = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        // As docker's default profile, and another family, a call on sockets, and one that is none.
        rule(&["socket"], 1, eq(40)),
        rule(&["socket"], 2, eq(16)),
        rule(&["listen"], 3, json!([])),
        rule(&["sethostname"], 4, json!([])),
    ]});
    let bundle = host.add(&runc, "web", &base);
    let program = r#"
import socket
def attempt(call):
    try:
        return call() and 0
    except OSError as error:
        return error.errno
vsock = lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
print(attempt(vsock), attempt(lambda: socket.socket(16, 3)), attempt(lambda: socket.socket(34, 1, 1)),
      attempt(lambda: socket.socket().listen()), attempt(lambda: vsock().listen()),
      attempt(lambda: socket.sethostname("x")), attempt(lambda: socket.socket(2, 1)))
"#;
    let output = bundle
        .run(&["python3", "-c", program], b"")
        .expect("no timeout");
    assert_eq!(text(&output), "0 2 0 3 3 4 0\n");
}

#[test]
fn a_profile_for_a_container_that_does_not_exist_is_reported_and_its_calls_fail() {
    let Some((runc, _)) = requirements() else {
        return;
    };
    let host = Host::new();
    let bundle = host.add(&runc, "web", &open());
    host.run(&["container", "remove", "web"]);
    let program =
        "import socket\ntry: socket.socket(socket.AF_VSOCK)\nexcept OSError as e: print(e.errno)";
    // Its mount exists, so that it starts.
    std::fs::create_dir_all(host.folder.join("containers/web")).expect("made");
    let output = bundle
        .run(&["python3", "-c", program], b"")
        .expect("no timeout");
    assert_eq!(text(&output), "38\n");
    let log = host.log.wait_for("fail with ENOSYS", TIMEOUT);
    log.expect("a line of the log");
}

/// Connects many times while a signal comes every millisecond, whose handler restarts calls. Prints how it ended.
const INTERRUPTED: &str = r#"
import collections, signal, socket
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
results = collections.Counter()
for number in range(100):
    try:
        with socket.socket(socket.AF_VSOCK) as client:
            client.settimeout(20 if number % 2 else None)
            client.connect((2, 5000))
            client.sendall(b"x")
            results[client.recv(1)] += 1
    except OSError as error:
        results[repr(error)] += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(dict(results))
"#;

#[test]
fn signals_that_restart_calls_disturb_no_connect_of_a_container() {
    let Some((runc, _)) = requirements() else {
        return;
    };
    let host = Host::new();
    let _listen = host.echo();
    let bundle = host.add(&runc, "web", &open());
    let output = bundle.run(&["python3", "-c", INTERRUPTED], b"");
    assert_eq!(text(&output.expect("no timeout")), "{b'x': 100}\n");
}

/// Starts a container of podman by the profile and the options that `container add --unmodified` prints, with this one in
/// place of the mount if given. Its program is static.
fn podman_takes_what_is_printed(runtime: &Path, device: Option<&str>) {
    let Some(podman) = require::podman() else {
        return;
    };
    let Some(()) = require::root() else { return };
    let host = Host::new();
    let Some(program) = go::vsock_program(host.folder.path()) else {
        return;
    };
    let _listen = host.echo();
    let mut add = host.command();
    add.args(["container", "add", "web", "--unmodified"]);
    let added = process::output(&mut add, b"", TIMEOUT).expect("no timeout");
    let profile = host.folder.join("web.json");
    std::fs::write(&profile, text(&added)).expect("written");
    let printed = String::from_utf8_lossy(&added.stderr);
    let options = printed.lines().find(|line| line.contains("=FILE"));
    let options = options.expect("a line of options");
    let options = options.replace("=FILE", &format!("={}", profile.display()));
    let mut options: Vec<_> = options.split(' ').collect();
    assert_eq!(options.len(), 3, "{options:?}");
    // That of a broker whose devices are where podman looks for them.
    options[0] = device.unwrap_or(options[0]);

    let devices = host.folder.join("cdi");
    let podman = Podman::new(&podman, runtime, &program, &devices).expect("podman");
    let listeners = || host.json(&["status", "--json"])["status"]["listeners"].as_u64();
    let before = listeners();
    let started = podman.start("one", &options, &["listen", "5001"]);
    let id = text(&started.expect("no timeout")).trim().to_owned();
    let id = device.map(|_| id);
    eventually("the program listens", || listeners() > before);
    let echoed = host.run_with(&["connect", "web", "5001"], b"from the host");
    assert_eq!(echoed, "from the host");
    let shown = host.json(&["container", "show", "web", "--json"]);
    assert_eq!(shown["container"]["oci_id"], json!(id));
    // What podman starts in it later asks the agent, too.
    let inside = |words: &[&str]| {
        let exec = podman.run([&["exec", "one", "/program"], words].concat());
        text(&exec.expect("no timeout"))
    };
    assert_eq!(inside(&["cid"]).trim(), shown["cid"].to_string());
    inside(&["dials", "2", "5000", "20"]);
}

#[test]
fn unmodified_programs_run_in_a_container_of_podman_and_crun_by_the_options_that_are_printed() {
    let Some(crun) = require::crun() else { return };
    podman_takes_what_is_printed(&crun, Some("--device=hvsock.dev/endpoint=web"));
}

#[test]
fn unmodified_programs_run_in_a_container_of_podman_and_runc_by_the_options_that_are_printed() {
    let Some(runc) = require::runc() else { return };
    podman_takes_what_is_printed(&runc, None);
}
