//! `hvsock listen` with commands that inetd or systemd would start.

use std::fs;
use std::process::Stdio;

use hvsock_testkit::require;
use rustix::process::Signal;

use crate::util::{Completed, Running, World, eventually};

/// A service as systemd starts it with `Accept=no`: it checks what it gets, and answers each line of its first
/// two connections in upper case.
const LISTENING: &str = r#"
import os, socket, stat
assert os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["LISTEN_FDS"] == "1"
print(os.environ["LISTEN_FDNAMES"], flush=True)
assert os.readlink("/proc/self/fd/0") == "/dev/null"
assert os.get_inheritable(3)
listener = socket.socket(fileno=3)
assert listener.family == socket.AF_UNIX and listener.type == socket.SOCK_STREAM
assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
assert os.get_blocking(3)
# As a service that polls does.
os.set_blocking(3, False)
os.set_blocking(3, True)
for _ in range(2):
    stream, _ = listener.accept()
    data = b""
    while chunk := stream.recv(65536):
        data += chunk
    stream.sendall(data.upper())
    stream.close()
"#;

/// The same with `Accept=yes`: one connection as descriptor 3.
const ACCEPTED: &str = r#"
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["LISTEN_FDS"] == "1"
assert os.environ["HVSOCK_PEER_PARTITION"]
assert os.readlink("/proc/self/fd/0") == "/dev/null"
print("not for the peer")
stream = socket.socket(fileno=3)
assert not stream.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
while chunk := stream.recv(65536):
    stream.sendall(chunk.upper())
"#;

fn python(script: &str) -> Option<[String; 3]> {
    let python = require::python3()?.into_os_string().into_string().unwrap();
    Some([python, "-c".to_owned(), script.to_owned()])
}

fn exchange(world: &World, input: &[u8]) -> Completed {
    let mut connect = world.command(["connect", "loopback", "2761"]);
    Completed::with_input(&mut connect, input)
}

#[test]
fn a_service_of_systemd_gets_a_listening_socket_when_the_first_connection_comes() {
    let Some(command) = python(LISTENING) else {
        return;
    };
    let world = World::new();
    let mut listen = world.command([
        "-q",
        "listen",
        "2761",
        "--from",
        "loopback",
        "--systemd",
        "--",
    ]);
    let mut listen = world.listening(listen.args(command));
    // Much more than a socket holds, so that the end of the service is before that of the data.
    let input = vec![b'x'; 1 << 20];
    let answer = exchange(&world, &input).ok();
    assert!(answer.bytes().all(|byte| byte == b'X') && answer.len() == input.len());
    assert_eq!(listen.line(), "2761");
    assert_eq!(exchange(&world, b"two").ok(), "TWO");
    // The service has ended, and so does the command.
    assert_eq!(listen.end().code(), Some(0));
}

#[test]
fn a_kept_service_of_systemd_is_started_again_and_outlives_the_broker() {
    let Some(command) = python(LISTENING) else {
        return;
    };
    let mut world = World::new();
    let mut listen = world.command([
        "listen",
        "2761",
        "--from",
        "loopback",
        "--systemd",
        "--keep",
    ]);
    listen.arg("--").args(command).stderr(Stdio::piped());
    let mut listen = world.listening(&mut listen);
    for _ in 0..3 {
        assert_eq!(exchange(&world, b"one").ok(), "ONE");
    }
    world.broker().kill();
    world.start_broker();
    eventually("it listens again", || {
        let done = exchange(&world, b"two");
        done.code == Some(0) && done.stdout == "TWO"
    });
    listen.signal(Signal::TERM);
    assert_eq!(listen.end().code(), Some(0));
    let notes = listen.rest_of_stderr();
    let again = "the listener was closed: ";
    assert_eq!(notes.matches(again).count(), 1, "{notes}");
    assert_eq!(
        notes.matches("listening for `2761` again").count(),
        1,
        "{notes}"
    );
}

#[test]
fn a_service_of_systemd_that_fails_does_not_keep_its_clients_waiting() {
    let world = World::new();
    let mut listen = world.command([
        "listen",
        "2761",
        "--from",
        "loopback",
        "--systemd",
        "--keep",
    ]);
    listen
        .args(["--", "sh", "-c", "exit 3"])
        .stderr(Stdio::piped());
    let mut listen = world.listening(&mut listen);
    for _ in 0..2 {
        assert_eq!(exchange(&world, b"").stdout, "");
    }
    listen.signal(Signal::TERM);
    assert_eq!(listen.end().code(), Some(0));
    let notes = listen.rest_of_stderr();
    let note = "sh failed with exit status: 3; it is started again for the next connection";
    assert_eq!(notes.matches(note).count(), 1, "{notes}");

    // Without --keep its failure is that of the command.
    let mut listen = world.command(["listen", "2761", "--from", "loopback", "--systemd", "--"]);
    let mut listen = world.listening(listen.arg("/nonexistent").stderr(Stdio::piped()));
    exchange(&world, b"");
    assert_eq!(listen.end().code(), Some(1));
    let error = listen.rest_of_stderr();
    assert!(
        error.contains("cannot run /nonexistent: No such file"),
        "{error}"
    );
}

#[test]
fn a_service_of_systemd_ends_with_the_command_that_relays_for_it() {
    let world = World::new();
    let pid = world.dir().join("pid");
    let script = format!("echo $$ >{}; exec sleep 600", pid.display());
    for signal in [Signal::TERM, Signal::KILL] {
        let _ = fs::remove_file(&pid);
        let mut listen = world.command(["-q", "listen", "2761", "--from", "loopback", "--systemd"]);
        let mut listen = world.listening(listen.args(["--", "sh", "-c", &script]));
        let mut connect = world.command(["connect", "loopback", "2761"]);
        let _connect = Running::start(connect.stdin(Stdio::piped()).stdout(Stdio::null()));
        let mut service = String::new();
        eventually("the service runs", || {
            service = fs::read_to_string(&pid).unwrap_or_default();
            service.ends_with('\n')
        });
        listen.signal(signal);
        listen.end();
        eventually("the service ends", || {
            !fs::exists(format!("/proc/{}/exe", service.trim())).unwrap()
        });
    }
}

#[test]
fn each_connection_is_the_socket_of_a_process_of_its_own() {
    let Some(command) = python(ACCEPTED) else {
        return;
    };
    let world = World::new();
    let mut listen = world.command(["-q", "listen", "2761", "--from", "loopback", "--keep"]);
    listen.args(["--systemd=accept", "--"]).args(command);
    let _listen = world.listening(listen.stderr(Stdio::null()));
    for input in ["one", "two"] {
        assert_eq!(
            exchange(&world, input.as_bytes()).ok(),
            input.to_uppercase()
        );
    }
}

#[test]
fn the_input_and_the_output_of_a_command_of_inetd_are_one_socket() {
    let world = World::new();
    let script = "test $(readlink /proc/$$/fd/0) = $(readlink /proc/$$/fd/1) && cat";
    let _listen = world.listen([
        "2761", "--from", "loopback", "--keep", "--", "sh", "-c", script,
    ]);
    assert_eq!(exchange(&world, b"echo").ok(), "echo");
}

#[test]
fn a_network_block_device_is_served_by_socket_activation_and_by_inetd() {
    let nbdkit = require::program("nbdkit", &["--version"]);
    let copy = require::program("nbdcopy", &["--version"]);
    let (Some(nbdkit), Some(copy)) = (nbdkit, copy) else {
        return;
    };
    let world = World::new();
    let nbdkit = nbdkit.to_str().unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    fs::write(world.dir().join("disk"), &data).unwrap();
    let disk = world.dir().join("disk").display().to_string();
    for (port, start) in [
        ("2761", vec!["--systemd", "--", nbdkit, "file", &disk]),
        ("2762", vec!["--", nbdkit, "-s", "file", &disk]),
    ] {
        let mut words = vec![port, "--from", "loopback", "--keep"];
        words.extend(start);
        let _listen = world.listen(words);
        let socket = world.dir().join(format!("{port}.sock"));
        let side = format!("unix:{}", socket.display());
        let mut forward = world.command(["forward", &side, &format!("loopback:vsock:{port}")]);
        let mut forward = Running::start(forward.stdout(Stdio::piped()));
        assert!(forward.line().starts_with(&side));
        let copied = world.dir().join("copy");
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let mut command = std::process::Command::new(&copy);
        Completed::of(command.arg(uri).arg(&copied)).ok();
        assert!(fs::read(&copied).unwrap() == data);
    }
}
