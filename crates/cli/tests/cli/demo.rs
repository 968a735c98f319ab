//! `hvsock demo`.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hvsock_qemu::Kit;
use hvsock_testkit::require;
use rustix::process::Signal;

use crate::util::{Done, Running, eventually, folder, hvsock};

#[test]
fn the_demo_tells_the_whole_story_and_leaves_nothing_behind() {
    let folder = folder();
    let mut command = hvsock();
    let began = Instant::now();
    let done = Done::of(command.arg("demo").env("TMPDIR", folder.path()));
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
    assert!(!text.contains('\x1b'), "no colour but on a terminal");
    // The promise is for a build with optimisation on a machine that does nothing else.
    let promised = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 10 });
    assert!(took < promised, "{took:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_tells_its_story_with_a_real_machine_and_leaves_nothing_behind() {
    if require::found(Kit::find()).is_none() {
        return;
    }
    let folder = folder();
    let mut command = hvsock();
    let began = Instant::now();
    let done = Done::of(command.args(["demo", "--vm"]).env("TMPDIR", folder.path()));
    let took = began.elapsed();
    assert_eq!(done.stderr, "");
    let text = done.ok();
    for part in [
        "Linux",
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
fn the_demo_without_what_a_machine_is_made_of_says_what_to_install() {
    let mut command = hvsock();
    command
        .args(["demo", "--vm"])
        .env("HVSOCK_GUEST_QEMU", "/no/such/qemu");
    let said = Done::of(&mut command).failed();
    assert!(said.contains("names no file: /no/such/qemu"), "{said}");
    let mut command = hvsock();
    command
        .args(["demo", "--vm"])
        .env_remove("HVSOCK_GUEST_QEMU")
        .env("PATH", "/nonexistent")
        .env("HVSOCK_GUEST_KERNEL", "/no/such/kernel");
    // Where nothing is installed it names the packages; where all is, the wrong kernel.
    let said = Done::of(&mut command).failed();
    assert!(
        said.contains("apt-get install") || said.contains("HVSOCK_GUEST_KERNEL"),
        "{said}"
    );
}

#[test]
fn ctrl_c_in_the_demo_leaves_nothing_behind_either() {
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
fn ctrl_c_while_a_real_machine_starts_leaves_nothing_behind_either() {
    if require::found(Kit::find()).is_none() {
        return;
    }
    let folder = folder();
    let mut command = hvsock();
    command
        .args(["demo", "--vm"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped());
    let mut demo = Running::start(&mut command);
    while !demo.line().contains("boots Linux") {}
    let place = folder.path().to_string_lossy().into_owned();
    eventually("QEMU runs", || runs(&place));
    // Only this process, as `kill` does; Ctrl-C reaches QEMU, too.
    demo.signal(Signal::INT);
    demo.end();
    eventually("QEMU is gone", || !runs(&place));
    eventually("its files are gone", || {
        fs::read_dir(folder.path()).unwrap().count() == 0
    });
}

/// Whether a QEMU with files in this folder runs.
fn runs(folder: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line);
            line.contains("qemu-system") && line.contains(folder)
        })
    })
}
