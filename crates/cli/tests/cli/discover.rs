//! `hvsock vm discover`, with an Incus and VMMs that are no more than their sockets and command lines. Other
//! virtual machines of this machine may be found, too, so each test names its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use hvsock_testkit::require;
use serde_json::{Value, json};

use crate::util::{Completed, World};

/// Incus with these instances.
fn incus(world: &World, instances: &Value) -> PathBuf {
    let path = world.dir().join("incus");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = format!(
        "HTTP/1.0 200 OK\r\n\r\n{}",
        json!({ "metadata": instances })
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
    path
}

fn instance(name: &str, status: &str, cid: &str) -> Value {
    json!({
        "name": name, "project": "default", "type": "virtual-machine", "status": status,
        "config": { "volatile.vsock_id": cid },
    })
}

/// A process that calls itself a VMM, and ends with its standard input.
struct Vmm(Child);

impl Vmm {
    fn new(program: &str, arguments: &[&str], user: Option<u32>) -> Self {
        let mut command = Command::new("/bin/sh");
        command
            .arg0(program)
            .args(["-c", "echo ready; read line", program]);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command.current_dir("/");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        Self(child)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn discover(world: &World, arguments: &[&str]) -> Completed {
    let mut command = world.command(["vm", "discover"]);
    command
        .args(arguments)
        .env("INCUS_SOCKET", world.dir().join("incus"));
    Completed::of(&mut command)
}

#[test]
fn virtual_machines_of_a_manager_are_listed_and_added_with_their_way_and_manager() {
    let world = World::new();
    let instances = json!([
        instance("web-incus", "Running", "41177"),
        instance("my vm", "Frozen", "41178"),
        instance("bare-incus", "Running", ""),
        instance("bad\n\u{1b}[31m", "Stopped", "41179"),
    ]);
    incus(&world, &instances);
    let names = ["web-incus", "my vm", "bare-incus", "bad\n\u{1b}[31m"];
    let listed = discover(&world, &names).ok();
    assert_eq!(listed.lines().count(), 5, "{listed}");
    for part in [
        "kernel CID 41177",
        "paused",
        "no vsock device",
        "bad\\n\\u{1b}[31m",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    // One that cannot be reached is not added, and the others are.
    let done = discover(&world, &[&["--add"], &names[..3]].concat());
    assert!(
        done.stderr
            .contains("cannot add `bare-incus`: it has no vsock device"),
        "{done:?}"
    );
    assert!(
        done.stderr.contains("error: not added: bare-incus"),
        "{done:?}"
    );
    assert_eq!(done.code, Some(1));
    let shown = world.json(["vm", "show", "web-incus", "--json"]);
    assert_eq!(shown["cid"], 41177);
    let manager = json!({ "manager": "incus", "vm": "web-incus" });
    assert_eq!(
        shown["link"],
        json!({ "kind": "kernel", "manager": manager })
    );
    assert_eq!(world.json(["vm", "show", "my-vm", "--json"])["cid"], 41178);
    // It is a partition now.
    let again = discover(&world, &["--add", "web-incus", "--json"]).ok();
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["machines"][0]["partition"], "web-incus");
    let unknown = discover(&world, &["--add", "no-such-vm"]).failed();
    assert!(unknown.contains("no virtual machine with the name \"no-such-vm\""));
}

#[test]
fn a_vmm_of_this_user_is_found_with_its_socket_and_one_of_the_broker_with_its_partition() {
    let world = World::new();
    let path = world.dir().join("fc.sock");
    let config = world.dir().join("config");
    let vsock = json!({ "vsock": { "guest_cid": 3, "uds_path": path } });
    std::fs::write(&config, vsock.to_string()).unwrap();
    let config = config.to_str().unwrap();
    let name = format!("fc-{}", std::process::id());
    let arguments = ["--no-api", "--config-file", config, "--id", &name];
    let _firecracker = Vmm::new("firecracker", &arguments, None);
    let listed = discover(&world, &[&name]).ok();
    assert!(listed.contains("Firecracker socket "), "{listed}");
    let machine: Value = serde_json::from_str(&discover(&world, &["--json", &name]).ok()).unwrap();
    let way = json!({ "link": "hybrid", "path": path, "style": "firecracker" });
    assert_eq!(machine["machines"][0]["reach"], json!([way]));
    discover(&world, &["--add", &name]).ok();
    let link = &world.json(["vm", "show", &name, "--json"])["link"];
    assert_eq!(
        (&link["kind"], &link["path"]),
        (&json!("hybrid"), &json!(path))
    );

    let options = world.json(["vm", "add", "web", "--json"])["qemu"].clone();
    let options: Vec<String> = serde_json::from_value(options).unwrap();
    let mut arguments: Vec<&str> = options.iter().map(String::as_str).collect();
    let guest = format!("guest-{}", std::process::id());
    arguments.extend(["-name", &guest]);
    let _qemu = Vmm::new("qemu-system-x86_64", &arguments, None);
    let found = discover(&world, &["--json", &guest]).ok();
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["machines"][0]["partition"], "web", "{found}");
}

#[test]
fn what_a_process_of_another_user_claims_is_not_added_with_the_others() {
    let Some(()) = require::root() else { return };
    let world = World::new();
    let name = format!("claims-{}", std::process::id());
    let arguments = ["-name", &name, "-device", "vhost-vsock-pci,guest-cid=41190"];
    let _other = Vmm::new("qemu-system-x86_64", &arguments, Some(65534));
    let done = discover(&world, &["--add", "--json"]);
    let note = format!("`{name}` is what a process of the user 65534 claims");
    assert!(done.stderr.contains(&note), "{done:?}");
    world.run(["vm", "show", &name]).failed();
    discover(&world, &["--add", &name]).ok();
    assert_eq!(world.json(["vm", "show", &name, "--json"])["cid"], 41190);
}

#[test]
fn a_name_that_another_user_claims_first_still_means_the_vm_of_this_user() {
    let Some(()) = require::root() else { return };
    let world = World::new();
    let name = format!("twin-{}", std::process::id());
    let device = |cid: u32| format!("vhost-vsock-pci,guest-cid={cid}");
    let (claimed, real) = (device(41191), device(41192));
    let arguments = ["-name", &name, "-device", &claimed];
    let _claims = Vmm::new("qemu-system-x86_64", &arguments, Some(65534));
    let arguments = ["-name", &name, "-device", &real];
    let _real = Vmm::new("qemu-system-x86_64", &arguments, None);
    let done = discover(&world, &["--add", &name]);
    assert!(
        done.stderr.contains("a process of the user 65534"),
        "{done:?}"
    );
    done.ok();
    assert_eq!(world.json(["vm", "show", &name, "--json"])["cid"], 41192);
}

#[test]
fn the_list_needs_no_broker_and_a_silent_manager_is_a_note() {
    let mut world = World::new();
    let path = world.dir().join("incus");
    let _silent = UnixListener::bind(path).unwrap();
    world.broker().kill();
    let done = discover(&world, &[]);
    assert!(
        done.stderr.contains("cannot ask Incus: no answer"),
        "{done:?}"
    );
    assert!(done.stderr.contains("what is added is unknown"), "{done:?}");
    assert!(done.stderr.contains("systemctl status incus"), "{done:?}");
    done.ok();
}
