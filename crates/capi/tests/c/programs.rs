//! The programs of the documents, and the examples, between a host and a container.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hvsock::Lease;
use hvsock_testkit::{c, process, world};

use crate::build::{Compiler, LIBRARY, compilers, examples, run};

/// The bound of a program's run.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A broker with a container `web`, and registered services: the vsock ports 2761 to 2764.
pub struct World {
    world: world::World,
    _leases: [Lease; 4],
}

impl World {
    pub fn new() -> Self {
        let world = world::World::new();
        world.container("web", None);
        let endpoint = world.host().endpoint();
        let lease = |name, port| {
            let id = hvsock::ServiceId::from_port(port);
            Lease::register_at(&endpoint, name, id, "tests").expect("a lease")
        };
        Self {
            _leases: [
                lease("HV Socket Demo", 2761),
                lease("Other", 2762),
                lease("Third", 2763),
                lease("Fourth", 2764),
            ],
            world,
        }
    }

    /// The endpoint of the host.
    pub fn host(&self) -> PathBuf {
        self.world.host().endpoint().paths()[0].clone()
    }

    /// The endpoint in the container.
    pub fn web(&self) -> PathBuf {
        self.world.inside("web").endpoint().paths()[0].clone()
    }
}

/// A server that has said that it listens.
pub struct Server {
    child: Child,
}

impl Server {
    pub fn start(program: &Path, endpoint: &Path, connections: usize) -> Self {
        Self::start_with(program, endpoint, &[&connections.to_string()])
    }

    fn start_with(program: &Path, endpoint: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .env("HVSOCK_ENDPOINT", endpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a server");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let mut server = Self { child };
        assert_eq!(line, "listening\n", "{}", server.errors());
        server
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(errors) = &mut self.child.stderr {
            let _ = errors.read_to_string(&mut text);
        }
        text
    }

    /// Its end, which is a success.
    pub fn ends(mut self) {
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "{status}: {}", self.errors());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended, unless a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn example(compiler: &Compiler, name: &str, flags: &[&str]) -> PathBuf {
    LIBRARY.program(compiler, &examples().join(name).with_extension("c"), flags)
}

fn exchanges(world: &World, server: &Path, client: &Path, clients: usize) {
    let server = Server::start(server, &world.host(), clients);
    for number in 0..clients {
        let text = format!("from client {number}");
        let output = run(Command::new(client)
            .arg(&text)
            .env("HVSOCK_ENDPOINT", world.web()));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{text}\n"));
    }
    server.ends();
}

#[test]
fn the_documents_server_and_client_talk_when_compiled_by_any_compiler() {
    let world = World::new();
    for compiler in compilers() {
        let server = example(&compiler, "server", &[]);
        let client = example(&compiler, "client", &[]);
        exchanges(&world, &server, &client, 2);
    }
}

#[test]
fn sanitizers_find_nothing_in_the_documents_programs() {
    let world = World::new();
    let flags = [
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ];
    let server = example(&crate::build::GCC, "server", &flags);
    let client = example(&crate::build::GCC, "client", &flags);
    exchanges(&world, &server, &client, 1);
}

#[test]
fn the_static_library_alone_is_enough() {
    let world = World::new();
    let folder = hvsock_testkit::TempFolder::new();
    let Some(built) = c::examples(c::Calls::Library, folder.path()) else {
        return;
    };
    exchanges(&world, &built.server, &built.client, 1);
}

#[test]
fn a_program_may_be_linked_without_any_shared_library() {
    let world = World::new();
    let link = |name: &str| {
        let program = LIBRARY.programs().join(format!("wholly-static-{name}"));
        run(LIBRARY
            .compiler(&crate::build::GCC)
            .arg("-static")
            .arg(examples().join(name).with_extension("c"))
            .arg(LIBRARY.folder().join("libhvsock.a"))
            .args(c::SYSTEM_LIBRARIES)
            .arg("-o")
            .arg(&program));
        program
    };
    exchanges(&world, &link("server"), &link("client"), 1);
}

#[test]
fn the_documents_client_sends_its_standard_input_to_a_port_of_its_own_partition() {
    let world = World::new();
    let folder = hvsock_testkit::TempFolder::new();
    let Some(built) = c::examples(c::Calls::Library, folder.path()) else {
        return;
    };
    let server = Server::start_with(&built.server, &world.host(), &["1", "2764"]);
    let mut client = Command::new(&built.client);
    let client = client.args(["-", "loopback", "2764"]);
    let output = process::output(
        client.env("HVSOCK_ENDPOINT", world.host()),
        &[7; 60_000],
        TIMEOUT,
    );
    let output = output.expect("an end");
    assert_eq!(output.stdout, [&[7; 60_000], b"\n".as_slice()].concat());
    server.ends();
}

#[test]
fn a_client_that_is_refused_says_so() {
    let world = World::new();
    let client = example(&crate::build::GCC, "client", &[]);
    let output = Command::new(client)
        .env("HVSOCK_ENDPOINT", world.web())
        .output()
        .expect("a client");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors, "client: connect failed: 10061\n");
}

#[test]
fn the_example_of_names_reads_in_place_and_explains_a_refusal() {
    let world = World::new();
    let client = example(&crate::build::GCC, "native", &[]);
    let refused = Command::new(&client)
        .args(["parent", "HV Socket Demo"])
        .env("HVSOCK_ENDPOINT", world.web())
        .output()
        .expect("a client");
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(
        errors.contains("refusal 9: no_listener\nhelp: "),
        "{errors}"
    );
    let endpoint = world.world.host().endpoint();
    let listener = hvsock::HvListener::options().endpoint(endpoint);
    let listener = listener
        .listen(("children", "HV Socket Demo"))
        .expect("a listener");
    let echo = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        std::io::copy(&mut &stream, &mut &stream)
    });
    let output = run(Command::new(&client)
        .args(["parent", "HV Socket Demo", "in place"])
        .env("HVSOCK_ENDPOINT", world.web()));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "in place\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "transport: ring\n");
    assert_eq!(echo.join().expect("no panic").expect("an echo"), 8);
}
