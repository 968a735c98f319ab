//! Programs in a real guest that use the kernel's AF_VSOCK and not hvsock: socat, ncat and Python, with the
//! host's binaries.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hvsock_guests::{File, Guest};
use hvsock_testkit::require;

use crate::guests::{boot_with, qemu, run_in_guest};
use crate::util::{DEMO, Running, World, eventually};

/// Connects to a port of the host. Prints 0 or the errno, and the duration in milliseconds.
const TRY: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
start = time.monotonic()
code = s.connect_ex((2, int(sys.argv[1])))
print(code, round((time.monotonic() - start) * 1000))
";

const CLIENT: &str = "\
import os, socket, sys
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.connect((2, int(sys.argv[1])))
if os.fork() == 0:
    s.sendall(sys.stdin.buffer.read())
    s.shutdown(socket.SHUT_WR)
    os._exit(0)
while data := s.recv(4096): sys.stdout.buffer.write(data)
";

const SERVER: &str = "\
import socket, sys
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
s.listen()
while True:
    c, _ = s.accept()
    while data := c.recv(4096): c.sendall(data)
    c.close()
";

const ECONNREFUSED: u32 = 111;
const ECONNRESET: u32 = 104;

/// socat, ncat and Python. Python and its modules have the same paths as on the host.
fn programs() -> Option<Vec<File>> {
    let socat = require::program("socat", &["-V"])?;
    let ncat = require::program("ncat", &["--version"])?;
    let python = require::python3()?;
    let mut files = File::program(&socat, "/bin/socat").unwrap();
    files.extend(File::program(&ncat, "/bin/ncat").unwrap());
    // The real interpreter: a launcher of the same name would find itself.
    let (python, modules) = modules(&python);
    let place = python.to_string_lossy().into_owned();
    files.extend(File::program(&python, place.clone()).unwrap());
    for module in modules {
        let place = module.to_string_lossy().into_owned();
        files.extend(File::program(&module, place).unwrap());
    }
    files.push(File::bytes(
        "/bin/python",
        0o755,
        format!("#!/bin/sh\nexec {place} -S -E \"$@\"\n"),
    ));
    for (name, text) in [("try", TRY), ("client", CLIENT), ("server", SERVER)] {
        files.push(File::bytes(format!("/{name}.py"), 0o644, text));
    }
    Some(files)
}

/// The path of the real interpreter, and the files of the modules that a program with sockets loads.
fn modules(python: &Path) -> (PathBuf, BTreeSet<PathBuf>) {
    const LIST: &str = "\
import os, socket, sys, encodings.ascii, encodings.utf_8, encodings.latin_1
print(os.path.realpath(sys.executable))
for m in list(sys.modules.values()):
    if getattr(m, '__file__', None): print(m.__file__)
";
    let output = Command::new(python)
        .args(["-S", "-E", "-c", LIST])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(PathBuf::from);
    (lines.next().unwrap(), lines.collect())
}

#[test]
fn vsock_programs_in_a_guest_reach_named_services_and_are_reached() {
    let Some(kit) = qemu() else {
        return;
    };
    let Some(files) = programs() else { return };
    let world = World::logged();
    world.ok(["vm", "add", "web"]);
    let guest = boot_with(&kit, &world, "web", files);
    guest_reaches_host(&world, &guest);
    host_reaches_guest(&world, &guest);
    refused_connects_fail_before_the_timeout(&world, &guest);
}

fn guest_reaches_host(world: &World, guest: &Guest) {
    // The GUID does not match the vsock template, so the guest uses its port alias.
    world.register(DEMO);
    let shown = world.json(["service", "show", DEMO, "--json"]);
    let port = shown["alias"]
        .as_u64()
        .unwrap_or_else(|| panic!("no alias: {shown}"));
    let _listener = world.listen([DEMO, "--from", "children", "--keep", "--", "cat"]);
    for client in [
        format!("socat -t 10 - VSOCK-CONNECT:2:{port}"),
        format!("ncat --vsock 2 {port}"),
        format!("python /client.py {port}"),
    ] {
        let echo = run_in_guest(guest, &format!("echo from the guest | {client}"));
        assert_eq!(echo, "from the guest", "{client}");
    }
    // More than all buffers on the path hold.
    let sums = run_in_guest(
        guest,
        &format!(
            "head -c 3000000 /dev/urandom >/tmp/data; md5sum </tmp/data; \
             python /client.py {port} </tmp/data | md5sum"
        ),
    );
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!(sums[0], sums[1]);
}

fn host_reaches_guest(world: &World, guest: &Guest) {
    for (port, server) in [
        (5001, "socat VSOCK-LISTEN:5001,fork EXEC:cat"),
        (
            5002,
            "ncat --vsock --listen --keep-open --exec /bin/cat 5002",
        ),
        (5003, "python /server.py 5003"),
    ] {
        let (name, port) = (format!("echo {port}"), port.to_string());
        world.ok(["service", "register", &name, "--port", &port]);
        let server = guest.spawn(&format!("exec {server}")).unwrap();
        eventually("the guest's program listens", || {
            if let Some(status) = server.status().unwrap() {
                let stderr = server.stderr().unwrap();
                panic!("status {status}: {}", String::from_utf8_lossy(&stderr));
            }
            echoes(world, &port)
        });
        assert!(echoes(world, &name), "no echo by name");
        echoes_to_socat(world, &port);
        echoes_to_socat(world, &name);
        server.kill().unwrap();
    }
}

/// Has socat of the host connect to a service of the guest by hybrid vsock and get a line back.
fn echoes_to_socat(world: &World, service: &str) {
    let socket = world.dir().join("vm/web.vsock");
    let mut command = Command::new("socat");
    command.args(["-t", "10", "-"]);
    command.arg(format!("UNIX-CONNECT:{}", socket.display()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut connection = Running::start(command.stderr(Stdio::null()));
    connection.write(format!("CONNECT {service}\nby hybrid vsock\n").as_bytes());
    let answer = connection.line();
    assert!(answer.starts_with("OK "), "{answer}");
    assert_eq!(connection.line(), "by hybrid vsock");
    connection.end_input();
    connection.end();
}

/// Whether a service of the guest returns a line. The half-close follows afterwards: on every transport,
/// ncat drops the output of its program when it sees the half-close.
fn echoes(world: &World, service: &str) -> bool {
    let mut command = world.command(["--quiet", "connect", "web", service]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut connection = Running::start(command.stderr(Stdio::null()));
    // The write fails if the command has ended, because nothing listens yet.
    let stdin = connection.child.stdin.as_mut().unwrap();
    let _ = stdin.write_all(b"from the host\n");
    let line = connection.line();
    connection.end_input();
    connection.end();
    line == "from the host"
}

fn refused_connects_fail_before_the_timeout(world: &World, guest: &Guest) {
    world.ok(["service", "register", "Idle", "--port", "6001"]);
    world.ok(["service", "register", "Disabled", "--port", "6002"]);
    world.ok(["service", "disable", "Disabled"]);
    for (port, reason) in [
        (6001, "no listener accepts"),
        (6002, "disabled"),
        (6003, "not registered"),
    ] {
        let result = run_in_guest(guest, &format!("python /try.py {port}"));
        let (code, milliseconds) = result.split_once(' ').unwrap();
        let (code, milliseconds): (u32, u64) =
            (code.parse().unwrap(), milliseconds.parse().unwrap());
        assert!(
            [ECONNREFUSED, ECONNRESET].contains(&code),
            "{reason}: {result}"
        );
        // Without an answer the errno would be ETIMEDOUT, after the kernel's timeout of 2 s.
        println!("{reason}: errno {code} after {milliseconds} ms");
        let port = port.to_string();
        let why = world.run(["why", "parent", &port, "--from", "web"]);
        assert!(why.stdout.contains(reason), "{reason}: {why:?}");
        assert!(world.log().contains(reason), "{reason}: {}", world.log());
    }
}
