//! `hvsock why`, and what commands say where there are no Hyper-V sockets.

use std::process::Command;

use hvsock_testkit::process;
use serde_json::json;

use crate::util::{Done, PATIENCE, World, hvsock, run};

fn why(arguments: &[&str]) -> Done {
    run(["why"].iter().chain(arguments))
}

/// What it says, which is that nothing is or that something stands against it.
fn verdict(done: &Done) -> &str {
    done.stdout.lines().next().unwrap()
}

#[test]
fn why_names_what_is_not_registered_and_how_to_register_it() {
    let world = World::new();
    let name = world.name("HV Socket Demo");
    for target in ["parent", "loopback"] {
        let done = why(&[target, &name]);
        assert_eq!((done.code, done.stderr.as_str()), (Some(1), ""));
        assert!(verdict(&done).contains("not registered"), "{}", done.stdout);
        let help = format!("hvsock service register \"{name}\"");
        assert!(done.stdout.contains(&help), "{}", done.stdout);
    }
    let json = why(&["parent", &name, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["refusal"]["reason"], json!("unregistered"));
}

#[test]
fn why_tells_a_service_that_is_disabled_from_one_that_is_not_there() {
    let world = World::new();
    let name = world.name("backup");
    world.register(&name);
    world.ok(["service", "disable", &name]);
    let done = why(&["any", &name, "--listen"]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("disabled"), "{}", done.stdout);
    assert!(done.stdout.contains("service enable"), "{}", done.stdout);
}

#[test]
fn loopback_needs_no_registration() {
    let done = why(&["loopback", "0b2f1f0e-0000-4000-8000-000000000001"]);
    // Who listens, nobody is told.
    assert!(!done.stdout.contains("would succeed"), "{}", done.stdout);
    let said = "no: both ends are in one partition";
    assert!(done.stdout.contains(said), "{}", done.stdout);
    // Nothing else stands against it, but for a machine that has no such sockets at all.
    if without_sockets() {
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(
            done.stdout.contains("Enable-WindowsOptionalFeature"),
            "{}",
            done.stdout
        );
    } else {
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

/// Whether this machine has no Hyper-V sockets, as Wine has none.
fn without_sockets() -> bool {
    let error = hvsock_sys::hyperv::socket().err();
    if error.is_none() {
        eprintln!("skipped: this machine has Hyper-V sockets");
    }
    error.is_some()
}

#[test]
fn without_hyper_v_sockets_a_command_says_what_to_enable() {
    if !without_sockets() {
        return;
    }
    let world = World::new();
    let name = world.name("backup");
    world.register(&name);
    let service = "0b2f1f0e-0000-4000-8000-000000000001";
    for arguments in [
        &["connect", "loopback", service][..],
        &["connect", "loopback", &name],
        &["listen", &name, "--from", "loopback"],
        &[
            "listen", service, "--from", "loopback", "--", "cmd", "/c", "rem",
        ],
    ] {
        let error = run(arguments).failed();
        for part in ["AF_HYPERV", "Enable-WindowsOptionalFeature"] {
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}

#[test]
fn a_name_that_nobody_registered_is_told_before_anything_else() {
    let world = World::new();
    let name = world.name("nobody");
    for arguments in [&["connect", "loopback", &name][..], &["listen", &name]] {
        let error = run(arguments).failed();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 2, "{error}");
        assert!(
            lines[0].starts_with("error: ") && lines[0].contains(&name),
            "{error}"
        );
        let help = format!("help: hvsock service register \"{name}\"");
        assert_eq!(lines[1], help, "{error}");
    }
}

#[test]
fn a_broker_that_the_environment_names_is_not_taken_for_windows() {
    let mut command = hvsock();
    let command: &mut Command = command.args(["connect", "loopback", "2761"]);
    let output = process::output(command.env("HVSOCK_DIR", r"C:\x"), b"", PATIENCE);
    let error = Done::from(output.unwrap()).failed();
    assert!(error.contains("the system itself is the broker"), "{error}");
}
