//! The hybrid vsock socket of a VM, under a client that is written from Firecracker's documentation alone
//! (`docs/vsock.md`, "Host-Initiated Connections"), and under socat.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hvsock::{ElementName, ServiceId};
use hvsock_broker::RecordScope;
use hvsock_broker::model::{AccessList, AuditFilter, AuditOutcome, NewService, PartitionState};
use hvsock_testkit::guest::{
    BUFFER, CloseReason, Guest, GuestListener, GuestStream, HOST, Options,
};
use hvsock_testkit::require;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{WEB, World, bounded, partition_ref, service, service_ref};

use crate::traffic::{read_all, write_all};

/// The guest's port.
const PORT: u32 = 5000;

/// Connects to a VM's socket and sends `bytes`.
fn send(path: &Path, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(path).expect("connected");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
    stream.write_all(bytes).expect("written");
    stream
}

/// Reads a line byte by byte, so that nothing after it is consumed. `None` at the end of the stream.
fn read_line(stream: &mut UnixStream) -> Option<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) => return None,
            Ok(_) if byte == *b"\n" => return Some(String::from_utf8(line).expect("UTF-8")),
            Ok(_) => line.extend(byte),
            Err(error) => panic!("no byte: {error}"),
        }
    }
}

/// Connects to `target`, as Firecracker's documentation has it: "CONNECT 52\n", and then "OK <number>\n".
fn dial(path: &Path, target: impl std::fmt::Display) -> io::Result<UnixStream> {
    let mut stream = send(path, format!("CONNECT {target}\n").as_bytes());
    let line = read_line(&mut stream).unwrap_or_default();
    let number = line.strip_prefix("OK ").and_then(|text| text.parse().ok());
    match number {
        Some(1..=u16::MAX) => Ok(stream),
        _ => Err(io::Error::other(line)),
    }
}

/// The answer to a request that is refused, after which the stream ends.
#[track_caller]
fn refused(path: &Path, request: &[u8]) -> String {
    let mut stream = send(path, request);
    let line = read_line(&mut stream).expect("an answer");
    assert_eq!(read_line(&mut stream), None);
    line
}

/// A broker with the VM `web`, its guest, and a listener there.
struct Served {
    world: World,
    guest: Guest,
    listener: GuestListener,
}

impl Served {
    fn new() -> Self {
        let world = World::with_web(|_| ());
        world.register(PORT);
        let guest = world.guest();
        let listener = guest.listen(PORT).expect("listening");
        Self {
            world,
            guest,
            listener,
        }
    }

    fn path(&self) -> PathBuf {
        path(&self.world)
    }

    /// A connection: the client's end, and the guest's.
    #[track_caller]
    fn pair(&self) -> (UnixStream, GuestStream) {
        let outside = dial(&self.path(), PORT).expect("connected");
        (outside, self.accept())
    }

    #[track_caller]
    fn accept(&self) -> GuestStream {
        bounded(self.listener.accept(TIMEOUT).expect("accepted"))
    }
}

fn path(world: &World) -> PathBuf {
    let path = world.partition("web").hybrid_socket.expect("a path");
    assert_eq!(path, world.dirs().vm_hybrid_socket("web"));
    path
}

#[test]
fn a_client_that_knows_only_firecrackers_convention_exchanges_data_with_a_guest_each_way() {
    let served = Served::new();
    let (outside, inside) = served.pair();
    assert_eq!(inside.peer().0, HOST);
    let seen = served.world.connection();
    let me = (std::process::id(), rustix::process::geteuid().as_raw());
    assert_eq!((seen.from.pid, seen.from.uid), me);
    assert!(!seen.from.guest && seen.to.guest);
    const BYTES: u64 = 1 << 20;
    std::thread::scope(|scope| {
        let (inside, outside) = (&inside, &outside);
        scope.spawn(move || {
            write_all(inside, BYTES, 10_000).expect("the guest writes");
            inside.shutdown(Shutdown::Write).expect("it ends");
        });
        scope.spawn(move || {
            write_all(outside, BYTES, 10_000).expect("the client writes");
            outside.shutdown(Shutdown::Write).expect("it ends");
        });
        let at_client = scope.spawn(move || read_all(outside, 4096).expect("the client reads"));
        let at_guest = scope.spawn(move || read_all(inside, 4096).expect("the guest reads"));
        assert_eq!(at_client.join().expect("no panic"), BYTES);
        assert_eq!(at_guest.join().expect("no panic"), BYTES);
    });
    drop((outside, inside));
    served.world.has_connections(0);
    assert_eq!(served.guest.protocol_violations(), [""; 0]);
}

#[test]
fn each_direction_of_a_hybrid_connection_ends_alone() {
    let served = Served::new();
    let mut text = String::new();
    // The client ends first, and reads the answer.
    let (mut outside, inside) = served.pair();
    outside.write_all(b"question").unwrap();
    outside.shutdown(Shutdown::Write).unwrap();
    (&inside).read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    (&inside).write_all(b"answer").unwrap();
    let seen = served.world.connection();
    assert_eq!(seen.bytes_sent, Some(8), "{seen:?}");
    drop(inside);
    text.clear();
    outside.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    served.world.has_connections(0);
    // The guest ends first.
    let (mut outside, inside) = served.pair();
    (&inside).write_all(b"greeting").unwrap();
    inside.shutdown(Shutdown::Write).unwrap();
    text.clear();
    outside.read_to_string(&mut text).unwrap();
    assert_eq!(text, "greeting");
    outside.write_all(b"thanks").unwrap();
    drop(outside);
    text.clear();
    (&inside).read_to_string(&mut text).unwrap();
    assert_eq!(text, "thanks");
    assert_eq!(inside.close(TIMEOUT).unwrap(), CloseReason::Clean);
    served.world.has_connections(0);
}

#[test]
fn a_service_is_requested_by_its_port_its_guid_or_its_name_in_any_spelling() {
    let served = Served::new();
    let guid: ServiceId = "5ca1ab1e-0000-4000-8000-00000000abcd".parse().unwrap();
    let alias = guid.port_for_guests().unwrap();
    let name = ElementName::new("A Demo of Grüße").unwrap();
    let demo = NewService {
        id: Some(guid),
        name,
        ..service(PORT)
    };
    served
        .world
        .handle()
        .register(demo, "tester".into())
        .unwrap();
    let listener = served.guest.listen(alias).unwrap();
    for target in [
        guid.to_string(),
        guid.to_string().to_uppercase(),
        alias.to_string(),
        "a demo OF grüße".into(),
        format!("  {alias} \r"),
    ] {
        let _outside = dial(&served.path(), &target).expect(&target);
        let _inside = listener.accept(TIMEOUT).unwrap();
    }
    for line in ["connect 5000\n", "Connect 05000\n", " \tCONNECT\t5000\r\n"] {
        let mut outside = send(&served.path(), line.as_bytes());
        assert!(read_line(&mut outside).unwrap().starts_with("OK "));
        let _inside = served.accept();
    }
}

#[test]
fn bytes_behind_the_request_arrive_and_the_guests_first_bytes_come_after_the_answer() {
    let served = Served::new();
    let data = vec![b'x'; 100_000];
    let all = [b"CONNECT 5000\n", &data[..]].concat();
    for pieces in [vec![&all[..]], vec![&all[..5], &all[5..14], &all[14..]]] {
        let mut outside = send(&served.path(), b"");
        let mut writer = outside.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for piece in pieces {
                    writer.write_all(piece).unwrap();
                }
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let inside = served.accept();
            // Sent at once, as an SSH server does.
            (&inside).write_all(b"SSH-2.0\r\n").unwrap();
            let mut found = Vec::new();
            (&inside).read_to_end(&mut found).unwrap();
            assert!(found == data, "{} bytes", found.len());
        });
        let answer = read_line(&mut outside).unwrap();
        assert!(answer.starts_with("OK ") && answer.len() <= 8, "{answer}");
        assert_eq!(read_line(&mut outside).unwrap(), "SSH-2.0\r");
    }
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_served_and_delays_nobody() {
    let served = Served::new();
    let mut slow = send(&served.path(), b"");
    for byte in b"CONNECT 5000\n" {
        // Others are served in between.
        drop(served.pair());
        slow.write_all(&[*byte]).unwrap();
    }
    assert!(read_line(&mut slow).unwrap().starts_with("OK "));
    let inside = served.accept();
    slow.write_all(b"late").unwrap();
    let mut found = [0; 4];
    (&inside).read_exact(&mut found).unwrap();
    assert_eq!(&found, b"late");
}

#[test]
fn a_refused_client_is_answered_with_the_reason_in_one_line() {
    let served = Served::new();
    let (world, path) = (&served.world, served.path());
    let connect = |target: &str| refused(&path, format!("CONNECT {target}\n").as_bytes());
    let unregistered = "ERR the service is not registered";
    assert_eq!(connect("7003"), unregistered);
    assert_eq!(connect("no such name"), unregistered);
    let records = || {
        let all = world
            .handle()
            .audit(RecordScope::All, AuditFilter::default());
        all.expect("records")
    };
    let last = records().pop().expect("a record");
    assert_eq!(
        (last.action.as_str(), last.outcome),
        ("connect", AuditOutcome::Refused)
    );
    assert_eq!(last.service.as_deref(), Some("no such name"));
    assert_eq!(last.target.as_deref(), Some("web"));
    let actor = last.actor.as_ref().expect("an actor");
    assert_eq!(actor.pid, Some(std::process::id()));
    world.register(7002);
    assert_eq!(
        connect("7002"),
        "ERR no listener accepts this service there"
    );
    let disabled = |on| {
        let done = world.handle().set_enabled(&service_ref(PORT), on, None);
        done.expect("changed");
    };
    disabled(false);
    let answer = connect("5000");
    assert!(
        answer.starts_with("ERR the service is disabled by "),
        "{answer}"
    );
    disabled(true);
    let set = |state| {
        let done = world.handle().set_state(&partition_ref("web"), state);
        done.expect("changed");
    };
    set(PartitionState::Paused);
    assert_eq!(connect("5000"), "ERR the partition is paused");
    set(PartitionState::Running);
    drop(served.pair());
    let Served { world, guest, .. } = served;
    drop(guest);
    world.is("web", PartitionState::Off);
    assert_eq!(connect("5000"), "ERR the partition is off");
    world.has_connections(0);
}

#[test]
fn what_is_no_request_is_answered_and_closed() {
    let served = Served::new();
    let path = served.path();
    let expected = "ERR expected the line `CONNECT <port, GUID or name>`";
    for line in [
        "GET / HTTP/1.1\r\n\r\n",
        "\n",
        "OK 1\n",
        "SSH",
        "CONNECT\n",
        "X",
    ] {
        assert_eq!(refused(&path, line.as_bytes()), expected, "{line:?}");
    }
    assert_eq!(
        refused(&path, b"CONNECT 4294967296\n"),
        "ERR a vsock port is a number up to 4294967295; `4294967296` is larger"
    );
    assert_eq!(
        refused(&path, &[b"CONNECT ", &[b'x'; 1000][..]].concat()),
        "ERR a request has at most 320 bytes"
    );
    let answer = refused(&path, b"CONNECT \x1b[2J\n");
    assert!(answer.starts_with("ERR not a service") && !answer.contains('\x1b'));
    // A client that ends before its newline, and one that never says anything.
    let mut cut = send(&path, b"CONNECT 5000");
    cut.shutdown(Shutdown::Write).unwrap();
    let answer = read_line(&mut cut).unwrap();
    assert_eq!(answer, "ERR the request ends without a newline");
    let mut mute = send(&path, b"");
    mute.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_line(&mut mute), None);
    drop(served.pair());
}

#[test]
fn silent_clients_are_dropped_after_the_time_limit() {
    let world = World::with_web(|config| config.idle_timeout = Duration::from_secs(1));
    world.register(PORT);
    let guest = world.guest();
    let listener = guest.listen(PORT).unwrap();
    let path = path(&world);
    let mut outside = dial(&path, PORT).expect("connected");
    let inside = bounded(listener.accept(TIMEOUT).unwrap());
    for request in ["", "C", "CONNECT", "CONNECT 5000"] {
        let answer = refused(&path, request.as_bytes());
        assert_eq!(answer, "ERR no request arrived in time");
    }
    // An established connection has no such limit.
    outside.write_all(b"still here").unwrap();
    let mut found = [0; 10];
    (&inside).read_exact(&mut found).unwrap();
}

#[test]
fn silent_clients_keep_nobody_out() {
    const SLOTS: usize = 100;
    const CLIENTS: usize = 1000;
    let world = World::with_web(|config| {
        config.idle_sessions = SLOTS;
        // None of them times out in this test.
        config.idle_timeout = 10 * TIMEOUT;
    });
    world.register(PORT);
    let guest = world.guest();
    let listener = guest.listen(PORT).unwrap();
    let path = path(&world);
    // An idle client of the endpoint is not evicted by those of the VM's socket.
    let idle = hvsock_sys::seqpacket::connect(&world.dirs().endpoint(), TIMEOUT).unwrap();
    let mut silent: Vec<_> = (0..CLIENTS)
        .map(|at| send(&path, &b"CONNECT 5000"[..at % 13]))
        .collect();
    let _outside = dial(&path, PORT).expect("connected");
    bounded(listener.accept(TIMEOUT).unwrap());
    assert!(!hvsock_sys::message::is_peer_closed(&idle));
    // The clients that have waited longest make room.
    let (evicted, kept) = silent.split_at_mut(CLIENTS - SLOTS);
    for client in evicted {
        let line = read_line(client).expect("an answer");
        assert!(line.contains("that have sent no request"), "{line}");
    }
    // `dial` may have taken a slot until its request arrived.
    for client in &mut kept[1..] {
        client.write_all(b"\n").unwrap();
        let line = read_line(client).expect("an answer");
        assert!(!line.contains("that have sent no request"), "{line}");
    }
}

#[test]
fn a_killed_client_ends_its_connection_and_what_it_wrote_arrives() {
    let served = Served::new();
    for guest_closes in [true, false] {
        let (outside, inside) = served.pair();
        (&outside).write_all(b"last words").unwrap();
        drop(outside);
        let mut text = String::new();
        (&inside).read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
        // A guest that neither sends nor closes keeps no connection open.
        if guest_closes {
            drop(inside);
            served.world.has_connections(0);
        } else {
            served.world.has_connections(0);
            drop(inside);
        }
    }
    // It has not read what the guest sent.
    let (outside, inside) = served.pair();
    (&inside).write_all(b"unread").unwrap();
    eventually("the bytes are there", || {
        hvsock_sys::stream::unread(&outside).is_ok_and(|bytes| bytes == 6)
    });
    drop(outside);
    let error = (&inside).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    served.world.has_connections(0);
    assert_eq!(served.guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_client_sees_an_end_when_the_guest_resets_dies_or_an_operator_closes() {
    let served = Served::new();
    let ended = |mut outside: UnixStream| {
        assert_eq!(read_line(&mut outside), None);
        let mut write = || outside.write_all(b"x").is_err();
        eventually("a write fails", &mut write);
    };
    let (outside, inside) = served.pair();
    inside.reset();
    ended(outside);
    served.world.has_connections(0);
    // The client learns that its own bytes were not read.
    let (mut outside, inside) = served.pair();
    let data = vec![b'x'; 4 << 20];
    outside.set_nonblocking(true).unwrap();
    // More than the guest has room for, so that some of it stays unread in the socket.
    let mut written = 0;
    eventually("the guest's buffer is full", || {
        while let Ok(count) = outside.write(&data) {
            written += count;
        }
        written > BUFFER as usize
    });
    outside.set_nonblocking(false).unwrap();
    inside.reset();
    let error = outside.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (outside, inside) = served.pair();
    let id = served.world.connection().id;
    served.world.handle().close_connection(id).unwrap();
    ended(outside);
    let error = (&inside).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (outside, _inside) = served.pair();
    let Served { world, guest, .. } = served;
    drop(guest);
    ended(outside);
    world.has_connections(0);
}

#[test]
fn a_pause_ends_hybrid_connections_as_all_that_cannot_ask_to_be_kept() {
    let served = Served::new();
    let (mut outside, _inside) = served.pair();
    let set = |state| {
        let web = partition_ref("web");
        served.world.handle().set_state(&web, state).unwrap();
    };
    set(PartitionState::Paused);
    assert_eq!(read_line(&mut outside), None);
    set(PartitionState::Running);
    served.world.has_connections(0);
    drop(served.pair());
}

#[test]
fn a_client_that_gives_up_before_the_guest_answers_leaves_nothing_behind() {
    let world = World::with_web(|_| ());
    world.register(PORT);
    // A guest that never answers.
    let _driver = world.driver(Options::new(WEB));
    world.is("web", PartitionState::Running);
    let path = path(&world);
    drop(send(&path, b"CONNECT 5000\n"));
    let mut waits = send(&path, b"CONNECT 5000\n");
    let answer = read_line(&mut waits).unwrap();
    assert_eq!(answer, "ERR timed out: the peer did not answer");
    world.has_connections(0);
}

#[test]
fn a_guest_that_floods_before_the_answer_does_not_overtake_it() {
    let served = Served::new();
    let mut outside = send(&served.path(), b"");
    let data = vec![b'y'; 300_000];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let inside = served.accept();
            (&inside).write_all(&data).unwrap();
        });
        outside.write_all(b"CONNECT 5000\n").unwrap();
        assert!(read_line(&mut outside).unwrap().starts_with("OK "));
        let mut found = Vec::new();
        outside.read_to_end(&mut found).unwrap();
        assert!(found == data);
    });
}

#[test]
fn the_socket_is_there_as_long_as_its_vm_and_for_every_user() {
    let world = World::with_web(|_| ());
    let path = path(&world);
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    assert_eq!(world.partition("testhost").hybrid_socket, None);
    world.container("box", None);
    assert_eq!(world.partition("box").hybrid_socket, None);
    assert_eq!(world.partition("web").endpoint, None);
    let mut waiting = send(&path, b"CONN");
    let web = partition_ref("web");
    world.handle().remove_partition(&web).unwrap();
    let answer = read_line(&mut waiting).unwrap();
    assert_eq!(answer, "ERR the partition is off");
    assert!(!path.exists());
    world.vm("web", WEB, &[]);
    assert!(path.exists());
    let world = world.restarted();
    assert!(path.exists());
    let folder = world.folder;
    drop(world.broker);
    assert!(!path.exists());
    drop(folder);
}

/// socat with standard input and output, and a VM's socket. As another user if `uid` is set.
fn socat(path: &Path, uid: Option<u32>) -> Command {
    let address = format!("UNIX-CONNECT:{}", path.display());
    let mut command = match uid {
        None => Command::new("socat"),
        Some(uid) => {
            let mut command = Command::new("setpriv");
            let (uid, gid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
            command.args([&*uid, &*gid, "--clear-groups", "socat"]);
            command
        }
    };
    // It waits for the other direction for so many seconds.
    command.args(["-t30", "-", &address]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

#[test]
fn socat_reaches_a_guest_and_half_closes() {
    let Some(_socat) = require::program("socat", &["-V"]) else {
        return;
    };
    let served = Served::new();
    let mut child = socat(&served.path(), None).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"CONNECT 5000\nquestion").unwrap();
    let inside = served.accept();
    served.world.has_connections(1);
    let from = served.world.connection().from;
    assert_eq!(from.pid, child.id());
    drop(input);
    let mut text = String::new();
    (&inside).read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    (&inside).write_all(b"answer").unwrap();
    drop(inside);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = String::from_utf8(output.stdout).unwrap();
    let (first, rest) = output.split_once('\n').unwrap();
    assert!(first.starts_with("OK "), "{first}");
    assert_eq!(rest, "answer");
    served.world.has_connections(0);
}

#[test]
fn the_rules_see_the_user_who_connects_to_the_socket() {
    let programs = require::root().and_then(|()| require::program("socat", &["-V"]));
    let Some(_socat) = programs else {
        return;
    };
    const NOBODY: u32 = 65_534;
    let served = Served::new();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(served.world.folder.path(), open).unwrap();
    let own = NewService {
        connect: AccessList {
            users: Some(vec!["0".into()]),
            ..AccessList::default()
        },
        ..service(5001)
    };
    let handle = served.world.handle();
    handle.register(own, "tester".into()).unwrap();
    let _listener = served.guest.listen(5001).unwrap();
    drop(dial(&served.path(), 5001).expect("root may"));
    let ask = |port: u32| {
        let mut child = socat(&served.path(), Some(NOBODY)).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "CONNECT {port}").unwrap();
        (child, input)
    };
    let (child, input) = ask(5001);
    drop(input);
    let output = child.wait_with_output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(answer.starts_with("ERR access is denied by "), "{answer}");
    assert_eq!(answer.lines().count(), 1);
    served.world.has_connections(0);
    let (mut child, input) = ask(PORT);
    let inside = served.accept();
    served.world.has_connections(1);
    assert_eq!(served.world.connection().from.uid, NOBODY);
    drop((input, inside));
    assert!(child.wait().unwrap().success());
}

/// systemd-ssh-proxy of systemd 257 or later. `HVSOCK_SSH_PROXY` names another one than the system's.
fn ssh_proxy() -> Result<PathBuf, String> {
    let system = "/usr/lib/systemd/systemd-ssh-proxy";
    let named = std::env::var_os("HVSOCK_SSH_PROXY");
    let path = PathBuf::from(named.unwrap_or_else(|| system.into()));
    match path.exists() {
        true => Ok(path),
        false => Err(format!("there is no {}", path.display())),
    }
}

/// The socket that systemd-ssh-proxy passes to ssh, which is its standard output.
fn proxied(proxy: &Path, socket: &Path, port: u32) -> Option<UnixStream> {
    let (output, own) = UnixStream::pair().unwrap();
    let mut child = Command::new(proxy)
        .arg(format!("vsock-mux/{}", socket.display()))
        .arg(port.to_string())
        .stdout(OwnedFd::from(output))
        .spawn()
        .unwrap();
    child.wait().unwrap();
    let received = hvsock_sys::message::recv_with_descriptors(&own, &mut [0; 8]).unwrap();
    received.descriptors.into_iter().next().map(Into::into)
}

#[test]
fn systemd_ssh_proxy_passes_ssh_a_connection_to_the_guest() {
    let Some(proxy) = require::of_this_machine(ssh_proxy()) else {
        return;
    };
    let served = Served::new();
    let socket = served.path();
    let mut outside = std::thread::scope(|scope| {
        let outside = scope.spawn(|| proxied(&proxy, &socket, PORT));
        let inside = served.accept();
        // The server speaks first, as SSH's does.
        (&inside).write_all(b"SSH-2.0-guest\r\n").unwrap();
        let mut line = [0; 9];
        let mut outside = outside.join().unwrap().expect("a socket");
        outside.write_all(b"SSH-2.0-x").unwrap();
        (&inside).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"SSH-2.0-x");
        outside
    });
    // Version 257 leaves the answer to ssh, which skips lines before the server's. Later ones read it.
    let mut line = read_line(&mut outside).unwrap();
    if line.starts_with("OK ") {
        line = read_line(&mut outside).unwrap();
    }
    assert_eq!(line, "SSH-2.0-guest\r");
    // A refusal reaches ssh, which shows it with -v, or the program itself.
    if let Some(mut refused) = proxied(&proxy, &socket, 7003) {
        let line = read_line(&mut refused).unwrap();
        assert!(line.contains("not registered"), "{line}");
    }
}
