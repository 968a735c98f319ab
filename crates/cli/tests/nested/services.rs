//! The integration services of a container in a VM, from its host and from the VM.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use hvsock_testkit::nested::{Listens, Probe};
use hvsock_testkit::process::CapturedOutput;
use hvsock_testkit::wait;

use crate::partitions::Partitions;
use crate::reading::Place::{self, Box, Db, Host, Web};
use crate::util::{Completed, Running};

const SESSION: &str = "hvsock session";

/// Starts the agent in a container, and waits until host and VM can use it.
fn start_agent(partitions: &Partitions) -> u64 {
    let container = partitions.probe(Box);
    // The root file system of the container is read-only.
    let agent = ["env", "HVSOCK_KVP_DIR=/tmp/kvp", "hvsock-agent"];
    let agent = container.start(&agent);
    for (at, name) in USERS {
        wait::until_ok("the agent offers its services", || {
            let why = partitions
                .probe(at)
                .hvsock(&["why", name, "hvsock shutdown"]);
            if why.success() { Ok(()) } else { Err(why) }
        });
    }
    agent
}

/// Who uses the services, and the name of the container there.
const USERS: [(Place, &str); 2] = [(Web, "box"), (Host, "web/box")];

#[test]
fn commands_files_pairs_and_sockets_of_a_container_in_a_vm_are_reached_from_its_host_and_the_vm() {
    let Some(partitions) = Partitions::new() else {
        return;
    };
    let agent = start_agent(&partitions);
    for (at, name) in USERS {
        let probe = partitions.probe(at);
        commands(probe, name);
        files(probe, name);
        pairs(probe, name);
        sockets(&partitions, probe, name);
    }
    forwarded_socket(&partitions);
    seen_by_the_host(&partitions);
    not_for_others(&partitions);

    // The refusal after the agent's end is that of any partition.
    partitions.probe(Box).end(agent);
    for (at, name) in USERS {
        wait::until_ok("the agent's end is seen", || {
            let done = partitions.probe(at).hvsock(&["exec", name, "--", "true"]);
            let refused = done.status == 125 && done.stderr.contains("no hvsock-agent offers it");
            if refused { Ok(()) } else { Err(done) }
        });
    }
}

fn commands(probe: &Probe, name: &str) {
    let done = probe.hvsock(&["exec", name, "--", "hostname"]);
    assert_eq!(done.ok(), "box\n");
    let done = probe.hvsock(&[
        "exec",
        name,
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    let seen = (done.status, &*done.stdout, &*done.stderr);
    assert_eq!(seen, (7, "out\n", "err\n"));
    let counted = probe.hvsock_with_input(&["exec", "-i", name, "--", "wc", "-c"], "12345");
    assert_eq!(counted.ok().trim(), "5");
    let ended = probe.hvsock(&["exec", "--timeout", "1", name, "--", "sleep", "60"]);
    assert_eq!(ended.status, 124, "{ended}");
}

fn files(probe: &Probe, name: &str) {
    let path = format!("{name}:/tmp/copied");
    let text = "a file for the container\n".repeat(100);
    probe
        .hvsock_with_input(&["-q", "cp", "-", &path], &text)
        .ok();
    assert_eq!(probe.hvsock(&["-q", "cp", &path, "-"]).ok(), text);
    let missing = probe.hvsock(&["-q", "cp", &format!("{name}:/no/such"), "-"]);
    assert!(
        missing.clone().refused().contains("No such file"),
        "{missing}"
    );
}

fn pairs(probe: &Probe, name: &str) {
    let role = probe.partition();
    probe.hvsock(&["kvp", "set", name, "role", role]).ok();
    assert_eq!(
        probe.hvsock(&["kvp", "get", name, "role"]).ok().trim(),
        role
    );
    let listed = probe.hvsock(&["kvp", "list", name, "--pool", "auto"]).ok();
    assert!(listed.contains("6.1"), "the VM's kernel: {listed}");
}

/// `nc` reaches a service in the container as `connect` does.
fn sockets(partitions: &Partitions, probe: &Probe, name: &str) {
    let container = partitions.probe(Box);
    probe
        .hvsock(&["service", "register", "Inside", "--port", "7600"])
        .ok();
    container
        .listen("any", "7600", Listens::As("inside"))
        .expect("listening");
    let banner = probe.hvsock(&["-q", "nc", name, "service:Inside"]).ok();
    assert_eq!(banner, format!("inside {}", probe.partition()));
    container.unlisten("any", "7600");
    let refused = probe
        .hvsock(&["-q", "nc", name, "tcp:127.0.0.1:1"])
        .refused();
    assert!(refused.contains("refused"), "{refused}");
}

/// A socket of the host leads to a TCP port in the container, which has no network.
fn forwarded_socket(partitions: &Partitions) {
    let container = partitions.probe(Box);
    container.start(&["nc", "-ll", "-p", "8080", "-e", "cat"]);
    let path = partitions.stage.world.dir().join("forwarded");
    let sides = [
        &*format!("unix:{}", path.display()),
        "web/box:tcp:127.0.0.1:8080",
    ];
    let world = &partitions.stage.world;
    let mut forward = world.command(["forward"]);
    let mut forward = Running::start(forward.args(sides));
    let echoed = wait::until_ok("the forwarded port answers", || {
        through(&path, b"over both")
    });
    assert_eq!(echoed, b"over both");
    forward.kill();
}

fn through(path: &Path, text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(wait::TIMEOUT))?;
    stream.write_all(text)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.is_empty() {
        true => Err(std::io::ErrorKind::UnexpectedEof.into()),
        false => Ok(answer),
    }
}

/// The host's lists, metrics and events name the container as any partition.
fn seen_by_the_host(partitions: &Partitions) {
    let world = &partitions.stage.world;
    let listed = world.ok(["container", "integration", "web/box"]);
    assert!(listed.contains("session"), "{listed}");
    let mut events = world.command(["events", "--json"]);
    let mut events = Running::start(events.stdout(Stdio::piped()));
    let printed = CapturedOutput::from(events.child.stdout.take().expect("a pipe"));
    // The first connections may be made before the events are followed.
    wait::eventually("a connection is an event", || {
        world.run(["exec", "web/box", "--", "true"]).ok();
        printed.text().contains("web/box")
    });
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut control = UnixStream::connect(world.dir().join("control")).expect("connected");
    control.write_all(request).expect("written");
    let mut metrics = String::new();
    control.read_to_string(&mut metrics).expect("metrics");
    let has = |start: &str| {
        let mut lines = metrics.lines();
        lines.any(|line| line.starts_with(start) && !line.ends_with(" 0"))
    };
    let bytes = format!("hvsock_received_bytes_total{{service=\"{SESSION}\"}} ");
    let counted = has(&bytes) && has("hvsock_partitions{kind=\"container\"");
    assert!(counted, "{metrics}");
}

/// Neither another container, nor another user, nor a user of the container may use or offer them. The VM's
/// operator may keep the host out.
fn not_for_others(partitions: &Partitions) {
    let exec = |probe: &Probe, name: &str| probe.hvsock(&["exec", name, "--", "true"]);
    let sibling = exec(partitions.probe(Db), "box");
    assert_eq!(sibling.status, 125, "{sibling}");
    let itself = partitions.probe(Box).connect("loopback", "911");
    assert_eq!(itself.expect_err("refused").reason, "no_listener");

    let world = &partitions.stage.world;
    let mut other = world.command(["exec", "web/box", "--", "true"]);
    let denied = Completed::of(std::os::unix::process::CommandExt::uid(&mut other, 65534));
    assert_eq!(denied.code, Some(125), "{denied:?}");
    assert!(denied.stderr.contains("access is denied"), "{denied:?}");

    let vm = partitions.probe(Web);
    vm.hvsock(&["service", "deny", SESSION, "--partition", "parent"])
        .ok();
    let denied = exec(partitions.probe(Host), "web/box");
    assert_eq!(denied.status, 125, "{denied}");
    exec(vm, "box").ok();
    vm.hvsock(&["service", "reset", SESSION]).ok();
    exec(partitions.probe(Host), "web/box").ok();
}
