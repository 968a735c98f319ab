//! Listeners that the registry permits for some partitions only.

use std::fs;

use super::world::{BOTH, Emulated, Way};
use crate::util::{Completed, eventually};

/// Listens, and says whether the own partition can connect.
const LISTEN: &str = "import socket
sock = socket.socket(socket.AF_VSOCK)
sock.bind((0xffffffff, 6100))
sock.listen(1)
client = socket.socket(socket.AF_VSOCK)
print(client.connect_ex((1, 6100)))";

/// Binds and listens.
const BIND: &str = "import socket
sock = socket.socket(socket.AF_VSOCK)
try:
    sock.bind((0xffffffff, 6100))
    print('bound')
    sock.listen(1)
except OSError as error:
    print(error.errno)";

fn python(emulated: &Emulated, way: Way, arguments: &[&str], script: &str) -> Completed {
    let flags = [arguments, &[way.flag(), "--"]].concat();
    let mut command = emulated.run(flags);
    Completed::of(command.arg(&emulated.python).args(["-c", script]))
}

#[test]
fn without_the_wildcard_a_listener_is_for_the_children_and_says_so() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let world = &emulated.world;
    let id = world.ok(["service", "register", "Web", "--port", "6100"]);
    let file = world.dir().join(format!("services/{}.toml", id.trim()));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("allow_wildcard_binds = false\n{text}")).unwrap();
    let only_children =
        "warning: only child partitions, not this one, can connect to vsock port 6100: ";
    eventually("the registration is read", || {
        let done = python(&emulated, Way::Seccomp, &[], LISTEN);
        done.stderr.starts_with(only_children)
    });
    for way in BOTH {
        let done = python(&emulated, way, &[], LISTEN);
        assert!(done.stderr.starts_with(only_children), "{way:?} {done:?}");
        let help = match way {
            Way::Seccomp => "\nhelp: set allow_wildcard_binds = true in services/",
            Way::Preload => " why --listen any 6100\n",
        };
        assert!(done.stderr.contains(help), "{way:?} {done:?}");
        let reset = libc_errno::ECONNRESET;
        assert_eq!(done.ok(), format!("{reset}\n"), "{way:?}");
        let done = python(&emulated, way, &["-q"], LISTEN);
        assert_eq!(done.stderr, "", "{way:?}");
    }
}

#[test]
fn a_port_that_another_program_has_for_its_partition_only_is_in_use_at_bind() {
    for way in BOTH {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        let hold = "import socket, sys
sock = socket.socket(socket.AF_VSOCK)
sock.bind((0xffffffff, 6100))
sock.listen(1)
print('ready', flush=True)
sys.stdin.read()";
        let mut command = emulated.run(["-q", Way::Seccomp.flag(), "--"]);
        command.arg(&emulated.python).args(["-c", hold]);
        command.stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped());
        let mut holder = crate::util::Running::start(&mut command);
        assert_eq!(holder.line(), "ready");
        let done = python(&emulated, way, &[], BIND);
        assert_eq!(
            done.ok(),
            format!("{}\n", libc_errno::EADDRINUSE),
            "{way:?}"
        );
    }
}

#[test]
fn a_registration_that_clashes_says_with_which_one() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let world = &emulated.world;
    world.ok(["service", "register", "Web", "--port", "6100"]);
    let error = python(&emulated, Way::Seccomp, &["--register", "Web=6101"], "").failed();
    let start =
        "error: cannot register port 6101: access is denied by the registry: \"Web\" (owner ";
    assert!(error.starts_with(start), "{error}");
    assert!(error.contains("already has the name"), "{error}");
}

/// Listens in a child that outlives its parent, twice at the same port, and then at another one.
const SERVE: &str = "import os, socket, sys
if os.fork() > 0:
    os._exit(7)
def listen(port):
    sock = socket.socket(socket.AF_VSOCK)
    sock.bind((0xffffffff, port))
    sock.listen(1)
    return sock
for _ in range(3):
    listen(6100).close()
first = listen(6100)
second = listen(6101)
third = listen(6102)
os.closerange(20, 1000)
print('ready', flush=True)
sys.stdin.read()";

#[test]
fn names_without_a_port_register_what_a_program_listens_for_until_its_last_process_ends() {
    for way in BOTH {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        let world = &emulated.world;
        world.ok(["service", "register", "Known", "--port", "6102"]);
        let mut command = emulated.run(["--register", "Web", "--register", "Known 2"]);
        command.args([way.flag(), "--register", "Spare", "--"]);
        command.arg(&emulated.python).args(["-c", SERVE]);
        command.stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        let mut server = crate::util::Running::start(&mut command);
        assert_eq!(server.line(), "ready");
        let services = world.ok(["service", "list"]);
        for name in ["Web", "Known 2"] {
            assert!(services.contains(name), "{way:?} {services}");
        }
        assert!(!services.contains("Spare"), "{way:?} {services}");
        world.ok(["why", "loopback", "6100"]);
        server.end_input();
        let said = server.rest_of_stderr();
        assert_eq!(server.end().code(), Some(7), "{way:?}");
        let notes = "note: registered vsock port 6100 as \"Web\"
note: registered vsock port 6101 as \"Known 2\"
";
        assert_eq!(said, notes, "{way:?}");
        eventually("the registrations end", || {
            !world.ok(["service", "list"]).contains("Web")
        });
    }
}

#[test]
fn a_name_that_cannot_be_registered_is_said_and_the_program_goes_on() {
    for way in BOTH {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        let world = &emulated.world;
        world.ok(["service", "register", "Web", "--port", "6200"]);
        let done = python(&emulated, way, &["--register", "Web"], LISTEN);
        assert!(
            done.stderr
                .starts_with("warning: cannot register \"Web\": "),
            "{way:?} {done:?}"
        );
        let outside = "nobody outside can connect to vsock port 6100";
        assert!(done.stderr.contains(outside), "{way:?} {done:?}");
        assert_eq!(done.ok(), "0\n", "{way:?}");
    }
}

/// Numbers of errno.h.
mod libc_errno {
    pub const EADDRINUSE: i32 = 98;
    pub const ECONNRESET: i32 = 104;
}
