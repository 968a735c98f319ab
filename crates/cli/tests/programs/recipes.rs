//! The recipes of docs/programs.md: clients that know Unix sockets only, through `hvsock forward`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use hvsock_testkit::require;
use rustix::process::Signal;

use crate::fixture::{BOX, Fixture};
use crate::util::{Completed, Running, World};

/// Serves each connection to a Unix socket by this function, until the process ends.
fn serve(path: &Path, serve: impl Fn(UnixStream) + Send + Sync + Clone + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            thread::spawn(move || serve(stream));
        }
    });
}

/// A server of HTTP that answers each request by the function of its path: JSON.
fn serve_http(path: &Path, answer: fn(&str) -> &'static str) {
    serve(path, move |stream| {
        let mut lines = BufReader::new(&stream);
        loop {
            let (mut request, mut line) = (String::new(), String::new());
            if lines.read_line(&mut request).unwrap_or(0) == 0 {
                return;
            }
            while lines.read_line(&mut line).unwrap_or(0) > 2 {
                line.clear();
            }
            let path = request.split(' ').nth(1).unwrap_or_default();
            let body = answer(path);
            let text = format!(
                "HTTP/1.1 200 OK\r\nApi-Version: 1.40\r\nOstype: linux\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            if (&stream).write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    });
}

/// `hvsock forward` from a Unix socket of this machine, with the path of that socket.
struct Forward {
    running: Running,
    socket: PathBuf,
}

impl Forward {
    fn start(world: &World, name: &str, target: &str) -> Self {
        let socket = world.dir().join(name);
        let side = format!("unix:{}", socket.display());
        let mut command = world.command(["forward", &side, target]);
        let mut running = Running::start(command.stdout(Stdio::piped()));
        assert!(running.line().starts_with(&side));
        Self { running, socket }
    }
}

#[test]
fn curl_reaches_a_web_server_in_a_guest_by_a_unix_socket() {
    let Some(curl) = require::program("curl", &["--version"]) else {
        return;
    };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    let served = world.dir().join("web");
    serve_http(&served, |path| if path == "/hello" { "hello" } else { "?" });
    let target = format!("{BOX}:unix:{}", served.display());
    let mut forward = Forward::start(world, "here", &target);
    let mode = std::fs::metadata(&forward.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut command = Command::new(curl);
    command.args(["--silent", "--show-error", "--unix-socket"]);
    command.arg(&forward.socket).arg("http://web/hello");
    assert_eq!(Completed::of(&mut command).ok(), "hello");
    forward.running.signal(Signal::TERM);
    assert!(forward.running.end().success());
    assert!(!forward.socket.exists());
}

#[test]
fn clients_of_docker_reach_an_engine_in_a_guest_by_docker_host() {
    // Debian's Python has the library of docker's own project. The client in Go comes with the whole engine in Debian.
    let Some(python) = require::program("/usr/bin/python3", &["-c", "import docker"]) else {
        return;
    };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    let served = world.dir().join("docker");
    serve_http(&served, |path| match path {
        "/_ping" => "OK",
        path if path.contains("/containers/json") => {
            r#"[{"Id":"0123456789abcdef","Names":["/of-the-guest"],"Image":"busybox","Command":"sh","Created":0,"Status":"Up","State":"running","Ports":[]}]"#
        }
        _ => "{}",
    });
    let target = format!("{BOX}:unix:{}", served.display());
    let forward = Forward::start(world, "docker.sock", &target);
    let host = format!("unix://{}", forward.socket.display());
    let list = "import docker; client = docker.from_env(version='1.40'); \
                print(*(it['Names'][0] for it in client.api.containers()))";
    let mut command = Command::new(python);
    command.args(["-c", list]).env("DOCKER_HOST", &host);
    let names = Completed::of(command.env("HOME", world.dir())).ok();
    assert_eq!(names, "/of-the-guest\n");
    let client = Command::new("docker").arg("--version").output();
    if client.is_ok_and(|output| output.status.success()) {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", host).env("HOME", world.dir());
        let names = Completed::of(docker.args(["ps", "--format", "{{.Names}}"])).ok();
        assert_eq!(names, "of-the-guest\n");
    }
}

/// The minimum of PostgreSQL's protocol (version 3.0): authentication without a password, and one row in answer
/// to each simple query.
fn serve_postgres(mut stream: UnixStream) {
    let message = |kind: u8, body: &[u8]| {
        let mut bytes = vec![kind];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    };
    let startup = |stream: &mut UnixStream| -> Option<u32> {
        let mut head = [0; 8];
        stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes(head[..4].try_into().unwrap());
        let mut rest = vec![0; length as usize - 8];
        stream.read_exact(&mut rest).ok()?;
        Some(u32::from_be_bytes(head[4..].try_into().unwrap()))
    };
    loop {
        match startup(&mut stream) {
            // Requests of TLS and of GSSAPI.
            Some(80_877_103 | 80_877_104) => stream.write_all(b"N").unwrap(),
            Some(_) => break,
            None => return,
        }
    }
    let mut hello = message(b'R', &[0; 4]);
    hello.extend(message(b'S', b"server_version\x0015.0\0"));
    hello.extend(message(b'S', b"client_encoding\0UTF8\0"));
    hello.extend(message(b'Z', b"I"));
    stream.write_all(&hello).unwrap();
    loop {
        let mut head = [0; 5];
        if stream.read_exact(&mut head).is_err() || head[0] == b'X' {
            return;
        }
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        let mut query = vec![0; length as usize - 4];
        stream.read_exact(&mut query).unwrap();
        let mut columns = vec![0, 1];
        columns.extend(b"answer\0");
        // Table, column, type (text), length, modifier, format.
        columns.extend([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ]);
        let mut answer = message(b'T', &columns);
        answer.extend(message(b'D', b"\0\x01\0\0\0\x0cof the guest"));
        answer.extend(message(b'C', b"SELECT 1\0"));
        answer.extend(message(b'Z', b"I"));
        stream.write_all(&answer).unwrap();
    }
}

#[test]
fn psql_reaches_a_database_in_a_guest_by_the_folder_of_its_socket() {
    let Some(psql) = require::program("psql", &["--version"]) else {
        return;
    };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    let served = world.dir().join("postgres");
    serve(&served, serve_postgres);
    let target = format!("{BOX}:unix:{}", served.display());
    let forward = Forward::start(world, ".s.PGSQL.5432", &target);
    let mut command = Command::new(psql);
    command
        .env("PGSSLMODE", "disable")
        .env("HOME", world.dir())
        .arg("-h");
    command.arg(forward.socket.parent().unwrap());
    command.args([
        "-U",
        "me",
        "-d",
        "db",
        "-w",
        "-X",
        "-A",
        "-t",
        "-c",
        "select 'x'",
    ]);
    assert_eq!(Completed::of(&mut command).ok(), "of the guest\n");
}

#[test]
fn a_stale_socket_of_a_killed_forward_is_replaced_and_a_live_one_is_not() {
    let world = World::new();
    let _cat = world.listen(["2761", "--from", "loopback", "--keep", "--", "cat"]);
    let mut killed = Forward::start(&world, "here", "loopback:vsock:2761");
    let side = format!("unix:{}", killed.socket.display());
    let error = world
        .run(["forward", &side, "loopback:vsock:2761"])
        .failed();
    assert!(error.contains("Address already in use"), "{error}");
    killed.running.kill();
    assert!(killed.socket.exists());
    let forward = Forward::start(&world, "here", "loopback:vsock:2761");
    let mut stream = UnixStream::connect(&forward.socket).unwrap();
    stream.write_all(b"x").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "x");
}

#[test]
fn grpc_reaches_a_service_of_a_guest_by_a_unix_target() {
    use hvsock_services::wire::kvp::kvp_client::KvpClient;
    use hvsock_services::wire::kvp::{GetRequest, Pool};

    let Some(fixture) = Fixture::new() else {
        return;
    };
    let target = format!("{BOX}:service:hvsock kvp");
    let forward = Forward::start(&fixture.world, "kvp.sock", &target);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let get = async {
        let target = format!("unix:{}", forward.socket.display());
        let channel = tonic::transport::Endpoint::from_shared(target).unwrap();
        let mut client = KvpClient::new(channel.connect().await.unwrap());
        let request = GetRequest {
            pool: Pool::Auto.into(),
            key: "OSVersion".to_owned(),
        };
        client.get(request).await.unwrap().into_inner().value
    };
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let got = runtime.unwrap().block_on(get);
    assert!(!got.is_empty() && version.starts_with(&got), "{got}");
}
