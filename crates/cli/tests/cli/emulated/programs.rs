//! Programs of others, and peers in other partitions.

use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::world::{BOTH, Emulated, Way, file};
use crate::util::{Completed, Running, in_container};

/// Whether a program is installed.
fn has(program: &str) -> bool {
    let probe = Command::new(program)
        .arg("-h")
        .stdin(Stdio::null())
        .output();
    match probe {
        Ok(_) => true,
        Err(_) => {
            eprintln!("skipped: {program} is not installed");
            false
        }
    }
}

fn run(emulated: &Emulated, way: Way, program: &[&str]) -> Command {
    let mut command = emulated.run([way.flag(), "--"]);
    command.args(program);
    command
}

#[test]
fn socat_serves_each_connection_by_a_child_and_connects() {
    if !has("socat") {
        return;
    }
    for way in BOTH {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        let server = ["socat", "VSOCK-LISTEN:6000,fork", "EXEC:cat"];
        let mut server = emulated.world.listening(&mut run(&emulated, way, &server));
        for input in ["one\n", "two"] {
            let client = ["socat", "-t10", "-", "VSOCK-CONNECT:1:6000"];
            let mut client = run(&emulated, way, &client);
            let done = Completed::with_input(&mut client, input.as_bytes());
            assert_eq!(done.ok(), input, "{way:?}");
        }
        // A client that knows hvsock.
        let mut client = emulated.world.command(["connect", "loopback", "6000"]);
        assert_eq!(Completed::with_input(&mut client, b"three").ok(), "three");
        server.signal(Signal::TERM);
        assert_eq!(server.end().code(), Some(143), "{way:?}");
    }
}

#[test]
fn ncat_listens_and_connects() {
    if !has("ncat") {
        return;
    }
    for way in BOTH {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        let server = ["ncat", "--vsock", "-l", "6000"];
        let mut server = emulated.world.listening(&mut run(&emulated, way, &server));
        let mut client = run(&emulated, way, &["ncat", "--vsock", "1", "6000"]);
        Completed::with_input(&mut client, b"hello\n").ok();
        assert_eq!(server.rest(), b"hello\n", "{way:?}");
    }
}

#[test]
fn programs_of_a_container_and_of_the_host_reach_each_other() {
    for way in BOTH {
        let Some(emulated) = Emulated::new() else {
            return;
        };
        let world = &emulated.world;
        for (name, port) in [("up", "6000"), ("down", "6001")] {
            world.ok(["service", "register", name, "--port", port]);
        }
        let endpoint = world.container("web");
        let shown = world.json(["container", "show", "web", "--json"]);
        let cid = shown["cid"].to_string();
        let script = file("sockets.py");
        let inside = |scenario: &[&str]| {
            let mut command = in_container(&endpoint, ["run", way.flag(), "--"]);
            command.env("HVSOCK_PRELOAD_LIB", &emulated.library);
            command.arg(&emulated.python).arg(&script).args(scenario);
            command
        };
        let outside = |scenario: &[&str]| {
            let mut command = emulated.run([way.flag(), "--"]);
            command.arg(&emulated.python).arg(&script).args(scenario);
            command
        };
        // From the container to the host, which is CID 2 there.
        let mut server = world.listening(&mut outside(&["serve_one", "6000"]));
        let peer = Completed::of(&mut inside(&["dial_one", "6000", "2"])).ok();
        assert_eq!(server.line(), format!("peer {cid}"), "{way:?}");
        assert!(peer.starts_with(&format!("own {cid}\n")), "{peer}");
        assert_eq!(server.end().code(), Some(0));
        // From the host to the container, by its CID.
        let mut server: Running = world.listening(&mut inside(&["serve_one", "6001"]));
        Completed::of(&mut outside(&["dial_one", "6001", &cid])).ok();
        assert_eq!(server.line(), "peer 2", "{way:?}");
    }
}
