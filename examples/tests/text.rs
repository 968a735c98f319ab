//! Runs the examples of the text protocol, for Node and for a shell with socat, against a real broker.

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use hvsock::{HvStream, Refusal, refusal_of};
use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::wait::{self, TIMEOUT};
use hvsock_testkit::world::{PartitionEndpoint, World, limited};
use hvsock_testkit::{TempFolder, require};

const PORT: u32 = 2761;
const NAME: &str = "Service 2761";

/// A broker with a registered service.
struct Host(World);

impl Host {
    fn new() -> Self {
        let world = World::new();
        world.register(PORT);
        Self(world)
    }

    /// Directs a command to the endpoint of a partition.
    fn direct<'a>(endpoint: &PartitionEndpoint, command: &'a mut Command) -> &'a mut Command {
        let folder = endpoint.0.parent().expect("a folder");
        command
            .env_remove("HVSOCK_ENDPOINT")
            .env("HVSOCK_DIR", folder)
    }

    /// Starts a service and waits until it listens.
    fn serve(&self, mut command: Command) -> (Running, CapturedOutput) {
        let command = Self::direct(&self.0.host(), &mut command);
        let mut service = Running::start(command.stdout(Stdio::piped())).expect("started");
        let printed = CapturedOutput::from(service.take_stdout().expect("a pipe"));
        printed.wait_for("listening", TIMEOUT).expect("it listens");
        (service, printed)
    }

    fn echo_server(&self) -> (Running, CapturedOutput) {
        let mut server = Command::new(env!("CARGO_BIN_EXE_echo_server"));
        server.arg(NAME);
        self.serve(server)
    }

    fn run(&self, mut command: Command, input: &[u8]) -> Output {
        let command = Self::direct(&self.0.host(), &mut command);
        process::output(command, input, TIMEOUT).expect("it ends")
    }

    fn connect(&self) -> HvStream {
        let options = self.0.host().options();
        limited(options.connect(("loopback", NAME)).expect("connected"))
    }

    /// Sends data on a connection of its own, half-closes, and returns all that comes back.
    fn exchange(&self, input: &[u8]) -> Vec<u8> {
        let stream = self.connect();
        let mut reply = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                (&stream).write_all(input).expect("sent");
                stream.shutdown(Shutdown::Write).expect("ended");
            });
            (&stream).read_to_end(&mut reply).expect("a clean end");
        });
        reply
    }
}

fn data() -> Vec<u8> {
    (0..250_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn assert_is(output: &Output, wanted: &[u8]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let length = output.stdout.len();
    assert!(output.stdout == wanted, "{length} bytes came back");
}

fn node() -> Option<PathBuf> {
    require::program("node", &["--version"])
}

fn echo_mjs(node: &PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new(node);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/node/echo.mjs"))
        .args(arguments);
    command
}

#[test]
fn node_connects_and_half_closes() {
    let Some(node) = node() else { return };
    let host = Host::new();
    let (_server, _printed) = host.echo_server();
    let output = host.run(echo_mjs(&node, &["connect", "loopback", NAME]), &data());
    assert_is(&output, &data());
    let output = host.run(echo_mjs(&node, &["connect", "loopback", "2761"]), b"");
    assert_is(&output, b"");
}

#[test]
fn node_listens_for_many_connections_at_once() {
    let Some(node) = node() else { return };
    let host = Host::new();
    let (_service, printed) = host.serve(echo_mjs(&node, &["listen", "any", NAME]));
    assert!(host.exchange(&data()) == data());
    thread::scope(|scope| {
        for number in 0..30 {
            let host = &host;
            scope.spawn(move || {
                let line = format!("connection {number}");
                assert_eq!(host.exchange(line.as_bytes()), line.as_bytes());
            });
        }
    });
    assert!(printed.text().contains("connection from testhost"));
}

#[test]
fn an_http_server_of_node_takes_connections_of_hvsock() {
    let Some(node) = node() else { return };
    let host = Host::new();
    let (_service, _printed) = host.serve(echo_mjs(&node, &["http", "any", NAME]));
    let request = "GET /some/path HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n";
    let mut stream = host.connect();
    stream.write_all(request.as_bytes()).expect("sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a clean end");
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(reply.contains("you asked for /some/path\n"), "{reply}");
}

#[test]
fn node_reports_refusals_and_the_end_of_its_listener() {
    let Some(node) = node() else { return };
    let host = Host::new();
    for (partition, service, words) in [
        ("loopback", NAME, "echo: no_listener: "),
        ("parent", NAME, "echo: not_supported: "),
        ("loopback", "No Such Service", "echo: unregistered: "),
        ("loopback", "4294967296", "echo: invalid_request: "),
    ] {
        let output = host.run(echo_mjs(&node, &["connect", partition, service]), b"");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with(words), "{stderr}");
    }
    let mut listen = echo_mjs(&node, &["listen", "any", NAME]);
    listen.stderr(Stdio::piped());
    let (mut service, _printed) = host.serve(listen);
    let stderr = CapturedOutput::from(service.take_stderr().expect("a pipe"));
    let id = hvsock::ServiceId::from_port(PORT);
    host.0
        .handle()
        .unregister(&id.into())
        .expect("unregistered");
    assert_eq!(service.wait(TIMEOUT).expect("it ends").code(), Some(1));
    stderr.wait_for("echo: ", TIMEOUT).expect("a reason");
}

#[test]
fn node_in_a_container_reaches_its_host_and_listens_for_it() {
    let Some(node) = node() else { return };
    let host = Host::new();
    let inside = host.0.container("web", None);
    let (_server, _printed) = {
        let mut server = Command::new(env!("CARGO_BIN_EXE_echo_server"));
        server.arg(NAME);
        host.serve(server)
    };
    let mut connect = echo_mjs(&node, &["connect", "parent", NAME]);
    let output = process::output(Host::direct(&inside, &mut connect), b"inside", TIMEOUT);
    assert_is(&output.expect("it ends"), b"inside");
    let mut listen = echo_mjs(&node, &["listen", "parent", NAME]);
    let listen = Host::direct(&inside, &mut listen).stdout(Stdio::piped());
    let mut service = Running::start(listen).expect("started");
    let printed = CapturedOutput::from(service.take_stdout().expect("a pipe"));
    printed.wait_for("listening", TIMEOUT).expect("it listens");
    let output = host.run(echo_mjs(&node, &["connect", "web", NAME]), b"from the host");
    assert_is(&output, b"from the host");
}

/// A program of the page, for Node, with the names of this test.
fn of_the_page(host: &Host, folder: &TempFolder, number: usize) -> PathBuf {
    let page = include_str!("../../docs/text.md");
    let program = page.split("```js\n").nth(number).expect("a program");
    let program = program.split("```").next().expect("its end");
    let text = host.0.host().0.with_file_name("text");
    let program = program
        .replace("/run/hvsock/text", &text.display().to_string())
        .replace("/tmp/echo.sock", &folder.join("sock").display().to_string())
        .replace("parent HV Socket Demo", &format!("loopback {NAME}"))
        .replace("HV Socket Demo", NAME);
    let path = folder.join(format!("{number}.mjs"));
    std::fs::write(&path, program).expect("written");
    path
}

#[test]
fn the_programs_of_the_page_connect_and_listen() {
    let Some(node) = node() else { return };
    let (host, folder) = (Host::new(), TempFolder::new());
    let mut listen = Command::new(&node);
    listen.arg(of_the_page(&host, &folder, 2));
    let mut service = Running::start(listen.stdout(Stdio::piped())).expect("started");
    let printed = CapturedOutput::from(service.take_stdout().expect("a pipe"));
    printed.wait_for("OK ", TIMEOUT).expect("it listens");
    assert!(host.exchange(&data()) == data());
    let mut connect = Command::new(&node);
    connect.arg(of_the_page(&host, &folder, 1));
    assert_is(&host.run(connect, &data()), &data());
}

/// Java's compiler is large, so the test runs where there is one.
#[test]
fn java_connects_and_half_closes() {
    let found = Command::new("javac").arg("-version").output();
    let found = found.is_ok_and(|output| output.status.success());
    let Some(()) = require::of_this_machine(found.then_some(()).ok_or("no Java compiler")) else {
        return;
    };
    let host = Host::new();
    let (_server, _printed) = host.echo_server();
    let connect = |service: &str| {
        let mut command = Command::new("java");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/java/Connect.java"));
        command.args(["loopback", service]);
        command
    };
    assert_is(&host.run(connect(NAME), &data()), &data());
    let output = host.run(connect("No Such Service"), b"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.starts_with("Connect: unregistered the service"),
        "{stderr}"
    );
}

fn script(name: &str, arguments: &[&str]) -> Option<Command> {
    require::program("socat", &["-V"])?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shell/");
    let mut command = Command::new(format!("{folder}{name}"));
    command.args(arguments);
    Some(command)
}

#[test]
fn a_shell_with_socat_connects_and_half_closes() {
    let connect = |arguments: &[&str]| script("connect.sh", arguments);
    let Some(command) = connect(&["loopback", "Service", "2761"]) else {
        return;
    };
    let host = Host::new();
    {
        let (_server, _printed) = host.echo_server();
        assert_is(&host.run(command, &data()), &data());
    }
    let refused = connect(&["loopback", "No Such Service"]).expect("as before");
    let output = host.run(refused, b"x");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("connect.sh: unregistered the service"),
        "{stderr}"
    );
}

#[test]
fn a_shell_with_socat_runs_a_command_for_each_connection() {
    let Some(listen) = script("listen.sh", &["any", NAME, "tr a-z A-Z"]) else {
        return;
    };
    let host = Host::new();
    let (service, _printed) = host.serve(listen);
    assert_eq!(host.exchange(b"from rust"), b"FROM RUST");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(host.exchange(b"again"), b"AGAIN"));
        }
    });
    // The listener ends with the script, whose workers hold nothing of it.
    drop(service);
    let options = host.0.host().options();
    let refused = wait::within(TIMEOUT, || {
        match options
            .connect(("loopback", NAME))
            .map_err(|error| refusal_of(&error).cloned())
        {
            Err(Some(Refusal::NoListener)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    refused.expect("no listener");
    let refused = script("listen.sh", &["any", "No Such Service", "cat"]).expect("as before");
    let output = host.run(refused, b"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("listen.sh: unregistered the service"),
        "{stderr}"
    );
}

/// A broker that gives one client this answer and then data. Returns what the client comes to.
fn answered(mut client: Command, answer: &str) -> Output {
    let folder = TempFolder::new();
    let listener = UnixListener::bind(folder.join("text")).expect("a socket");
    let answer = answer.to_owned();
    let broker = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        let mut request = Vec::new();
        while !request.ends_with(b"\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request");
            request.push(byte[0]);
        }
        // A client that has seen too much may be gone.
        let _ = stream.write_all(answer.as_bytes());
        if answer.ends_with('\n') {
            let _ = stream.write_all(b"data");
        }
        request
    });
    client
        .env_remove("HVSOCK_ENDPOINT")
        .env("HVSOCK_DIR", folder.path());
    let output = process::output(&mut client, b"", TIMEOUT).expect("it ends");
    let request = broker.join().expect("no panic");
    assert_eq!(request, b"CONNECT parent HV Socket Demo\n");
    output
}

#[test]
fn clients_read_the_answers_of_the_test_vectors() {
    let arguments = ["parent", "HV Socket Demo"];
    let file = include_str!("../../docs/vectors/text.json");
    let file: serde_json::Value = serde_json::from_str(file).expect("JSON");
    let rows = |section: &str| file[section].as_array().expect("rows").clone();
    let node = node();
    let node = || {
        let connect = [&["connect"], arguments.as_slice()].concat();
        node.as_ref().map(|node| echo_mjs(node, &connect))
    };
    let shell = || script("connect.sh", &arguments);
    let clients: [&dyn Fn() -> Option<Command>; 2] = [&node, &shell];
    for client in clients {
        for row in rows("answers") {
            let Some(command) = client() else { continue };
            let output = answered(command, row["line"].as_str().expect("a line"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            match row["label"].as_str() {
                None => assert_is(&output, b"data"),
                Some(label) => {
                    assert_eq!(output.status.code(), Some(1), "{row}: {stderr}");
                    assert!(output.stdout.is_empty(), "{row}");
                    let reason = row["reason"].as_str().expect("a reason");
                    assert!(
                        stderr.contains(label) && stderr.contains(reason),
                        "{stderr}"
                    );
                }
            }
        }
        for row in rows("invalid_answers") {
            let line = row["line"].as_str().expect("a line");
            // In a stream what follows the first line is data.
            if line.trim_end_matches('\n').contains('\n') {
                continue;
            }
            let Some(command) = client() else { continue };
            let output = answered(command, line);
            assert_eq!(output.status.code(), Some(1), "{row}: {output:?}");
            assert!(output.stdout.is_empty(), "{row}");
        }
    }
}
