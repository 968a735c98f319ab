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
    let only_children = "warning: only child partitions can connect to vsock port 6100: ";
    eventually("the registration is read", || {
        let done = python(&emulated, Way::Seccomp, &[], LISTEN);
        done.stderr.starts_with(only_children)
    });
    for way in BOTH {
        let done = python(&emulated, way, &[], LISTEN);
        assert!(done.stderr.starts_with(only_children), "{way:?} {done:?}");
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

/// Numbers of errno.h.
mod libc_errno {
    pub const EADDRINUSE: i32 = 98;
    pub const ECONNRESET: i32 = 104;
}
