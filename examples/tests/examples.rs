//! Runs every example against a real broker.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hvsock::{HvStream, Lease, ServiceId};
use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::require;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{World, limited};

const NAME: &str = "HV Socket Demo";

/// A broker with one service registered.
struct Host {
    _lease: Lease,
    world: World,
}

impl Host {
    fn new() -> Self {
        let world = World::new();
        let id = ServiceId::random();
        let lease = Lease::register_at(&world.host().endpoint(), NAME, id, "the tests");
        Self {
            _lease: lease.expect("a lease"),
            world,
        }
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("HVSOCK_ENDPOINT", self.world.host().0);
        command
    }

    /// Starts a service and waits until it listens.
    fn serve(&self, command: &mut Command) -> (Running, CapturedOutput) {
        let mut service = Running::start(command.stdout(Stdio::piped())).expect("started");
        let printed = CapturedOutput::from(service.take_stdout().expect("a pipe"));
        printed.wait_for("listening", TIMEOUT).expect("it listens");
        (service, printed)
    }

    fn rust_server(&self, program: &str) -> (Running, CapturedOutput) {
        self.serve(self.command(program).arg(NAME))
    }

    fn connect(&self) -> HvStream {
        let options = self.world.host().options();
        limited(options.connect(("loopback", NAME)).expect("connected"))
    }

    fn client(&self, service: &str, input: &[u8]) -> Output {
        self.run(
            env!("CARGO_BIN_EXE_echo_client"),
            &["loopback", service],
            input,
        )
    }

    fn run(&self, program: &str, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(program);
        process::output(command.args(arguments), input, TIMEOUT).expect("it ends")
    }
}

/// Sends all of `input` and returns all that comes back.
fn exchange(mut stream: HvStream, input: &str) -> String {
    stream.write_all(input.as_bytes()).expect("sent");
    stream.shutdown(Shutdown::Write).expect("ended");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a clean end");
    reply
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn test_data() -> Vec<u8> {
    (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn echo_client_receives_its_input_from_echo_server() {
    let host = Host::new();
    let (_server, printed) = host.rust_server(env!("CARGO_BIN_EXE_echo_server"));
    let data = test_data();
    let output = host.client(NAME, &data);
    assert!(output.status.success());
    assert!(
        output.stdout == data,
        "{} bytes came back",
        output.stdout.len()
    );
    printed
        .wait_for("4000000 bytes echoed", TIMEOUT)
        .expect("its count");
    assert!(printed.text().contains("connection from "));
}

#[test]
fn echo_client_explains_a_refusal() {
    let host = Host::new();
    let output = host.client(NAME, b"");
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("no listener accepts"), "{words}");
    assert!(words.contains("?"), "no explanation: {words}");
    let output = host.client("No Such Service", b"");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("not registered"), "{words}");
}

#[test]
fn tokio_service_identifies_the_sender_of_each_line() {
    let host = Host::new();
    let (_service, _printed) = host.rust_server(env!("CARGO_BIN_EXE_tokio_service"));
    let reply = exchange(host.connect(), "one\ntwo\n");
    let lines: Vec<_> = reply.lines().collect();
    let sender = format!("process {} of user ", std::process::id());
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].contains(&sender) && lines[0].ends_with(": one"),
        "{reply}"
    );
    assert!(lines[1].ends_with(": two"), "{reply}");
}

#[test]
fn axum_service_answers_http() {
    let host = Host::new();
    let (_service, _printed) = host.rust_server(env!("CARGO_BIN_EXE_axum_service"));
    let request = "GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n";
    // No half-close: hyper takes it for a disconnect.
    let mut stream = host.connect();
    stream.write_all(request.as_bytes()).expect("sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a clean end");
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    let body = reply.split("\r\n\r\n").nth(1).expect("a body");
    assert!(body.starts_with("{\"partition\":\""), "{body}");
}

#[test]
fn hyper_client_reads_from_axum_service() {
    let host = Host::new();
    let (_service, _printed) = host.rust_server(env!("CARGO_BIN_EXE_axum_service"));
    let output = host.run(env!("CARGO_BIN_EXE_hyper_client"), &["loopback", NAME], b"");
    // The name of the host.
    let body = stdout(&output);
    assert!(body.starts_with("{\"partition\":\""), "{body}");
}

#[test]
fn axum_service_ends_with_the_reason_when_its_listener_ends() {
    let host = Host::new();
    let mut command = host.command(env!("CARGO_BIN_EXE_axum_service"));
    let (mut service, _printed) = host.serve(command.arg(NAME).stderr(Stdio::piped()));
    let stderr = CapturedOutput::from(service.take_stderr().expect("a pipe"));
    drop(host);
    assert!(service.wait(TIMEOUT).expect("it ends").success());
    stderr
        .wait_for("cannot accept connections: ", TIMEOUT)
        .expect("a reason");
}

#[test]
fn grpc_client_calls_grpc_service() {
    let host = Host::new();
    let (_service, _printed) = host.rust_server(env!("CARGO_BIN_EXE_grpc_service"));
    let arguments = ["loopback", NAME, "Ada"];
    let output = host.run(env!("CARGO_BIN_EXE_grpc_client"), &arguments, b"");
    let answer = stdout(&output);
    assert!(answer.starts_with("hello Ada from "), "{answer}");
    assert!(!answer.contains("somewhere"), "{answer}");
}

#[test]
fn stream_service_counts_the_bytes_of_concurrent_connections() {
    let host = Host::new();
    let (_service, _printed) = host.rust_server(env!("CARGO_BIN_EXE_stream_service"));
    let open = host.connect();
    assert_eq!(exchange(host.connect(), "12345"), "5 bytes\n");
    assert_eq!(exchange(open, "123"), "3 bytes\n");
}

#[test]
fn activated_service_listens_itself_without_a_service_manager() {
    let host = Host::new();
    let (_service, _printed) = host.rust_server(env!("CARGO_BIN_EXE_activated_service"));
    assert_eq!(exchange(host.connect(), "echo"), "echo");
}

/// The positive case needs `AF_VSOCK` connections: the library's tests have it in a virtual machine.
#[test]
fn activated_service_refuses_a_socket_that_is_no_vsock_socket() {
    let host = Host::new();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let script = "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=echo exec \"$0\" </dev/null";
    let mut command = host.command("sh");
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_activated_service")])
        .stdin(std::os::fd::OwnedFd::from(socket));
    let output = command.output().expect("it runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("`echo`"), "{words}");
    assert!(words.contains("no AF_VSOCK stream socket"), "{words}");
}

fn python(host: &Host, python: &Path, command: &str, partition: &str, service: &str) -> Command {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/python/hvsock_client.py");
    let mut run = host.command(python);
    run.args([program, command, partition, service]);
    run
}

#[test]
fn the_python_client_has_at_most_80_lines() {
    assert!(include_str!("../python/hvsock_client.py").lines().count() <= 80);
}

#[test]
fn the_python_client_connects() {
    let Some(python3) = require::python3() else {
        return;
    };
    let host = Host::new();
    let (_server, _printed) = host.rust_server(env!("CARGO_BIN_EXE_echo_server"));
    let data = test_data();
    let mut connect = python(&host, &python3, "connect", "loopback", NAME);
    let output = process::output(&mut connect, &data, TIMEOUT).expect("it ends");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stdout == data,
        "{} bytes came back",
        output.stdout.len()
    );
}

#[test]
fn the_python_client_listens() {
    let Some(python3) = require::python3() else {
        return;
    };
    let host = Host::new();
    let mut listen = python(&host, &python3, "listen", "any", NAME);
    let (_server, _printed) = host.serve(&mut listen);
    let data = test_data();
    for _ in 0..3 {
        let output = host.client(NAME, &data);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.stdout == data,
            "{} bytes came back",
            output.stdout.len()
        );
    }
    assert_eq!(exchange(host.connect(), "from Rust"), "from Rust");
    let mut connect = python(&host, &python3, "connect", "loopback", NAME);
    let output = process::output(&mut connect, b"from Python", TIMEOUT).expect("it ends");
    assert_eq!(output.stdout, b"from Python");
}

#[test]
fn the_python_client_reports_refusals_and_resets() {
    let Some(python3) = require::python3() else {
        return;
    };
    let host = Host::new();
    for (partition, service, words) in [
        ("loopback", NAME, "refusal 9"),
        ("parent", NAME, "refusal 8"),
        ("loopback", "No Such Service", "refusal 1"),
    ] {
        let mut connect = python(&host, &python3, "connect", partition, service);
        let output = process::output(&mut connect, b"", TIMEOUT).expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    let mut listen = python(&host, &python3, "listen", "any", NAME);
    let (mut server, _printed) = host.serve(listen.stderr(Stdio::piped()));
    let stderr = CapturedOutput::from(server.take_stderr().expect("a pipe"));
    drop(host);
    assert_eq!(server.wait(TIMEOUT).expect("it ends").code(), Some(1));
    stderr
        .wait_for("hvsock_client: ", TIMEOUT)
        .expect("a reason");
}
