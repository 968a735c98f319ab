//! The options that `hvsock vm add` and `hvsock vm show` print for each VMM.

use std::process::{Command, Stdio};

use hvsock_testkit::require;
use serde_json::json;

use crate::util::{Completed, Running, World, folder, hvsock};

const QUEUES: &str = "queue_sizes=[128,128,128]";

#[test]
fn add_prints_the_options_that_qemu_needs() {
    let world = World::new();
    let done = world.run(["vm", "add", "web", "--cid", "42", "--group", "front"]);
    assert!(
        done.stderr.contains("`web` is a partition with the CID 42"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("in place of SIZE"), "{}", done.stderr);
    let text = done.ok();
    let socket = world.dir().join("vm/web.sock");
    let socket = socket.to_str().unwrap();
    assert_eq!(
        text,
        format!(
            "-object memory-backend-memfd,id=hvsock-mem,size=SIZE,share=on \
             -machine memory-backend=hvsock-mem\n\
             -device pcie-root-port,id=hvsock-port-web,chassis=240 \
             -chardev socket,id=hvsock-web,path={socket} \
             -device vhost-user-vsock-pci,id=hvsock-device,bus=hvsock-port-web,chardev=hvsock-web\n"
        )
    );
    assert_eq!(world.ok(["vm", "show", "web", "--vmm", "qemu"]), text);
    let text = world.ok(["-q", "vm", "add", "db", "--memory", "2G"]);
    assert!(text.starts_with("-m 2G -object memory-backend-memfd,id=hvsock-mem,size=2G,"));
    assert_eq!(world.ok(["vm", "show", "db", "--memory", "2G"]), text);
    let shown = world.json(["vm", "show", "web", "--json"]);
    assert_eq!(shown["socket"], json!(socket));
    assert_eq!(
        (&shown["cid"], &shown["groups"]),
        (&json!(42), &json!(["front"]))
    );
    assert_eq!(shown["qemu"].as_array().unwrap().len(), 10);
}

#[test]
fn each_vmm_gets_the_options_that_it_takes() {
    let world = World::new();
    let names = [
        "libvirt",
        "cloud-hypervisor",
        "crosvm",
        "libkrun",
        "openvmm",
        "uml",
    ];
    world.ok(["vm", "add", "web", "--vmm", "uml"]);
    let socket = world.dir().join("vm/web.sock");
    let socket = socket.to_str().unwrap();
    let shown = world.json(["vm", "show", "web", "--json"]);
    for (name, parts) in names.into_iter().zip([
        vec![
            "<source type='memfd'/>".to_owned(),
            "<access mode='shared'/>".to_owned(),
            "<qemu:arg value='pcie-root-port,id=hvsock-port-web,chassis=240'/>".to_owned(),
            format!("<qemu:arg value='socket,id=hvsock-web,path={socket}'/>"),
        ],
        vec![
            "--memory size=SIZE,shared=on\n".to_owned(),
            format!("--generic-vhost-user 'socket={socket},device_type=19,{QUEUES}'\n"),
        ],
        vec![format!("--vhost-user vsock,socket={socket}\n")],
        vec![
            "krun_disable_implicit_vsock(ctx);\n".to_owned(),
            format!("krun_add_vhost_user_device(ctx, KRUN_VIRTIO_DEVICE_VSOCK, \"{socket}\", "),
        ],
        vec![format!("--vhost-user '{socket},device_id=19,{QUEUES}'\n")],
        vec![format!("virtio_uml.device={socket}:19\n")],
    ]) {
        let text = world.ok(["vm", "show", "web", "--vmm", name]);
        for part in parts {
            assert!(text.contains(&part), "{part}: {text}");
        }
        assert!(!shown[name.replace('-', "_")].is_null(), "{name}: {shown}");
    }
    let xml = shown["libvirt"].as_str().unwrap();
    assert_eq!(world.ok(["vm", "show", "web", "--libvirt"]), xml);
    let unknown = world.run(["vm", "show", "web", "--vmm", "bochs"]);
    assert!(unknown.usage_error().contains("cloud-hypervisor"));
}

#[test]
fn every_vmm_is_added_without_an_option_for_its_memory() {
    let world = World::new();
    for vmm in [
        "qemu",
        "libvirt",
        "crosvm",
        "cloud-hypervisor",
        "libkrun",
        "openvmm",
        "uml",
    ] {
        let done = world.run(["vm", "add", vmm, "--vmm", vmm]);
        assert!(!done.stderr.contains("unsealed"), "{done:?}");
        done.ok();
    }
}

/// A broker whose folder has a name that needs quotes everywhere.
fn special(log: impl Into<Stdio>) -> (tempfile::TempDir, String, Running) {
    let parent = folder();
    let dir = parent.path().join("a b,c's [d]");
    let dir = dir.to_str().unwrap().to_owned();
    let mut command = hvsock();
    command.args(["--dir", &dir, "broker", "--name", "machine"]);
    command.stdout(Stdio::piped()).stderr(log);
    let mut broker = Running::start(&mut command);
    assert!(broker.line().starts_with("hvsock broker ready"));
    (parent, dir, broker)
}

#[test]
fn a_vm_whose_vmm_cannot_take_the_path_is_not_added() {
    let (_parent, dir, _broker) = special(Stdio::inherit());
    let run = |arguments: &[&str]| {
        let mut command = hvsock();
        command.args(["--dir", &dir]).args(arguments);
        Completed::of(&mut command)
    };
    let error = run(&["vm", "add", "w", "--vmm", "openvmm"]).failed();
    assert!(error.contains("no escape for a comma"), "{error}");
    assert!(!error.contains("is left"), "{error}");
    assert_eq!(run(&["vm", "list", "--json"]).ok().trim(), "[]");
    run(&["vm", "add", "w", "--vmm", "qemu"]).ok();
}

#[test]
fn a_machine_type_that_cannot_have_the_device_adds_no_vm() {
    let world = World::new();
    for machine in ["isapc", "none", "raspi3b", "s390-ccw-virtio", "xenfv"] {
        let error = world.run(["vm", "add", "w", "--machine", machine]);
        assert!(error.usage_error().contains(machine), "{machine}");
    }
    assert_eq!(world.json(["vm", "list", "--json"]), serde_json::json!([]));
}

/// Boots no guest: QEMU connects the device to the broker and stops before the guest's first instruction.
#[test]
fn qemu_starts_with_the_printed_options_on_each_machine_type() {
    let Some(qemu) = require::program("qemu-system-x86_64", &["--version"]) else {
        return;
    };
    let (_parent, dir, _broker) = special(Stdio::inherit());
    Completed::of(hvsock().args(["--dir", &dir, "vm", "add", "web"])).ok();
    for machine in [
        None,
        Some("q35"),
        Some("pc"),
        Some("microvm"),
        Some("microvm,pcie=on"),
    ] {
        let mut show = hvsock();
        show.args(["-q", "--dir", &dir, "vm", "show", "web", "--memory", "64M"]);
        show.args(machine.map(|machine| format!("--machine={machine}")));
        let options = Completed::of(&mut show).ok();
        let script = format!(
            "exec {} -accel tcg -nodefaults -display none -S -qmp stdio {}",
            qemu.display(),
            options.replace('\n', " ")
        );
        let commands =
            br#"{"execute":"qmp_capabilities"}{"execute":"query-status"}{"execute":"quit"}"#;
        let done = Completed::with_input(Command::new("sh").args(["-c", &script]), commands);
        assert!(done.stdout.contains("prelaunch"), "{machine:?}: {done:?}");
        done.ok();
    }
}

/// Boots a kernel without a root filesystem, which connects its devices first.
#[test]
fn user_mode_linux_connects_with_the_printed_option() {
    let Some(linux) = require::program("linux.uml", &["--version"]) else {
        return;
    };
    let log = tempfile::NamedTempFile::new().unwrap();
    let (_parent, dir, _broker) = special(log.reopen().unwrap());
    let mut add = hvsock();
    add.args(["--dir", &dir, "-q", "vm", "add", "web"]);
    add.args(["--vmm", "uml", "--memory", "64M"]);
    let options = Completed::of(&mut add).ok();
    let script = format!(
        "exec {} con=null con0=null,fd:1 panic=1 {options}",
        linux.display()
    );
    let done = Completed::of(Command::new("sh").args(["-c", &script]));
    let seen = std::fs::read_to_string(log.path()).unwrap();
    assert!(seen.contains("VMM connected"), "{seen}{done:?}");
}
