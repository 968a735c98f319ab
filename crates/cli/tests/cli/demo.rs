//! `hvsock demo`.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::guests::{kit, qemu};
use crate::util::{Completed, Running, eventually, folder, hvsock};

#[test]
fn the_demo_shows_every_step_and_removes_its_files() {
    let folder = folder();
    let mut command = hvsock();
    let began = Instant::now();
    let done = Completed::of(command.arg("demo").env("TMPDIR", folder.path()));
    let took = began.elapsed();
    assert_eq!(done.stderr, "");
    let text = done.ok();
    for part in [
        "HV Socket Demo",
        "in a partition of its own",
        "connects to PARENT",
        "then end of file",
        "the service is not registered",
        "Connection refused",
        "hvsock service disable",
        "Connection reset by peer",
        "disabled",
        "HVSOCKET_CONNECTED_SUSPEND",
        "hvsock container pause guest",
        "hvsock container resume guest",
        "nothing is lost",
        "throughput",
        "round trip",
        "connect, accept, close",
        "CONNECTIONS",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains('\x1b'), "colour without a terminal");
    println!("took {took:?}");
    // Far more than its goal of 10 s in release mode, which a busy machine cannot keep.
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_with_a_guest_in_user_mode_linux_shows_every_step_and_removes_its_files() {
    if kit().is_some() {
        demo_with_a_guest(&["demo", "--vm"], "boots Linux as a program");
    }
}

#[test]
fn the_demo_with_a_guest_under_qemu_shows_every_step_and_removes_its_files() {
    if qemu().is_some() {
        demo_with_a_guest(
            &["demo", "--vm", "--vmm", "qemu"],
            "boots Linux with emulation",
        );
    }
}

fn demo_with_a_guest(arguments: &[&str], boots: &str) {
    let folder = folder();
    let mut command = hvsock();
    let began = Instant::now();
    let done = Completed::of(command.args(arguments).env("TMPDIR", folder.path()));
    let took = began.elapsed();
    assert_eq!(done.stderr, "");
    let text = done.ok();
    for part in [
        boots,
        "connects to PARENT",
        "from `web`, then end of file",
        "receives the echo, then end of file",
        "Connection refused",
        "the service is not registered",
        "sees its connection end",
        "disabled",
        "closed: the partition is paused",
        "nothing is lost",
        "CONNECTIONS",
        "load average",
        "checksum verified: 4194304",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_without_a_vmm_names_the_packages_of_both() {
    let demo = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = hvsock();
        for variable in ["HVSOCK_GUEST_UML", "HVSOCK_GUEST_QEMU"] {
            command.env_remove(variable);
        }
        command.args(["demo", "--vm"]).args(arguments);
        let done = Completed::of(command.envs(variables.iter().copied()));
        assert_ne!(done.code, Some(0), "{done:?}");
        done.stderr
    };
    let error = demo(&[], &[("HVSOCK_GUEST_UML", "/no/such/uml")]);
    assert!(
        error.contains("HVSOCK_GUEST_UML is not a file: /no/such/uml"),
        "{error}"
    );
    let qemu = [("HVSOCK_GUEST_QEMU", "/no/such/qemu")];
    let error = demo(&["--vmm", "qemu"], &qemu);
    assert!(
        error.contains("HVSOCK_GUEST_QEMU is not a file: /no/such/qemu"),
        "{error}"
    );
    let error = demo(&["--vmm", "firecracker"], &[]);
    assert!(error.contains("possible values: uml, qemu"), "{error}");
}

#[test]
fn ctrl_c_in_the_demo_removes_its_files() {
    let folder = folder();
    let mut command = hvsock();
    command
        .arg("demo")
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped());
    let mut demo = Running::start(&mut command);
    while !demo.line().contains("A service") {}
    demo.signal(Signal::INT);
    demo.end();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn ctrl_c_while_the_demos_guest_boots_ends_qemu_and_removes_its_files() {
    if qemu().is_some() {
        interrupted("qemu", "qemu-system");
    }
}

#[test]
fn ctrl_c_while_the_demos_guest_boots_ends_user_mode_linux_and_removes_its_files() {
    if kit().is_some() {
        interrupted("uml", "linux.uml");
    }
}

fn interrupted(vmm: &str, program: &str) {
    let folder = folder();
    let mut command = hvsock();
    command
        .args(["demo", "--vm", "--vmm", vmm])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped());
    let mut demo = Running::start(&mut command);
    while !demo.line().contains("boots Linux") {}
    let path = folder.path().to_string_lossy().into_owned();
    eventually("the VMM runs", || runs_in(&path, program));
    // Signals this process only, as `kill` does. Ctrl-C in a terminal would also reach the VMM.
    demo.signal(Signal::INT);
    assert_eq!(demo.end().code(), Some(130));
    assert!(!runs_in(&path, program));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_demo_that_is_killed_takes_its_processes_along() {
    let folder = folder();
    let mut command = hvsock();
    command
        .arg("demo")
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped());
    let mut demo = Running::start(&mut command);
    while !demo.line().contains("A service") {}
    let path = folder.path().to_string_lossy().into_owned();
    assert!(runs_in(&path, "hvsock"));
    demo.kill();
    eventually("its processes end", || !runs_in(&path, "hvsock"));
}

/// Whether a process of this program with files in this folder exists.
fn runs_in(folder: &str, program: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line);
            line.contains(program) && line.contains(folder)
        })
    })
}
