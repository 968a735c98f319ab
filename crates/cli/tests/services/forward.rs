//! `hvsock forward` and `hvsock nc`: data, half-closes and resets pass between a socket of the host and a
//! socket in a guest.

use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use hvsock_guests::File;
use rustix::process::Signal;

use crate::fixture::{self, BOX, Fixture};
use crate::keys::Keys;
use crate::util::{Completed, Running, TIMEOUT, World, eventually, in_container};

/// More bytes than all buffers on the path hold.
const MUCH: usize = 16 << 20;

/// A running `hvsock forward -v`, with the lines that it printed when it was ready.
pub struct Forward {
    running: Running,
    lines: Vec<String>,
}

impl Forward {
    pub fn start(fixture: &Fixture, sides: &[&str]) -> Self {
        Self::in_world(&fixture.world, sides)
    }

    fn in_world(world: &World, sides: &[&str]) -> Self {
        let mut command = world.command(["forward", "-v"]);
        command.args(sides).stdout(Stdio::piped());
        let mut running = Running::start(command.stderr(Stdio::piped()));
        let lines: Vec<_> = (0..sides.len() / 2).map(|_| running.line()).collect();
        if lines.iter().any(String::is_empty) {
            panic!("not ready: {}", running.rest_of_stderr());
        }
        Self { running, lines }
    }

    /// The port at which the pair of this number listens.
    fn port(&self, pair: usize) -> u16 {
        let line = &self.lines[pair];
        let listens = line.split(" -> ").next().unwrap();
        let port = listens.rsplit(':').next().unwrap();
        port.parse().unwrap_or_else(|_| panic!("{line}"))
    }

    fn connect(&self, pair: usize) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port(pair))).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Ends it with SIGTERM. Returns its stderr.
    fn end(mut self) -> String {
        self.running.signal(Signal::TERM);
        let status = self.running.end();
        assert!(status.success(), "{status}");
        self.running.rest_of_stderr()
    }
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    (listener, address)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

#[test]
fn input_that_cannot_be_read_is_a_reset_for_the_socket_in_the_guest() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (listener, address) = listener();
    let mut nc = fixture.world.command(["nc", BOX, &address]);
    let folder = fs::File::open("/").unwrap();
    let mut nc = Running::start(nc.stdin(folder).stderr(Stdio::piped()));
    let error = accept(&listener).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(nc.end().code(), Some(1));
    let expected = "error: cannot read standard input: Is a directory (os error 21); the connection was reset\n";
    assert_eq!(nc.rest_of_stderr(), expected);
}

/// Closes a connection with a TCP reset.
fn reset(stream: TcpStream) {
    let linger = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
    drop(stream);
}

/// Expects this data and then a reset.
fn expect_reset(mut stream: impl Read, before: &[u8]) {
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).expect_err("no clean end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert_eq!(got, before);
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..MUCH).map(|n| ((n + seed) % 251) as u8).collect()
}

/// Transfers [`MUCH`] bytes in both directions at once, and half-closes each direction with `half_close`.
fn exchange<S>(local: S, remote: S, half_close: impl Fn(&S) -> io::Result<()> + Sync)
where
    for<'a> &'a S: Read + Write,
    S: Send + Sync,
{
    let write = |stream: &S, seed: usize| {
        let mut stream = stream;
        stream.write_all(&pattern(seed)).unwrap();
        half_close(stream).unwrap();
    };
    let read = |stream: &S, seed: usize| {
        let mut stream = stream;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == pattern(seed));
    };
    thread::scope(|scope| {
        scope.spawn(|| write(&local, 1));
        scope.spawn(|| read(&remote, 1));
        scope.spawn(|| write(&remote, 2));
        read(&local, 2);
    });
}

#[test]
fn tcp_ports_are_forwarded_in_both_directions() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (server, address) = listener();
    let (to, from) = (format!("{BOX}:{address}"), format!("{BOX}:tcp:127.0.0.1:0"));
    let forward = Forward::start(&fixture, &["tcp:0", &to, &from, &address]);
    assert!(forward.lines[0].starts_with("tcp:127.0.0.1:"));
    assert!(forward.lines[1].starts_with("box:tcp:127.0.0.1:"));
    for pair in [0, 1] {
        let client = forward.connect(pair);
        exchange(client, accept(&server), |stream| {
            stream.shutdown(Shutdown::Write)
        });

        // A half-close in one direction leaves the other open.
        let mut client = forward.connect(pair);
        let mut served = accept(&server);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        served.write_all(b"after half-close").unwrap();
        drop(served);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "after half-close");
    }
    let log = forward.end();
    assert!(log.contains("connection from 127.0.0.1:"), "{log}");
    assert!(log.contains(&format!("{MUCH} bytes to the guest")), "{log}");
}

#[test]
fn unix_sockets_are_forwarded_in_both_directions_and_removed() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let at = |name: &str| fixture.world.dir().join(name);
    let server = UnixListener::bind(at("server")).unwrap();
    let side = |name: &str| format!("unix:{}", at(name).display());
    let there = |name: &str| format!("{BOX}:{}", side(name));
    let forward = Forward::start(
        &fixture,
        &[
            &side("here"),
            &there("server"),
            &there("there"),
            &side("server"),
        ],
    );
    for name in ["here", "there"] {
        let client = UnixStream::connect(at(name)).unwrap();
        let (served, _) = server.accept().unwrap();
        exchange(client, served, |stream| stream.shutdown(Shutdown::Write));
    }
    let again = fixture.run(["forward", &side("here"), &there("server")]);
    assert!(again.failed().contains("Address already in use"));
    forward.end();
    assert!(!at("here").exists());
    eventually("the agent removes its socket", || !at("there").exists());
}

#[test]
fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (server, address) = listener();
    let (to, from) = (format!("{BOX}:{address}"), format!("{BOX}:tcp:127.0.0.1:0"));
    let forward = Forward::start(&fixture, &["tcp:0", &to, &from, &address]);
    for pair in [0, 1] {
        let mut client = forward.connect(pair);
        let mut served = accept(&server);
        served.write_all(b"some").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        reset(served);
        expect_reset(&client, b"");

        client = forward.connect(pair);
        served = accept(&server);
        client.write_all(b"some").unwrap();
        served.read_exact(&mut [0; 4]).unwrap();
        reset(client);
        expect_reset(&served, b"");
    }
    // Without a listener every connection is reset.
    drop(server);
    for pair in [0, 1] {
        expect_reset(forward.connect(pair), b"");
    }
    let log = forward.end();
    assert_eq!(log.matches("Connection refused").count(), 2, "{log}");
}

#[test]
fn a_killed_agent_or_broker_is_a_reset_and_no_end_of_data() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let (server, address) = listener();
    let (to, from) = (format!("{BOX}:{address}"), format!("{BOX}:tcp:127.0.0.1:0"));
    let forward = Forward::start(&fixture, &["tcp:0", &to, &from, &address]);
    let pairs = [0, 1].map(|pair| (forward.connect(pair), accept(&server)));
    fixture.kill_agent();
    // The kernel closes the killed process's sockets without an end of data, and the remaining forwarder must
    // not send one either.
    expect_reset(&pairs[0].0, b"");
    expect_reset(&pairs[1].1, b"");

    // The next agent gets the listener again.
    fixture.start_agent();
    eventually("the agent listens again", || {
        TcpStream::connect(("127.0.0.1", forward.port(1))).is_ok()
    });
    // Skips that connection, and one that was perhaps accepted before the agent was ready.
    let mut client = forward.connect(1);
    client.write_all(b"again").unwrap();
    let mut served = accept(&server);
    while {
        let mut got = [0; 5];
        served.read_exact(&mut got).is_err() || &got != b"again"
    } {
        served = accept(&server);
    }

    fixture.world.broker().kill();
    expect_reset(&client, b"");
    expect_reset(&served, b"");
}

#[test]
fn services_are_forwarded_to_sockets_and_sockets_to_services() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    fixture.world.register("HV Socket Demo");
    let socket = fixture.world.dir().join("demo");
    let side = format!("unix:{}", socket.display());
    let service = format!("{BOX}:service:HV Socket Demo");

    let mut listen = in_container(
        &fixture.endpoint,
        ["listen", "HV Socket Demo", "--keep", "--", "cat"],
    );
    let listen = fixture.world.listening(&mut listen);
    let forward = Forward::start(&fixture, &[&side, &service]);
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"to a service").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "to a service");
    drop(listen);
    forward.end();

    let server = UnixListener::bind(&socket).unwrap();
    let forward = Forward::start(&fixture, &[&service, &side]);
    let mut connect = in_container(&fixture.endpoint, ["connect", "parent", "HV Socket Demo"]);
    let mut client = Running::start(connect.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (mut served, _) = server.accept().unwrap();
    client.write(b"from a service");
    client.end_input();
    let mut got = String::new();
    served.read_to_string(&mut got).unwrap();
    assert_eq!(got, "from a service");
    drop(served);
    assert!(client.end().success());
    // A listener that ends with its service comes back with it.
    let is_offered = || {
        let mut why = in_container(&fixture.endpoint, ["why", "parent", "HV Socket Demo"]);
        Completed::of(&mut why).code == Some(0)
    };
    fixture.world.ok(["service", "disable", "HV Socket Demo"]);
    assert!(!is_offered());
    fixture.world.ok(["service", "enable", "HV Socket Demo"]);
    eventually("the service is offered again", is_offered);
    // A failing socket here fails the service's client.
    fs::remove_file(&socket).unwrap();
    drop(server);
    let mut connect = in_container(&fixture.endpoint, ["connect", "parent", "HV Socket Demo"]);
    let refused = Completed::of(connect.stdin(Stdio::piped()));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(forward.end().contains("No such file"));
}

#[test]
fn nc_connects_stdin_and_stdout_to_a_socket_in_the_guest() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (server, address) = listener();
    let serving = thread::spawn(move || {
        let mut stream = accept(&server);
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
        drop(stream);
        // The second connection is reset.
        let mut stream = accept(&server);
        stream.write_all(b"half").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream);
    });
    let sent = pattern(3);
    let mut nc = fixture.world.command(["nc", BOX, &address]);
    assert!(Completed::bytes_with_input(&mut nc, &sent) == sent);

    let broken = Completed::with_input(&mut fixture.world.command(["nc", BOX, &address]), b"x");
    assert_eq!((broken.code, broken.stdout.as_str()), (Some(1), "half"));
    assert!(
        broken.stderr.contains("the remote socket broke"),
        "{}",
        broken.stderr
    );
    serving.join().unwrap();

    let refused = fixture.run(["nc", BOX, &address]).failed();
    assert!(
        refused.contains("in the guest: Connection refused"),
        "{refused}"
    );
    let missing = fixture.run(["nc", BOX, "unix:/nowhere"]).failed();
    assert!(
        missing.contains("unix:/nowhere in the guest: No such file"),
        "{missing}"
    );
    let unknown = fixture.run(["nc", BOX, "tcp:nowhere.invalid:80"]).failed();
    assert!(
        unknown.contains("cannot resolve `nowhere.invalid`"),
        "{unknown}"
    );
}

#[test]
fn an_invalid_forward_fails_before_it_listens() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    let forward = |sides: [&str; 2]| fixture.run(["forward", sides[0], sides[1]]);
    let unknown = forward(["tcp:0", "unknown:tcp:80"]).failed();
    assert!(unknown.contains("no partition"), "{unknown}");
    let taken = listener();
    let used = forward([&taken.1, "box:tcp:80"]).failed();
    assert!(used.contains("Address already in use"), "{used}");
    let used = forward([&format!("box:{}", taken.1), "tcp:80"]).failed();
    assert!(
        used.contains("in the guest: Address already in use"),
        "{used}"
    );
    let service = forward(["tcp:0", "box:service:Nothing"]).failed();
    assert!(service.contains("service register Nothing"), "{service}");
    for sides in [
        ["tcp:0", "tcp:80"],
        ["box:tcp:0", "box:tcp:80"],
        ["box:tcp:0", "ssh"],
    ] {
        forward(sides).usage_error();
    }
    fixture.run(["forward", "tcp:0"]).usage_error();
    fixture
        .run(["forward", "tcp:0", "box:tcp:80", "tcp:0"])
        .usage_error();
    fixture
        .run(["forward", "udp:53", "box:tcp:80"])
        .usage_error();

    fixture.kill_agent();
    let none = fixture.run(["forward", "tcp:0", "box:tcp:80"]).failed();
    assert!(none.contains("no hvsock-agent offers it there"), "{none}");
}

#[test]
fn invalid_requests_and_unused_connections_do_not_stop_the_service() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (_server, address) = listener();
    let port: SocketAddr = address.strip_prefix("tcp:").unwrap().parse().unwrap();
    // No message, a message without a request, and a message that is never complete.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4],
        &[255, 255, 0, 0, 1],
    ] {
        let mut connect = fixture.world.command(["connect", BOX, "hvsock forward"]);
        let done = Completed::with_input(&mut connect, bytes);
        assert!(!done.stdout.contains('\x01'), "{done:?}");
    }
    // A token that the agent has not issued: field 3, 16 bytes.
    let mut request = vec![18, 0, 0, 0, 0x1a, 16];
    request.extend_from_slice(&[7; 16]);
    let mut connect = fixture.world.command(["connect", BOX, "hvsock forward"]);
    let done = Completed::with_input(&mut connect, &request);
    assert!(
        done.stdout.contains("no such pending connection"),
        "{done:?}"
    );
    // The service still works.
    let mut nc = fixture.world.command(["nc", BOX, &format!("tcp:{port}")]);
    let mut nc = Running::start(nc.stdin(Stdio::piped()).stdout(Stdio::piped()));
    drop(accept(&_server));
    nc.end_input();
    assert!(nc.end().success());
}

#[test]
fn unix_sockets_of_a_real_container_are_forwarded_in_both_directions() {
    let world = World::new();
    let Some(_cage) = fixture::container(&world, "cage") else {
        return;
    };
    let at = |name: &str| world.dir().join(name);
    let server = UnixListener::bind(at("server")).unwrap();
    let side = |name: &str| format!("unix:{}", at(name).display());
    // The second pair connects to the first, so the data enters the container and leaves it.
    let sides = [
        "cage:unix:/tmp/inside",
        &side("server"),
        &side("back"),
        "cage:unix:/tmp/inside",
    ];
    let _forward = Forward::in_world(&world, &sides);
    let client = UnixStream::connect(at("back")).unwrap();
    let (served, _) = server.accept().unwrap();
    exchange(client, served, |stream| stream.shutdown(Shutdown::Write));

    // The container has its own network, in which nothing listens.
    let refused = world.run(["nc", "cage", "tcp:80"]).failed();
    assert!(refused.contains("in the guest: "), "{refused}");
}

#[test]
fn ports_and_ssh_of_a_real_guest_are_reached_without_a_network() {
    let world = World::new();
    let Some(keys) = Keys::new() else { return };
    let config = Keys::config(
        "/etc/ssh/host_key".as_ref(),
        "/etc/ssh/authorized_keys".as_ref(),
    );
    let users = "root:*:0:0:root:/root:/bin/sh\nsshd:*:100:65534::/run/sshd:/bin/false\n";
    let Some(guest) = fixture::qemu_guest(&world, "web", |machine| {
        let sshd = File::program(keys.sshd(), "/usr/sbin/sshd").unwrap();
        let mut own = vec![
            File::bytes("/etc/passwd", 0o644, users),
            File::bytes("/etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
            File::bytes("/etc/ssh/sshd_config", 0o644, config),
        ];
        for name in ["host_key", "authorized_keys"] {
            own.push(File::copy(keys.at(name), format!("/etc/ssh/{name}")).unwrap());
        }
        machine.files.extend(own);
        machine.files.extend(sshd);
    }) else {
        return;
    };
    let run = |command: &str| guest.run(command, TIMEOUT).unwrap().text();

    // A server in the guest, reached from the host.
    let (server, address) = listener();
    guest.spawn("nc -ll -p 80 -e cat").unwrap();
    eventually("nc listens", || {
        run("cat /proc/net/tcp /proc/net/tcp6").contains(":0050 ")
    });
    let forward = Forward::in_world(
        &world,
        &["tcp:0", "web:tcp:80", "web:tcp:127.0.0.1:7", &address],
    );
    let mut client = forward.connect(0);
    let sent = pattern(5);
    thread::scope(|scope| {
        let mut writing = &client;
        scope.spawn(move || {
            writing.write_all(&pattern(5)).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&client).read_to_end(&mut got).unwrap();
        assert!(got == sent);
    });

    // A server on the host, reached from the guest.
    guest
        .spawn("echo question | nc 127.0.0.1 7 > /tmp/answer")
        .unwrap();
    let mut served = accept(&server);
    let mut question = String::new();
    served.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question\n");
    served.write_all(b"answer").unwrap();
    drop(served);
    eventually("the answer arrives", || run("cat /tmp/answer") == "answer");

    // An SSH server that the agent starts.
    let mut ssh = keys.ssh(&world, "web", "uname -n; cat; exit 3");
    let ssh = Completed::with_input(&mut ssh, b"to stdin");
    assert_eq!(ssh.code, Some(3), "{ssh:?}");
    assert_eq!(ssh.stdout, "web\nto stdin");

    // AF_VSOCK reports a killed process as an end of data. The forward must turn that into a reset.
    client = forward.connect(0);
    client.write_all(b"ping").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    run("killall -9 hvsock-agent");
    expect_reset(&client, b"");
}

#[test]
fn connections_above_a_limit_are_refused_or_announced_by_its_name() {
    const LIMIT: usize = 256;
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (target, address) = listener();
    let sides = ["tcp:127.0.0.1:0", &format!("{BOX}:{address}")];
    let (mut forward, other) = (
        Forward::start(&fixture, &sides),
        Forward::start(&fixture, &sides),
    );
    let mut held = Vec::new();
    for _ in 0..LIMIT {
        held.push((forward.connect(0), accept(&target)));
    }
    // The guest's limit is for all forwards together.
    let mut refused = other.connect(0);
    let error = refused.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let notes = other.end();
    let limit = "the limit of 256 connections to hvsock forward at once is reached";
    assert!(notes.contains(limit), "{notes}");

    // The command's own clients wait in its backlog until one of the others ends.
    let mut waiting = forward.connect(0);
    waiting.write_all(b"later").unwrap();
    let mut lines = BufReader::new(forward.running.child.stderr.take().unwrap());
    let limit = "the limit of 256 connections at once is reached; further ones wait until one ends";
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "no note");
        if line.contains(limit) {
            break;
        }
    }
    held.pop();
    let mut text = [0; 5];
    accept(&target).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"later");
}
