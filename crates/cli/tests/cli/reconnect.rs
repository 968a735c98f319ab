//! `hvsock vm reconnect` with monitors that fail. With a real guest: `guest_failures`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::util::{Completed, World};

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

/// A monitor that does this with each client.
fn monitor(world: &World, serve: impl Fn(UnixStream) + Send + 'static) -> PathBuf {
    let path = world.dir().join("qmp");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap());
        }
    });
    path
}

/// A monitor that greets and answers each command.
fn answers(world: &World, answer: impl Fn(&Value) -> String + Send + 'static) -> PathBuf {
    monitor(world, move |mut stream| {
        stream.write_all(GREETING).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            let call: Value = serde_json::from_str(&line).unwrap();
            let _ = stream.write_all(answer(&call).as_bytes());
        }
    })
}

/// A QEMU with the device of the VM `web`, whose answers to one command are replaced.
fn qemu(call: &Value, socket: &str, command: &str, error: &str) -> String {
    let device = json!({ "name": "hvsock-device", "type": "child<vhost-user-vsock-pci>" });
    let id = &call["id"];
    let name = call["execute"].as_str().unwrap();
    if name == command {
        return json!({ "error": { "desc": error }, "id": id }).to_string() + "\n";
    }
    let result = match name {
        "query-status" => json!({ "running": true, "status": "running" }),
        "query-chardev" => {
            json!([{ "label": "hvsock-web", "filename": format!("disconnected:unix:{socket}") }])
        }
        "qom-list" => json!([device]),
        "qom-get" if call["arguments"]["property"] == "chardev" => json!("hvsock-web"),
        "qom-get" => json!("/machine/peripheral/hvsock-port-web/hvsock-port-web"),
        _ => json!({}),
    };
    let event = json!({ "event": "DEVICE_DELETED", "data": {} });
    let reply = json!({ "return": result, "id": id });
    format!("{event}\n{reply}\n")
}

fn reconnect(world: &World, qmp: &std::path::Path, seconds: &str) -> Completed {
    let qmp = qmp.to_str().unwrap();
    world.run(["vm", "reconnect", "web", "--qmp", qmp, "--timeout", seconds])
}

#[test]
fn each_failing_step_of_a_reconnect_is_named_with_the_next_step() {
    let world = World::new();
    world.ok(["vm", "add", "web"]);
    let socket = world.dir().join("vm/web.sock");
    let socket = socket.to_str().unwrap().to_owned();
    for (command, why, message, help) in [
        (
            "qom-list",
            "no",
            "QEMU refused qom-list: no",
            "restart QEMU",
        ),
        (
            "device_del",
            "Bus 'pcie.0' does not support hotplugging",
            "cannot be exchanged: Bus 'pcie.0' does not",
            "vm show web --vmm qemu",
        ),
        (
            "device_del",
            "\u{1b}[31mbad",
            "refused device_del: \\u{1b}[31mbad",
            "restart QEMU",
        ),
        (
            "chardev-remove",
            "Chardev 'hvsock-web' is busy",
            "the guest has not released the device in time",
            "PCI hot-plug",
        ),
        (
            "chardev-add",
            "Failed to connect to 'x': Permission denied",
            "refused chardev-add: Failed to connect",
            "the guest has no vsock device now",
        ),
        (
            "device_add",
            "Bus not found",
            "refused device_add: Bus",
            "no vsock device now",
        ),
        // No step fails, and the broker sees no VMM.
        (
            "none",
            "",
            "the broker does not see it: web is defined",
            "status",
        ),
    ] {
        let socket = socket.clone();
        let qmp = answers(&world, move |call| qemu(call, &socket, command, why));
        let error = reconnect(&world, &qmp, "1").failed();
        assert!(error.contains(message), "{command}: {error}");
        let (_, given) = error.split_once("help: ").unwrap();
        assert!(given.contains(help), "{command}: {error}");
    }
    let qmp = answers(&world, |call| {
        qemu(call, "/run/hvsock/vm/db.sock", "none", "")
    });
    let error = reconnect(&world, &qmp, "1").failed();
    assert!(
        error.contains("uses another socket, /run/hvsock/vm/db.sock"),
        "{error}"
    );
    assert!(error.contains("help: give the monitor of `web`"), "{error}");
}

#[test]
fn a_monitor_that_is_silent_garbled_or_endless_ends_a_reconnect_in_time() {
    let world = World::new();
    world.ok(["vm", "add", "web"]);
    let failed = |qmp: &std::path::Path, message: &str| {
        let began = Instant::now();
        let error = reconnect(&world, qmp, "1").failed();
        assert!(
            error.contains(message) && error.contains("help: "),
            "{error}"
        );
        assert!(began.elapsed() < Duration::from_secs(30), "{error}");
    };
    failed(&world.dir().join("absent"), "nothing listens there");
    // As QEMU's does while it serves another client: the connection waits in the backlog.
    let (held, clients) = std::sync::mpsc::channel();
    let qmp = monitor(&world, move |stream| held.send(stream).unwrap());
    failed(&qmp, "another client uses this monitor");
    drop(clients);
    failed(&monitor(&world, drop), "it closed the connection");
    let greets = |bytes: &'static [u8]| {
        move |mut stream: UnixStream| {
            let _ = stream.write_all(bytes);
            // The client ends the connection, or closes it unread.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    };
    failed(&monitor(&world, greets(b"SSH-2.0-x\n")), "no QMP socket");
    failed(&monitor(&world, greets(b"{}\n")), "another greeting");
    let endless = |mut stream: UnixStream| {
        let _ = stream.write_all(GREETING);
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    };
    failed(&monitor(&world, endless), "a line without end");
    let events = |mut stream: UnixStream| {
        let _ = stream.write_all(GREETING);
        while stream.write_all(b"{\"event\": \"X\"}\n").is_ok() {}
    };
    failed(&monitor(&world, events), "no QMP socket");
    // It greets and then says nothing.
    failed(&monitor(&world, greets(GREETING)), "the time is over");
}
