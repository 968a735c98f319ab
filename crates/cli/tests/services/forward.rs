//! `hvsock forward` and `hvsock nc`: a socket here and a socket there are one, with their bytes, ends
//! and failures.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use hvsock_qemu::File;
use rustix::process::Signal;

use crate::scene::{self, BOX, Scene};
use crate::ssh::Keys;
use crate::util::{Done, PATIENCE, Running, World, inside};

/// More than all buffers on the way hold.
const MUCH: usize = 16 << 20;

/// A forwarding that runs, with what it printed when it was ready.
pub struct Forward {
    running: Running,
    lines: Vec<String>,
}

impl Forward {
    pub fn start(scene: &Scene, sides: &[&str]) -> Self {
        Self::in_world(&scene.world, sides)
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

    /// The port where the pair of this number listens.
    fn port(&self, pair: usize) -> u16 {
        let line = &self.lines[pair];
        let listens = line.split(" -> ").next().unwrap();
        let port = listens.rsplit(':').next().unwrap();
        port.parse().unwrap_or_else(|_| panic!("{line}"))
    }

    fn connect(&self, pair: usize) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port(pair))).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Ends it as a service manager does; what it said on stderr.
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
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Closes a connection as one does that breaks off.
fn reset(stream: TcpStream) {
    let linger = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
    drop(stream);
}

fn expect_reset(mut stream: impl Read, before: &[u8]) {
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).expect_err("no clean end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert_eq!(got, before);
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..MUCH).map(|n| ((n + seed) % 251) as u8).collect()
}

/// Much goes both ways at once, and each direction ends by itself.
fn exchange<S>(near: S, far: S, end: impl Fn(&S) -> io::Result<()> + Sync)
where
    for<'a> &'a S: Read + Write,
    S: Send + Sync,
{
    let write = |stream: &S, seed: usize| {
        let mut stream = stream;
        stream.write_all(&pattern(seed)).unwrap();
        end(stream).unwrap();
    };
    let read = |stream: &S, seed: usize| {
        let mut stream = stream;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == pattern(seed));
    };
    thread::scope(|scope| {
        scope.spawn(|| write(&near, 1));
        scope.spawn(|| read(&far, 1));
        scope.spawn(|| write(&far, 2));
        read(&near, 2);
    });
}

#[test]
fn ports_of_the_guest_are_reached_here_and_ports_of_this_machine_there() {
    let scene = Scene::new();
    let (server, address) = listener();
    let (to, from) = (format!("{BOX}:{address}"), format!("{BOX}:tcp:127.0.0.1:0"));
    let forward = Forward::start(&scene, &["tcp:0", &to, &from, &address]);
    assert!(forward.lines[0].starts_with("tcp:127.0.0.1:"));
    assert!(forward.lines[1].starts_with("box:tcp:127.0.0.1:"));
    for pair in [0, 1] {
        let client = forward.connect(pair);
        exchange(client, accept(&server), |stream| {
            stream.shutdown(Shutdown::Write)
        });

        // One direction ends, the other goes on.
        let mut client = forward.connect(pair);
        let mut served = accept(&server);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        served.write_all(b"still here").unwrap();
        drop(served);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "still here");
    }
    let said = forward.end();
    assert!(said.contains("connection from 127.0.0.1:"), "{said}");
    assert!(
        said.contains(&format!("{MUCH} bytes to the guest")),
        "{said}"
    );
}

#[test]
fn unix_sockets_go_both_ways_and_are_removed() {
    let scene = Scene::new();
    let at = |name: &str| scene.world.dir().join(name);
    let server = UnixListener::bind(at("server")).unwrap();
    let side = |name: &str| format!("unix:{}", at(name).display());
    let there = |name: &str| format!("{BOX}:{}", side(name));
    let forward = Forward::start(
        &scene,
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
    let again = scene.run(["forward", &side("here"), &there("server")]);
    assert!(again.failed().contains("Address already in use"));
    forward.end();
    assert!(!at("here").exists());
    crate::util::eventually("the agent removes its socket", || !at("there").exists());
}

#[test]
fn what_breaks_on_one_side_breaks_on_the_other() {
    let scene = Scene::new();
    let (server, address) = listener();
    let (to, from) = (format!("{BOX}:{address}"), format!("{BOX}:tcp:127.0.0.1:0"));
    let forward = Forward::start(&scene, &["tcp:0", &to, &from, &address]);
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
    // Nobody listens any more.
    drop(server);
    for pair in [0, 1] {
        expect_reset(forward.connect(pair), b"");
    }
    let said = forward.end();
    assert_eq!(said.matches("Connection refused").count(), 2, "{said}");
}

#[test]
fn who_is_killed_between_two_sockets_is_no_end_of_either() {
    let mut scene = Scene::new();
    let (server, address) = listener();
    let (to, from) = (format!("{BOX}:{address}"), format!("{BOX}:tcp:127.0.0.1:0"));
    let forward = Forward::start(&scene, &["tcp:0", &to, &from, &address]);
    let pairs = [0, 1].map(|pair| (forward.connect(pair), accept(&server)));
    scene.agent.child.kill().unwrap();
    scene.agent.child.wait().unwrap();
    // The kernel closes the sockets of a process that is killed, and whoever it is that forwards here
    // must not do so for it.
    expect_reset(&pairs[0].0, b"");
    expect_reset(&pairs[1].1, b"");

    // An agent that starts anew has the listener again.
    scene.agent = Running::start(&mut scene::agent_at(&scene.endpoint));
    crate::util::eventually("the agent listens again", || {
        TcpStream::connect(("127.0.0.1", forward.port(1))).is_ok()
    });
    // That one, and perhaps one that came too early, are of no interest.
    let mut client = forward.connect(1);
    client.write_all(b"again").unwrap();
    let mut served = accept(&server);
    while {
        let mut got = [0; 5];
        served.read_exact(&mut got).is_err() || &got != b"again"
    } {
        served = accept(&server);
    }

    scene.world.broker().child.kill().unwrap();
    scene.world.broker().child.wait().unwrap();
    expect_reset(&client, b"");
    expect_reset(&served, b"");
}

#[test]
fn services_of_hvsock_are_sockets_here_and_sockets_here_are_services() {
    let scene = Scene::new();
    scene.world.register("HV Socket Demo");
    let socket = scene.world.dir().join("demo");
    let side = format!("unix:{}", socket.display());
    let service = format!("{BOX}:service:HV Socket Demo");

    let mut listen = inside(
        &scene.endpoint,
        ["listen", "HV Socket Demo", "--keep", "--", "cat"],
    );
    let listen = scene.world.listening(&mut listen);
    let forward = Forward::start(&scene, &[&side, &service]);
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"to a service").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "to a service");
    drop(listen);
    forward.end();

    let server = UnixListener::bind(&socket).unwrap();
    let forward = Forward::start(&scene, &[&service, &side]);
    let mut connect = inside(&scene.endpoint, ["connect", "parent", "HV Socket Demo"]);
    let mut client = Running::start(connect.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (mut served, _) = server.accept().unwrap();
    client.write(b"from a service");
    client.end_input();
    let mut got = String::new();
    served.read_to_string(&mut got).unwrap();
    assert_eq!(got, "from a service");
    drop(served);
    assert!(client.end().success());
    // What breaks here breaks there.
    fs::remove_file(&socket).unwrap();
    drop(server);
    let mut connect = inside(&scene.endpoint, ["connect", "parent", "HV Socket Demo"]);
    let refused = Done::of(connect.stdin(Stdio::piped()));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(forward.end().contains("No such file"));
}

#[test]
fn nc_is_a_pipe_to_a_socket_of_the_guest() {
    let scene = Scene::new();
    let (server, address) = listener();
    let serving = thread::spawn(move || {
        let mut stream = accept(&server);
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
        drop(stream);
        // And the second breaks.
        let mut stream = accept(&server);
        stream.write_all(b"half").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream);
    });
    let sent = pattern(3);
    let mut nc = scene.world.command(["nc", BOX, &address]);
    assert!(Done::bytes_with_input(&mut nc, &sent) == sent);

    let broken = Done::with_input(&mut scene.world.command(["nc", BOX, &address]), b"x");
    assert_eq!((broken.code, broken.stdout.as_str()), (Some(1), "half"));
    assert!(
        broken.stderr.contains("the remote socket broke"),
        "{}",
        broken.stderr
    );
    serving.join().unwrap();

    let refused = scene.run(["nc", BOX, &address]).failed();
    assert!(
        refused.contains("in the guest: Connection refused"),
        "{refused}"
    );
    let missing = scene.run(["nc", BOX, "unix:/nowhere"]).failed();
    assert!(
        missing.contains("unix:/nowhere in the guest: No such file"),
        "{missing}"
    );
    let unknown = scene.run(["nc", BOX, "tcp:nowhere.invalid:80"]).failed();
    assert!(
        unknown.contains("cannot resolve `nowhere.invalid`"),
        "{unknown}"
    );
}

#[test]
fn what_cannot_be_forwarded_is_said_before_anything_is_there() {
    let mut scene = Scene::new();
    let forward = |sides: [&str; 2]| scene.run(["forward", sides[0], sides[1]]);
    let unknown = forward(["tcp:0", "nobody:tcp:80"]).failed();
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
        forward(sides).misused();
    }
    scene.run(["forward", "tcp:0"]).misused();
    scene
        .run(["forward", "tcp:0", "box:tcp:80", "tcp:0"])
        .misused();
    scene.run(["forward", "udp:53", "box:tcp:80"]).misused();

    scene.agent.child.kill().unwrap();
    scene.agent.child.wait().unwrap();
    let none = scene.run(["forward", "tcp:0", "box:tcp:80"]).failed();
    assert!(none.contains("no hvsock-agent offers it there"), "{none}");
}

#[test]
fn who_fetches_nothing_or_says_nothing_sensible_does_no_harm() {
    let scene = Scene::new();
    let (_server, address) = listener();
    let port: SocketAddr = address.strip_prefix("tcp:").unwrap().parse().unwrap();
    // Not a message, a message of no request, and one that never ends.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4],
        &[255, 255, 0, 0, 1],
    ] {
        let mut connect = scene.world.command(["connect", BOX, "hvsock forward"]);
        let done = Done::with_input(&mut connect, bytes);
        assert!(!done.stdout.contains('\x01'), "{done:?}");
    }
    // A token that nobody was given: field 3, 16 bytes.
    let mut request = vec![18, 0, 0, 0, 0x1a, 16];
    request.extend_from_slice(&[7; 16]);
    let mut connect = scene.world.command(["connect", BOX, "hvsock forward"]);
    let done = Done::with_input(&mut connect, &request);
    assert!(
        done.stdout.contains("no such pending connection"),
        "{done:?}"
    );
    // It serves on.
    let mut nc = scene.world.command(["nc", BOX, &format!("tcp:{port}")]);
    let mut nc = Running::start(nc.stdin(Stdio::piped()).stdout(Stdio::piped()));
    drop(accept(&_server));
    nc.end_input();
    assert!(nc.end().success());
}

#[test]
fn in_a_real_container_unix_sockets_are_reached_both_ways() {
    let world = World::new();
    let Some(_cage) = scene::container(&world, "cage") else {
        return;
    };
    let at = |name: &str| world.dir().join(name);
    let server = UnixListener::bind(at("server")).unwrap();
    let side = |name: &str| format!("unix:{}", at(name).display());
    // The second leads through the first, and so into the container and out of it again.
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

    // The container's network has nothing, and nobody listens in it.
    let refused = world.run(["nc", "cage", "tcp:80"]).failed();
    assert!(refused.contains("in the guest: "), "{refused}");
}

#[test]
fn in_a_real_guest_ports_and_ssh_are_reached_without_a_network() {
    let world = World::new();
    let Some(keys) = Keys::new() else { return };
    let config = Keys::config(
        "/etc/ssh/host_key".as_ref(),
        "/etc/ssh/authorized_keys".as_ref(),
    );
    let users = "root:*:0:0:root:/root:/bin/sh\nsshd:*:100:65534::/run/sshd:/bin/false\n";
    let Some(guest) = scene::guest_with(&world, "web", |machine| {
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
    let run = |command: &str| guest.run(command, PATIENCE).unwrap().text();

    // A server there, reached from here.
    let (server, address) = listener();
    guest.spawn("nc -ll -p 80 -e cat").unwrap();
    crate::util::eventually("it listens", || {
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

    // A server here, reached from there.
    guest
        .spawn("echo question | nc 127.0.0.1 7 > /tmp/answer")
        .unwrap();
    let mut served = accept(&server);
    let mut asked = String::new();
    served.read_to_string(&mut asked).unwrap();
    assert_eq!(asked, "question\n");
    served.write_all(b"answer").unwrap();
    drop(served);
    crate::util::eventually("the answer arrives", || run("cat /tmp/answer") == "answer");

    // An SSH server that nobody has started.
    let mut ssh = keys.ssh(&world, "web", "uname -n; cat; exit 3");
    let ssh = Done::with_input(&mut ssh, b"to stdin");
    assert_eq!(ssh.code, Some(3), "{ssh:?}");
    assert_eq!(ssh.stdout, "web\nto stdin");

    // By AF_VSOCK a death looks like an end, and must not come out as one.
    client = forward.connect(0);
    client.write_all(b"ping").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    run("killall -9 hvsock-agent");
    expect_reset(&client, b"");
}
