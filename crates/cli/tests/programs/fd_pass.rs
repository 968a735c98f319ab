//! `hvsock nc --fd-pass`: a connection's descriptor for the program that asked for it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use hvsock_testkit::require;

use crate::fixture::{BOX, Fixture};
use crate::keys::Keys;
use crate::util::{Completed, Running, TIMEOUT, World};

/// Runs a command with a Unix socket as its standard output. Returns the descriptor that it passed.
fn passed(command: &mut Command) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let done = command.stdout(Stdio::from(OwnedFd::from(theirs)));
    assert!(done.status().unwrap().success());
    // The command holds the other end.
    done.stdout(Stdio::null());
    let (count, fd) = hvsock_sys::stream::recv_with_descriptor(&ours, &mut [0; 8]).unwrap();
    assert_eq!(count, 1);
    let stream = UnixStream::from(fd.expect("a descriptor"));
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

fn exchange(mut stream: UnixStream) {
    let much = vec![b'x'; 3 << 20];
    let mut writer = stream.try_clone().unwrap();
    let written = much.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&written).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == much);
    writing.join().unwrap();
}

#[test]
fn a_passed_connection_to_a_service_outlives_the_command_and_ends_cleanly() {
    let world = World::new();
    let _cat = world.listen(["2761", "--from", "loopback", "--keep", "--", "cat"]);
    let mut nc = world.command(["nc", "--fd-pass", "loopback", "vsock:2761"]);
    let stream = passed(&mut nc);
    let of_command = world.connections().len();
    assert_eq!(of_command, 1);
    exchange(stream);
    // From a container to its parent.
    world.ok(["service", "register", "echo", "--port", "2762"]);
    let _parent = world.listen(["2762", "--keep", "--", "cat"]);
    let endpoint = world.container("web");
    let mut nc = crate::util::in_container(&endpoint, ["nc", "--fd-pass", "parent", "vsock:2762"]);
    exchange(passed(&mut nc));
}

#[test]
fn a_passed_connection_to_a_socket_in_a_guest_is_relayed() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    let path = world.dir().join("echo");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut copy = &stream;
        std::io::copy(&mut copy, &mut &stream).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let socket = format!("unix:{}", path.display());
    let mut nc = world.command(["nc", BOX, &socket, "--fd-pass"]);
    exchange(passed(&mut nc));
    // What cannot be reached is an error of the command, not of the descriptor.
    let mut nc = world.command(["nc", "--fd-pass", BOX, "unix:/nonexistent"]);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    nc.stdout(OwnedFd::from(theirs)).stderr(Stdio::piped());
    let mut nc = Running::start(&mut nc);
    assert_eq!(nc.end().code(), Some(1));
    let error = nc.rest_of_stderr();
    assert!(error.contains("unix:/nonexistent in the guest"), "{error}");
}

#[test]
fn passing_a_connection_fails_without_a_socket_to_pass_it_over() {
    let world = World::new();
    let _cat = world.listen(["2761", "--from", "loopback", "--keep", "--", "cat"]);
    let error = world
        .run(["nc", "--fd-pass", "loopback", "vsock:2761"])
        .failed();
    assert!(
        error.contains("standard output is not a Unix socket"),
        "{error}"
    );
    assert!(error.contains("help: "), "{error}");
    let error = world
        .run(["nc", "--fd-pass", "loopback", "vsock:1"])
        .failed();
    assert!(error.contains("cannot connect to"), "{error}");
}

#[test]
fn ssh_uses_a_passed_connection() {
    let Some(keys) = Keys::new() else { return };
    let Some(()) = require::root() else { return };
    let world = World::new();
    let sshd = keys.program();
    let sshd = sshd.to_str().unwrap();
    let _sshd = world.listen(["2761", "--from", "loopback", "--keep", "--", sshd, "-i"]);
    let nc = world.command(["nc", "--fd-pass", "loopback", "vsock:2761"]);
    let mut words = vec![nc.get_program().to_str().unwrap()];
    words.extend(nc.get_args().map(|word| word.to_str().unwrap()));
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-i"])
        .arg(keys.at("client_key"))
        .args(["-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "GlobalKnownHostsFile=/dev/null", "-o"])
        .arg(format!("UserKnownHostsFile={}", keys.at("known").display()))
        .args(["-o", "ProxyUseFdpass=yes", "-o"])
        .arg(format!("ProxyCommand={}", words.join(" ")))
        .args(["root@hvsock", "cat"]);
    let input = vec![b'x'; 1 << 20];
    assert!(Completed::bytes_with_input(&mut ssh, &input) == input);
}
