//! Runs the tests of the Go module, in `go/`, and its examples against a real broker.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hvsock_guests::{Config, File, Guest, Kit, Vmm, Vsock};
use hvsock_testkit::peer::ConformancePeer;
use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::world::World;
use hvsock_testkit::{TempFolder, go, require, wait};

/// The module.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../go");

/// The folder of the broker, for the tests of the module. It has the sockets of the endpoint, of the control API and
/// of the container `web`.
const FOLDER: &str = "HVSOCK_TEST_FOLDER";

/// The timeout of the whole suite, on a machine that has compiled nothing of it.
const TIMEOUT: Duration = Duration::from_secs(300);

fn succeeds(command: &mut Command) -> String {
    let output = process::output(command, b"", TIMEOUT).expect("it ends");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
    );
    stdout
}

#[test]
fn the_go_module_is_formatted_and_passes_vet() {
    let Some(mut vet) = go::command() else {
        return;
    };
    succeeds(vet.args(["vet", "./..."]).current_dir(MODULE));
    let unformatted = succeeds(Command::new("gofmt").args(["-l", MODULE]));
    assert_eq!(unformatted, "");
}

#[test]
fn the_go_module_compiles_for_windows_and_macos() {
    for system in ["windows", "darwin"] {
        let Some(mut build) = go::command() else {
            return;
        };
        build.args(["build", "."]).current_dir(MODULE);
        succeeds(build.env("GOOS", system).env("CGO_ENABLED", "0"));
    }
    // go-winio itself has to be downloaded, so this has its signatures only.
    let Some(mut vet) = go::command() else {
        return;
    };
    vet.args(["vet", "-modfile=testdata/offline.mod", "."])
        .current_dir(Path::new(MODULE).join("winio"));
    succeeds(vet.env("GOOS", "windows").env("CGO_ENABLED", "0"));
}

#[test]
fn the_go_module_passes_the_vectors_the_conformance_cases_and_its_own_tests() {
    let Some(mut test) = go::command() else {
        return;
    };
    let world = World::with(|config| config.control = true);
    world.container("web", None);
    let _peer = ConformancePeer::start(&world.host().endpoint()).expect("a peer");
    test.args(["test", "-race", "-count=1", "-timeout=120s", "-v", "./..."])
        .env("CGO_ENABLED", "1")
        .env(FOLDER, world.dirs().run)
        .current_dir(MODULE);
    let printed = succeeds(&mut test);
    let skipped = printed.lines().filter(|line| line.contains("skipped: "));
    assert_eq!(skipped.count(), 0, "{printed}");
    for name in [
        "TestEveryConformanceCaseHolds",
        "TestEveryVectorOfAMessageHolds",
    ] {
        let passed = format!("--- PASS: {name}");
        assert!(printed.contains(&passed), "{printed}");
    }
    assert!(Path::new(MODULE).join("go.mod").is_file());
}

/// A broker with a registered service, and an example program.
struct Example {
    world: World,
    program: PathBuf,
    _folder: TempFolder,
}

const LISTEN: &str = "hvsock://any/2761";
const CONNECT: &str = "hvsock://loopback/Service%202761";

impl Example {
    /// Builds an example by `build`, to which the path of the program and the source are added. `None` without Go.
    fn new(build: Option<Command>, source: &str) -> Option<Self> {
        let mut build = build?;
        let folder = TempFolder::new();
        let program = folder.join("example");
        build.args(["build", "-o"]).arg(&program).arg(source);
        succeeds(build.current_dir(MODULE));
        let world = World::new();
        world.register(2761);
        Some(Self {
            world,
            program,
            _folder: folder,
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("HVSOCK_ENDPOINT", self.world.host().0);
        command
    }

    fn serve(&self, arguments: &[&str]) -> (Running, CapturedOutput) {
        let mut command = self.command(arguments);
        let mut service = Running::start(command.stdout(Stdio::piped())).expect("started");
        let printed = CapturedOutput::from(service.take_stdout().expect("a pipe"));
        let listening = printed.wait_for("listening", wait::TIMEOUT);
        listening.expect("it listens");
        (service, printed)
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        process::output(&mut self.command(arguments), input, wait::TIMEOUT).expect("it ends")
    }
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn net_http_serves_and_asks_over_hvsock() {
    let Some(example) = Example::new(go::command(), "./examples/http") else {
        return;
    };
    let (_server, _printed) = example.serve(&["serve", LISTEN]);
    let answer = stdout(&example.run(&["get", CONNECT, "/some/path"], b""));
    assert_eq!(answer, "hello testhost, you asked for /some/path\n");
    let refused = example.run(&["get", "hvsock://loopback/Nothing"], b"");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("the service is not registered"), "{words}");
}

#[test]
fn a_go_program_runs_a_command_for_each_connection_and_tells_whether_it_succeeded() {
    let Some(example) = Example::new(go::command(), "./examples/exec") else {
        return;
    };
    let script = "read line; cat; [ \"$line\" != fail ]";
    let (_server, _printed) = example.serve(&["serve", LISTEN, "sh", "-c", script]);
    let data = "x".repeat(1_000_000);
    let input = format!("go on\n{data}");
    let answer = stdout(&example.run(&["connect", CONNECT], input.as_bytes()));
    assert!(answer == data, "{} bytes came back", answer.len());
    let failed = example.run(&["connect", CONNECT], b"fail\nsome output");
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(failed.stdout, b"some output");
    let words = String::from_utf8_lossy(&failed.stderr);
    assert!(words.contains("the connection was reset"), "{words}");
}

#[test]
fn grpc_go_serves_and_calls_over_hvsock() {
    let folder = TempFolder::new();
    let Some(build) = go::debian_command("google.golang.org/grpc", &folder, Path::new(MODULE))
    else {
        return;
    };
    let Some(example) = Example::new(Some(build), "./examples/grpc/main.go") else {
        return;
    };
    let (_server, printed) = example.serve(&["serve", LISTEN]);
    assert_eq!(stdout(&example.run(&["check", CONNECT], b"")), "SERVING\n");
    assert!(
        printed
            .text()
            .contains("/grpc.health.v1.Health/Check by hvsock://")
    );
    let refused = example.run(&["check", "hvsock://loopback/Nothing"], b"");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("the service is not registered"), "{words}");
}

/// The kernel's `AF_VSOCK` in a machine without a broker: to its host, from it, and within the machine.
#[test]
fn a_go_program_in_a_virtual_machine_reaches_its_host_and_is_reached() {
    let Some(example) = Example::new(go::command(), "./examples/exec") else {
        return;
    };
    let Some(kit) = require::found(Kit::find_for(Vmm::Qemu)) else {
        return;
    };
    let mut build = go::command().expect("Go, as before");
    // The program of the guest has no libraries there.
    let folder = TempFolder::new();
    let (tests, program) = (folder.join("tests"), folder.join("exec"));
    let static_go = |command: &mut Command| {
        succeeds(command.env("CGO_ENABLED", "0").current_dir(MODULE));
    };
    static_go(build.args(["test", "-c", "-o"]).arg(&tests).arg("."));
    let mut build = go::command().expect("Go, as before");
    static_go(
        build
            .args(["build", "-o"])
            .arg(&program)
            .arg("./examples/exec"),
    );

    example.world.vm("web", 42, &[]);
    example.world.register(2765);
    let mut config = Config::new("web");
    config.vsock = Some(Vsock {
        socket: example.world.socket("web"),
    });
    let loopback = kit.module("vsock_loopback").expect("the kernel has it");
    config.files = vec![
        File::copy(&tests, "/bin/tests").expect("a file"),
        File::copy(&program, "/bin/hvexec").expect("a file"),
        File::bytes("/lib/loopback.ko", 0o644, loopback),
    ];
    let guest = Guest::boot(&kit, &config).expect("it starts");
    let run = |command: &str| guest.run(command, TIMEOUT).expect("it runs");

    let (_server, _printed) = example.serve(&["serve", "hvsock://children/2761", "cat"]);
    for address in ["hvsock://parent/2761", "hvsock://parent/Service%202761"] {
        let output = run(&format!("echo ping | hvexec connect {address}"));
        assert_eq!(output.text(), "ping", "{}", output.stderr_text());
    }
    let refused = run("hvexec connect hvsock://parent/Nothing </dev/null");
    let words = refused.stderr_text();
    assert!(words.contains("the service is not registered"), "{words}");
    let refused = run("hvexec connect hvsock://parent/2765 </dev/null");
    let words = refused.stderr_text();
    assert!(
        words.contains("no listener accepts this service there"),
        "{words}"
    );

    let server = guest
        .spawn("hvexec serve hvsock://parent/2765 cat")
        .expect("it runs");
    server.wait_for("listening", TIMEOUT).expect("it listens");
    let output = example.run(&["connect", "hvsock://web/2765"], b"pong");
    assert_eq!(stdout(&output), "pong");

    let output = run("insmod /lib/loopback.ko && tests -test.v -test.run TheKernelsSockets");
    let passed = "--- PASS: TestTheKernelsSocketsCarryAConnectionWithinThisMachine";
    assert!(output.text().contains(passed), "{}", output.text());
}
